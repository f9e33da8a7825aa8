"""States that are carried along: products of the steps of a delta rule, and states before the first token."""

import functools

import jax
import numpy as np
import pytest

from icl_lab import mixers
from icl_lab.core.errors import InvalidValueError
from icl_lab.mixers.recurrent import descent
from icl_lab.tasks.prompt import Prompt
from tests.mixers.sequences import K, V, draw, draw_prompt, error
from tests.mixers.test_common import runs

REFLECTING = mixers.named("deltanet", scale=1.0, negative_eigenvalues=True, normalised_step=True)
"""At strength 2 a key is a reflection: what the state says along it changes its sign. Whole numbers stay whole."""


def each_form(mixer, *tokens, **arguments):
    """Outputs and last state of every form."""
    return [mixer.outputs_and_state(*tokens, **form, **arguments) for form in runs(mixer, (8,))]


def test_a_write_strength_of_two_counts_the_parity_of_50_bits():
    bits = np.random.default_rng(0).integers(0, 2, 50)
    ones = np.ones((50, 1))
    expected = (-1.0) ** np.cumsum(bits)[:, None]
    assert set(expected.flat) == {-1.0, 1.0}
    for outputs, state in each_form(REFLECTING, ones, ones, 0 * ones, write_strength=2.0 * bits, initial=ones[:1]):
        np.testing.assert_array_equal(outputs, expected)
        np.testing.assert_array_equal(state, expected[-1:])


def test_write_strengths_up_to_one_never_change_the_sign_so_they_know_nothing_of_parity():
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2, (400, 50))
    parity = (-1.0) ** bits.sum(axis=1)
    ones = np.ones((50, 1))

    def last(strengths):
        return mixers.named("deltanet", scale=1.0).outputs(ones, ones, 0 * ones, write_strength=strengths, initial=ones[:1])[
            -1, 0
        ]

    for off, on in ((0.0, 1.0), (0.0, 0.02), (0.3, 0.0)):
        states = np.asarray(jax.vmap(last)(np.where(bits, on, off)))
        assert np.all(states >= 0.0)
        # A state that falls with the number of ones: no threshold, and no line, predicts their parity.
        assert abs(np.corrcoef(states, parity)[0, 1]) < 4 / np.sqrt(400) if np.ptp(states) else True


def swaps(rng, count):
    """Pairs of different places out of five, and for each the key that swaps them."""
    pairs = np.array([rng.choice(5, 2, replace=False) for _ in range(count)])
    return pairs, np.eye(5)[pairs[:, 0]] - np.eye(5)[pairs[:, 1]]


def test_a_reflection_a_token_swaps_two_of_five_and_40_of_them_are_any_permutation():
    pairs, keys = swaps(np.random.default_rng(2), 40)
    order = np.arange(5.0)
    orders = []
    for i, j in pairs:
        order[[i, j]] = order[[j, i]]
        orders.append(order[2])
    third = np.broadcast_to(np.eye(5)[2], (40, 5))
    start = np.arange(5.0)[:, None]
    for outputs, state in each_form(REFLECTING, third, keys, np.zeros((40, 1)), write_strength=2.0, initial=start):
        assert error(outputs[:, 0], np.array(orders)) <= 1e-10
        assert error(state[:, 0], order) <= 1e-10
    # Token by token in whole numbers, without any rounding.
    outputs = REFLECTING.outputs(third, keys, np.zeros((40, 1)), write_strength=2.0, initial=start, form="recurrent")
    np.testing.assert_array_equal(outputs[:, 0], orders)


