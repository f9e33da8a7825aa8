"""Constructed weights against the estimators they implement, written out in numpy and from `icl_lab.estimators`."""

import itertools

import jax
import numpy as np
import pytest

from icl_lab import estimators
from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.models import LinearSelfAttention, SeparateWeights, constructions
from icl_lab.tasks.prompt import Prompt
from tests.models.attention_reference import merged_tokens, random_prompt

N, DIM, LABELS = 7, 3, 2
W0 = np.array([[0.4, -0.2, 0.9], [-0.5, 0.3, 0.1]])
P = np.array([[0.5, 0.2, -0.1], [0.0, 0.3, 0.4], [-0.2, 0.1, 0.6]])
NORMALISERS = ["context_length", "none"]
# Rounding of a few layers of products of numbers of order one.
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def von_oswald(normaliser="context_length", **changes):
    return LinearSelfAttention(
        **{"query_in_sum": False, "normaliser": normaliser, "readout_sign": -1.0, "embedding": "merged", **changes}
    )


def steps_by_hand(prompt, matrices, start):
    """W after steps W - (1/N) sum_i (W x_i - y_i) x_i^* P^T, one loop an example."""
    w = np.array(start)
    for matrix in matrices:
        gradient = sum(np.outer(w @ x - y, np.conj(x)) for x, y in zip(prompt.inputs, prompt.labels, strict=True)) / len(
            prompt.inputs
        )
        w = w - gradient @ matrix.T
    return w


def gd_plus_plus_by_hand(prompt, sizes, gammas, start):
    """Tokens after GD++, the query's label starting at -W_0 x_q; a layer reads the values before it only."""
    x = np.vstack([prompt.inputs, prompt.query[None]])
    y = np.vstack([prompt.labels, -(start @ prompt.query)[None]])
    for eta, gamma in zip(sizes, gammas, strict=True):
        context = range(len(x) - 1)
        delta = -eta / (len(x) - 1) * sum(np.outer(start @ x[i] - y[i], x[i]) for i in context)
        gram = sum(np.outer(x[i], x[i]) for i in context)
        x, y = x - gamma * x @ gram.T, y - x @ delta.T
    return np.hstack([x, y])


@pytest.mark.parametrize("normaliser", NORMALISERS)
@pytest.mark.parametrize("readout_sign", [1.0, -1.0])
@pytest.mark.parametrize("query_in_sum", [True, False])
def test_one_step_from_zero_in_every_convention(rng, normaliser, readout_sign, query_in_sum):
    prompt = random_prompt(rng, N, DIM, LABELS)
    model = von_oswald(normaliser, readout_sign=readout_sign, query_in_sum=query_in_sum)
    expected = steps_by_hand(prompt, [0.6 * np.eye(DIM)], np.zeros((LABELS, DIM))) @ prompt.query
    for separate in (False, True):
        weights = constructions.gradient_descent(model, DIM, N, 0.6, label_dim=LABELS, separate=separate)
        np.testing.assert_allclose(model(weights, prompt), expected, **EXACT)
    np.testing.assert_allclose(estimators.gradient_descent(prompt, 0.6), expected, **EXACT)


@pytest.mark.parametrize(("readout_sign", "query_in_sum"), [(1.0, False), (1.0, True), (-1.0, False)])
def test_one_step_from_any_start(rng, readout_sign, query_in_sum):
    prompt = random_prompt(rng, N, DIM, LABELS)
    model = von_oswald(readout_sign=readout_sign, query_in_sum=query_in_sum)
    weights = constructions.gradient_descent(model, DIM, N, 0.6, initial=W0)
    expected = steps_by_hand(prompt, [0.6 * np.eye(DIM)], W0) @ prompt.query
    answer = model(weights, prompt, query_label=readout_sign * W0 @ prompt.query)
    np.testing.assert_allclose(answer, expected, **EXACT)
    np.testing.assert_allclose(estimators.gradient_descent(prompt, 0.6, initial=W0), expected, **EXACT)


@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_a_layer_replaces_every_label_by_its_residual(rng, normaliser):
    prompt, model = random_prompt(rng, N, DIM, LABELS), von_oswald(normaliser)
    weights = constructions.gradient_descent(model, DIM, N, 0.6, initial=W0)
    tokens = merged_tokens(prompt, -W0 @ prompt.query)
    delta = steps_by_hand(prompt, [0.6 * np.eye(DIM)], W0) - W0
    expected = tokens - np.hstack([np.zeros((N + 1, DIM)), tokens[:, :DIM] @ delta.T])
    np.testing.assert_allclose(model.apply(weights, tokens), expected, **EXACT)


