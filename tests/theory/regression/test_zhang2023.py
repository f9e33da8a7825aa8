"""The limits, risks and bounds of the trained layer, against hand cases, a numerical route and an independent loss."""

import math

import numpy as np
import pytest

from icl_lab.core.errors import AssumptionError, InvalidValueError, NotPositiveDefiniteError, UnsupportedProblemError
from icl_lab.tasks.regression.linear import LinearRegression
from icl_lab.theory.regression import exact_loss, lsa, zhang2023
from icl_lab.theory.regression.problem import Problem

COVARIANCE = np.diag([2.0, 1.0, 0.5])
LENGTH = 10
THETA = np.eye(3) / np.sqrt(3)
PRINTED = 1e-9  # ten printed digits
ROUNDING = 1e-13


@pytest.fixture
def general(rng):
    """A covariance off the axes, and a Theta Theta^T that does not commute with it."""
    root, theta = rng.normal(size=(2, 3, 3))
    product = theta @ theta.T
    return root @ root.T + 0.3 * np.eye(3), product / np.linalg.norm(product)


def test_one_dimension_by_hand():
    # Gamma = l (1 + 2/N), so that the limit is u = Gamma^{-1/2} and the preconditioner 1 / Gamma.
    matrix = np.array([[0.8]])
    assert zhang2023.gamma(matrix, 4)[0, 0] == pytest.approx(1.2, rel=ROUNDING)
    w_pv, w_kq = zhang2023.limit(matrix, 4)
    np.testing.assert_allclose(w_pv, [[0, 0], [0, 1.2**-0.5]], atol=ROUNDING)
    np.testing.assert_allclose(w_kq, [[1.2**-0.5, 0], [0, 0]], atol=ROUNDING)


def test_reference_limit():
    w_pv, w_kq = zhang2023.limit(COVARIANCE, LENGTH)
    expected_pv, expected_kq = np.zeros((2, 4, 4))
    expected_pv[3, 3] = 1.1684503508
    expected_kq[[0, 1, 2], [0, 1, 2]] = [0.3356213317, 0.5902306178, 0.9509271065]
    np.testing.assert_allclose(w_pv, expected_pv, atol=PRINTED)
    np.testing.assert_allclose(w_kq, expected_kq, atol=PRINTED)


def test_the_optimum_is_the_general_one_without_noise(general):
    covariance, _ = general
    task = LinearRegression(3, LENGTH, covariance)
    ours, lab = zhang2023.optimum(task), lsa.optimum(task)
    np.testing.assert_allclose(ours.preconditioner, lab.preconditioner, atol=1e-12)
    np.testing.assert_allclose(ours.w_pv, lab.w_pv, atol=1e-12)
    np.testing.assert_allclose(ours.w_kq, lab.w_kq, atol=1e-12)
    assert ours.risk == pytest.approx(lab.risk, rel=1e-12)


def test_the_limit_is_a_stationary_point_of_the_whole_layer(general):
    covariance, _ = general
    problem = Problem(covariance, np.eye(3), 0.0, LENGTH)
    w_pv, w_kq = zhang2023.limit(covariance, LENGTH)
    slopes = exact_loss.risk_gradient(problem, w_pv, w_kq, query_in_sum=True)
    # Differences of unit step: rounding of the risk at weights of order one.
    scale = exact_loss.risk(problem, w_pv + 1, w_kq + 1, query_in_sum=True)
    assert max(np.max(np.abs(slope)) for slope in slopes) < 1e-13 * scale


def test_reference_risks():
    lengths = (1, 6, 10, 100, math.inf)
    risks = [zhang2023.risk(COVARIANCE, LENGTH, m) for m in lengths]
    assert risks == pytest.approx([7.0463116491, 1.4144856766, 0.9639395988, 0.3557023938, 0.2881204821], abs=PRINTED)


def test_the_risk_is_that_of_the_trained_bilinear_predictor(general):
    covariance, _ = general
    inverse = np.linalg.inv(zhang2023.gamma(covariance, LENGTH))
    for length in (1, 7, math.inf):
        expected = lsa.risk(Problem(covariance, np.eye(3), 0.0, length), inverse)
        assert zhang2023.risk(covariance, LENGTH, length) == pytest.approx(expected, rel=1e-11)


def test_the_risk_after_infinite_training_prompts_is_universal(general):
    covariance, _ = general
    assert zhang2023.risk(covariance, math.inf, 6) == pytest.approx(4 * np.trace(covariance) / 6, rel=1e-12)


def test_the_bias_falls_like_the_square_of_the_training_length(general):
    covariance, _ = general
    risks = [zhang2023.risk(covariance, n, math.inf) for n in (1e4, 1e5, 1e6)]
    np.testing.assert_allclose(np.diff(np.log10(risks)), -2, atol=0.01)


def test_the_reduced_flow_has_the_reference_course():
    u, inner = zhang2023.reduced_flow(0.1, COVARIANCE, LENGTH, THETA, np.array([0.0, 1.0, 2.0, 3.0]))
    assert u == pytest.approx([0.1, 0.7153505611, 0.8761757901, 0.9586395465], abs=1e-8)
    assert np.diagonal(inner[2]) == pytest.approx([0.457094, 0.672277, 0.326791], abs=1e-6)


