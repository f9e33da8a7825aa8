"""Moments of AR series and of layers on them, against each other, simulation and literal pairings."""

import itertools

import numpy as np
import pytest

from icl_lab.claims.lab.random_autoregressive import simulated_ridge_excess
from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.theory.series import autoregressive, isserlis, random_autoregressive


@pytest.mark.parametrize(
    ("coefficients", "variance"),
    [([0.5, -0.3], 1.2896825397), ([1.2, -0.5], 3.7037037037), ([0.4, -0.2, 0.3], 1.2555485098), ([0.0], 1.0)],
)
def test_three_routes_to_the_variance(coefficients, variance):
    rho = np.array(coefficients)
    assert autoregressive.lyapunov_covariance(rho, 1.0)[0, 0] == pytest.approx(variance, rel=1e-10)
    assert autoregressive.variance_from_impulse_response(rho, 1.0) == pytest.approx(variance, rel=1e-10)
    assert autoregressive.variance_from_partial_autocorrelations(rho, 2.0) == pytest.approx(2 * variance, rel=1e-10)


def test_the_covariance_is_toeplitz():
    covariance = autoregressive.lyapunov_covariance(np.array([0.4, -0.2, 0.3]), 1.0)
    np.testing.assert_allclose(covariance[1:, 1:], covariance[:-1, :-1], rtol=1e-12)


def test_uniform_coefficients_by_integration_over_the_triangle():
    # |phi_2| < 1, |phi_1| < 1 - phi_2.
    points, weights = np.polynomial.legendre.leggauss(8)
    first, second = np.meshgrid(points, points, indexing="ij")
    mass = np.outer(weights, weights) * (1 - second)
    assert np.sum(mass) == pytest.approx(autoregressive.stationary_volume(2))
    squares = [np.sum(mass * (first * (1 - second)) ** 2), np.sum(mass * second**2)] / np.sum(mass)
    np.testing.assert_allclose(np.diag(autoregressive.uniform_second_moments(2)), squares)
    np.testing.assert_allclose(np.diag(autoregressive.uniform_second_moments(2, 0.5)), squares * [0.25, 0.0625])


def test_uniform_coefficients_of_order_three():
    assert [autoregressive.stationary_volume(p) for p in (1, 2, 3)] == pytest.approx([2, 4, 16 / 3])
    np.testing.assert_allclose(np.diag(autoregressive.uniform_second_moments(3)), [0.7334, 0.4656, 0.1993], rtol=0.005)


def test_the_two_posterior_means_agree():
    generator = np.random.default_rng(0)
    inputs, labels = generator.standard_normal((6, 2)), generator.standard_normal((6, 2))
    grid = autoregressive.integrated_mean(inputs, labels, 0.3, 0.5)
    np.testing.assert_allclose(autoregressive.conditioned_mean(inputs, labels, 0.3, 0.5), grid, rtol=1e-10)
    with pytest.raises(UnsupportedProblemError, match="d <= 2"):
        autoregressive.integrated_mean(np.ones((3, 3)), np.ones((3, 1)), 1.0, 1.0)


def _pairings(slots):
    if not slots:
        yield []
        return
    for k in range(1, len(slots)):
        for rest in _pairings(slots[1:k] + slots[k + 1 :]):
            yield [(slots[0], slots[k]), *rest]


