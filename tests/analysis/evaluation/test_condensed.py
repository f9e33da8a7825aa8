"""Condensed prompts against whole ones: the distribution of their Gram matrices, and every number of the comparison."""

import equinox as eqx
import jax
import numpy as np
import pytest

from icl_lab import models, tasks, theory
from icl_lab.analysis.evaluation import comparison
from icl_lab.analysis.evaluation.condensed import condensed, measure_condensed, triangles
from icl_lab.analysis.evaluation.measure import measure

LENGTHS = (1, 3, 8, 40)


@pytest.fixture
def task():
    return tasks.LinearRegression(dim=3, context_length=40, covariance=[1.0, 0.5, 0.2], noise_std=0.3)


def answer(model, weights, prompt):
    return model(weights, prompt)


def trained(query_in_sum=True, normaliser="context_length", scale=1.2):
    model = models.LinearSelfAttention(query_in_sum=query_in_sum, normaliser=normaliser)
    return eqx.Partial(answer, model, models.initializers.zhang(3, scale))


def compared_with(task, key):
    step, preconditioner = comparison.best_linear_steps(task, key, 100)
    return comparison.predictors(task, step, preconditioner, comparison.penalty_matrix(task, None))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 40])
def test_triangles_have_the_gram_matrices_of_n_normal_rows(n):
    width, count = 4, 20_000
    rows = triangles(np.random.default_rng(0), n, count, width)
    assert np.all(rows[:, n:] == 0)
    gram = np.einsum("bni,bnj->bij", rows, rows)
    # E S = n I and Var S_ij = n (1 + [i = j]); sixteen sample means, each within five of its standard errors.
    variance = n * (1 + np.eye(width))
    assert np.max(np.abs(gram.mean(0) - n * np.eye(width)) / np.sqrt(variance / count)) < 5
    # A sample variance of products of normals, whose kurtosis is at most 15, is known to sqrt(14 / count) = 2.6 %.
    np.testing.assert_allclose(gram.var(0), variance, rtol=5 * np.sqrt(14 / count))
    # det S is a product of chi-squared variables of n, n - 1, .. degrees, so its mean is n (n - 1) (n - 2) (n - 3).
    determinant = np.linalg.det(gram)
    expected = n * (n - 1) * (n - 2) * (n - 3)
    assert abs(determinant.mean() - expected) < 5 * determinant.std() / np.sqrt(count) + 1e-12


def test_prompts_follow_the_task(task, key):
    prompts, n = condensed(task, LENGTHS).draw(key, 8, 20_000), 8
    noise = prompts.labels[:, :, 0] - np.einsum("bni,bi->bn", prompts.inputs, _least_squares(prompts))
    np.testing.assert_allclose(np.cov(prompts.query.T), np.asarray(task.covariance), atol=5 * np.sqrt(2 / 20_000))
    # Least squares leaves n - d degrees of freedom of the noise, of variance 0.09; chi-squared has variance twice its degrees.
    squares, freedom = np.sum(noise**2, axis=1) / 0.09, n - 3
    assert abs(squares.mean() - freedom) < 5 * np.sqrt(2 * freedom / 20_000)
    assert abs(np.mean(prompts.target**2) - task.signal_variance) < 5 * np.std(prompts.target**2) / np.sqrt(20_000)


def _least_squares(prompts):
    return np.stack([np.linalg.lstsq(x, y[:, 0])[0] for x, y in zip(prompts.inputs, prompts.labels, strict=True)])


def test_task_vectors_and_queries_are_shared_by_the_lengths(task, key):
    distribution = condensed(task, LENGTHS)
    short, long = (distribution.draw(key, n, 5) for n in (2, 40))
    assert np.array_equal(short.query, long.query)
    assert np.array_equal(short.target, long.target)
    assert not np.array_equal(short.inputs, long.inputs)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_rows_of_zeros_change_no_answer(task, n, key):
    # Fewer rows than dimensions too, where least squares decides on a rank.
    prompts = jax.tree.map(np.asarray, task.with_context_length(n).sample_batch(key, 2000))
    arrays = tuple(np.pad(array, ((0, 0), (0, 6 - n), (0, 0))) for array in (prompts.inputs, prompts.labels))
    padded = eqx.tree_at(lambda batch: (batch.inputs, batch.labels), prompts, arrays)
    predictors = {**compared_with(task, key), "model": trained(False), "sum": trained(False, "none")}
    answers = jax.jit(jax.vmap(lambda prompt: {name: predictor(prompt) for name, predictor in predictors.items()}))
    cut, whole = answers(prompts), answers(padded)
    for name in predictors:
        scale = 6 / n if name in ("model", *comparison.MEANS) else 1.0
        # Rounding, times the condition number of the inputs, which exceeds 1e5 on one prompt in a hundred thousand.
        np.testing.assert_allclose(scale * whole[name], cut[name], rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    "model", [trained(), trained(query_in_sum=False), trained(query_in_sum=False, normaliser="none", scale=0.3)]
)
def test_every_number_of_the_comparison_is_that_of_whole_prompts(task, model, key):
    others, keys, prompts = compared_with(task, key), jax.random.split(key), 20_000
    whole = measure(task, [model], others, LENGTHS, keys[0], prompts, sequence=False)[0]
    means = comparison.MEANS if model.args[0].normaliser == "none" else ("model", *comparison.MEANS)
    few = measure_condensed(condensed(task, LENGTHS), [model], others, LENGTHS, keys[1], prompts, means=means)[0]
    for n in LENGTHS:
        for name, numbers in whole[n].items():
            for value, error in (("risk", "standard_error"), ("prediction_distance", "prediction_distance_error")):
                if value in numbers and np.isfinite(numbers[value]) and not (name == "ols" and n == 3):  # no finite variance
                    spread = np.hypot(numbers[error], few[n][name][error])
                    assert abs(numbers[value] - few[n][name][value]) <= 4.5 * spread + 1e-12, (n, name, value)
        step = others["preconditioned_gradient_descent"].keywords["preconditioner"]
        exact = theory.lsa.risk(theory.Problem.of(task.with_context_length(n)), step)
        found = few[n]["preconditioned_gradient_descent"]
        assert abs(found["risk"] - exact) < 4.5 * found["standard_error"]


def test_one_program_serves_all_lengths_spectra_noise_and_penalties(key):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if event == "/jax/core/compile/backend_compile_duration" else None
    )
    for number, spectrum in enumerate((None, [1.0, 0.5, 0.2], np.eye(3) + 0.1)):
        task = tasks.LinearRegression(3, 10 + number, covariance=spectrum, noise_std=0.1 * number)
        others, before = compared_with(task, key), len(compiled)
        model = eqx.Partial(answer, models.LinearSelfAttention(), models.initializers.zhang(3, 1.0 + number))
        for lengths in ((1, 10), (2, 5, 20, 40)):
            measure_condensed(condensed(task, lengths), [model], others, lengths, key, 100, means=("model",))
        assert number == 0 or len(compiled) == before


def test_which_tasks_have_condensed_prompts():
    assert condensed(tasks.LinearRegression(dim=5, context_length=4), [1, 2, 4])
    assert condensed(tasks.LinearRegression(dim=100, context_length=200), [50, 100, 200])
    # Few examples of many dimensions: 101 rows would be more than they are.
    assert not condensed(tasks.LinearRegression(dim=100, context_length=20), [5, 10, 20])
    assert not condensed(tasks.LinearRegression(dim=5, context_length=40, covariates=tasks.Sphere(dim=5)), [10, 20, 40])
