"""Minima that are not global: tabulated values, the criterion against differences of an independent loss."""

import numpy as np
import pytest

from icl_lab.core.errors import InvalidValueError
from icl_lab.theory.descent import vonoswald2022
from icl_lab.theory.regression import exact_loss, lsa, minima
from icl_lab.theory.regression.problem import Problem


def half_loss(problem, w_pv, w_kq, query_in_sum):
    return exact_loss.risk(problem, w_pv, w_kq, query_in_sum=query_in_sum) / 2


@pytest.mark.parametrize("query_in_sum", [True, False])
@pytest.mark.parametrize(("dim", "length", "noise"), [(2, 3, 0.0), (3, 8, 0.3), (4, 2, 1.0)])
def test_the_criterion_is_the_hessian_of_the_loss(dim, length, noise, query_in_sum):
    beta, e = length / (length + dim + 1 + noise), np.eye(dim)[0]
    problem = Problem(np.eye(dim), np.eye(dim), noise, length)
    directions = []
    for block in (np.eye(dim) - np.outer(e, e), np.outer(e, e)):
        directions.append((np.zeros((dim + 1, dim + 1)), np.pad(block, ((0, 1), (0, 1)))))
    last = np.zeros((dim + 1, dim + 1))
    last[-1, -1] = 1.0
    directions.append((last, np.zeros((dim + 1, dim + 1))))
    w_pv, w_kq = np.zeros((2, dim + 1, dim + 1))
    w_pv[-1, 0], w_kq[-1, 0] = 1.0, beta

    def at(x):
        pv = w_pv + sum(c * v for c, (v, _) in zip(x, directions, strict=True))
        kq = w_kq + sum(c * k for c, (_, k) in zip(x, directions, strict=True))
        return half_loss(problem, pv, kq, query_in_sum)

    step, units = 1e-2, np.eye(3)

    def second(a, b):
        return (at(a + b) - at(a - b) - at(b - a) + at(-a - b)) / (4 * step**2)

    hessian = np.array([[second(step * a, step * b) for b in units] for a in units])
    np.testing.assert_allclose(hessian, minima.branch_curvature(dim, length, noise, query_in_sum), rtol=2e-3, atol=2e-3)


def test_where_the_branch_is_a_minimum():
    longest = {2: 4, 3: 3, 4: 2}
    for dim, length in longest.items():
        for n in range(1, 8):
            assert minima.branch_is_minimum(dim, n, 0.0, True) == (n <= length)
            assert minima.branch_is_minimum(dim, n, 0.0, False) == (dim == 2 and n == 1)


def test_one_dimension_is_refused():
    with pytest.raises(InvalidValueError, match="`dim` must be >= 2"):
        minima.branch_curvature(1, 3, 0.0, True)


@pytest.mark.parametrize("query_in_sum", [True, False])
def test_the_branch_is_stationary_and_has_its_loss(query_in_sum):
    problem = Problem(np.array([[1.3, 0.4], [0.4, 0.7]]), np.array([[0.9, -0.2], [-0.2, 1.4]]), 0.3, 4)
    w_pv, w_kq, loss = minima.rank_one_branch(problem)
    assert half_loss(problem, w_pv, w_kq, query_in_sum) == pytest.approx(loss, rel=1e-13)
    slopes = exact_loss.risk_gradient(problem, w_pv, w_kq, query_in_sum=query_in_sum)
    assert max(np.abs(slope).max() for slope in slopes) < 1e-12


def test_the_branch_is_global_for_tasks_of_rank_one():
    lam, direction = np.array([[1.3, 0.4], [0.4, 0.7]]), np.array([0.6, -1.1])
    problem = Problem(lam, np.outer(direction, direction), 0.3, 4)
    w_pv, w_kq, loss = minima.rank_one_branch(problem)
    assert 2 * loss == pytest.approx(lsa.minimum_risk(problem), rel=1e-12)
    np.testing.assert_allclose(np.outer(w_kq[-1, :2], w_pv[-1, :2]), lsa.optimal_preconditioner(problem), rtol=1e-12)