def test_the_separate_form_has_von_oswalds_matrices():
    weights = constructions.gradient_descent(von_oswald(), DIM, N, 0.6, initial=W0, separate=True)
    selector = np.diag([1.0, 1, 1, 0, 0])
    np.testing.assert_array_equal(weights.w_k, selector)
    np.testing.assert_array_equal(weights.w_q, selector)
    np.testing.assert_allclose(weights.w_p, 0.6 * np.eye(5), rtol=1e-15)
    np.testing.assert_array_equal(weights.w_v, np.block([[np.zeros((3, 5))], [W0, -np.eye(2)]]))
    unnormalised = constructions.gradient_descent(von_oswald("none"), DIM, N, 0.6, initial=W0, separate=True)
    np.testing.assert_allclose(unnormalised.w_p, 0.6 / N * np.eye(5), rtol=1e-15)


@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_equal_steps_as_a_stack_or_as_a_loop(rng, normaliser):
    prompt, steps = random_prompt(rng, N, DIM, LABELS), 5
    expected = steps_by_hand(prompt, [0.6 * np.eye(DIM)] * steps, W0) @ prompt.query
    stack, loop = von_oswald(normaliser), von_oswald(normaliser, loops=steps)
    layers = constructions.gradient_descent(stack, DIM, N, 0.6, steps=steps, initial=W0)
    layer = constructions.gradient_descent(loop, DIM, N, 0.6, initial=W0)
    assert isinstance(layers, tuple)
    start = -W0 @ prompt.query
    np.testing.assert_allclose(stack(layers, prompt, start), expected, **EXACT)
    np.testing.assert_allclose(loop(layer, prompt, start), expected, **EXACT)
    np.testing.assert_allclose(estimators.gradient_descent(prompt, 0.6, steps, W0), expected, **EXACT)


def test_steps_of_different_sizes_keep_the_same_start_in_every_layer(rng):
    prompt, model, sizes = random_prompt(rng, N, DIM, LABELS), von_oswald(), np.array([0.3, 0.9, 0.5])
    layers = constructions.gradient_descent(model, DIM, N, sizes, initial=W0)
    expected = steps_by_hand(prompt, [eta * np.eye(DIM) for eta in sizes], W0) @ prompt.query
    np.testing.assert_allclose(model(layers, prompt, -W0 @ prompt.query), expected, **EXACT)
    np.testing.assert_allclose(estimators.gradient_descent(prompt, sizes, initial=W0), expected, **EXACT)


@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_preconditioned_steps_with_a_matrix_that_is_not_symmetric(rng, normaliser):
    prompt, model = random_prompt(rng, N, DIM, LABELS), von_oswald(normaliser)
    one = constructions.preconditioned_gradient_descent(model, N, P, initial=W0, separate=True)
    assert isinstance(one, SeparateWeights)
    start = -W0 @ prompt.query
    expected = steps_by_hand(prompt, [P], W0) @ prompt.query
    np.testing.assert_allclose(model(one, prompt, start), expected, **EXACT)
    matrices = np.stack([P, 0.5 * P.T, np.eye(DIM)])
    expected = steps_by_hand(prompt, matrices, W0) @ prompt.query
    several = constructions.preconditioned_gradient_descent(model, N, matrices, initial=W0)
    np.testing.assert_allclose(model(several, prompt, start), expected, **EXACT)
    estimate = estimators.preconditioned_gradient_descent(prompt, matrices, initial=W0)
    np.testing.assert_allclose(estimate, expected, **EXACT)


def test_the_preconditioner_acts_as_the_closed_forms_say(rng):
    """yhat = x_q^T P (1/N) sum_i y_i x_i."""
    prompt, model = random_prompt(rng, N, DIM, 1), LinearSelfAttention()
    weights = constructions.preconditioned_gradient_descent(model, N, P)
    expected = prompt.query @ P @ np.mean(prompt.labels * prompt.inputs, axis=0)
    np.testing.assert_allclose(model(weights, prompt)[0], expected, **EXACT)


@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_gd_plus_plus_moves_inputs_and_labels_at_once(rng, normaliser):
    prompt, model = random_prompt(rng, N, DIM, LABELS), von_oswald(normaliser)
    sizes, gammas = np.array([0.4, 0.7, 0.3]), np.array([0.02, 0.05, 0.01])
    expected = gd_plus_plus_by_hand(prompt, sizes, gammas, W0)
    start = -W0 @ prompt.query
    for separate in (False, True):
        layers = constructions.gd_plus_plus(model, DIM, N, sizes, gammas, initial=W0, separate=separate)
        np.testing.assert_allclose(model.apply(layers, merged_tokens(prompt, start)), expected, **EXACT)
        np.testing.assert_allclose(model(layers, prompt, start), -expected[-1, DIM:], **EXACT)
    estimate = estimators.gd_plus_plus(prompt, sizes, gammas, W0)
    np.testing.assert_allclose(estimate, -expected[-1, DIM:], **EXACT)


