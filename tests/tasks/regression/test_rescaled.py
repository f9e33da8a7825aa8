"""Tasks at test time: scaled inputs, scaled tasks, other lengths."""

import equinox as eqx
import jax
import numpy as np
import pytest

from icl_lab import analysis, estimators, theory
from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.tasks import Autoregressive, LinearRegression, NonlinearRegression, ReLUNetwork, Rescaled, Uniform

TASK = LinearRegression(dim=3, context_length=5, covariates=Uniform(3, half_width=0.5), noise_std=0.2)


def assert_same(first, second):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), first, second)


def test_without_scales_the_prompts_are_the_tasks_own(key):
    assert_same(Rescaled(TASK).sample(key), TASK.sample(key))


def test_inputs_and_tasks_are_scaled_and_the_noise_is_not(key):
    before, after = TASK.sample(key), Rescaled(TASK, 2.0, -0.5).sample(key)
    np.testing.assert_allclose(after.inputs, 2 * before.inputs)
    np.testing.assert_allclose(after.query, 2 * before.query)
    np.testing.assert_allclose(after.latent, -0.5 * before.latent)
    np.testing.assert_allclose(after.target, -before.target)
    noise = before.labels[:, 0] - before.inputs @ before.latent
    np.testing.assert_allclose(after.labels[:, 0] - after.inputs @ after.latent, noise, atol=1e-14)


def test_another_length_changes_nothing_else(key):
    longer = Rescaled(TASK, context_length=9)
    assert longer.context_length == longer.task.context_length == 9
    assert TASK.context_length == 5
    direct = LinearRegression(dim=3, context_length=9, covariates=Uniform(3, half_width=0.5), noise_std=0.2)
    assert_same(longer.sample(key), direct.sample(key))


def test_a_nonlinear_response_is_evaluated_at_the_scaled_inputs(key):
    task = NonlinearRegression(dim=2, context_length=4, response=ReLUNetwork(width=3))
    before, after = task.sample(key), Rescaled(task, 3.0, 0.5).sample(key)
    np.testing.assert_allclose(after.labels[0], 0.5 * task.response(after.latent, 3 * before.inputs[0]), rtol=1e-12)
    np.testing.assert_allclose(after.target, 1.5 * before.target, rtol=1e-12)  # ReLU networks are homogeneous


def test_the_risk_of_a_step_under_scaled_inputs_is_the_closed_form(key):
    d, n, alpha, eta = 3, 5, 1.7, 6.0
    task = LinearRegression(dim=d, context_length=n, covariates=Uniform(d, half_width=0.5))
    step = eqx.Partial(estimators.gradient_descent, step_size=eta)
    for scales, variance, factor in (((alpha, 1.0), alpha**2 / 12, 1.0), ((1.0, alpha), 1 / 12, alpha**2)):
        risk = analysis.sampled_risks(Rescaled(task, *scales), {"step": step}, key, prompts=8192)["step"]
        expected = 2 * factor * theory.vonoswald2022.one_step_loss(eta, d, n, variance, 9 / 5)
        assert abs(risk.mean - expected) < 4 * risk.standard_error


def test_what_cannot_be_rescaled_is_refused():
    with pytest.raises(UnsupportedProblemError, match="Autoregressive"):
        Rescaled(Autoregressive(np.array([0.5]), 4))
    with pytest.raises(InvalidValueError, match="input_scale"):
        Rescaled(TASK, np.inf)
    with pytest.raises(InvalidValueError, match="context_length"):
        Rescaled(TASK, context_length=0)
