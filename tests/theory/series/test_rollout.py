"""Rollouts, depth and softmax heads on AR(p) series: formulas against simulation, algebra and reference numbers."""

import numpy as np
import pytest

from icl_lab.claims.simulation import normal_batches
from icl_lab.core.errors import AssumptionError
from icl_lab.theory.series import rollout, softmax_series

RHO, SIGMA = np.array([0.5, -0.3, 0.2]), np.sqrt(0.7)


def simulated_series(coefficients, noise_std, length, count, seed):
    generator, order = np.random.default_rng(seed), len(coefficients)
    start, noise = (generator.standard_normal((count, size)) for size in (order, length - order))
    return rollout.stationary_series(coefficients, noise_std, start, noise)


def mean_and_error(values):
    return np.mean(values), np.std(values, ddof=1) / np.sqrt(len(values))


def test_moments_of_the_best_rollout():
    moments = rollout.bayes_second_moment(RHO, SIGMA, 12)
    errors = rollout.bayes_mse(RHO, SIGMA, 12)
    np.testing.assert_allclose(moments[[0, 1, 4]], [0.1903508772, 0.0153508772, 0.001784002], rtol=0, atol=1e-9)
    np.testing.assert_allclose(errors[[0, 1, 4, 11]], [0.7, 0.875, 0.888566875, 0.8903484377], rtol=0, atol=1e-9)
    np.testing.assert_allclose(moments + errors, 0.8903508772, rtol=0, atol=1e-9)


def test_errors_of_other_coefficients():
    assert rollout.plugin_mse(RHO, 0.9 * RHO, SIGMA, 4)[-1] == pytest.approx(0.8774328185, abs=1e-9)
    # The true ones are the best, and no rollout at all leaves the variance.
    np.testing.assert_allclose(rollout.plugin_mse(RHO, RHO, SIGMA, 6), rollout.bayes_mse(RHO, SIGMA, 6), rtol=1e-12)
    np.testing.assert_allclose(rollout.plugin_mse(RHO, np.zeros(3), SIGMA, 2), 0.8903508772, rtol=0, atol=1e-9)


def test_simulated_series_have_the_distribution():
    series = simulated_series(RHO, SIGMA, 12, 50_000, seed=1)
    mean, error = mean_and_error(series[:, -1] ** 2)
    assert abs(mean - 0.8903508772) < 4 * error
    innovations, best = rollout.innovations(series, RHO)
    assert innovations.shape == (50_000, 9)
    assert best.shape == (50_000, 10)
    mean, error = mean_and_error(innovations[:, 4] ** 2)
    assert abs(mean - 0.7) < 4 * error
    mean, error = mean_and_error(innovations[:, 4] * best[:, 4])
    assert abs(mean) < 4 * error


def test_the_recursion_of_the_layer_by_hand():
    series = np.array([[1.0, 0.5, -1.0]])
    (values,) = rollout.lsa_rollout(series, np.array([0.5]), 1.0, 0.5, 2)
    # Innovations 0 and -1.25; w.h = -0.5.
    first = 0.5 * 1.5625 / 2 * -0.5
    total = 1.5625 + (first + 0.5) ** 2
    np.testing.assert_allclose(values, [first, 0.5 * total / 3 * 0.5 * first], rtol=1e-15)


def test_the_collapse_of_the_layer():
    series = simulated_series(np.array([0.5]), 1.0, 51, 40_000, seed=0)
    ratio, error = rollout.collapse_ratio(np.array([0.5]), 1.0, series, 8)
    assert ratio == pytest.approx(0.231, abs=0.03)
    assert 0 < error < 0.01
    # Appended columns without innovations would only lengthen the context: prod_j alpha N / (N + j - 1) is left.
    assert ratio < np.prod(50 / 54 * 50 / (50 + np.arange(8)))


def test_overflowing_rollouts_count_as_infinite():
    ratio, _ = rollout.ratio_of_medians(np.tile([1.0, 3.0, np.nan, np.inf, -1.0], 20), np.full(100, 2.0), groups=2)
    assert ratio == 1.5


