"""Time courses against printed numbers, against integration, and against each other."""

import numpy as np
import pytest
import scipy.integrate

from icl_lab.core.errors import AssumptionError
from icl_lab.theory.regression import lsa, structured, timecourse, zhang2023
from icl_lab.theory.regression.problem import Problem

COVARIANCE, THETA = np.diag([2.0, 1.0, 0.5]), np.eye(3) / np.sqrt(3)
PROBLEM = Problem(COVARIANCE, np.eye(3), 0.0, 10)


@pytest.fixture
def noisy(rng):
    """A problem in which nothing commutes."""
    root, other = rng.normal(size=(2, 3, 3))
    return Problem(root @ root.T / 3 + np.eye(3) / 2, other @ other.T / 3 + np.eye(3) / 2, 0.4, 6)


def test_the_flow_passes_through_known_points():
    u, inner = timecourse.flow(PROBLEM, 0.1, 0.1 * THETA, np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(u, [0.7153505611, 0.8761757901, 0.9586395465], rtol=1e-9)
    np.testing.assert_allclose(np.diag(inner[1]), [0.457094, 0.672277, 0.326791], atol=1e-6)


def test_the_isotropic_curve_is_logistic():
    problem, sigma = Problem(np.eye(4), np.eye(4), 0.0, 31), 0.01
    curve = timecourse.logistic(problem, np.arange(1.0, 5.0), sigma)
    np.testing.assert_allclose(curve / 2, [0.0027214380, 0.1270623278, 0.7787146545, 0.8594455115], rtol=1e-7)
    half = timecourse.logistic_half_time(problem, sigma)
    np.testing.assert_allclose(half, 2.4384744381, rtol=1e-9)
    np.testing.assert_allclose(
        2 * timecourse.logistic(problem, np.array([half]), sigma), timecourse.logistic(problem, np.array([99.0]), sigma)
    )


@pytest.mark.parametrize(("scale", "task_scale", "noise"), [(1.0, 1.0, 0.0), (0.7, 1.8, 0.4)])
def test_the_logistic_curve_solves_the_flow(scale, task_scale, noise):
    dim, length, sigma, times = 3, 6, 0.05, np.linspace(0.0, 4.0, 9)
    problem = Problem(scale * np.eye(dim), task_scale * np.eye(dim), noise, length)
    u, inner = timecourse.flow(problem, sigma, sigma * np.eye(dim) / np.sqrt(dim), times)
    curve = timecourse.logistic(problem, times, sigma)
    np.testing.assert_allclose(u**2, curve, rtol=1e-9)
    losses = [lsa.risk(problem, v * k.T) / 2 for v, k in zip(u, inner, strict=True)]
    np.testing.assert_allclose(timecourse.logistic_loss(problem, curve), losses, rtol=1e-9)


def test_a_logistic_curve_of_anisotropic_inputs_is_refused(noisy):
    with pytest.raises(AssumptionError, match="multiples of the identity"):
        timecourse.logistic(noisy, np.array([1.0]), 0.1)


def test_the_plateau_lasts_as_long_as_predicted():
    half = timecourse.plateau_time(PROBLEM, 1e-4, THETA, 0.5)
    # The part of the start that is not along D leaves a term of order sigma.
    np.testing.assert_allclose(half, 2.3129564993, atol=1e-4)
    slope = (timecourse.plateau_time(PROBLEM, 1e-8, THETA, 0.5) - timecourse.plateau_time(PROBLEM, 1e-6, THETA, 0.5)) / np.log(
        100
    )
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
    problem = Problem(root @ root.T / 3 + np.eye(3), other @ other.T / 3 + 0.5 * np.eye(3), 0.3, 7)
    u, start = 0.8, rng.normal(size=(3, 3))
    solution = scipy.integrate.solve_ivp(
        lambda _, state: structured.general_velocity(problem, u, state.reshape(3, 3))[1].ravel(),
        (0.0, 0.7),
        start.ravel(),
        method="DOP853",
        rtol=1e-12,
        atol=1e-13,
    )
    closed = timecourse.frozen_value(problem, np.array([0.0, 0.7]), u, start)
    np.testing.assert_allclose(closed[0], start, atol=1e-13)
    np.testing.assert_allclose(closed[1], solution.y[:, -1].reshape(3, 3), rtol=1e-9)


def test_the_noiseless_curve_at_unit_scales_is_that_of_the_paper():
    problem, times, sigma = Problem(np.eye(4), np.eye(4), 0.0, 31), np.arange(1.0, 5.0), 0.01
    grown = np.exp(2 * 2 * times)
    step = grown / ((1 + 5 / 31) * (grown - 1) + 2 / sigma**2)
    np.testing.assert_allclose(timecourse.logistic(problem, times, sigma) / 2, step, rtol=1e-12)


def test_the_flow_is_that_of_the_paper_without_noise():
    times = np.array([0.5, 2.0])
    u, inner = timecourse.flow(PROBLEM, 0.1, 0.1 * THETA, times)
    paper_u, paper_inner = zhang2023.reduced_flow(0.1, COVARIANCE, 10, THETA, times)
    np.testing.assert_allclose(u, paper_u, rtol=1e-9)
    np.testing.assert_allclose(inner, paper_inner, atol=1e-9)


def test_the_linear_phase_is_the_flow_while_it_is_small(noisy):
    drive = timecourse.signal(noisy.covariance, noisy.task_covariance)
    theta = np.diag([1.0, 2.0, 2.0]) / 3
    times = np.array([0.5, 1.0, 2.0]) / np.linalg.norm(drive)
    u, _ = timecourse.flow(noisy, 1e-7, 1e-7 * theta, times)
    np.testing.assert_allclose(timecourse.linear_phase(times, 1e-7, theta, drive), u, rtol=1e-9)


def test_u_is_at_its_fraction_at_the_plateau_time(noisy):
    theta = np.eye(3) / np.sqrt(3)
    time = timecourse.plateau_time(noisy, 1e-7, theta, 0.4)
    u, _ = timecourse.flow(noisy, 1e-7, 1e-7 * theta, np.array([time]))
    assert u[0] == pytest.approx(0.4 * np.sqrt(np.linalg.norm(lsa.optimal_preconditioner(noisy))), rel=1e-5)


def test_the_drop_takes_u_to_the_optimum_along_the_signal(noisy):
    drive = timecourse.signal(noisy.covariance, noisy.task_covariance)
    size = timecourse.drop_value(noisy) ** 2
    step = size * drive / np.linalg.norm(drive)
    slope = [lsa.risk(noisy, (1 + s) * step) for s in (-1e-4, 1e-4)]
    assert slope[0] == pytest.approx(slope[1], rel=1e-10)


def test_an_overshoot_is_the_maximum_of_the_flow():
    spectrum, noise, length = np.array([1.5, 0.6]), 0.3, 8
    peaks, _ = timecourse.overshoot(0.01, spectrum, noise, length, 40.0)
    problem = Problem(np.diag(spectrum), np.eye(2), noise, length)
    times = np.linspace(0.1, 40.0, 4000)
    u, inner = timecourse.flow(problem, 0.01, 0.01 * np.eye(2) / np.sqrt(2), times)
    shares = u[:, None] * np.diagonal(inner, axis1=1, axis2=2) / np.diag(lsa.optimal_preconditioner(problem))
    np.testing.assert_allclose(peaks, shares.max(axis=0), atol=1e-5)


def test_a_frozen_value_ends_at_the_optimum(noisy, rng):
    last = timecourse.frozen_value(noisy, np.array([1e5]), 0.7, rng.normal(size=(3, 3)))[0]
    np.testing.assert_allclose(0.7 * last, lsa.optimal_preconditioner(noisy), atol=1e-12)
    with pytest.raises(AssumptionError, match="must not be 0"):
        timecourse.frozen_value(noisy, np.array([1.0]), 0.0, np.eye(3))
