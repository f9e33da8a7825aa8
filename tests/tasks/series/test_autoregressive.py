import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import solve_discrete_lyapunov, toeplitz

from icl_lab.core.errors import InvalidValueError
from icl_lab.tasks import (
    Autoregressive,
    RandomAutoregressive,
    autocovariances,
    coefficients_from_partial,
    companion,
    partial_autocorrelations,
    series,
)

MODELS = {1: [0.9], 3: [0.4, -0.2, 0.3]}
NOISE = 0.7
PARTIALS = st.lists(st.floats(-0.95, 0.95), min_size=1, max_size=4)


@functools.cache
def batch(order, length=4, count=40_000):
    task = Autoregressive(MODELS[order], length, noise_std=NOISE)
    return jax.tree.map(np.asarray, task.sample_batch(jax.random.key(order), count))


def observed_and_target(prompts):
    return np.concatenate([prompts.inputs[:, 0], prompts.labels[:, :, 0], prompts.target], axis=1)


@pytest.mark.parametrize("order", MODELS)
def test_every_stretch_of_a_series_has_the_exact_stationary_covariance(order, agrees):
    # The covariance by the Lyapunov equation of the state, the samples from the Durbin-Levinson start: two routes.
    matrix = companion(MODELS[order])
    state = solve_discrete_lyapunov(matrix, NOISE**2 * np.outer(np.eye(order)[0], np.eye(order)[0]))
    gamma = [(np.linalg.matrix_power(matrix, k) @ state)[0, 0] for k in range(order + 5)]
    values = observed_and_target(batch(order))
    assert agrees(values, np.zeros(order + 5))
    assert agrees(values[:, :, None] * values[:, None, :], toeplitz(gamma))


def test_a_start_without_correlation_is_rejected(agrees):
    # Twin: a start from independent values of the right variance would fail the test above.
    values = observed_and_target(batch(3))[:, :3]
    wrong = np.diag(np.full(3, autocovariances(MODELS[3], NOISE, 1)[0]))
    assert not agrees(values[:, :, None] * values[:, None, :], wrong)


@pytest.mark.parametrize("order", MODELS)
def test_innovations_are_white_and_independent_of_the_past(order, agrees):
    prompts = batch(order)
    weights = np.array(MODELS[order])[::-1]  # windows are in time order
    innovations = np.concatenate(
        [prompts.labels[:, :, 0] - prompts.inputs @ weights, prompts.target - (prompts.query @ weights)[:, None]],
        axis=1,
    )
    assert agrees(innovations[:, :, None] * innovations[:, None, :], NOISE**2 * np.eye(5))
    assert agrees(innovations[:, :1] * prompts.inputs[:, 0], np.zeros(order))
    assert agrees(innovations[:, 4:] * prompts.query, np.zeros(order))


def test_windows_labels_and_query_are_slices_of_one_series():
    prompts = batch(3)
    values = observed_and_target(prompts)
    for i in range(4):
        np.testing.assert_array_equal(prompts.inputs[:, i], values[:, i : i + 3])
        np.testing.assert_array_equal(prompts.labels[:, i, 0], values[:, i + 3])
    np.testing.assert_array_equal(prompts.query, values[:, 4:7])
    one = jax.tree.map(lambda x: x[17], prompts)
    np.testing.assert_array_equal(series(one), values[17, :7])


@pytest.mark.parametrize(
    ("coefficients", "expected"),
    [([0.5, -0.3], 1.2896825397), ([1.2, -0.5], 3.7037037037), ([0.4, -0.2, 0.3], 1.2555485098), ([0.6], 1 / 0.64)],
)
def test_variances_are_the_known_ones_by_three_more_routes(coefficients, expected):
    gamma = autocovariances(coefficients, 1.0, 6)
    assert gamma[0] == pytest.approx(expected, rel=1e-9)  # ten digits were written down
    partial = np.asarray(partial_autocorrelations(jnp.asarray(coefficients)))
    assert gamma[0] == pytest.approx(1 / np.prod(1 - partial**2), rel=1e-13)
    matrix, impulse = companion(coefficients), []
    state = np.eye(len(coefficients))[0]
    for _ in range(400):  # spectral radius at most 0.8: the tail is below 1e-70
        impulse.append(state[0])
        state = matrix @ state
    psi = np.array(impulse)
    by_impulse = [psi[: len(psi) - k] @ psi[k:] for k in range(6)]
    np.testing.assert_allclose(gamma, by_impulse, atol=1e-13)


