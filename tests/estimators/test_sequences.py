"""Yule-Walker, the zero and last-value predictors, and the table of names."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
import scipy.linalg
import scipy.signal

from icl_lab import estimators
from icl_lab.core.errors import InvalidValueError
from icl_lab.tasks.prompt import Prompt


def windows(series, order):
    """The prompt of a series: lag windows oldest first, the last window as query, target not used."""
    count = len(series) - order
    inputs = np.stack([series[i : i + order] for i in range(count)])
    return Prompt(inputs, series[order:, None], series[-order:], np.zeros(1))


def ar_series(coefficients, length, seed, noise=None):
    """x_t = sum_j phi_j x_{t-j} + noise, from rest."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=length) if noise is None else noise
    return scipy.signal.lfilter([1.0], np.concatenate([[1.0], -np.asarray(coefficients)]), noise)


def test_yule_walker_solves_the_toeplitz_system_of_the_biased_autocovariances():
    series = ar_series([0.5, -0.3, 0.2], 40, seed=0)
    lagged = np.correlate(series, series, mode="full")[39:43] / 40
    expected = scipy.linalg.solve_toeplitz(lagged[:3], lagged[1:])
    weights = estimators.yule_walker_weights(windows(series, 3))
    np.testing.assert_allclose(weights, expected[None, ::-1], rtol=1e-12)
    np.testing.assert_allclose(estimators.yule_walker(windows(series, 3)), [expected @ series[:-4:-1]], rtol=1e-11)


def test_yule_walker_of_order_one_is_the_lag_one_autocorrelation():
    series = ar_series([0.6], 30, seed=1)
    expected = series[1:] @ series[:-1] / (series @ series)
    np.testing.assert_allclose(estimators.yule_walker_weights(windows(series, 1)), [[expected]], rtol=1e-13)


def test_yule_walker_finds_a_complex_rotation_and_not_its_conjugate():
    rng = np.random.default_rng(2)
    noise = 0.3 * (rng.normal(size=4000) + 1j * rng.normal(size=4000))
    truth = 0.9 * np.exp(0.7j)
    series = ar_series([truth], 4000, seed=0, noise=noise)
    estimate = np.asarray(estimators.yule_walker_weights(windows(series, 1)))[0, 0]
    # Asymptotic standard error sqrt((1 - |phi|^2) / n) = 0.007, five of them.
    assert abs(estimate - truth) < 5 * np.sqrt((1 - 0.81) / 4000)


def test_yule_walker_converges_to_the_coefficients_at_the_rate_of_the_square_root():
    coefficients = np.array([0.5, -0.3])
    series = ar_series(coefficients, 4002, seed=3)
    estimate = np.asarray(estimators.yule_walker_weights(windows(series, 2)))[0, ::-1]
    # The estimate's covariance is sigma^2 Gamma^{-1} / n; its diagonal is (1 - phi_2^2) / n for AR(2).
    np.testing.assert_allclose(estimate, coefficients, atol=5 * np.sqrt((1 - 0.09) / 4000))


def test_yule_walker_gives_a_stable_recursion_where_least_squares_does_not():
    series = 1.5 ** np.arange(12.0)
    prompt = windows(series, 2)
    phi = np.asarray(estimators.yule_walker_weights(prompt))[0, ::-1]
    assert np.max(np.abs(np.roots([1.0, -phi[0], -phi[1]]))) < 1
    growth = np.asarray(estimators.ols_weights(windows(series, 1)))[0, 0]
    np.testing.assert_allclose(growth, 1.5, rtol=1e-12)


def test_yule_walker_maps_over_a_batch_of_series():
    prompts = [windows(ar_series([0.5, -0.3], 20, seed), 2) for seed in range(3)]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *prompts)
    expected = [estimators.yule_walker(prompt) for prompt in prompts]
    np.testing.assert_allclose(jax.vmap(estimators.yule_walker)(batch), expected, rtol=1e-12)


def test_yule_walker_refuses_what_is_no_scalar_series():
    rng = np.random.default_rng(4)
    regression = Prompt(rng.normal(size=(6, 2)), rng.normal(size=(6, 1)), rng.normal(size=2), np.zeros(1))
    with pytest.raises(InvalidValueError, match=r"consecutive lag windows of one series.*Use `ols`"):
        estimators.yule_walker(regression)
    vectors = Prompt(rng.normal(size=(6, 2)), rng.normal(size=(6, 2)), rng.normal(size=2), np.zeros(2))
    with pytest.raises(InvalidValueError, match=r"scalar series.*\(6, 2\)"):
        estimators.yule_walker(vectors)


def test_the_last_value_is_the_newest_of_a_scalar_series_and_the_query_of_a_vector_one():
    series = ar_series([0.5, -0.3], 20, seed=5)
    np.testing.assert_array_equal(estimators.last_value(windows(series, 2)), series[-1:])
    states = np.random.default_rng(6).normal(size=(7, 3))
    prompt = Prompt(states[:-1], states[1:], states[-1], np.zeros(3))
    np.testing.assert_array_equal(estimators.last_value(prompt), states[-1])


def test_the_zero_predictor_has_the_labels_shape_and_dtype():
    prompt = Prompt(np.ones((4, 3), complex), np.ones((4, 2), complex), np.ones(3, complex), np.ones(2, complex))
    prediction = estimators.zero(prompt)
    assert prediction.dtype == np.complex128
    np.testing.assert_array_equal(prediction, np.zeros(2))


