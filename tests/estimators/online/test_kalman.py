"""The Kalman filter against conditioning of the joint Gaussian, and against the predictors that it is in special cases."""

import jax
import numpy as np
import pytest

from icl_lab import estimators
from icl_lab.core.errors import InvalidValueError
from tests.prompts import random_prompt


@pytest.mark.parametrize("correlation", [0.9, -0.5, np.array([0.95, 0.2, 1.0])], ids=str)
def test_it_is_the_conditional_mean_of_the_querys_task_given_the_labels(correlation):
    prompt, noise = random_prompt(0, k=2), 0.3
    (n, d), a = prompt.inputs.shape, np.broadcast_to(correlation, 3)
    # Labels and the task of the query are jointly Gaussian: E w_ic w_jc = a_c^|i - j|, no other products.
    lags = np.abs(np.arange(n)[:, None] - np.arange(n)[None, :])
    labels = sum(a[c] ** lags * np.outer(prompt.inputs[:, c], prompt.inputs[:, c]) for c in range(d)) + noise * np.eye(n)
    with_task = a[:, None] ** np.arange(n, 0, -1)[None, :] * prompt.inputs.T
    expected = (with_task @ np.linalg.solve(labels, prompt.labels)).T
    np.testing.assert_allclose(estimators.kalman_weights(prompt, correlation, noise), expected, rtol=1e-10)
    np.testing.assert_allclose(estimators.kalman(prompt, correlation, noise), expected @ prompt.query, rtol=1e-10)


@pytest.mark.parametrize("complex_data", [False, True], ids=["real", "complex"])
def test_a_task_that_does_not_drift_makes_it_ridge(complex_data):
    prompt = random_prompt(1, complex_data=complex_data)
    np.testing.assert_allclose(estimators.kalman(prompt, 1.0, 0.3), estimators.ridge(prompt, 0.3), rtol=1e-11)


def test_tasks_without_memory_leave_the_prior_mean():
    np.testing.assert_array_equal(estimators.kalman(random_prompt(2), 0.0, 0.3), np.zeros(2))


def test_in_one_dimension_it_is_online_gradient_descent_with_decay_and_the_step_of_the_posterior_variance():
    prompt, a, noise = random_prompt(3, d=1, n=12), 0.9, 0.2
    variance, steps = 1.0, []
    for x in prompt.inputs[:, 0]:
        steps.append(variance / (noise + variance * x**2))
        variance = a**2 * variance * noise / (noise + variance * x**2) + 1 - a**2
    expected = a * estimators.online_sgd(prompt, np.array(steps), decay=a)
    np.testing.assert_allclose(estimators.kalman(prompt, a, noise), expected, rtol=1e-12)


def test_it_maps_over_prompts_and_parameters():
    prompts = [random_prompt(seed) for seed in (4, 5)]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *prompts)
    correlations, noises = np.array([0.5, 0.9]), np.array([0.1, 1.0])
    expected = [estimators.kalman(p, a, s) for p, a, s in zip(prompts, correlations, noises, strict=True)]
    np.testing.assert_allclose(jax.jit(jax.vmap(estimators.kalman))(batch, correlations, noises), expected, rtol=1e-12)


def test_bad_correlations_and_noise_are_refused():
    prompt = random_prompt(6)
    with pytest.raises(InvalidValueError, match=r"`correlation` must be in \[-1, 1\].*got 1.2"):
        estimators.kalman(prompt, 1.2, 0.1)
    with pytest.raises(InvalidValueError, match=r"`correlation` must be a number or one per coordinate.*got shape \(2,\)"):
        estimators.kalman(prompt, np.full(2, 0.5), 0.1)
    with pytest.raises(InvalidValueError, match="`noise_variance` must be a finite number > 0"):
        estimators.kalman(prompt, 0.9, 0.0)
