"""Risks and distances of predictors on shared prompts, and prompts cut to a length."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_lab import estimators, tasks
from icl_lab.analysis.evaluation.measure import measure, prefix
from icl_lab.core.errors import InvalidValueError, NonFiniteError


def scaled_least_squares(factor, prompt):
    return factor * estimators.ols(prompt)


def test_distances_and_risks_of_multiples_of_the_truth_are_known_by_hand(key):
    # Without noise least squares answers the target y itself, with E y^2 = tr(Lambda) = 1.5. A multiple c y then has risk
    # (c - 1)^2 E y^2 and distance |c - 1| from the model.
    task = tasks.LinearRegression(dim=2, context_length=6, covariance=[1.0, 0.5])
    others = {"double": eqx.Partial(scaled_least_squares, jnp.asarray(2.0)), "zero": estimators.named("zero")}
    rows = measure(task, [eqx.Partial(scaled_least_squares, jnp.asarray(1.0))], others, [6], key, 2000, sequence=False)[0][6]
    # Least squares on 6 examples in 2 dimensions: rounding, times a condition number that is large on few prompts.
    assert rows["model"]["risk"] < 1e-20
    assert rows["double"]["prediction_distance"] == pytest.approx(1.0, rel=1e-9)
    assert rows["zero"]["prediction_distance"] == pytest.approx(1.0, rel=1e-9)
    assert rows["double"]["risk"] == pytest.approx(rows["zero"]["risk"], rel=1e-9)
    assert abs(rows["zero"]["risk"] - 1.5) < 4 * rows["zero"]["standard_error"]
    assert rows["zero"]["standard_error"] < 0.1


def test_standard_error_is_that_of_the_mean(key):
    # For x = 1 and w ~ N(0, 1), y^2 is chi-squared with variance 2: the error of the mean of n is sqrt(2 / n).
    task = tasks.LinearRegression(dim=1, context_length=1, covariates=tasks.Sphere(dim=1))
    rows = measure(task, [estimators.named("zero")], {}, [1], key, 20000, sequence=False)[0][1]
    # The sample variance of chi-squared has a relative error of sqrt(14 / n) (kurtosis 15), its root half of that.
    expected = np.sqrt(2 / 20000)
    assert rows["model"]["standard_error"] == pytest.approx(expected, rel=4 * 0.5 * np.sqrt(14 / 20000))


def test_prefix_of_a_regression_prompt_keeps_the_query(key):
    prompt = tasks.LinearRegression(dim=2, context_length=6).sample(key)
    short = prefix(prompt, 4, sequence=False)
    assert np.array_equal(short.inputs, prompt.inputs[:4])
    assert np.array_equal(short.labels, prompt.labels[:4])
    assert np.array_equal(short.query, prompt.query)
    assert np.array_equal(short.target, prompt.target)


def test_prefix_of_a_series_asks_for_the_value_that_follows_it(key):
    prompt = tasks.Autoregressive(coefficients=[0.5, -0.3], context_length=6).sample(key)
    short = prefix(prompt, 4, sequence=True)
    series = tasks.series(prompt)
    assert np.array_equal(tasks.series(short), series[:6])
    assert np.array_equal(short.query, series[4:6])
    assert np.array_equal(short.target, series[6:7])
    whole = prefix(prompt, 6, sequence=True)
    assert np.array_equal(whole.query, prompt.query)
    assert np.array_equal(whole.target, prompt.target)


def correlation_step(scale, prompt):
    """scale sum_i y_i x_i . x_q."""
    return scale * prompt.labels.T @ (prompt.inputs @ prompt.query)


def test_a_shorter_prompt_of_a_drifting_task_is_one_of_its_own(key):
    # The step of scale c has the risk d (1 - 2 c sum_i a^(n + 1 - i) + c^2 (sum_ij a^|i - j| + n (d + 1))) on n examples. In
    # the first 3 of 12 examples the query would be 10, 11 and 12 steps ahead, not 1, 2 and 3.
    dim, rate, scale = 2, 0.9, 0.1
    task = tasks.DriftingRegression(dim, 12, rate)
    step = eqx.Partial(correlation_step, jnp.asarray(scale))
    tables = measure(task, [step], {}, [3, 12], key, 40_000, sequence=False)[0]
    place = np.arange(12)

    def risk(n, nearest):
        pairs = np.sum(rate ** np.abs(place[:n, None] - place[None, :n]))
        evidence = np.sum(rate ** (nearest + place[:n]))
        return dim * (1 - 2 * scale * evidence + scale**2 * (pairs + n * (dim + 1)))

    for n in (3, 12):
        assert abs(tables[n]["model"]["risk"] - risk(n, 1)) < 4 * tables[n]["model"]["standard_error"]
    assert abs(tables[3]["model"]["risk"] - risk(3, 10)) > 12 * tables[3]["model"]["standard_error"]


def test_a_shorter_prompt_of_recall_holds_what_it_asks_for(key):
    # On orthonormal keys the sum is exact at every length; of the first 2 of 4 pairs, half the queries would have no key.
    task = tasks.AssociativeRecall(dim=4, context_length=4, orthonormal=True)
    step = eqx.Partial(correlation_step, jnp.asarray(1.0))
    tables = measure(task, [step], {}, [2, 4], key, 1000, sequence=False)[0]
    assert max(tables[n]["model"]["risk"] for n in (2, 4)) < 1e-25


class BrokenTask(tasks.Task):
    dim: int = eqx.field(static=True, default=1)
    label_dim: int = eqx.field(static=True, default=1)
    context_length: int = eqx.field(static=True, default=2)

    def sample(self, key):
        values = jax.random.normal(key, (2, 1))
        return tasks.Prompt(values, jnp.full((2, 1), jnp.nan), values[0], values[1])


def test_nan_in_a_sampled_prompt_is_an_error_and_no_number(key):
    with pytest.raises(NonFiniteError, match=r"`prompt.labels` holds 20 NaN"):
        measure(BrokenTask(), [estimators.named("zero")], {}, [2], key, 10, sequence=False)


def test_one_prompt_is_not_enough(key):
    task = tasks.LinearRegression(dim=1, context_length=1)
    with pytest.raises(InvalidValueError, match=r"`analysis.prompts` must be an integer >= 2; got 1"):
        measure(task, [estimators.named("zero")], {}, [1], key, 1, sequence=False)
