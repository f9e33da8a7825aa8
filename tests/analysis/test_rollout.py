"""Rollouts of models on series, and when one has collapsed."""

import jax.numpy as jnp
import numpy as np
import pytest

from icl_lab.analysis import collapse_step, rollout
from icl_lab.core.errors import InvalidValueError
from icl_lab.models import LinearSelfAttention, constructions
from icl_lab.tasks.series.forecasting import forecast_prompt, published_series

LSA = LinearSelfAttention(embedding="hankel", query_in_sum=False)
RHO = np.array([0.5, -0.3])


def last_times(weights, prompt):
    """A forecaster that also shows how many examples it sees."""
    return weights * prompt.query[-1:] + jnp.asarray(prompt.inputs.shape[0], prompt.query.dtype)


def test_predictions_are_appended_and_the_context_grows():
    # Six values with lag windows of two: four windows, then five, then six.
    values = rollout(last_times, np.array([2.0]), np.arange(6.0), order=2, steps=3)
    np.testing.assert_array_equal(values, [14.0, 33.0, 72.0])


def test_a_batch_is_rolled_out_row_by_row(rng):
    series = rng.normal(size=(3, 9))
    weights = constructions.series.one_layer(RHO, 1.0, 7)
    together = rollout(LSA, weights, series, 2, 4)
    assert together.shape == (3, 4)
    assert together.dtype == np.float64
    np.testing.assert_allclose(rollout(LSA, weights, series[1], 2, 4), together[1], rtol=1e-12)


def test_a_model_is_asked_as_on_a_prompt(rng):
    series = rng.normal(size=9)
    weights = constructions.series.two_layers(RHO, 1.0)
    first, second = rollout(LSA, weights, series, 2, 2)
    np.testing.assert_allclose(first, LSA(weights, forecast_prompt(series, 2))[0], rtol=1e-12)
    np.testing.assert_allclose(second, LSA(weights, forecast_prompt(np.append(series, first), 2))[0], rtol=1e-10)


def test_impossible_rollouts_are_refused(rng):
    with pytest.raises(InvalidValueError, match="order"):
        rollout(LSA, constructions.series.one_layer(RHO, 1.0), rng.normal(size=2), 2, 1)
    with pytest.raises(InvalidValueError, match="steps"):
        rollout(LSA, constructions.series.one_layer(RHO, 1.0), rng.normal(size=9), 2, 0)


def test_collapse_needs_a_whole_window_of_small_values():
    predictions = np.ones(100)
    predictions[10:29] = 0.0  # one short of a window of 20
    predictions[50:] = -0.09
    assert collapse_step(predictions, std=2.0) == 50
    assert collapse_step(predictions, std=1.0) is None
    # Twenty steps: the window is 5, its smallest.
    assert collapse_step(predictions[5:25], std=2.0) == 5
    assert collapse_step(np.zeros(3), std=1.0) is None
    with pytest.raises(InvalidValueError, match="std"):
        collapse_step(predictions, std=0.0)


def test_the_published_series_continues_the_stream_of_its_coefficients():
    coefficients, values = published_series(3, 100, length=200)
    stream = np.random.RandomState(100)
    drawn = stream.uniform(-0.9, 0.9, 3)
    np.testing.assert_array_equal(drawn, coefficients)
    variance = 0.05**2 * (1 + 0.2448)
    expected = np.zeros(300)
    expected[:3] = stream.normal(0, np.sqrt(variance), 3)
    for t in range(3, 300):
        expected[t] = np.sum(coefficients * expected[t - 3 : t][::-1]) + stream.normal(0, 0.05)
    np.testing.assert_allclose(values, expected[100:], rtol=1e-8)


def test_published_series_of_impossible_settings_are_refused():
    with pytest.raises(InvalidValueError, match="burn_in"):
        published_series(3, 100, burn_in=2)
    with pytest.raises(InvalidValueError, match="order"):
        published_series(0, 100)