def test_the_reduced_flow_is_the_gradient_of_the_whole_layer(general):
    covariance, theta = general
    step = 1e-3
    u, inner = zhang2023.reduced_flow(0.1, covariance, LENGTH, theta, np.array([0.0, 0.5 - step, 0.5, 0.5 + step]))
    w_pv, w_kq = np.zeros((2, 4, 4))
    w_pv[-1, -1], w_kq[:3, :3] = u[2], inner[2]
    problem = Problem(covariance, np.eye(3), 0.0, LENGTH)
    slope_pv, slope_kq = exact_loss.risk_gradient(problem, w_pv, w_kq, query_in_sum=True)
    # Half the risk; central differences in time are accurate to step^2 times a third derivative.
    speed = np.linalg.norm(slope_kq)
    assert (u[3] - u[1]) / (2 * step) == pytest.approx(-slope_pv[-1, -1] / 2, abs=3e-4 * speed)
    np.testing.assert_allclose((inner[3] - inner[1]) / (2 * step), -slope_kq[:3, :3] / 2, atol=3e-4 * speed)
    # The entries outside the subspace do not move.
    outside = [*slope_pv[-1, :3], *slope_kq[3, :3]]
    assert outside == pytest.approx(np.zeros(6), abs=1e-12 * (1 + speed))


def test_the_reduced_flow_stays_balanced_and_ends_at_the_limit(general):
    covariance, theta = general
    slowest = np.linalg.eigvalsh(covariance)[0]
    u, inner = zhang2023.reduced_flow(0.1, covariance, LENGTH, theta, np.array([0.5, 2.0, 40 / slowest**2]))
    np.testing.assert_allclose(u**2, np.sum(inner**2, axis=(1, 2)), rtol=1e-9)
    w_pv, w_kq = zhang2023.limit(covariance, LENGTH)
    assert u[-1] == pytest.approx(w_pv[-1, -1], rel=1e-9)
    np.testing.assert_allclose(inner[-1], w_kq[:3, :3], atol=1e-9)


def test_reference_bounds():
    assert zhang2023.largest_init_scale(COVARIANCE, LENGTH) == pytest.approx(0.6729217938, abs=PRINTED)
    assert zhang2023.scale_lower_bound(0.1, COVARIANCE, LENGTH, THETA) == pytest.approx(0.0654093574, abs=PRINTED)
    assert zhang2023.pl_constant(0.1, COVARIANCE, LENGTH, THETA) == pytest.approx(7.8662343e-4, abs=1e-10)


def test_the_flow_respects_its_bounds(general):
    covariance, theta = general
    scale = 0.5 * zhang2023.largest_init_scale(covariance, LENGTH)
    times = np.linspace(0, 5, 12)
    u, inner = zhang2023.reduced_flow(scale, covariance, LENGTH, theta, times)
    assert np.all(u >= zhang2023.scale_lower_bound(scale, covariance, LENGTH, theta))
    problem = Problem(covariance, np.eye(3), 0.0, LENGTH)
    gaps, squares = [], []
    for value, matrix in zip(u, inner, strict=True):
        w_pv, w_kq = np.zeros((2, 4, 4))
        w_pv[-1, -1], w_kq[:3, :3] = value, matrix
        gaps.append((exact_loss.risk(problem, w_pv, w_kq, query_in_sum=True) - lsa.minimum_risk(problem)) / 2)
        slopes = exact_loss.risk_gradient(problem, w_pv, w_kq, query_in_sum=True)
        squares.append(sum(np.sum((slope / 2) ** 2) for slope in slopes))
    gaps, squares = np.array(gaps), np.array(squares)
    resolved = gaps > 1e-9  # below, the ratio is rounding noise
    assert np.sum(resolved) >= 8
    assert np.all(squares[resolved] >= zhang2023.pl_constant(scale, covariance, LENGTH, theta) * gaps[resolved])


def test_a_start_outside_the_assumption_is_refused_by_name():
    zhang2023.check_initialisation(0.672, COVARIANCE, LENGTH, THETA)
    for scale in (0.673, 0.0, -0.1, math.nan):
        with pytest.raises(AssumptionError, match=r"outside \(0, 0\.672922\).*Assumption 3\.3"):
            zhang2023.check_initialisation(scale, COVARIANCE, LENGTH)
    with pytest.raises(AssumptionError, match="Frobenius norm 1"):
        zhang2023.check_initialisation(0.1, COVARIANCE, LENGTH, np.eye(3))


def test_tasks_outside_the_theorem_are_refused():
    with pytest.raises(UnsupportedProblemError, match=r"noise variance 0.25"):
        zhang2023.optimum(LinearRegression(3, LENGTH, COVARIANCE, noise_std=0.5))
    with pytest.raises(UnsupportedProblemError, match="task_covariance = I"):
        zhang2023.optimum(LinearRegression(3, LENGTH, COVARIANCE, task_covariance=[1.0, 1.0, 2.0]))


def test_bad_covariances_and_lengths_are_refused():
    with pytest.raises(NotPositiveDefiniteError, match="symmetric"):
        zhang2023.gamma(np.array([[1.0, 0.3], [0.0, 1.0]]), 5)
    with pytest.raises(InvalidValueError, match=">= 1"):
        zhang2023.gamma(COVARIANCE, 0)