def test_gd_plus_plus_has_the_published_matrices():
    weights = constructions.gd_plus_plus(
        von_oswald("none"), DIM, N, np.array([0.6]), np.array([0.05]), initial=W0, separate=True
    )
    np.testing.assert_allclose(weights.w_p, np.diag([-0.05] * 3 + [0.6 / N] * 2), rtol=1e-15)
    np.testing.assert_array_equal(weights.w_v, np.block([[np.eye(3), np.zeros((3, 2))], [W0, -np.eye(2)]]))


def test_gd_plus_plus_is_a_polynomial_of_the_gram_matrix(rng):
    """Without a start the answer is w^T (I - rho_K(X^T X)) x_q, rho_K by the scalar recursion on each eigenvalue."""
    inputs, task = rng.normal(size=(N, DIM)), rng.normal(size=DIM)
    prompt = Prompt(inputs, (inputs @ task)[:, None], rng.normal(size=DIM), np.zeros(1))
    sizes, gammas = rng.uniform(0.2, 0.5, size=4), rng.uniform(0.01, 0.03, size=4)
    eigenvalues, vectors = np.linalg.eigh(inputs.T @ inputs)
    p, rho = np.ones(DIM), np.ones(DIM)
    for eta, gamma in zip(sizes, gammas, strict=True):
        p, rho = p * (1 - gamma * eigenvalues * p**2), rho * (1 - eta / N * eigenvalues * p**2)
    expected = task @ vectors @ np.diag(1 - rho) @ vectors.T @ prompt.query
    layers = constructions.gd_plus_plus(von_oswald(), DIM, N, sizes, gammas)
    np.testing.assert_allclose(von_oswald()(layers, prompt)[0], expected, **EXACT)


def test_the_answer_is_linear_in_the_query_with_the_step_as_its_jacobian(rng):
    prompt, model = random_prompt(rng, N, DIM, LABELS), von_oswald()
    layers = constructions.gradient_descent(model, DIM, N, 0.6, steps=3, initial=W0)

    def answer(query):
        return model(layers, Prompt(prompt.inputs, prompt.labels, query, prompt.target), -W0 @ query)

    expected = steps_by_hand(prompt, [0.6 * np.eye(DIM)] * 3, W0)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(answer))(prompt.query), expected, **EXACT)


def test_the_query_in_the_sum_adds_the_known_error(rng):
    """Label slot j gains (eta/N) (x_q . x_j) 2 W_0 x_q in layer one; without a start only later layers differ."""
    prompt = random_prompt(rng, N, DIM, LABELS)
    without, within = von_oswald(), von_oswald(query_in_sum=True)
    weights = constructions.gradient_descent(without, DIM, N, 0.6, initial=W0)
    tokens = merged_tokens(prompt, -W0 @ prompt.query)
    gain = np.asarray(within.apply(weights, tokens) - without.apply(weights, tokens))
    expected = 0.6 / N * np.outer(tokens[:, :DIM] @ prompt.query, 2 * W0 @ prompt.query)
    np.testing.assert_allclose(gain[:, DIM:], expected, **EXACT)
    np.testing.assert_array_equal(gain[:, :DIM], 0)
    plain = constructions.gradient_descent(without, DIM, N, 0.6, label_dim=LABELS)
    np.testing.assert_allclose(within(plain, prompt), without(plain, prompt), **EXACT)
    assert np.abs(within((plain,) * 3, prompt) - without((plain,) * 3, prompt)).max() > 1e-3


def test_hankel_tokens_take_a_step_on_the_lag_windows(rng):
    values = rng.normal(size=N + DIM)
    windows = np.stack([values[i : i + DIM] for i in range(N)])
    prompt = Prompt(windows, values[DIM:, None], values[-DIM:], np.zeros(1))
    model = LinearSelfAttention(embedding="hankel")
    weights = constructions.gradient_descent(model, DIM, N, 0.4)
    expected = steps_by_hand(prompt, [0.4 * np.eye(DIM)], np.zeros((1, DIM))) @ prompt.query
    np.testing.assert_allclose(model(weights, prompt), expected, **EXACT)


