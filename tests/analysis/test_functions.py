"""Prediction and sensitivity distances between predictors whose distances are known."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_lab import analysis, estimators
from icl_lab.core.errors import InvalidValueError
from icl_lab.models import LinearSelfAttention, LSAWeights
from icl_lab.tasks import LinearRegression
from tests.prompts import random_prompt

TASK = LinearRegression(dim=3, context_length=8, covariance=np.array([2.0, 1.0, 0.5]), noise_std=0.3)
SIGMAS = 4


def linear(matrix, prompt):
    """A predictor that ignores the context."""
    return jnp.asarray(matrix) @ prompt.query


@pytest.mark.parametrize("complex_data", [False, True])
def test_the_sensitivity_of_an_estimator_is_its_fitted_matrix(complex_data):
    prompt = random_prompt(0, complex_data=complex_data)
    for predict, fit in (
        (estimators.ols, estimators.ols_weights),
        (lambda p: estimators.gradient_descent(p, 0.1, 3), lambda p: estimators.gradient_descent_weights(p, 0.1, 3)),
    ):
        slope, matrix = np.asarray(analysis.sensitivity(predict, prompt)), np.asarray(fit(prompt))
        if complex_data:
            np.testing.assert_allclose(slope[:, 3:], 0, atol=1e-13)
        np.testing.assert_allclose(slope[:, :3], matrix, rtol=1e-11)


def test_the_derivative_by_the_conjugate_query_is_separate():
    prompt = random_prompt(1, complex_data=True)
    a, b = np.arange(6.0).reshape(2, 3) + 1j, np.ones((2, 3)) - 2j

    def predictor(p):
        return a @ p.query + b @ jnp.conj(p.query)

    np.testing.assert_allclose(analysis.sensitivity(predictor, prompt), np.hstack([a, b]), rtol=1e-12)


def test_the_sensitivity_of_a_layer_without_the_query_in_its_sum_agrees_with_finite_differences():
    rng = np.random.default_rng(2)
    weights = LSAWeights(rng.normal(size=(4, 4)), rng.normal(size=(4, 4)))
    prompt = random_prompt(2, k=1)
    for model in (LinearSelfAttention(), LinearSelfAttention(query_in_sum=False)):
        slope = analysis.sensitivity(eqx.Partial(model, weights), prompt)
        step, differences = 1e-5, []
        for direction in np.eye(3):
            ahead, back = (eqx.tree_at(lambda p: p.query, prompt, prompt.query + sign * step * direction) for sign in (1, -1))
            differences.append((np.asarray(model(weights, ahead)) - np.asarray(model(weights, back))) / (2 * step))
        # Central differences of a cubic: error step^2 times a third derivative, beside rounding eps / step.
        np.testing.assert_allclose(slope, np.stack(differences, axis=1), rtol=1e-6, atol=1e-7)


def test_distances_between_two_fixed_linear_predictors_are_those_of_their_matrices(key):
    a, b = np.array([[1.0, 2.0, -1.0]]), np.array([[0.5, 2.0, 1.0]])
    result = analysis.compare_functions(TASK, eqx.Partial(linear, a), eqx.Partial(linear, b), key, 20000)
    gap, variances = (a - b)[0], np.array([2.0, 1.0, 0.5])
    expected_rms = np.sqrt(gap**2 @ variances)
    for estimate, expected in (
        (result.prediction_distance, expected_rms),
        (result.mean_prediction_distance, expected_rms * np.sqrt(2 / np.pi)),
        (result.prediction_scale, np.sqrt(b[0] ** 2 @ variances)),
    ):
        assert abs(estimate.mean - expected) < SIGMAS * estimate.standard_error
        assert 0 < estimate.standard_error < 0.02 * expected  # 20000 prompts: about 0.5 to 0.8 percent
    # These do not vary over prompts, so they are exact.
    np.testing.assert_allclose(result.sensitivity_distance.mean, np.linalg.norm(a - b), rtol=1e-12)
    np.testing.assert_allclose(result.sensitivity_scale.mean, np.linalg.norm(b), rtol=1e-12)
    cosine = (a @ b.T)[0, 0] / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(result.cosine.mean, cosine, rtol=1e-12)
    assert result.cosine.standard_error < 1e-12


def test_a_predictor_is_at_distance_zero_from_itself_and_its_negative_points_the_other_way(key):
    predictor = estimators.named("gradient_descent", step_size=np.asarray(0.7))
    negative = estimators.named("gradient_descent", step_size=np.asarray(-0.7))
    same = analysis.compare_functions(TASK, predictor, predictor, key, 64)
    assert same.prediction_distance.mean == 0.0
    assert same.prediction_distance.standard_error == 0.0
    # The compiler may fuse the two copies of one derivative differently.
    assert same.sensitivity_distance.mean <= 4 * np.finfo(float).eps * same.sensitivity_scale.mean
    np.testing.assert_allclose(same.cosine.mean, 1.0, rtol=1e-12)
    opposite = analysis.compare_functions(TASK, negative, predictor, key, 64)
    np.testing.assert_allclose(opposite.cosine.mean, -1.0, rtol=1e-12)
    np.testing.assert_allclose(opposite.prediction_distance.mean, 2 * same.prediction_scale.mean, rtol=1e-12)


def test_against_the_zero_predictor_the_distance_is_the_norm_and_the_cosine_is_zero(key):
    # E |eta mean(y x)|^2 = eta^2 d (N + d + 1 + s2) / N for isotropic inputs and tasks.
    task = LinearRegression(dim=3, context_length=8, noise_std=0.5)
    predictor = estimators.named("gradient_descent", step_size=0.7)
    result = analysis.compare_functions(task, predictor, estimators.zero, key, 20000)
    expected = np.sqrt(0.49 * 3 * (8 + 3 + 1 + 0.25) / 8)
    assert abs(result.prediction_distance.mean - expected) < SIGMAS * result.prediction_distance.standard_error
    assert result.cosine.mean == 0.0
    assert result.sensitivity_scale.mean == 0.0
    text = str(result)
    assert len(text.splitlines()) == 6
    assert text.count("±") == 6
    assert f"{result.prediction_distance.mean:.6g}" in text.splitlines()[0]


def test_the_standard_error_of_the_root_mean_square_is_that_of_repeated_estimates():
    predictor, keys = eqx.Partial(linear, np.ones((1, 3))), jax.random.split(jax.random.key(3), 60)
    results = [analysis.compare_functions(TASK, predictor, estimators.zero, k, 256, 256) for k in keys]
    spread = np.std([r.prediction_distance.mean for r in results], ddof=1)
    stated = np.mean([r.prediction_distance.standard_error for r in results])
    # A standard deviation of 60 draws is known to 1 / sqrt(2 * 59) = 9 percent.
    np.testing.assert_allclose(stated, spread, rtol=SIGMAS * 0.092)


def test_too_few_prompts_are_refused(key):
    with pytest.raises(InvalidValueError, match="`prompts` must be an integer >= 2; got 1"):
        analysis.compare_functions(TASK, estimators.ols, estimators.zero, key, 1)
