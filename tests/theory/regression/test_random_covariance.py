"""Random covariances: moments and velocities against enumeration, limits against reference numbers and an independent loss."""

import itertools
import math

import numpy as np
import pytest

from icl_lab.core.errors import AssumptionError
from icl_lab.theory.regression import exact_loss, lsa, random_covariance, structured, zhang2023
from icl_lab.theory.regression.problem import Problem

VALUES = np.array([[0.5, 2.0], [1.0, 3.0], [0.2, 1.0]])
PROBABILITIES = np.array([[0.5, 0.5], [0.7, 0.3], [0.4, 0.6]])
LENGTH = 8
THETA = np.eye(3) / np.sqrt(3)
PRINTED = 1e-9


def support():
    """Every diagonal covariance (8, 3, 3) with its probability."""
    rows = list(itertools.product(range(2), repeat=3))
    spectra = np.array([[VALUES[i, j] for i, j in enumerate(row)] for row in rows])
    weights = np.array([np.prod([PROBABILITIES[i, j] for i, j in enumerate(row)]) for row in rows])
    return spectra[:, :, None] * np.eye(3), weights


@pytest.fixture
def moments():
    return random_covariance.diagonal_moments(VALUES, PROBABILITIES, LENGTH)


@pytest.fixture
def weights(rng):
    return 0.8, rng.normal(size=(3, 3))


def test_reference_moments(moments):
    np.testing.assert_allclose(moments.gamma, [5.68375, 11.82025, 0.97345], rtol=1e-12)
    np.testing.assert_allclose(moments.xi, [2.125, 3.4, 0.616], rtol=1e-12)


def test_reference_limit(moments):
    w_pv, w_kq = random_covariance.limit(moments)
    assert w_pv[-1, -1] == pytest.approx(0.8884117684, abs=PRINTED)
    np.testing.assert_allclose(np.diagonal(w_kq), [0.4208328801, 0.3237710041, 0.7122832963, 0], atol=PRINTED)
    step = np.diagonal(random_covariance.preconditioner(moments))
    np.testing.assert_allclose(step, [0.3738728832, 0.2876419703, 0.6328008629], atol=PRINTED)
    assert random_covariance.minimum_reduced_loss(moments) == pytest.approx(-1.0811339538, abs=PRINTED)


def test_the_moments_by_enumeration(moments):
    spectra, weights = support()
    zeta = np.zeros((3, 3))
    for matrix, weight in zip(spectra, weights, strict=True):
        values = np.diagonal(matrix)
        zeta += weight * (9 / 8 * np.outer(values**2, values) + np.outer(values, values) * np.sum(values) / 8)
    np.testing.assert_allclose(moments.zeta, zeta, rtol=1e-13)


def test_both_velocities_are_the_mean_slope_of_the_layer(moments, weights):
    u, inner = weights
    w_pv, w_kq = np.zeros((2, 4, 4))
    w_pv[-1, -1], w_kq[:3, :3] = u, inner
    spectra, shares = support()
    problems = [Problem(matrix, np.eye(3), 0.0, LENGTH) for matrix in spectra]
    slopes = [exact_loss.risk_gradient(problem, w_pv, w_kq, query_in_sum=True) for problem in problems]
    du = -sum(p * s[0][-1, -1] for p, s in zip(shares, slopes, strict=True)) / 2
    d_inner = -sum(p * s[1][:3, :3] for p, s in zip(shares, slopes, strict=True)) / 2
    for velocity in (
        random_covariance.velocity(u, inner, spectra, shares, LENGTH),
        random_covariance.diagonal_velocity(u, inner, moments),
    ):
        assert velocity[0] == pytest.approx(du, rel=1e-10)
        np.testing.assert_allclose(velocity[1], d_inner, rtol=1e-9, atol=1e-9)


def test_one_covariance_is_the_fixed_case(weights):
    u, inner = weights
    matrix = np.diag([2.0, 1.0, 0.5])
    distribution = np.diagonal(matrix)[:, None], np.ones((3, 1))
    moments = random_covariance.diagonal_moments(*distribution, LENGTH)
    np.testing.assert_allclose(
        random_covariance.preconditioner(moments), np.linalg.inv(zhang2023.gamma(matrix, LENGTH)), atol=1e-13
    )
    gap = random_covariance.loss_gap(u, inner, moments)
    assert gap == pytest.approx(structured.loss_gap(u, inner, matrix, LENGTH), rel=1e-12)
    assert random_covariance.minimum_reduced_loss(moments) == pytest.approx(
        structured.minimum_reduced_loss(matrix, LENGTH), rel=1e-12
    )
    # Both bounds with the constants of a fixed covariance, which the general ones only bound from below.
    bound = random_covariance.scale_lower_bound(0.1, *distribution, LENGTH, THETA)
    assert 0 < bound <= zhang2023.scale_lower_bound(0.1, matrix, LENGTH, THETA)


def test_the_bounds_hold_along_the_flow(moments):
    scale = 0.3
    lower = random_covariance.scale_lower_bound(scale, VALUES, PROBABILITIES, LENGTH, THETA)
    mu = random_covariance.pl_constant(scale, VALUES, PROBABILITIES, LENGTH, THETA)
    u, inner = scale, scale * THETA
    for _ in range(4000):
        du, d_inner = random_covariance.diagonal_velocity(u, inner, moments)
        gap = random_covariance.loss_gap(u, inner, moments)
        assert u >= lower
        assert du**2 + np.sum(d_inner**2) >= mu * gap
        u, inner = u + 0.002 * du, inner + 0.002 * d_inner
    assert gap < 0.05