@pytest.mark.parametrize(("causal", "normaliser"), list(itertools.product([True, False], NORMALISERS)))
def test_paired_tokens_take_a_complex_step_on_the_sequence(rng, causal, normaliser):
    turn = np.exp(1j * rng.uniform(0, 2 * np.pi, size=DIM))
    states = rng.normal(size=DIM) * turn[None, :] ** np.arange(N + 1)[:, None]
    prompt = Prompt(states[:-1], states[1:], states[-1], turn * states[-1])
    model = LinearSelfAttention(causal=causal, normaliser=normaliser, embedding="paired")
    initial = rng.normal(size=(DIM, DIM)) + 1j * rng.normal(size=(DIM, DIM))
    weights = constructions.preconditioned_gradient_descent(model, N, P, initial=initial)
    expected = steps_by_hand(prompt, [P], initial) @ prompt.query
    np.testing.assert_allclose(model(weights, prompt, query_label=initial @ prompt.query), expected, **EXACT)


def test_a_causal_layer_takes_a_step_at_every_position(rng):
    """Position t sees t - 1 pairs and divides by t - 1: the step on the prefix, for all prefixes at once."""
    states = rng.normal(size=(N + 1, DIM)) + 1j * rng.normal(size=(N + 1, DIM))
    prompt = Prompt(states[:-1], states[1:], states[-1], states[-1])
    model = LinearSelfAttention(causal=True, embedding="paired")
    weights = constructions.gradient_descent(model, DIM, N, 0.3)
    answers = model.apply(weights, model.tokens(prompt))[:, model.label_slots(3 * DIM, DIM)]
    zero = np.zeros((DIM, DIM))
    np.testing.assert_allclose(answers[0], 0, atol=1e-15)
    for t in range(1, N + 1):
        prefix = Prompt(states[:t], states[1 : t + 1], states[t], states[t])
        expected = steps_by_hand(prefix, [0.3 * np.eye(DIM)], zero) @ states[t]
        np.testing.assert_allclose(answers[t], expected, **EXACT)


@pytest.mark.default_precision
def test_constructions_are_float64_numpy_outside_the_scope():
    weights = constructions.gradient_descent(von_oswald(), DIM, N, 0.1)
    assert isinstance(weights.w_kq, np.ndarray)
    assert weights.w_pv.dtype == weights.w_kq.dtype == np.float64
    assert weights.w_pv[-1, -1] == -0.1


@pytest.mark.parametrize(
    ("changes", "arguments", "error", "message"),
    [
        ({"query_in_sum": True}, {"steps": 2}, UnsupportedProblemError, "query_in_sum=True"),
        ({"causal": True}, {"steps": 2}, UnsupportedProblemError, "causal=True"),
        ({"readout_sign": 1.0}, {"steps": 2}, UnsupportedProblemError, "readout_sign=1.0"),
        ({"query_in_sum": True}, {"initial": W0}, UnsupportedProblemError, "2 W_0 x_q"),
        ({"embedding": "interleaved"}, {}, UnsupportedProblemError, "different tokens"),
        ({"embedding": "paired"}, {}, UnsupportedProblemError, "query_in_sum=True"),
        ({"embedding": "paired", "query_in_sum": True}, {"label_dim": 1}, InvalidValueError, "`label_dim`"),
        ({"loops": 3}, {"steps": 2}, InvalidValueError, "loops=3"),
        ({"loops": 2}, {"step_size": np.array([0.1, 0.2])}, InvalidValueError, "different"),
        ({}, {"steps": 0}, InvalidValueError, "`steps` must be an integer >= 1"),
        ({}, {"steps": 3, "step_size": np.array([0.1, 0.2])}, InvalidValueError, "`steps` is 3"),
        ({}, {"step_size": np.nan}, InvalidValueError, "`step_size` must be finite"),
        ({}, {"initial": W0.T}, InvalidValueError, r"\(3, 3\); got shape \(3, 2\)"),
        ({}, {"context_length": 0}, InvalidValueError, "`context_length` must be an integer >= 1"),
    ],
)
def test_what_the_architecture_cannot_do_is_refused(changes, arguments, error, message):
    call = {"dim": DIM, "context_length": N, "step_size": 0.1, **arguments}
    with pytest.raises(error, match=message):
        constructions.gradient_descent(von_oswald(**changes), **call)


def test_gd_plus_plus_refuses_what_it_cannot_do():
    with pytest.raises(UnsupportedProblemError, match="moves the inputs"):
        constructions.gd_plus_plus(LinearSelfAttention(), DIM, N, np.ones(1), np.ones(1))
    with pytest.raises(InvalidValueError, match="one entry for each layer"):
        constructions.gd_plus_plus(von_oswald(), DIM, N, np.ones(0), np.ones(0))
    with pytest.raises(InvalidValueError, match=r"finite, \(d, d\) or \(steps, d, d\)"):
        constructions.preconditioned_gradient_descent(von_oswald(), N, np.full((3, 3), np.nan))
