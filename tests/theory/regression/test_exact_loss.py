"""The reference risk of a whole layer against brute-force quadrature, and the numbers it was first checked with."""

import itertools

import numpy as np
import pytest

from icl_lab.theory.regression import exact_loss
from icl_lab.theory.regression.problem import Problem

COVARIANCE = np.diag([2.0, 1.0, 0.5])
TASK_COVARIANCE = np.array([[1.0, 0.3, 0.0], [0.3, 1.5, -0.2], [0.0, -0.2, 0.7]])
PROBLEM = Problem(COVARIANCE, TASK_COVARIANCE, 0.25, 5)

# A sum of about 1e5 products of up to ten Gaussian nodes.
QUADRATURE = 1e-11


def layer(p1, p2, k1, k2):
    """Full matrices with the entries that matter, and rubbish in those that must not."""
    dim = len(p1)
    w_pv = np.full((dim + 1, dim + 1), 0.7)
    w_kq = np.full((dim + 1, dim + 1), -0.4)
    w_pv[-1] = [*p1, p2]
    w_kq[:dim, :dim], w_kq[dim, :dim] = k1, k2
    return w_pv, w_kq


FIRST = layer([0.1, -0.2, 0.3], 0.8, [[0.5, 0.1, 0.0], [-0.2, 0.4, 0.1], [0.0, 0.3, 0.6]], [0.05, 0.1, -0.15])
SECOND = layer([0.2, 0.1, -0.1], -0.3, [[0.1, 0.0, 0.2], [0.0, -0.3, 0.0], [0.1, 0.1, 0.2]], [-0.1, 0.2, 0.05])


def quadrature(problem, w_pv, w_kq, query_in_sum, rho):
    """The risk at d = N = 2 by a tensor Gauss-Hermite rule through the literal forward pass: exact for its degree."""
    three, weights3 = np.polynomial.hermite_e.hermegauss(3)  # degree 5 in each of w, x, noise
    four, weights4 = np.polynomial.hermite_e.hermegauss(4)  # degree 7 in each of x_q
    root, task_root = np.linalg.cholesky(problem.covariance), np.linalg.cholesky(problem.task_covariance)
    grid = np.array(list(itertools.product(range(3), repeat=8)))
    nodes, weight = three[grid], np.prod(weights3[grid], axis=1)
    w = nodes[:, :2] @ task_root.T
    x = nodes[:, 2:6].reshape(-1, 2, 2) @ root.T
    y = np.einsum("pnd,pd->pn", x, w) + np.sqrt(problem.noise_variance) * nodes[:, 6:]
    context = np.concatenate([x, y[:, :, None]], axis=2)
    gram = np.einsum("pni,pnj->pij", context, context)
    total = 0.0
    for i, j in itertools.product(range(4), repeat=2):
        query = np.array([*(root @ [four[i], four[j]]), 0.0])
        seen = gram + np.outer(query, query) if query_in_sum else gram
        predicted = (seen @ (w_kq @ query) / rho) @ w_pv[-1]
        total += weights4[i] * weights4[j] * weight @ (predicted - w @ query[:2]) ** 2
    return total / np.sqrt(2 * np.pi) ** 10


@pytest.mark.parametrize("query_in_sum", [True, False])
@pytest.mark.parametrize("rho", [2.0, 1.0])
def test_the_risk_agrees_with_brute_force_quadrature(query_in_sum, rho, rng):
    w_pv, w_kq = rng.normal(size=(2, 3, 3))
    problem = Problem(np.array([[1.0, 0.4], [0.4, 0.6]]), np.array([[0.8, -0.5], [-0.5, 1.3]]), 0.3, 2)
    expected = quadrature(problem, w_pv, w_kq, query_in_sum, rho)
    got = exact_loss.risk(problem, w_pv, w_kq, query_in_sum=query_in_sum, rho=rho)
    assert got == pytest.approx(expected, rel=QUADRATURE)


@pytest.mark.parametrize(("query_in_sum", "expected"), [(True, 3.09641985), (False, 3.06700585)])
def test_reference_numbers_of_one_head(query_in_sum, expected):
    assert exact_loss.risk(PROBLEM, *FIRST, query_in_sum=query_in_sum) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("query_in_sum", "expected"), [(True, 3.3244305625), (False, 3.1612935625)])
def test_reference_numbers_of_two_heads(query_in_sum, expected):
    w_pv, w_kq = (np.stack(pair) for pair in zip(FIRST, SECOND, strict=True))
    assert exact_loss.risk(PROBLEM, w_pv, w_kq, query_in_sum=query_in_sum) == pytest.approx(expected, abs=1e-10)


def test_a_head_split_in_two_is_the_same_head():
    w_pv, w_kq = FIRST
    split = exact_loss.risk(PROBLEM, np.stack([0.3 * w_pv, 0.7 * w_pv]), np.stack([w_kq, w_kq]), query_in_sum=True)
    assert split == pytest.approx(exact_loss.risk(PROBLEM, w_pv, w_kq, query_in_sum=True), rel=1e-13)


def test_reference_gradient():
    w_pv, w_kq = exact_loss.risk_gradient(PROBLEM, *FIRST, query_in_sum=True)
    half_w_pv, half_w_kq = w_pv / 2, w_kq / 2
    # The step is 1 and the risk of order 10, so rounding stays below 1e-13.
    assert half_w_pv[-1] == pytest.approx([1.681725, -0.21709, 0.0193625, 1.361432], abs=1e-10)
    assert half_w_kq[3, :3] == pytest.approx([4.571268, 2.575508, -1.779751], abs=1e-10)
    expected = np.array([[1.07208, 0.1862, -0.02232], [-0.93704, -0.60408, 0.21856], [0.1928, 0.23564, -0.06586]])
    np.testing.assert_allclose(half_w_kq[:3, :3], expected, atol=1e-10)
    assert not np.any(w_pv[:-1])
    assert not np.any(w_kq[:, -1])


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_cubature_is_exact_up_to_degree_five(dim, rng):
    root = rng.normal(size=(dim, dim))
    covariance = root @ root.T
    points, weights = exact_loss._gaussian_points(covariance)
    a, b = rng.normal(size=(2, dim, dim))
    left, right = points @ a, points @ b
    fourth = weights @ (np.sum(points * left, axis=1) * np.sum(points * right, axis=1))
    # Isserlis: E (x'ax)(x'bx) = tr(aS) tr(bS) + tr(a S (b + b') S).
    expected = np.trace(a @ covariance) * np.trace(b @ covariance)
    expected += np.trace(a @ covariance @ (b + b.T) @ covariance)
    assert fourth == pytest.approx(expected, rel=1e-12)
    assert np.sum(weights) == pytest.approx(1.0, rel=1e-13)
    assert weights @ points[:, 0] ** 5 == pytest.approx(0.0, abs=1e-10)