def test_the_task_exposes_its_moments():
    task = Autoregressive([0.5, -0.3], 4, noise_std=2.0)
    np.testing.assert_allclose(task.covariance, toeplitz(4 * autocovariances([0.5, -0.3], 1.0, 2)), rtol=1e-14)
    np.testing.assert_array_equal(task.autocovariances(5), autocovariances([0.5, -0.3], 2.0, 5))
    assert (task.dim, task.label_dim, task.context_length) == (2, 1, 4)


@given(partial=PARTIALS)
def test_partial_autocorrelations_and_coefficients_are_inverse_and_stationary(partial):
    coefficients = coefficients_from_partial(jnp.asarray(partial))
    radius = np.max(np.abs(np.linalg.eigvals(companion(np.asarray(coefficients)))))
    assert radius < 1
    # Each step down divides by 1 - r^2 >= 0.0975, at most three times.
    np.testing.assert_allclose(partial_autocorrelations(coefficients), partial, atol=1e-15 / 0.0975**3)


@given(partial=PARTIALS)
def test_the_innovation_variance_is_what_is_left_of_the_variance(partial):
    coefficients = np.asarray(coefficients_from_partial(jnp.asarray(partial)))
    gamma = autocovariances(coefficients, 0.5, len(partial) + 1)
    # Condition of the Yule-Walker system: the variance itself, at most 0.25 / 0.0975^4, about 3e3.
    assert gamma[0] - coefficients @ gamma[1:] == pytest.approx(0.25, abs=1e-9)


def test_durbin_levinson_of_order_two_by_hand():
    np.testing.assert_allclose(coefficients_from_partial(jnp.array([0.4, -0.3])), [0.4 * 1.3, -0.3], rtol=1e-15)


@functools.cache
def random_coefficients(order, count=40_000):
    task = RandomAutoregressive(order, 4, bound=1.0)
    return np.asarray(jax.vmap(lambda k: task.sample_coefficients(k))(jax.random.split(jax.random.key(3), count)))


def test_random_coefficients_are_uniform_on_the_stationary_triangle(agrees):
    draws = random_coefficients(2)
    # Moments of the uniform distribution on the triangle |φ_2| < 1, |φ_1| < 1 - φ_2.
    assert agrees(draws, np.array([0.0, -1 / 3]))
    assert agrees(draws**2, np.array([2 / 3, 1 / 3]))
    # Areas: the part with complex roots, φ_1^2 + 4 φ_2 < 0, has 2/3 of the triangle.
    assert agrees((draws[:, 0] ** 2 + 4 * draws[:, 1] < 0).astype(float), 2 / 3)


def test_random_coefficients_of_order_three_are_those_of_rejection_sampling(rng, agrees):
    box = rng.uniform([-3, -3, -1], [3, 3, 1], (40_000, 3))
    companions = np.zeros((len(box), 3, 3))
    companions[:, 0], companions[:, 1, 0], companions[:, 2, 1] = box, 1, 1
    accepted = box[np.max(np.abs(np.linalg.eigvals(companions)), axis=1) < 1]
    draws = random_coefficients(3)
    for power in (1, 2):
        difference = (draws**power).mean(axis=0) - (accepted**power).mean(axis=0)
        errors = np.hypot(
            (draws**power).std(axis=0) / math.sqrt(len(draws)), (accepted**power).std(axis=0) / math.sqrt(len(accepted))
        )
        assert np.all(np.abs(difference) < 5 * errors)
    assert agrees((np.abs(draws[:, 2]) < 1).astype(float), 1.0)


def test_order_one_is_uniform_up_to_the_bound(agrees):
    draws = 0.8 * random_coefficients(1)
    task = RandomAutoregressive(1, 4, bound=0.8)
    same = jax.vmap(lambda k: task.sample_coefficients(k))(jax.random.split(jax.random.key(3), len(draws)))
    np.testing.assert_allclose(same, draws, rtol=1e-15)
    assert agrees(draws[:, 0] ** 2, 0.64 / 3)
    assert agrees(draws[:, 0] ** 4, 0.8**4 / 5)
    assert np.max(np.abs(draws)) < 0.8


