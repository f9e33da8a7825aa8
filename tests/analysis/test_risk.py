"""Sampled risks against closed forms, their standard errors, and the streaming behind them."""

import equinox as eqx
import jax
import numpy as np
import pytest

from icl_lab import analysis, estimators
from icl_lab.analysis import sampling
from icl_lab.core.errors import InvalidValueError
from icl_lab.models import LinearSelfAttention, LSAWeights
from icl_lab.tasks import LinearRegression

SIGMAS = 4
DIM, LENGTH, NOISE = 3, 12, 0.5
# Shared, with 32 prompts, so that the tests that only look at the result compile one program between them.
SMALL = LinearRegression(dim=2, context_length=5)
PREDICTORS = {
    "zero": estimators.zero,
    "broken": lambda prompt: estimators.zero(prompt) / estimators.zero(prompt),
    "ols": estimators.ols,
}


def test_risks_of_least_squares_zero_and_one_gradient_step_are_the_closed_forms(key):
    task = LinearRegression(dim=DIM, context_length=LENGTH, noise_std=NOISE)
    eta = 0.6
    risks = analysis.sampled_risks(
        task,
        {
            "ols": estimators.ols,
            "zero": estimators.zero,
            "gd": estimators.named("gradient_descent", step_size=eta),
        },
        key,
        prompts=20000,
    )
    noise_variance = NOISE**2
    expected = {
        # E tr (X^T X)^{-1} = d / (N - d - 1) for standard normal inputs.
        "ols": noise_variance * DIM / (LENGTH - DIM - 1),
        "zero": DIM,
        "gd": DIM * (1 - 2 * eta + eta**2 * (LENGTH + DIM + 1 + noise_variance) / LENGTH),
    }
    for name, value in expected.items():
        assert abs(risks[name].mean - value) < SIGMAS * risks[name].standard_error, name
        assert risks[name].standard_error < 0.03 * value, name


def test_the_risk_of_a_layer_in_the_structured_subspace_is_that_of_its_preconditioner(key):
    covariance, length = np.array([2.0, 1.0, 0.5]), 10
    task = LinearRegression(dim=3, context_length=length, covariance=covariance)
    # The limit of gradient flow for this task: diag(1 / gamma), with excess risk 0.9639395988.
    gamma = (1 + 1 / length) * covariance + covariance.sum() / length
    w_pv, w_kq = np.zeros((4, 4)), np.zeros((4, 4))
    w_pv[3, 3], w_kq[:3, :3] = 1.0, np.diag(1 / gamma)
    risks = analysis.sampled_risks(
        task,
        {
            "layer": eqx.Partial(LinearSelfAttention(), LSAWeights(w_pv, w_kq)),
            "pgd": estimators.named("preconditioned_gradient_descent", preconditioner=np.diag(1 / gamma)),
        },
        key,
        prompts=20000,
    )
    assert abs(risks["layer"].mean - 0.9639395988) < SIGMAS * risks["layer"].standard_error
    # Both are the same function, so the paired difference is rounding though each risk has an error of 2 percent.
    difference = risks.difference("layer", "pgd")
    assert abs(difference.mean) < 1e-12
    assert difference.standard_error < 1e-12
    assert risks["layer"].standard_error > 1e-3


def test_ridge_is_bayes_and_beats_every_other_penalty_by_a_paired_margin(key):
    task = LinearRegression(dim=DIM, context_length=4, noise_std=1.0)
    predictors = {f"{penalty}": estimators.named("ridge", penalty=penalty) for penalty in (0.3, 1.0, 3.0)}
    risks = analysis.sampled_risks(task, predictors, key, prompts=8192)
    for other in ("0.3", "3.0"):
        margin = risks.difference(other, "1.0")
        assert margin.mean > SIGMAS * margin.standard_error
        # Pairing is what makes this visible: the unpaired error is larger.
        unpaired = np.hypot(risks[other].standard_error, risks["1.0"].standard_error)
        assert margin.standard_error < 0.6 * unpaired
        back = risks.difference("1.0", other)
        np.testing.assert_allclose([back.mean, back.standard_error], [-margin.mean, margin.standard_error], rtol=1e-12)


