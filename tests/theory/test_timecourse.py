"""Time courses against printed numbers, against integration, and against each other."""

import numpy as np
import pytest
import scipy.integrate

from icl_lab.theory import lsa, structured, timecourse

COVARIANCE, THETA = np.diag([2.0, 1.0, 0.5]), np.eye(3) / np.sqrt(3)
PROBLEM = (COVARIANCE, np.eye(3), 0.0, 10)


def test_the_flow_passes_through_known_points():
    u, inner = timecourse.flow(0.1, 0.1 * THETA, np.array([1.0, 2.0, 3.0]), *PROBLEM)
    np.testing.assert_allclose(u, [0.7153505611, 0.8761757901, 0.9586395465], rtol=1e-9)
    np.testing.assert_allclose(np.diag(inner[1]), [0.457094, 0.672277, 0.326791], atol=1e-6)


def test_the_isotropic_curve_is_logistic():
    problem = (4, 1.0, 1.0, 0.0, 31, 0.01)
    curve = timecourse.logistic(np.arange(1.0, 5.0), *problem)
    np.testing.assert_allclose(curve / 2, [0.0027214380, 0.1270623278, 0.7787146545, 0.8594455115], rtol=1e-7)
    half = timecourse.logistic_half_time(*problem)
    np.testing.assert_allclose(half, 2.4384744381, rtol=1e-9)
    np.testing.assert_allclose(
        2 * timecourse.logistic(np.array([half]), *problem), timecourse.logistic(np.array([99.0]), *problem)
    )


@pytest.mark.parametrize(("scale", "task_scale", "noise"), [(1.0, 1.0, 0.0), (0.7, 1.8, 0.4)])
def test_the_logistic_curve_solves_the_flow(scale, task_scale, noise):
    dim, length, sigma, times = 3, 6, 0.05, np.linspace(0.0, 4.0, 9)
    problem = (scale * np.eye(dim), task_scale * np.eye(dim), noise, length)
    u, inner = timecourse.flow(sigma, sigma * np.eye(dim) / np.sqrt(dim), times, *problem)
    curve = timecourse.logistic(times, dim, scale, task_scale, noise, length, sigma)
    np.testing.assert_allclose(u**2, curve, rtol=1e-9)
    losses = [lsa.risk(v * k.T, *problem) / 2 for v, k in zip(u, inner, strict=True)]
    np.testing.assert_allclose(timecourse.logistic_loss(curve, dim, scale, task_scale, noise, length), losses, rtol=1e-9)


def test_the_plateau_lasts_as_long_as_predicted():
    half = timecourse.plateau_time(1e-4, THETA, 0.5, *PROBLEM)
    # The part of the start that is not along D leaves a term of order sigma.
    np.testing.assert_allclose(half, 2.3129564993, atol=1e-4)
    slope = (
        timecourse.plateau_time(1e-8, THETA, 0.5, *PROBLEM) - timecourse.plateau_time(1e-6, THETA, 0.5, *PROBLEM)
    ) / np.log(100)
    np.testing.assert_allclose(slope, 0.2420910131, rtol=1e-9)


def test_large_modes_overshoot():
    peaks, times = timecourse.overshoot(1e-4, np.array([2.0, 1.0, 0.5]), 0.0, 10, 60.0)
    np.testing.assert_allclose(peaks, [1.0426, 1.0277, 1.0], atol=1e-4)
    np.testing.assert_allclose(times, [2.385, 3.958, 10.24], rtol=1e-3)


def test_a_weak_mode_is_slow():
    np.testing.assert_allclose(timecourse.slow_mode_time(1.0, 0.1, 0.0, 400, 0.25, 0.75), 112.488, rtol=1e-5)
    np.testing.assert_allclose(timecourse.slow_mode_time(1.0, 0.3, 0.0, 400, 0.25, 0.75), 13.079, rtol=1e-4)


def test_a_frozen_value_makes_the_flow_linear(rng):
    root, other = rng.normal(size=(2, 3, 3))
    problem = (root @ root.T / 3 + np.eye(3), other @ other.T / 3 + 0.5 * np.eye(3), 0.3, 7)
    u, start = 0.8, rng.normal(size=(3, 3))
    solution = scipy.integrate.solve_ivp(
        lambda _, state: structured.general_velocity(u, state.reshape(3, 3), *problem)[1].ravel(),
        (0.0, 0.7),
        start.ravel(),
        method="DOP853",
        rtol=1e-12,
        atol=1e-13,
    )
    closed = timecourse.frozen_value(np.array([0.0, 0.7]), u, start, *problem)
    np.testing.assert_allclose(closed[0], start, atol=1e-13)
    np.testing.assert_allclose(closed[1], solution.y[:, -1].reshape(3, 3), rtol=1e-9)
