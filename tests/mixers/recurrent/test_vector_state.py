"""Vector states against their definitions, and the channels with which they regress all the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_lab import mixers
from icl_lab.core.errors import InvalidValueError
from tests.mixers.sequences import K, draw, draw_prompt, error


def in_all_forms(mixer, *tokens, **gates):
    """Outputs and last state of each form."""
    run = lambda *tokens: [mixer.outputs_and_state(*tokens, form=form, chunk=5, **gates) for form in mixers.FORMS]  # noqa: E731
    return jax.jit(run)(*tokens)


@pytest.mark.parametrize("bound", [0.0, 0.8])
def test_hgrn_is_a_moving_average_that_the_query_gates(bound):
    mixer = mixers.named("hgrn", lower_bound=bound, scale=0.7)
    (queries, keys, values), _ = draw(mixer, 17)
    keys[4], keys[9] = 800.0, -800.0  # all is written, nothing is
    forget = bound + (1 - bound) / (1 + np.exp(np.clip(keys, -700, 700)))
    state, expected = np.zeros(K), []
    for t in range(17):
        state = forget[t] * state + (1 - forget[t]) * values[t]
        expected.append(0.7 * queries[t] * state)
    for outputs, last in in_all_forms(mixer, queries, keys, values):
        assert error(outputs, np.array(expected)) <= 1e-12
        assert error(last, state) <= 1e-12
    assert error(mixer.read(queries[-1], keys, values), expected[-1]) <= 1e-12
    # Weights of an average: with what is left of the start they sum to 1.
    sums = mixer.outputs(np.full_like(queries, 1 / 0.7), keys, np.ones_like(values))[-1]
    np.testing.assert_allclose(sums + np.prod(forget, axis=0), 1.0, rtol=1e-12)


def weighted_means(keys, values, decay, bonus):
    """The mean of each token and channel, from the definition with one decay a channel."""
    means = np.empty_like(values)
    for t in range(len(keys)):
        lags = t - 1 - np.arange(t)[:, None]
        logs = np.vstack([keys[:t] + lags * decay, keys[t] + bonus])
        weights = np.exp(logs - logs.max(axis=0))
        means[t] = np.sum(weights * values[: t + 1], axis=0) / np.sum(weights, axis=0)
    return means


@pytest.mark.parametrize("offset", [0.0, 2000.0, -2000.0])
def test_rwkv4_is_a_weighted_mean_of_each_channel_whatever_the_size_of_its_keys(offset):
    bonus, decay = np.linspace(-2.0, 2.0, K), -np.geomspace(0.01, 3.0, K)
    mixer = mixers.named("rwkv4", bonus=bonus)
    (queries, keys, values), _ = draw(mixer, 17, seed=1)
    keys = 30.0 * keys
    expected = weighted_means(keys, values, decay, bonus) / (1 + np.exp(-queries))
    for outputs, state in in_all_forms(mixer, queries, keys + offset, values, log_decay=decay):
        # The offset itself is rounded: 2000 has 1e-13 of it.
        assert error(outputs, expected) <= 1e-10
        assert np.all(np.isfinite(state.log_weight))
    assert error(mixer.read(queries[-1], keys + offset, values, log_decay=decay), expected[-1]) <= 1e-10


def test_without_its_gate_rwkv4_answers_every_query_alike_with_a_convex_mean():
    prompt = draw_prompt(2, count=20, width=K)
    mixer = mixers.named("rwkv4")
    answers = [
        np.asarray(mixer.read(query, prompt.inputs, prompt.labels, log_decay=-0.1)) * (1 + np.exp(-query))
        for query in (prompt.query, -3.0 * prompt.query)
    ]
    assert error(answers[0], answers[1]) <= 1e-12
    assert np.all((answers[0] > prompt.labels.min(axis=0)) & (answers[0] < prompt.labels.max(axis=0)))


def test_hgrn_with_two_channels_a_coordinate_is_linear_attention():
    count, kappa = 24, 0.1
    rng = np.random.default_rng(3)
    inputs, labels, query = rng.normal(size=(count, K)), rng.normal(size=(count, 1)), rng.normal(size=K)
    linear = mixers.named("linear", scale=1.0).read(query, inputs, labels)[0]
    channels = np.hstack([kappa * inputs, -kappa * inputs])
    values = np.repeat(labels, 2 * K, axis=1)
    distances = []
    for rate in (1e-5, 1e-6):
        # A lower bound of 1 - 2 rate writes rate (1 + x) at the logit of (1 + x) / 2.
        mixer = mixers.named("hgrn", lower_bound=1 - 2 * rate)
        readers = np.concatenate([query, -query]) / (2 * rate * kappa)
        answer = jnp.sum(mixer.read(readers, np.log1p(channels) - np.log1p(-channels), values))
        distances.append(abs(float(answer / linear) - 1))
    # What is forgotten of a pair is the rate for each later token.
    assert distances[0] <= 5e-4
    assert distances[1] == pytest.approx(distances[0] / 10, rel=0.05)


def four_groups(inputs, query, kappa):
    """Keys and queries of four channels a coordinate, one for each pair of signs, and the product of the signs."""
    signs = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
    keys = jnp.concatenate([a * kappa * inputs for a, _ in signs], axis=1)
    queries = jnp.concatenate([b * kappa * query for _, b in signs])
    return keys, queries, np.repeat([float(a * b) for a, b in signs], query.shape[0])


def regression(inputs, labels, query, kappa):
    """What the four groups make of a prompt with one label, in units of a gradient step on the centred pairs."""
    keys, queries, signs = four_groups(inputs, query, kappa)
    values = jnp.broadcast_to(labels[:, None], keys.shape)
    outputs = mixers.named("rwkv4").read(queries, keys, values, log_decay=0.0)
    return jnp.sum(signs * outputs) * labels.shape[0] / kappa**2


def test_rwkv4_with_four_channels_a_coordinate_is_a_gradient_step_on_centred_pairs():
    rng = np.random.default_rng(4)
    inputs, labels, query = rng.normal(size=(24, K)), rng.normal(size=24), rng.normal(size=K)
    step = query @ (inputs - inputs.mean(axis=0)).T @ labels
    distances = [abs(float(regression(inputs, labels, query, kappa)) / step - 1) for kappa in (0.1, 0.01)]
    assert distances[1] <= 1e-3
    assert distances[1] == pytest.approx(distances[0] / 100, rel=0.1)


def test_its_risk_is_that_of_the_centred_gradient_step():
    count, length, dim, noise = 4000, 24, 8, 0.25
    rng = np.random.default_rng(5)
    inputs, tasks = rng.normal(size=(count, length, dim)), rng.normal(size=(count, dim))
    labels = np.einsum("bnd,bd->bn", inputs, tasks) + np.sqrt(noise) * rng.normal(size=(count, length))
    queries = rng.normal(size=(count, dim))
    targets = np.einsum("bd,bd->b", tasks, queries)
    answers = np.asarray(jax.jit(jax.vmap(lambda x, y, q: regression(x, y, q, 0.1)))(inputs, labels, queries))
    errors = (np.mean(answers * targets) / np.mean(answers**2) * answers - targets) ** 2
    # Centred, n pairs are n - 1: d (d + 1 + s2) / (n + d + s2).
    expected = dim * (dim + 1 + noise) / (length + dim + noise)
    assert abs(errors.mean() - expected) <= 4 * errors.std() / np.sqrt(count)
    assert errors.mean() < 0.4 * np.mean(targets**2)


def test_widths_bounds_and_bonuses_that_do_not_fit_are_refused():
    prompt = draw_prompt(6)
    for name, gates in (("hgrn", {}), ("rwkv4", {"log_decay": -0.1})):
        words = rf"Keys and values of {name} must be equally wide.*got keys \(7, 6\), values \(7, 3\)"
        with pytest.raises(InvalidValueError, match=words):
            mixers.predictor(name, **gates)(prompt)
    for bound in (-0.1, 1.0, np.nan):
        with pytest.raises(InvalidValueError, match="`lower_bound` must be >= 0 and < 1"):
            mixers.named("hgrn", lower_bound=bound)
    with pytest.raises(InvalidValueError, match="`bonus` must be finite"):
        mixers.named("rwkv4", bonus=np.inf)
    square = draw_prompt(7, width=K)
    with pytest.raises(InvalidValueError, match=r"`bonus` must be one number or one a key channel, \(6,\)"):
        mixers.predictor("rwkv4", log_decay=-0.1, bonus=np.ones(2))(square)