@pytest.mark.parametrize(("rho", "length"), [([0.5, -0.3], 640), ([0.8], 1600)])
def test_the_gap_of_two_layers(rho, length):
    rho = np.array(rho)
    series = simulated_series(rho, 1.3, length + len(rho), 10_000, seed=2)
    answer, best = rollout.two_layer_prediction(series, rho, 1.3)
    mean, error = mean_and_error(length**2 * (answer - best) ** 2 / np.mean(best**2))
    assert abs(mean - rollout.two_layer_gap(rho, length)) < 4 * error
    assert abs(mean - rollout.two_layer_gap(rho, 10**9)) < 2.5 + 4 * error


def test_the_gap_with_equal_estimates():
    rho = np.array([0.6, 0.2])
    series = simulated_series(rho, 0.7, 10, 200_000, seed=5)
    observed, best = rollout.innovations(series, rho)
    estimate = np.mean(observed**2, axis=1) / 0.49
    variance = rollout.lyapunov_covariance(rho, 0.49)[0, 0] - 0.49
    mean, error = mean_and_error(64 / variance * best[:, -1] ** 2 * (1 - estimate) ** 4)
    assert abs(mean - rollout.equal_estimates_gap(rho, 8)) < 4 * error
    assert error < 3


def test_the_gap_of_two_layers_without_signal_is_that_of_the_estimates():
    # E (s-1)^4 = 12/N^2 + 48/N^3 with s' = s; (w.h)^2 is an independent factor of mean V only if nothing is remembered.
    assert rollout.two_layer_correction(np.array([0.0])) == 208.0


def test_the_gap_of_one_layer():
    # 2V/(N+4) up to the squared memory, and the exact expression where the memory is long.
    assert rollout.one_layer_gap(np.array([0.5, -0.3]), 20) == pytest.approx(0.0241402116, rel=1e-8)
    rho = np.array([0.9])
    series = simulated_series(rho, 0.5, 11, 400_000, seed=3)
    observed, best = rollout.innovations(series, rho)
    prediction = 10 / 14 * np.mean(observed**2, axis=1) / 0.25 * best[:, -1]
    mean, error = mean_and_error((prediction - best[:, -1]) ** 2 / 0.25)
    assert abs(mean - rollout.one_layer_gap(rho, 10)) < 4 * error


def test_the_readout_of_a_softmax_head():
    limit = softmax_series.readout_limit(np.array([0.5, -0.3]), 1.0, np.array([0.3, -0.2, 0.5]))
    np.testing.assert_allclose(limit, [0.2182540, 0.1388889, 0.5039683], rtol=0, atol=5e-8)
    # One order more than the series needs: each column is a filter of the last.
    wide = softmax_series.column_covariance(np.array([0.5, -0.3, 0.0]), 1.0)
    np.testing.assert_allclose(wide[:3, :3], softmax_series.column_covariance(np.array([0.5, -0.3]), 1.0), rtol=1e-12)


def test_the_variance_of_a_softmax_head():
    rho = np.array([0.3])
    assert softmax_series.scaled_gap(rho, 1.0, 1.0) == pytest.approx(1.2542, abs=5e-5)
    assert softmax_series.scaled_gap(rho, 1.0, 0.8) == pytest.approx(0.942, abs=5e-4)
    # In units of the noise nothing depends on it.
    assert softmax_series.scaled_gap(rho, 0.3, 1.0) == pytest.approx(0.09 * softmax_series.scaled_gap(rho, 1.0, 1.0), rel=1e-12)
    with pytest.raises(AssumptionError, match="too small"):
        softmax_series.scaled_gap(np.array([0.9]), 1.0, 1.0)


def test_the_finite_head_tends_to_the_limit():
    rho = np.array([0.3])
    mean, error = softmax_series.finite_gap(rho, 0.5, 1.0, normal_batches(4_000, 1000, seed=0))
    assert abs(mean - softmax_series.scaled_gap(rho, 0.5, 1.0)) < 4 * error
    # Equal weights: the mean of the innovations, whose variance is sigma^2 / N, and 1/C is the only trace of the query.
    mean, error = softmax_series.finite_gap(rho, 1.0, 100.0, normal_batches(4_000, 50, seed=0))
    assert abs(mean / 100.0**2 - 1) < 4 * error / 100.0**2 + 1e-3
    assert softmax_series.saturation(1.0, 0.5) == np.inf