def test_a_start_outside_the_assumption_is_refused():
    overlap = np.sum(np.array([1.25, 1.6, 0.68]) ** 2) / np.sqrt(3)
    spectra, weights = support()
    norms = [np.linalg.norm(zhang2023.gamma(m, LENGTH), 2) * np.sum(m**2) for m in spectra]
    largest = math.sqrt(2 * overlap / (math.sqrt(3) * (weights @ norms)))
    random_covariance.check_initialisation(0.999 * largest, VALUES, PROBABILITIES, LENGTH, THETA)
    for scale in (1.001 * largest, 0.0, math.nan):
        with pytest.raises(AssumptionError, match=r"Theorem 4\.5"):
            random_covariance.check_initialisation(scale, VALUES, PROBABILITIES, LENGTH, THETA)


def test_reference_risks_after_exponential_training():
    step = random_covariance.exponential_preconditioner(4, 10)
    assert step == pytest.approx(0.2564102564, abs=PRINTED)
    risks = [random_covariance.exponential_risk(step, 4, m, c) for m, c in ((10, 1.0), (40, 1.0), (10, 2.0))]
    assert risks == pytest.approx([1.9487179487, 1.5936883629, 8.0], abs=PRINTED)
    assert risks[0] / 4 == pytest.approx(1 - 2 * step, rel=1e-12)
    limits = [random_covariance.exponential_risk(1 / 3, 1, math.inf, c) for c in (1.0, 4.0, 9.0)]
    assert limits == pytest.approx([1 / 3, 76 / 3, 387], rel=1e-12)
    assert [random_covariance.exponential_risk(1.0, 1, math.inf, c) for c in (1.0, 4.0, 9.0)] == [3, 324, 4059]


def test_reference_risks_in_twenty_dimensions():
    step, fixed = random_covariance.exponential_preconditioner(20, 40), 40 / 61
    assert step == pytest.approx(0.2758620690, abs=PRINTED)
    assert random_covariance.exponential_risk(step, 20, 40) / 20 == pytest.approx(0.4482758621, abs=PRINTED)
    assert random_covariance.exponential_risk(fixed, 20, 40) / 20 == pytest.approx(1.4944907283, abs=PRINTED)
    for value, expected in ((step, 0.5643281807), (fixed, 0.3442622951)):
        risk = lsa.risk(Problem(np.eye(20), np.eye(20), 0.0, 40), value * np.eye(20)) / 20
        assert risk == pytest.approx(expected, abs=PRINTED)


def test_exponential_eigenvalues_by_quadrature():
    # Two Gauss-Laguerre nodes integrate the third-degree polynomial of each eigenvalue exactly.
    nodes, shares = np.polynomial.laguerre.laggauss(2)
    values, probabilities = np.tile(nodes, (3, 1)), np.tile(shares, (3, 1))
    moments = random_covariance.diagonal_moments(values, probabilities, 7)
    step = random_covariance.exponential_preconditioner(3, 7)
    np.testing.assert_allclose(random_covariance.preconditioner(moments), step * np.eye(3), atol=1e-13)
    risk = 0.0
    for index in itertools.product(range(2), repeat=3):
        matrix = 1.5 * np.diag(nodes[list(index)])
        risk += np.prod(shares[list(index)]) * lsa.risk(Problem(matrix, np.eye(3), 0.0, 5), 0.4 * np.eye(3))
    assert random_covariance.exponential_risk(0.4, 3, 5, 1.5) == pytest.approx(risk, rel=1e-12)


def test_the_best_preconditioner_of_covariances_that_do_not_commute(rng):
    roots = rng.normal(size=(4, 3, 3))
    matrices, weights = roots @ roots.transpose(0, 2, 1) + 0.2 * np.eye(3), np.array([0.1, 0.2, 0.3, 0.4])
    tasks = roots[1] @ roots[1].T
    problems = [Problem(matrix, tasks, 0.3, LENGTH) for matrix in matrices]
    best = random_covariance.optimal_preconditioner(problems, weights)

    def risk(step):
        return sum(p * lsa.risk(problem, step) for p, problem in zip(weights, problems, strict=True))

    for direction in rng.normal(size=(5, 3, 3)):
        slope = (risk(best + direction) - risk(best - direction)) / 2
        assert abs(slope) < 1e-10 * risk(best + direction)
        assert risk(best + 0.1 * direction) > risk(best)
    alone = random_covariance.optimal_preconditioner(problems[:1], np.ones(1))
    np.testing.assert_allclose(alone, lsa.optimal_preconditioner(problems[0]), rtol=1e-9, atol=1e-10)


def test_rotated_covariances_by_averaging_over_rotations(rng):
    values, halves = np.array([[1.0, 3.0], [0.5, 2.0], [0.2, 0.7]]), np.full((3, 2), 0.5)
    beta = random_covariance.rotated_scale(values, halves, 0.0, 6)
    assert beta == pytest.approx(0.2763107468, abs=PRINTED)
    # By invariance the optimum is a multiple of I, so that only traces matter: no rotation is needed.
    for noise in (0.0, 0.4):
        top = bottom = 0.0
        for row in itertools.product(range(2), repeat=3):
            matrix = np.diag(values[np.arange(3), list(row)])
            top += np.trace(matrix @ matrix)
            bottom += np.trace(matrix @ lsa.response_moment(Problem(matrix, np.eye(3), noise, 6)))
        assert random_covariance.rotated_scale(values, halves, noise, 6) == pytest.approx(top / bottom, rel=1e-12)