@pytest.mark.parametrize("order", [1, 2])
def test_feature_moments_are_sums_over_all_pairings(order):
    length, gamma = 3, 0.8 ** np.arange(10.0) * np.cos(np.arange(10.0))
    gamma = gamma[: length + order + 1]
    moments = random_autoregressive.feature_moments(gamma[None], order)
    features = [
        [(i + j, i + k, length + lag) for i in range(length)]
        for j in range(order + 1)
        for k in range(j, order + 1)
        for lag in range(order)
    ]

    def mean(times):
        return sum(np.prod([gamma[abs(a - b)] for a, b in pairing]) for pairing in _pairings(tuple(times)))

    for a, b in itertools.product(range(len(features)), repeat=2):
        expected = sum(mean(one + other) for one in features[a] for other in features[b]) / length**2
        assert moments.gram[0, a, b] == pytest.approx(expected, rel=1e-12)
    for a, terms in enumerate(features):
        expected = sum(mean((*one, length + order)) for one in terms) / length
        assert moments.cross[0, a] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("length", "step", "excess"),
    [
        (5, 0.068359722, 0.380566653),
        (10, 0.089929939, 0.369532559),
        (20, 0.130146116, 0.321198994),
        (50, 0.196630520, 0.231489377),
        (100, 0.237478232, 0.176294254),
    ],
)
def test_best_layer_on_random_ar1(length, step, excess):
    moments = random_autoregressive.random_feature_moments(1, length, 0.9)
    (eta,), risk = random_autoregressive.span_minimum(moments, random_autoregressive.step_basis(1, False))
    assert (eta, risk - 1) == pytest.approx((step, excess), rel=1e-7)
    assert isserlis.best_layer(moments, 1).risk == pytest.approx(risk, rel=1e-9)


def test_long_contexts_approach_the_infinite_one():
    step, excess = random_autoregressive.infinite_context_step(0.9)
    assert (step, excess) == pytest.approx((0.2991469018, 0.0932429100), rel=1e-9)
    values = []
    for length in (400, 800):
        moments = random_autoregressive.random_feature_moments(1, length, 0.5)
        (eta,), risk = random_autoregressive.span_minimum(moments, random_autoregressive.step_basis(1, False))
        values.append((eta, risk - 1))
    # The corrections are of order 1/N (2e-3 beside the excess's 5e-4 at N = 800), and what is left of them 1/N^2.
    extrapolated = 2 * np.array(values[1]) - values[0]
    limit = random_autoregressive.infinite_context_step(0.5)
    assert extrapolated[0] == pytest.approx(limit[0], rel=2e-3)
    assert extrapolated[1] == pytest.approx(limit[1], abs=1.2e-4)
    scaled = random_autoregressive.infinite_context_step(0.9, 4.0)
    assert scaled == pytest.approx((step / 4, 4 * excess))


def _five(length, nodes):
    moments = random_autoregressive.random_feature_moments(2, length, 0.9, nodes=nodes)
    steps = [
        random_autoregressive.span_minimum(moments, random_autoregressive.step_basis(2, free))[1] for free in (False, True)
    ]
    lifted = random_autoregressive.span_minimum(moments, np.eye(12))[1]
    return np.array([float(moments.variance), *steps, isserlis.best_layer(moments, 2, starts=24).risk, lifted]) - 1


@pytest.mark.slow
def test_random_ar2_under_a_coarse_rule():
    np.testing.assert_allclose(_five(20, 14), [1.89259472, 1.583100972, 1.387404695, 1.381060514, 1.361277802], rtol=1e-8)


@pytest.mark.slow
def test_fourteen_nodes_are_not_enough_near_the_corner_of_the_triangle():
    exact = _five(20, None)
    assert exact[0] == pytest.approx(1.9161373583, rel=1e-8)
    np.testing.assert_allclose(exact[1:], [1.7400711, 1.5590772, 1.5139745, 1.4979230], rtol=1e-6)


@pytest.mark.parametrize("bound", [0.0, 1.0])
def test_bounds_outside_the_open_interval_are_refused(bound):
    with pytest.raises(InvalidValueError, match="bound"):
        random_autoregressive.coefficient_rule(1, bound)


def test_orders_above_two_have_no_rule():
    with pytest.raises(UnsupportedProblemError, match="p <= 2"):
        random_autoregressive.coefficient_rule(3, 0.5)


def test_simulated_ridge_is_least_squares_without_penalty():
    means, errors = simulated_ridge_excess(0.9, 50, 1.0, np.array([0.0, 3.0]), 20_000, 0)
    assert means == pytest.approx([0.0207, 0.0204], abs=4 * np.max(errors))