def test_the_bound_scales_every_root():
    for coefficients in random_coefficients(3)[:20]:
        scaled = 0.6 ** np.arange(1, 4) * coefficients
        roots = [np.sort_complex(np.linalg.eigvals(companion(c))) for c in (coefficients, scaled)]
        # Eigenvalues that nearly coincide are good to the square or cube root of rounding.
        np.testing.assert_allclose(roots[1], 0.6 * roots[0], atol=1e-5)


def test_random_series_are_stationary_given_their_coefficients(agrees):
    task = RandomAutoregressive(2, 4, noise_std=NOISE, bound=0.8)
    prompts = jax.tree.map(np.asarray, task.sample_batch(jax.random.key(5), 40_000))
    values = observed_and_target(prompts)
    partial = jax.vmap(partial_autocorrelations)(jnp.asarray(prompts.latent))
    variance = NOISE**2 / np.prod(1 - np.asarray(partial) ** 2, axis=1)
    assert agrees(values**2 / variance[:, None], np.ones(7))
    # γ_1 = γ_0 φ_1 / (1 - φ_2)
    correlation = prompts.latent[:, 0] / (1 - prompts.latent[:, 1])
    assert agrees(values[:, 1:] * values[:, :-1] / variance[:, None] - correlation[:, None], np.zeros(6))


def test_random_coefficients_and_noise_have_streams_of_their_own(key):
    quiet, loud, tame = (
        RandomAutoregressive(2, 4, noise_std=std, bound=bound).sample_batch(key, 40_000)
        for std, bound in [(1.0, 0.8), (4.0, 0.8), (1.0, 0.4)]
    )
    np.testing.assert_array_equal(quiet.latent, loud.latent)
    # A stationary series is proportional to its noise; a power of two scales without rounding.
    np.testing.assert_array_equal(4 * quiet.labels, loud.labels)
    np.testing.assert_allclose(tame.latent, quiet.latent * np.array([[0.5, 0.25]]), rtol=1e-14)


def test_coefficients_may_be_traced(key):
    grid = np.array([[0.5, -0.3], [1.2, -0.5]])
    mapped = jax.vmap(lambda c: Autoregressive(c, 3).sample(key).labels)(grid)
    expected = np.stack([Autoregressive(c, 3).sample(key).labels for c in grid])
    np.testing.assert_allclose(mapped, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Autoregressive([1.01], 4), r"spectral radius of their companion matrix must be < 1; got 1\.01 for"),
        (lambda: Autoregressive([1.0], 4), "spectral radius .* got 1 for"),
        (lambda: Autoregressive([2.0, -1.0], 4), "must be stationary"),
        (lambda: Autoregressive([0.5, np.nan], 4), "`coefficients` must be finite"),
        (lambda: Autoregressive([0.5], 0), "`context_length` must be an integer >= 1; got 0"),
        (lambda: Autoregressive([0.5], 3, noise_std=0.0), "`noise_std` must be a finite number > 0.*got 0.0"),
        (lambda: Autoregressive([0.5], 3, noise_std=-1.0), "`noise_std` must be a finite number > 0.*got -1.0"),
        (lambda: RandomAutoregressive(0, 3), "`order` must be an integer >= 1; got 0"),
        (lambda: RandomAutoregressive(2, -3), "`context_length` must be an integer >= 1; got -3"),
        (lambda: RandomAutoregressive(2, 3, bound=1.5), r"`bound` must be a number in \(0, 1\].*got 1.5"),
        (lambda: RandomAutoregressive(2, 3, bound=0.0), r"`bound` must be a number in \(0, 1\].*got 0.0"),
        (lambda: autocovariances([0.5], 1.0, 0), "`count` must be an integer >= 1; got 0"),
        (lambda: autocovariances([-1.2], 1.0, 2), "spectral radius .* got 1.2"),
    ],
)
def test_bad_series_are_refused_by_name(call, message):
    with pytest.raises(InvalidValueError, match=message):
        call()