@pytest.mark.parametrize(
    ("spectrum", "length", "expected"),
    [
        ((1.0, 1.0), 2, 0.8),
        ((1.0, 1.0), 10, 0.561829),
        ((1.0, 1.0), 100, 0.203672),
        ((1.5, 1.0, 0.5), 8, 0.9489070700),
    ],
)
def test_where_flows_from_the_branch_end(spectrum, length, expected):
    found = minima.half_loss_below_branch(np.array(spectrum), 0.0, length, True)
    assert found == pytest.approx(expected, abs=1e-6 if len(spectrum) == 2 else 1e-9)


def test_known_curvatures_at_zero():
    values = minima.saddle_curvatures(3, 1 / 12)
    assert values == pytest.approx([-0.012028131, *[-0.006944444] * 3, *[0.006944444] * 3, 0.012028131], abs=1e-9)
    assert minima.escape_rate(3, 1 / 12) == pytest.approx(values[-1], rel=1e-14)


def test_known_heights():
    assert minima.rank_one_branch_loss(10, 10, 1 / 12, 9 / 5) == pytest.approx(0.395622896, abs=1e-9)
    assert minima.rank_one_branch_loss(2, 2, 1.0, 3.0) == pytest.approx(0.8, rel=1e-14)
    assert minima.false_minimum(2, 2) == pytest.approx(0.799493701, abs=1e-9)
    assert minima.false_minimum(3, 30) == pytest.approx(0.608030946, abs=1e-9)
    assert minima.false_minimum(3, 30, 0.25) == pytest.approx(0.25 * 0.608030946, abs=1e-9)


def test_the_axial_loss_contains_both_modes():
    d, n, kurtosis = 4, 7, 9 / 5
    eta = vonoswald2022.optimal_step_size(d, n, 1.0, kurtosis)
    least = vonoswald2022.one_step_loss(eta, d, n, 1.0, kurtosis)
    assert minima.axial_loss(np.array([0.0, 1.0, 0.0, eta, eta]), d, n, kurtosis) == pytest.approx(least, rel=1e-13)
    size = minima.rank_one_branch_size(d, n, 1.0, kurtosis)
    wrong = minima.rank_one_branch_loss(d, n, 1.0, kurtosis)
    assert minima.axial_loss(np.array([size, 0.0, 1.0, 0.0, 0.0]), d, n, kurtosis) == pytest.approx(wrong, rel=1e-13)


@pytest.mark.parametrize(("kurtosis", "half_width"), [(3.0, None), (9 / 5, np.sqrt(3.0))])
def test_the_axial_loss_is_that_of_simulated_contexts(rng, kurtosis, half_width):
    d, n, count = 2, 3, 200_000
    beta, label, alpha, p, q = weights = np.array([0.5, 0.7, 0.3, -0.4, 0.6])
    shape = (count, n, d)
    x = rng.normal(size=shape) if half_width is None else rng.uniform(-half_width, half_width, size=shape)
    w = rng.normal(size=(count, d))
    z = np.concatenate([x, np.einsum("pni,pi->pn", x, w)[..., None]], axis=2)
    scores = np.array([[p, 0.0], [0.0, q], [alpha, 0.0]])
    answers = np.einsum("a,pna,pnb,bc->pc", np.array([beta, 0.0, label]), z, z, scores, optimize=True) / n
    losses = np.sum((answers - w) ** 2, axis=1) / 2
    error = np.std(losses) / np.sqrt(count)
    assert abs(np.mean(losses) - minima.axial_loss(weights, d, n, kurtosis)) < 4 * error


@pytest.mark.parametrize(("dim", "length", "variance"), [(1, 4, 1.0), (3, 2, 0.25), (5, 30, 2.0)])
def test_the_branch_of_isotropic_inputs_is_that_of_any_covariance(dim, length, variance):
    _, _, loss = minima.rank_one_branch(Problem(variance * np.eye(dim), np.eye(dim), 0.0, length))
    assert minima.rank_one_branch_loss(dim, length, variance, 3.0) == pytest.approx(loss, rel=1e-13)