def test_streamed_moments_are_those_of_all_prompts_at_once(key):
    task = LinearRegression(dim=2, context_length=3)
    risks = analysis.sampled_risks(task, {"zero": estimators.zero, "last": estimators.last_value}, key, 60, chunk=20)
    targets, lasts = [], []
    for i in range(3):
        batch = task.sample_batch(jax.random.fold_in(key, i), 20)
        targets.append(np.asarray(batch.target)[:, 0])
        lasts.append(np.asarray(batch.labels)[:, -1, 0])
    targets, lasts = np.concatenate(targets), np.concatenate(lasts)
    assert risks.prompts == 60
    fewer = analysis.sampled_risks(task, {"zero": estimators.zero, "last": estimators.last_value}, key, 50, chunk=20)
    assert fewer.prompts == 60  # rounded up to whole chunks
    for name, errors in (("zero", targets**2), ("last", (lasts - targets) ** 2)):
        np.testing.assert_allclose(risks[name].mean, errors.mean(), rtol=1e-12)
        np.testing.assert_allclose(risks[name].standard_error, errors.std(ddof=1) / np.sqrt(60), rtol=1e-12)
    gaps = (lasts - targets) ** 2 - targets**2
    difference = risks.difference("last", "zero")
    np.testing.assert_allclose(difference.mean, gaps.mean(), rtol=1e-11)
    np.testing.assert_allclose(difference.standard_error, gaps.std(ddof=1) / np.sqrt(60), rtol=1e-12)


def test_new_weights_and_more_prompts_reuse_the_compiled_program(key):
    task, model = LinearRegression(dim=2, context_length=5), LinearSelfAttention()
    traces = []

    def counted(weights, prompt):
        traces.append(1)
        return model(weights, prompt)

    def run(scale, prompts):
        weights = LSAWeights(scale * np.eye(3), scale * np.eye(3))
        return analysis.sampled_risks(task, {"layer": eqx.Partial(counted, weights)}, key, prompts, chunk=16)

    first = run(0.5, 16)
    count = len(traces)
    assert count > 0
    second = run(0.1, 64)
    assert len(traces) == count
    assert first["layer"].mean != second["layer"].mean


def test_risk_against_length_falls_as_the_closed_form_for_a_gradient_step(key):
    lengths, eta = (4, 20), 0.7
    curve = analysis.risk_against_length(
        lambda n: LinearRegression(dim=2, context_length=n, noise_std=NOISE),
        lengths,
        {"gd": estimators.named("gradient_descent", step_size=eta), "zero": estimators.zero},
        key,
        prompts=8192,
    )
    assert curve.names == ("gd", "zero")
    assert curve.lengths == lengths
    assert curve.means.shape == curve.standard_errors.shape == (2, 2)
    gd = [2 * (1 - 2 * eta + eta**2 * (n + 3 + NOISE**2) / n) for n in lengths]
    expected = np.stack([gd, [2.0, 2.0]], axis=1)
    np.testing.assert_array_less(np.abs(curve.means - expected), SIGMAS * curve.standard_errors)
    assert np.all(curve.standard_errors < 0.06 * expected)


@pytest.mark.default_precision
def test_risks_are_float64_numpy_although_no_scope_is_open():
    risks = analysis.sampled_risks(SMALL, PREDICTORS, jax.random.key(0), 32)
    assert risks.prompts == 32
    assert isinstance(risks.risks.mean, np.ndarray)
    assert risks.risks.mean.dtype == np.float64
    # Noiseless least squares is exact: float32 would leave 1e-12 and more.
    assert risks["ols"].mean < 1e-20


def test_a_nan_prediction_is_a_nan_risk_that_leaves_the_others_alone(key):
    risks = analysis.sampled_risks(SMALL, PREDICTORS, key, 32)
    assert np.isnan(risks["broken"].mean)
    assert np.isnan(risks.difference("broken", "ols").mean)
    assert np.isfinite(risks.difference("zero", "ols").mean)


def test_the_table_is_sorted_and_shows_the_paired_distance_to_the_best(key):
    risks = analysis.sampled_risks(SMALL, PREDICTORS, key, 32)
    lines = str(risks).splitlines()
    assert "above ols (paired)" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["ols", "zero", "broken"]


def test_misuse_is_named(key):
    with pytest.raises(InvalidValueError, match="at least one predictor"):
        analysis.sampled_risks(SMALL, {}, key, 32)
    with pytest.raises(InvalidValueError, match=r"shape of the target, \(1,\); got \(\)"):
        analysis.sampled_risks(SMALL, {"scalar": lambda p: estimators.zero(p)[0]}, key, 32)
    with pytest.raises(InvalidValueError, match="`chunk` must be an integer >= 1"):
        sampling.sample_mean(lambda p: p.target[0], SMALL, key, 10, chunk=0)
    risks = analysis.sampled_risks(SMALL, PREDICTORS, key, 32)
    with pytest.raises(InvalidValueError, match="No predictor is called 'gd'; choose one of zero, broken, ols"):
        risks["gd"]
