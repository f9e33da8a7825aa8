"""Means over prompts with standard errors that say when they cannot be trusted."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_lab import analysis, estimators, tasks
from icl_lab.analysis.sampling import sample_mean
from icl_lab.claims import check


def moments(prompt):
    return {"square": prompt.query[0] ** 2, "both": prompt.query[:2]}


def test_mean_error_and_share_are_those_of_the_prompts(key):
    task = tasks.LinearRegression(dim=3, context_length=4)
    found, count = sample_mean(moments, task, key, 5_000, chunk=512)
    assert count == 10 * 512
    chunks = [task.sample_batch(jax.random.fold_in(key, i), 512) for i in range(10)]
    values = np.concatenate([np.asarray(chunk.query[:, 0]) ** 2 for chunk in chunks])
    square = found["square"]
    deviations = (values - values.mean()) ** 2
    assert float(square.mean) == pytest.approx(values.mean(), rel=1e-12)
    assert float(square.standard_error) == pytest.approx(values.std(ddof=1) / np.sqrt(count), rel=1e-12)
    assert float(square.largest_share) == pytest.approx(deviations.max() / deviations.sum(), rel=1e-10)
    assert found["both"].mean.shape == found["both"].largest_share.shape == (2,)


class Law(tasks.CovariateDistribution):
    """Normal inputs of a user."""

    dim: int = eqx.field(static=True)
    independent = True

    def sample(self, key, count):
        return jax.random.normal(key, (count, self.dim))

    def moments(self, order):
        return {2: 1.0, 4: 3.0, 6: 15.0}[order] * np.ones(self.dim)


def test_prompts_that_are_drawn_apart_have_the_same_means(key):
    predictors = {"ridge": estimators.named("ridge", penalty=1.0), "zero": estimators.named("zero")}
    for covariates in (Law(3), None):
        task = tasks.LinearRegression(dim=3, context_length=6, noise_std=0.5, covariates=covariates)
        risks = analysis.sampled_risks(task, predictors, key, prompts=20_000)
        assert abs(risks["zero"].mean - 3.0) < 4 * risks["zero"].standard_error
        if covariates is not None:
            first = risks
    gap = first["ridge"].mean - risks["ridge"].mean
    assert abs(gap) < 4 * np.hypot(first["ridge"].standard_error, risks["ridge"].standard_error)


def test_a_mean_that_one_prompt_makes_up_has_no_standard_error(key):
    # Least squares on as many examples as inputs has no finite risk, and one more does not give it a finite variance.
    predictors = {"ols": estimators.named("ols"), "zero": estimators.named("zero")}
    task = tasks.LinearRegression(dim=3, context_length=3, noise_std=0.3)
    risks = analysis.sampled_risks(task, predictors, key)
    assert risks["ols"].largest_share > 0.5
    assert np.isinf(risks["ols"].standard_error)
    assert "heavy tails: one prompt makes up" in str(risks["ols"])
    assert "heavy" not in str(risks["zero"])
    assert np.isinf(risks.difference("ols", "zero").standard_error)
    assert not check.sampled("risk", risks["ols"].mean, risks["ols"].mean, risks["ols"].standard_error).passed


def test_a_single_number_that_never_changes_and_few_prompts_are_no_heavy_tail(key):
    task = tasks.LinearRegression(dim=2, context_length=3)
    constant, _ = sample_mean(lambda prompt: jnp.ones(()), task, key, 100)
    assert float(constant.standard_error) == float(constant.largest_share) == 0.0
    few, _ = sample_mean(lambda prompt: prompt.query[0], task, key, 2)
    assert np.isfinite(few.standard_error)
    assert float(few.largest_share) == pytest.approx(0.5)