def test_four_reflections_a_token_are_any_permutation_of_five_a_token():
    rng = np.random.default_rng(3)
    permutations = [rng.permutation(5) for _ in range(10)]
    keys, strengths = [], []
    for permutation in permutations:
        target = list(permutation)
        steps = []
        # The swaps that sort the permutation, last one first, make it.
        for place in range(4):
            other = target.index(place, place)
            steps.append((place, other))
            target[place], target[other] = target[other], target[place]
        for i, j in steps[::-1]:
            keys.append(np.eye(5)[i] - np.eye(5)[j] if i != j else np.eye(5)[i])
            strengths.append(2.0 if i != j else 0.0)
    composed = functools.reduce(lambda order, permutation: order[permutation], permutations, np.arange(5))
    queries = np.broadcast_to(np.eye(5)[0], (10, 5))
    for outputs, state in each_form(
        REFLECTING, queries, np.array(keys), np.zeros((40, 5)), write_strength=np.array(strengths), initial=np.eye(5)
    ):
        assert outputs.shape == (10, 5)
        assert error(state, np.eye(5)[composed]) <= 1e-10
        assert error(outputs[-1], np.eye(5)[composed[0]]) <= 1e-10


def test_a_query_for_every_n_pairs_needs_whole_multiples():
    tokens, gates = draw(REFLECTING, 7)
    with pytest.raises(InvalidValueError, match="as many queries as keys, or n keys for each query; got 3 and 7"):
        REFLECTING.outputs(tokens[0][:3], *tokens[1:], **gates)


def test_linear_attention_from_a_state_is_no_gradient_step_from_it_and_the_delta_rule_is_one():
    prompt = draw_prompt(4)
    start = np.random.default_rng(5).normal(size=(K, V))
    inputs, labels, query = prompt.inputs, prompt.labels, prompt.query
    step = start + 0.3 * inputs.T @ (labels - inputs @ start)
    answer = mixers.predictor("linear", initial=start)(prompt) * np.sqrt(K)
    scaled = mixers.predictor("linear", scale=0.3, initial=start / 0.3)(prompt)
    assert error(answer, query @ (start + inputs.T @ labels)) <= 1e-12
    assert error(scaled - query @ step, 0.3 * query @ inputs.T @ inputs @ start) <= 1e-12
    # What a state does not say yet of the labels is learned from zero.
    rest = Prompt(inputs, labels - inputs @ start, query, prompt.target)
    for name, gates in (("deltanet", {}), ("momentum_delta", {"log_momentum": -0.5}), ("ttt", {"batch": 3})):
        parameters = {"scale": 1.0, "write_strength": 0.4} | gates
        before = {
            "deltanet": start,
            "momentum_delta": descent.Moving(start, 0 * start),
            "ttt": descent.Batched(start, start, np.zeros(())),
        }[name]
        learned = mixers.predictor(name, **parameters)(rest)
        assert error(mixers.predictor(name, initial=before, **parameters)(prompt), query @ start + learned) <= 1e-12


@pytest.mark.parametrize("name", ["linear", "gla", "deltanet", "kda", "momentum_delta", "ttt", "rwkv6", "dplr", "softmax"])
def test_a_soft_prefix_is_an_initial_state(name):
    mixer = mixers.named(name)
    (_, keys, values), gates = draw(mixer, 12, seed=6)
    prompt = draw_prompt(7)
    before, own = ({gate: x[part] for gate, x in gates.items()} for part in (slice(5), slice(5, None)))
    _, state = mixer.outputs_and_state(keys[:5], keys[:5], values[:5], **before)
    if name == "linear":
        assert error(state, keys[:5].T @ values[:5]) <= 1e-13
        assert np.linalg.matrix_rank(state) == min(5, V)
    longer = Prompt(np.vstack([keys[:5], prompt.inputs]), np.vstack([values[:5], prompt.labels]), prompt.query, prompt.target)
    assert error(mixers.Predictor(mixer, own, state)(prompt), mixers.Predictor(mixer, gates)(longer)) <= 1e-12


def test_an_initial_state_is_trained_as_any_parameter():
    prompt = draw_prompt(8)

    def answer(start):
        return mixers.predictor("linear", scale=1.0, initial=start)(prompt)[0]

    np.testing.assert_allclose(jax.grad(answer)(np.zeros((K, V))), np.outer(prompt.query, np.eye(V)[0]), rtol=1e-12)
