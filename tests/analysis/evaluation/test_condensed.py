"""Condensed prompts against whole ones: the distribution of their Gram matrices, and every number of the comparison."""

import equinox as eqx
import jax
import numpy as np
import pytest

from icl_lab import models, tasks, theory
from icl_lab.analysis.evaluation import comparison
from icl_lab.analysis.evaluation.condensed import Condensed, condensed
from icl_lab.analysis.evaluation.measure import measure

LENGTHS = (3, 8, 40)


@pytest.fixture
def task():
    return tasks.LinearRegression(dim=3, context_length=40, covariance=[1.0, 0.5, 0.2], noise_std=0.3)


def test_rows_stand_for_the_examples_of_every_length(task, key):
    distribution = Condensed(task, LENGTHS)
    # 3 examples, 5 more by 4 rows, and 32 more by 4.
    assert distribution.rows == (3, 7, 11)
    assert distribution.sample(key).inputs.shape == (11, 3)


def test_gram_matrices_have_the_moments_of_the_wishart_distribution(task, key):
    distribution, count = Condensed(task, LENGTHS), 20_000
    prompts = jax.jit(lambda key: distribution.sample_batch(key, count))(key)
    for rows, n in zip(distribution.rows, LENGTHS, strict=True):
        inputs, labels = np.asarray(prompts.inputs)[:, :rows], np.asarray(prompts.labels)[:, :rows, 0]
        gram = np.einsum("bni,bnj->bij", inputs, inputs)
        # E S = n Lambda; Var S_ij = n (L_ij^2 + L_ii L_jj); a sample variance of these is known to a few percent.
        scale = np.sqrt(np.outer(*[np.diag(np.asarray(task.covariance))] * 2))
        assert np.max(np.abs(gram.mean(0) - n * np.asarray(task.covariance)) / scale) < 5 * np.sqrt(2 * n / count)
        variance = n * (np.asarray(task.covariance) ** 2 + scale**2)
        np.testing.assert_allclose(gram.var(0), variance, rtol=0.1)
        noise = labels - np.einsum("bni,bi->bn", inputs, np.asarray(prompts.latent))
        squares = np.sum(noise**2, axis=1) / 0.09
        assert abs(squares.mean() - n) < 5 * np.sqrt(2 * n / count)
        np.testing.assert_allclose(squares.var(), 2 * n, rtol=0.1)


@pytest.mark.parametrize("query_in_sum", [False, True])
def test_every_number_of_the_comparison_is_that_of_whole_prompts(task, query_in_sum, key):
    model = models.LinearSelfAttention(query_in_sum=query_in_sum)
    trained = eqx.Partial(lambda model, weights, prompt: model(weights, prompt), model, models.initializers.zhang(3, 1.2))
    step, preconditioner = comparison.best_linear_steps(task, key, 100)
    others, distribution = comparison.predictors(task, step, preconditioner, None), Condensed(task, LENGTHS)
    keys, prompts = jax.random.split(key), 20_000
    whole = measure(task, [trained], others, LENGTHS, keys[0], prompts, sequence=False)[0]
    short = distribution.predictors({"model": trained})["model"]
    few = measure(distribution, [short], distribution.predictors(others), distribution.rows, keys[1], prompts, sequence=False)[
        0
    ]
    for rows, n in zip(distribution.rows, LENGTHS, strict=True):
        for name, numbers in whole[n].items():
            found = few[rows][name]
            for value, error in (("risk", "standard_error"), ("prediction_distance", "prediction_distance_error")):
                if value in numbers and np.isfinite(numbers[value]) and not (name == "ols" and n == 3):  # no finite variance
                    spread = np.hypot(numbers[error], found[error])
                    assert abs(numbers[value] - found[value]) <= 4.5 * spread + 1e-12, (n, name, value)
        exact = theory.lsa.risk(theory.Problem.of(task.with_context_length(n)), preconditioner)
        found = few[rows]["preconditioned_gradient_descent"]
        assert abs(found["risk"] - exact) < 4.5 * found["standard_error"]


def test_only_long_prompts_of_gaussian_regression_are_condensed():
    assert condensed(tasks.LinearRegression(dim=5, context_length=4000), [1000, 2000, 4000])
    assert not condensed(tasks.LinearRegression(dim=5, context_length=80), [20, 40, 80])
    assert not condensed(tasks.LinearRegression(dim=200, context_length=80), [20, 40, 80])
    sphere = tasks.LinearRegression(dim=5, context_length=4000, covariates=tasks.Sphere(dim=5))
    assert not condensed(sphere, [1000, 2000, 4000])