PARAMETERS = {
    "zero": {},
    "last_value": {},
    "gradient_descent": {"step_size": 0.1, "steps": 3},
    "preconditioned_gradient_descent": {"preconditioner": 0.1 * np.eye(2)},
    "gd_plus_plus": {"step_sizes": np.array([0.1, 0.2]), "curvatures": np.array([0.01, 0.01])},
    "ols": {},
    "ridge": {"penalty": 0.5},
    "recursive_least_squares": {"penalty": 0.5},
    "online_sgd": {"step_size": 0.1, "normalised": True},
    "implicit_online_sgd": {"step_size": 0.1},
    "momentum_sgd": {"step_size": 0.1, "momentum": 0.5},
    "minibatch_sgd": {"step_size": 0.1, "batch": 4},
    "gauss_seidel": {"sweeps": 2},
    "weighted_gradient_step": {"example_weights": np.linspace(0.1, 0.2, 10)},
    "discounted_gradient_step": {"step_size": 0.1, "decay": 0.9},
    "discounted_ridge": {"penalty": 0.5, "decay": 0.9},
    "kalman": {"correlation": 0.9, "noise_variance": 0.5},
    "query_refinement": {"step_size": 0.1, "steps": 3, "penalty": 0.5},
    "kernel_smoother": {"bandwidth": 0.7},
    "yule_walker": {},
}


@pytest.mark.parametrize("name", sorted(estimators.ESTIMATORS.keys() - {"dirichlet_posterior"}))  # for one-hot states
def test_every_named_estimator_serves_a_sequence_prompt(name):
    prompt = windows(ar_series([0.5, -0.3], 12, seed=7), 2)
    prediction = estimators.named(name, **PARAMETERS[name])(prompt)
    assert prediction.shape == (1,)
    np.testing.assert_array_equal(prediction, estimators.ESTIMATORS[name](prompt, **PARAMETERS[name]))


def test_the_dirichlet_posterior_counts_the_transitions_of_a_chain():
    path = [0, 1, 0, 2, 0, 1, 1, 0]
    states = np.eye(3)[path]
    prompt = Prompt(states[:-1], states[1:], states[-1], np.zeros(3))
    # From 0: twice to 1, once to 2; from 1: twice to 0, once to 1; from 2: once to 0.
    counts = np.array([[0, 2, 1], [2, 1, 0], [1, 0, 0]])
    for concentration in (0.5, 1.0):
        expected = (counts + concentration) / (counts.sum(axis=1, keepdims=True) + 3 * concentration)
        weights = estimators.dirichlet_posterior_weights(prompt, concentration)
        np.testing.assert_allclose(weights, expected.T, rtol=1e-14)
        answer = estimators.named("dirichlet_posterior", concentration=concentration)(prompt)
        np.testing.assert_allclose(answer, expected[0], rtol=1e-14)


def test_the_dirichlet_posterior_is_the_mean_of_the_chains_that_the_prior_draws_weighted_by_their_likelihood():
    path = [0, 1, 0, 0, 1, 0]
    states = np.eye(2)[path]
    prompt = Prompt(states[:-1], states[1:], states[-1], np.zeros(2))
    rows = np.random.default_rng(0).dirichlet([0.7, 0.7], size=(400_000, 2))
    likelihood = np.prod([rows[:, a, b] for a, b in itertools.pairwise(path)], axis=0)
    mean = likelihood @ rows[:, 0, 1] / likelihood.sum()
    error = np.sqrt(np.sum(likelihood**2 * (rows[:, 0, 1] - mean) ** 2)) / likelihood.sum()
    assert error < 1e-3
    assert abs(estimators.dirichlet_posterior(prompt, 0.7)[1] - mean) < 4 * error


def test_the_dirichlet_posterior_refuses_what_is_no_chain():
    states = np.eye(3)[[0, 1, 2, 0]]
    prompt = Prompt(states[:-1], states[1:], states[-1], np.zeros(3))
    for name, rows in (("inputs", 2 * states[:-1]), ("inputs", np.zeros((3, 3))), ("query", np.full(3, 1 / 3))):
        with pytest.raises(InvalidValueError, match="must be one-hot"):
            estimators.dirichlet_posterior(dataclasses.replace(prompt, **{name: rows}), 1.0)
    with pytest.raises(InvalidValueError, match=r"as many states .* got 3, 2"):
        estimators.dirichlet_posterior(Prompt(states[:-1], np.eye(2)[[0, 1, 0]], states[-1], np.zeros(2)), 1.0)
    with pytest.raises(InvalidValueError, match="`concentration` must be a finite number > 0"):
        estimators.dirichlet_posterior(prompt, 0.0)


def test_names_and_parameters_that_do_not_exist_are_refused_with_the_accepted_ones():
    with pytest.raises(InvalidValueError, match=r"No estimator is called 'lasso'; choose one of .*ols.*ridge"):
        estimators.named("lasso")
    with pytest.raises(InvalidValueError, match=r"`ridge` takes the parameters \['penalty'\]; got \['lam'\]"):
        estimators.named("ridge", lam=0.1)
    with pytest.raises(InvalidValueError, match="`gradient_descent` takes the parameters"):
        estimators.named("gradient_descent")
