"""Refinement of the query: its closed form, its limit, and what it refuses."""

import jax
import numpy as np
import pytest

from icl_lab import estimators
from icl_lab.core.errors import InvalidValueError
from icl_lab.tasks.dynamics.linear import DiagonalUnitary, HaarOrthogonal, LinearDynamics


@pytest.fixture(params=[HaarOrthogonal(), DiagonalUnitary()], ids=["real", "complex"])
def prompt(request, key):
    return LinearDynamics(3, 7, request.param, noise_std=0.3).sample(key)


def test_one_step_is_the_query_times_its_size(prompt):
    np.testing.assert_allclose(estimators.refined_query(prompt, 0.2), 0.2 * prompt.query, rtol=1e-14)


def test_no_step_predicts_zero(prompt):
    np.testing.assert_array_equal(estimators.query_refinement(prompt, 0.2, steps=0), np.zeros(3))


def test_many_steps_are_ridge(prompt):
    spectrum = np.linalg.eigvalsh(np.asarray(prompt.inputs).conj().T @ prompt.inputs) + 3.0
    steps = estimators.chebyshev_steps(spectrum[0] * 0.99, spectrum[-1] * 1.01, 40)
    answer = estimators.query_refinement(prompt, steps, penalty=3.0)
    np.testing.assert_allclose(answer, estimators.ridge(prompt, 3.0), rtol=1e-6)
    constant = estimators.query_refinement(prompt, 2 / (spectrum[0] + spectrum[-1]), steps=3000, penalty=3.0)
    np.testing.assert_allclose(constant, estimators.ridge(prompt, 3.0), rtol=1e-6)


def test_without_penalty_it_is_gradient_descent_on_the_summed_loss(prompt):
    # W_K x_q = Y^T X* q_K for the same steps.
    descent = estimators.gradient_descent(prompt, 7 * 0.02, steps=4)
    np.testing.assert_allclose(estimators.query_refinement(prompt, 0.02, steps=4), descent, rtol=1e-12)


def test_by_name_and_in_a_batch(key):
    prompts = LinearDynamics(2, 4, HaarOrthogonal()).sample_batch(key, 3)
    refine = estimators.named("query_refinement", step_size=0.1, steps=2, penalty=0.2)
    assert jax.vmap(refine)(prompts).shape == (3, 2)


def test_the_recursive_path_ends_in_ridge_at_every_position(prompt):
    path = estimators.recursive_least_squares_path(prompt, 0.4)
    assert path.shape == (7, 3, 3)
    for count in (1, 4, 7):
        inputs, labels = np.asarray(prompt.inputs)[:count], np.asarray(prompt.labels)[:count]
        direct = np.linalg.solve(inputs.conj().T @ inputs + 0.4 * np.eye(3), inputs.conj().T @ labels).T
        np.testing.assert_allclose(path[count - 1], direct, rtol=1e-11)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_size": np.nan}, "finite"),
        ({"step_size": 0.1, "penalty": -1.0}, "penalty"),
        ({"step_size": np.ones(3), "steps": 2}, "one per step"),
        ({"step_size": 0.1, "steps": -1}, "steps"),
    ],
)
def test_bad_parameters_are_refused(prompt, arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        estimators.refined_query(prompt, **arguments)


@pytest.mark.parametrize(("interval", "steps"), [((0.0, 1.0), 2), ((2.0, 1.0), 2), ((1.0, 2.0), 0)])
def test_chebyshev_needs_an_interval(interval, steps):
    with pytest.raises(InvalidValueError):
        estimators.chebyshev_steps(*interval, steps)
