"""Second-order facts and the drift of descent, against printed numbers and against brute force."""

import numpy as np
import pytest

from icl_lab.core.errors import AssumptionError
from icl_lab.theory.regression import lsa, stability, structured
from icl_lab.theory.regression.problem import Problem

COVARIANCE = np.diag([2.0, 1.0, 0.5])
PROBLEM = Problem(COVARIANCE, np.eye(3), 0.0, 10)


def test_late_rates_of_a_known_problem():
    rates = stability.late_rates(PROBLEM)
    np.testing.assert_allclose(rates.slowest, 0.4509040798, rtol=1e-9)
    np.testing.assert_allclose(rates.spectrum[-1], 15.1379233, rtol=1e-8)
    np.testing.assert_allclose(rates.largest_step, 0.1321185, rtol=1e-6)
    assert abs(rates.diagonal[0]) < 1e-12


def test_late_rates_are_the_eigenvalues_of_the_linearised_flow():
    problem = Problem(np.diag([1.5, 0.7]), np.diag([1.0, 2.0]), 0.3, 5)
    best = lsa.optimal_preconditioner(problem)
    u = np.sqrt(np.linalg.norm(best))
    point = np.concatenate([[u], (best / u).ravel()])

    def velocity(state):
        du, inner = structured.general_velocity(problem, state[0], state[1:].reshape(2, 2))
        return np.concatenate([[du], inner.ravel()])

    step = 1e-5
    jacobian = np.stack([(velocity(point + step * e) - velocity(point - step * e)) / (2 * step) for e in np.eye(5)], axis=1)
    # Central differences leave step^2.
    np.testing.assert_allclose(np.sort(np.linalg.eigvals(-jacobian).real), stability.late_rates(problem).spectrum, atol=1e-8)


def test_the_spectrum_at_zero():
    spectrum = stability.origin_spectrum(COVARIANCE, np.eye(3))
    signal = np.diag(COVARIANCE) ** 2
    expected = np.concatenate([[-np.linalg.norm(signal)], -signal, np.zeros(8), signal, [np.linalg.norm(signal)]])
    np.testing.assert_allclose(spectrum, np.sort(expected), atol=1e-12)


def test_escape_exponents():
    np.testing.assert_allclose(stability.escape_exponent(np.eye(4), np.eye(4)), 0.5, rtol=1e-12)
    np.testing.assert_allclose(stability.escape_exponent(np.diag([1.5, 1.0, 0.5]), np.eye(3)), 0.0909, atol=1e-4)


def test_descent_drifts_by_a_known_amount():
    u, inner, drift = stability.descent(PROBLEM, 0.1, 0.1 * np.eye(3) / np.sqrt(3), 0.05, 2000)
    np.testing.assert_allclose(u, 1.1659119559, rtol=1e-9)
    np.testing.assert_allclose(u**2 - np.linalg.norm(inner) ** 2, -0.0118768968, rtol=1e-7)
    np.testing.assert_allclose(drift, -0.0118768968, rtol=1e-7)


def test_late_rates_solve_the_secular_equation():
    values = np.diag(COVARIANCE)
    product = np.diag(lsa.optimal_preconditioner(PROBLEM))
    scale, pull = np.linalg.norm(product), np.diag(lsa.response_moment(PROBLEM)) * values
    for h in stability.late_rates(PROBLEM).diagonal:
        np.testing.assert_allclose(h - np.sum(pull * product**2) / scale, np.sum(values**4 / (h - scale * pull)), atol=1e-8)


def test_common_eigenvectors_are_found_where_one_covariance_is_degenerate(rng):
    basis = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    other = basis @ np.diag([0.5, 1.0, 2.0]) @ basis.T
    found = stability.common_basis(np.eye(3), (other + other.T) / 2)
    np.testing.assert_allclose(np.abs(found.T @ basis), np.eye(3), atol=1e-12)
    with pytest.raises(AssumptionError, match="must commute"):
        stability.common_basis(COVARIANCE, other)
