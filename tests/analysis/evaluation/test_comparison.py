"""What a trained model is compared with."""

import jax
import numpy as np
import pytest

from icl_lab import analysis, estimators, models, objectives, tasks, training
from icl_lab.analysis.evaluation import comparison

ANISOTROPIC = [2.0, 1.0]


@pytest.mark.parametrize(
    ("task", "model", "source"),
    [
        ({"covariance": ANISOTROPIC}, {}, "2306.09927, Theorem 4.1"),
        ({"covariance": ANISOTROPIC}, {"normaliser": "none"}, "2306.09927, Theorem 4.1"),
        (
            {"covariance": ANISOTROPIC, "task_covariance": [0.5, 1.0], "noise_std": 0.5},
            {"normaliser": "none"},
            "2307.03576, Theorem 2",
        ),
        ({"noise_std": 0.5}, {"normaliser": "none"}, "2307.03576, Theorem 1"),
        ({"covariance": ANISOTROPIC, "noise_std": 0.5}, {}, "extending"),
    ],
)
def test_closed_form_is_the_theorem_whose_conditions_hold(task, model, source):
    task = tasks.LinearRegression(2, 5, **task)
    optimum = comparison.closed_form(task, models.LinearSelfAttention(**model))
    assert source in optimum.source


@pytest.mark.parametrize(
    ("task", "model"),
    [
        (tasks.LinearRegression(2, 5, covariates=tasks.ExponentialDiagonal(2)), models.LinearSelfAttention()),
        (tasks.Autoregressive([0.5], 5), models.LinearSelfAttention()),
        (tasks.LinearRegression(2, 5), models.SoftmaxSelfAttention()),
        (tasks.LinearRegression(2, 5), models.LinearSelfAttention(loops=2)),
        (tasks.LinearRegression(2, 5), models.LinearSelfAttention(embedding="interleaved")),
    ],
)
def test_there_is_no_closed_form_where_no_theorem_applies(task, model):
    assert comparison.closed_form(task, model) is None


def test_best_step_on_isotropic_gaussian_inputs_is_the_one_worked_by_hand():
    # eta = N / (N + d + 1 + s2) in the mean convention (Mahankali et al., Theorem 1).
    task = tasks.LinearRegression(3, 8, noise_std=0.5)
    step, preconditioner = comparison.best_linear_steps(task, jax.random.key(0), 100)
    # Sums of a few terms of order one.
    assert step == pytest.approx(8 / 12.25, rel=1e-14)
    np.testing.assert_allclose(preconditioner, 8 / 12.25 * np.eye(3), atol=1e-14)


def test_best_step_on_the_sphere_is_the_one_worked_by_hand():
    # |x|^2 = d always, so E|m|^2 = d^2 / N + (1 - 1/N) d for m = (1/N) sum_i y_i x_i, and E<m, w> = d:
    # eta = N / (N + d - 1), and by rotation invariance the best preconditioner is eta I.
    task = tasks.LinearRegression(3, 6, covariates=tasks.Sphere(3, np.sqrt(3)))
    step, preconditioner = comparison.best_linear_steps(task, jax.random.key(0), 100)
    assert step == pytest.approx(6 / 8, rel=1e-14)
    np.testing.assert_allclose(preconditioner, 6 / 8 * np.eye(3), atol=1e-14)


# Two covariances that do not commute, so that the best preconditioner is not symmetric.
MIXED = tasks.GaussianMixture([[[1.0, 0.5], [0.5, 0.6]], [[2.5, 0.0], [0.0, 0.5]]], [0.7, 0.3])


@pytest.mark.parametrize("law", [MIXED, tasks.TwoSizes(2, [1.5, 6.0], [1.0, 0.5])], ids=["mixture", "two sizes"])
def test_closed_steps_are_those_of_sampled_prompts_and_their_risk_is_exact(law, monkeypatch):
    task = tasks.LinearRegression(2, 6, covariates=law, task_covariance=[2.0, 1.0], noise_std=0.4)
    step, preconditioner = comparison.best_linear_steps(task, jax.random.key(0), 100)
    risk = comparison.step_risk(comparison.problems(task), preconditioner)
    best = analysis.sampled_risks(
        task,
        {"best": estimators.named("preconditioned_gradient_descent", preconditioner=preconditioner)},
        jax.random.key(1),
        prompts=50_000,
    )["best"]
    assert abs(best.mean - risk) < 4 * best.standard_error
    monkeypatch.setattr(comparison, "problems", lambda task: [])
    draws = [comparison.best_linear_steps(task, jax.random.key(seed), 4000) for seed in range(12)]
    for values, target in (([step for step, _ in draws], step), ([p for _, p in draws], preconditioner)):
        values = np.asarray(values)
        standard_error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
        # Five numbers in all; the spread of 12 draws is known to 20 %, so five of its standard errors.
        assert np.all(np.abs(values.mean(axis=0) - target) < 5 * standard_error)
        assert np.all(standard_error < 0.03)


def test_the_best_step_of_a_mixture_is_where_the_trained_layer_ends():
    task, model = tasks.LinearRegression(2, 6, covariates=MIXED), models.LinearSelfAttention()
    path = training.gradient_flow(objectives.population(task, model), models.initializers.zhang(2, 0.1))
    learned = analysis.effective_preconditioner(path.limit, model, 6)
    _, preconditioner = comparison.best_linear_steps(task, jax.random.key(0), 100)
    np.testing.assert_allclose(learned, preconditioner, rtol=0, atol=1e-7)


def test_bayes_penalty_is_the_noise_variance_over_the_task_covariance():
    noisy = tasks.LinearRegression(2, 5, task_covariance=[2.0, 1.0], noise_std=0.5)
    np.testing.assert_allclose(comparison.bayes_penalty(noisy), np.diag([0.125, 0.25]), rtol=1e-15)
    assert comparison.bayes_penalty(tasks.LinearRegression(2, 5)) == comparison.DEFAULT_PENALTY
    singular = tasks.LinearRegression(2, 5, task_covariance=[1.0, 0.0], noise_std=0.5)
    assert comparison.bayes_penalty(singular) == comparison.DEFAULT_PENALTY


def test_series_are_compared_with_persistence_too():
    names = comparison.predictors(tasks.Autoregressive([0.5], 5), 0.1, np.eye(1), None)
    assert "last_value" in names
    assert "last_value" not in comparison.predictors(tasks.LinearRegression(1, 5), 0.1, np.eye(1), None)
