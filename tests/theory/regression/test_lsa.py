"""The general optimum and the risk of bilinear predictors: by hand, by optimisation, by sampling."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize

from icl_lab.core.errors import InvalidValueError, NotPositiveDefiniteError, UnsupportedProblemError
from icl_lab.tasks.distributions.covariates import Gaussian, Sphere
from icl_lab.tasks.distributions.independent import TwoSizes
from icl_lab.tasks.distributions.random_covariance import ExponentialDiagonal
from icl_lab.tasks.regression.linear import LinearRegression
from icl_lab.theory.regression import exact_loss, lsa
from icl_lab.theory.regression.problem import Problem

COVARIANCE = np.diag([2.0, 1.0, 0.5])
TASK_COVARIANCE = np.array([[1.0, 0.3, 0.0], [0.3, 1.5, -0.2], [0.0, -0.2, 0.7]])
PROBLEM = Problem(COVARIANCE, TASK_COVARIANCE, 0.25, 5)

ROUNDING = 1e-13
PRINTED = 1e-9  # ten printed digits


def test_one_dimension_by_hand():
    # minimise E (b x y_bar - w x)^2: b = o / ((1 + 1/N) l o + (l o + s2) / N).
    l, o, s2, n = 0.7, 1.3, 0.4, 6  # noqa: E741
    problem = Problem(np.array([[l]]), np.array([[o]]), s2, n)
    got = lsa.optimal_preconditioner(problem)[0, 0]
    assert got == pytest.approx(o / ((1 + 1 / n) * l * o + (l * o + s2) / n), rel=ROUNDING)
    assert lsa.minimum_risk(problem) == pytest.approx(l * o - l * o * l * got, rel=ROUNDING)


def test_an_infinite_context_needs_the_inverse_covariance_and_has_no_risk():
    problem = replace(PROBLEM, context_length=math.inf)
    best = lsa.optimal_preconditioner(problem)
    np.testing.assert_allclose(best, np.linalg.inv(COVARIANCE), rtol=0, atol=1e-13)
    assert lsa.minimum_risk(problem) == pytest.approx(0.0, abs=1e-13)


def test_reference_numbers():
    best = lsa.optimal_preconditioner(PROBLEM)
    assert best[np.triu_indices(3)] == pytest.approx(
        [0.3071645722, 0.0303613261, 0.0058763857, 0.5617681392, -0.0525610053, 0.5543430312], abs=PRINTED
    )
    assert lsa.minimum_risk(PROBLEM) == pytest.approx(1.6347336795, abs=PRINTED)
    at = {m: lsa.risk(replace(PROBLEM, context_length=m), best) for m in (1, 5, 20, math.inf)}
    assert list(at.values()) == pytest.approx([5.2335376836, 1.6347336795, 0.9599579287, 0.7350326785], abs=PRINTED)


def test_no_other_preconditioner_does_better(rng):
    best, least = lsa.optimal_preconditioner(PROBLEM), lsa.minimum_risk(PROBLEM)
    assert lsa.risk(PROBLEM, best) == pytest.approx(least, rel=ROUNDING)
    found = scipy.optimize.minimize(
        lambda flat: lsa.risk(PROBLEM, flat.reshape(3, 3)), rng.normal(size=9), method="BFGS", options={"gtol": 1e-9}
    )
    # The solver differentiates numerically: gradients to about 1e-8.
    assert found.fun == pytest.approx(least, rel=1e-10)
    np.testing.assert_allclose(found.x.reshape(3, 3), best, atol=1e-6)


@pytest.mark.parametrize("query_in_sum", [pytest.param(True, marks=pytest.mark.slow), False])
def test_no_weights_of_the_whole_layer_do_better(query_in_sum, rng):
    # All 6 + 3 entries that matter at d = 2, through the reference that knows nothing of bilinear predictors.
    problem = Problem(np.array([[1.5, 0.3], [0.3, 0.5]]), np.array([[0.6, 0.2], [0.2, 1.0]]), 0.2, 6)

    def weights(flat):
        w_pv, w_kq = np.zeros((3, 3)), np.zeros((3, 3))
        w_pv[-1], w_kq[:, :2] = flat[:3], flat[3:].reshape(3, 2)
        return w_pv, w_kq

    def loss(flat):
        return exact_loss.risk(problem, *weights(flat), query_in_sum=query_in_sum)

    def slope(flat):
        w_pv, w_kq = exact_loss.risk_gradient(problem, *weights(flat), query_in_sum=query_in_sum)
        return np.concatenate([w_pv[-1], w_kq[:, :2].ravel()])

    runs = [scipy.optimize.minimize(loss, 0.5 * rng.normal(size=9), jac=slope, method="BFGS") for _ in range(6)]
    best = min(runs, key=lambda run: run.fun)
    assert best.fun == pytest.approx(lsa.minimum_risk(problem), rel=1e-9)
    w_pv, w_kq = weights(best.x)
    np.testing.assert_allclose(w_pv[-1, 2] * w_kq[:2, :2].T, lsa.optimal_preconditioner(problem), atol=1e-4)


def test_the_optimum_is_that_of_the_whole_layer():
    task = LinearRegression(3, 5, COVARIANCE, TASK_COVARIANCE, noise_std=0.5)
    best = lsa.optimum(task)
    for query_in_sum in (True, False):
        risk = exact_loss.risk(PROBLEM, best.w_pv, best.w_kq, query_in_sum=query_in_sum)
        assert risk == pytest.approx(best.risk, rel=1e-12)
    assert best.w_pv[-1, -1] == pytest.approx(0.9226452036, abs=PRINTED)
    assert np.linalg.norm(best.w_kq) == pytest.approx(best.w_pv[-1, -1], rel=ROUNDING)


def test_a_singular_task_covariance_is_served():
    direction = np.array([1.0, -2.0, 0.5])
    rank_one = np.outer(direction, direction)
    best = lsa.optimal_preconditioner(replace(PROBLEM, task_covariance=rank_one))
    # B* = omega [(1 + 1/N) Lambda omega + tau/N]^{-1}: for omega = v v^T a multiple of v v^T.
    size = direction @ COVARIANCE @ direction
    np.testing.assert_allclose(best, rank_one / ((1 + 1 / 5) * size + (size + 0.25) / 5), atol=1e-13)
    nearly = lsa.optimal_preconditioner(replace(PROBLEM, task_covariance=rank_one + 1e-9 * np.eye(3)))
    np.testing.assert_allclose(nearly, best, atol=1e-7)


def test_the_risk_under_every_shift_is_that_of_simulated_prompts(rng):
    length, samples = 6, 200_000
    covariance = np.array([[0.5, 0.1], [0.1, 1.5]])
    tasks = np.array([[1.0, -0.4], [-0.4, 0.7]])
    query_mean, query_root = np.array([0.6, -0.3]), np.array([[1.0, 0.0], [0.5, 0.8]])
    preconditioner = np.array([[0.7, 0.3], [-0.1, 0.9]])
    x = rng.normal(size=(samples, length, 2)) @ np.linalg.cholesky(covariance).T
    w = rng.normal(size=(samples, 2)) @ np.linalg.cholesky(tasks).T
    y = np.einsum("pnd,pd->pn", x, w) + np.sqrt(0.3) * rng.normal(size=(samples, length))
    query = query_mean + rng.normal(size=(samples, 2)) @ query_root.T
    mean = np.einsum("pn,pnd->pd", y, x) / length
    error = (np.einsum("pi,ij,pj->p", query, preconditioner, mean) - np.sum(w * query, axis=1)) ** 2
    moment = query_root @ query_root.T + np.outer(query_mean, query_mean)
    problem = Problem(covariance, tasks, 0.3, length)
    expected = lsa.risk(problem, preconditioner, moment)
    standard_error = np.std(error) / np.sqrt(samples)
    assert standard_error < 0.02 * expected
    assert abs(np.mean(error) - expected) < 4 * standard_error
    # The twins that must fail: a transpose, the covariance of the query instead of its second moment.
    for wrong in (
        lsa.risk(problem, preconditioner.T, moment),
        lsa.risk(problem, preconditioner, query_root @ query_root.T),
    ):
        assert abs(np.mean(error) - wrong) > 4 * standard_error


def test_the_risk_falls_like_one_over_the_context_length():
    lengths = np.array([1e4, 1e5, 1e6])
    risks = np.array([lsa.minimum_risk(replace(PROBLEM, context_length=n)) for n in lengths])
    # N times the risk tends to (d + 1) tr(Lambda Omega) + d s2, up to O(1/N).
    constant = 4 * np.trace(COVARIANCE @ TASK_COVARIANCE) + 3 * 0.25
    gaps = np.abs(lengths * risks / constant - 1)
    assert gaps[-1] < 1e-4
    np.testing.assert_allclose(np.diff(np.log10(gaps)), -1, atol=0.01)


@pytest.mark.parametrize(("dim", "length"), [(1, 1), (2, 7), (6, 3)])
@pytest.mark.parametrize("kurtosis", [1.0, 1.8, 3.0, 9.0])
def test_independent_coordinates_by_hand(kurtosis, dim, length):
    """One step of size N / (N + kappa + d - 2) in units of the inverse variance."""
    variance, extra = 1.7, kurtosis + dim - 2
    best = lsa.optimum(LinearRegression(dim, length, covariates=TwoSizes(dim, kurtosis, variance)))
    np.testing.assert_allclose(best.preconditioner, length / (length + extra) / variance * np.eye(dim), rtol=1e-12, atol=1e-15)
    assert best.risk == pytest.approx(dim * variance * extra / (length + extra), rel=1e-12, abs=1e-14)


def test_a_law_with_the_fourth_moment_of_a_gaussian_has_its_optimum():
    declared = replace(PROBLEM, fourth_moment=Gaussian(COVARIANCE).fourth_moment)
    for problem in (declared, replace(declared, context_length=math.inf)):
        expected = lsa.optimal_preconditioner(replace(problem, fourth_moment=None))
        np.testing.assert_allclose(lsa.optimal_preconditioner(problem), expected, rtol=0, atol=1e-13)
        np.testing.assert_allclose(
            lsa.response_moment(problem), lsa.response_moment(replace(problem, fourth_moment=None)), rtol=1e-13, atol=1e-14
        )


@pytest.mark.parametrize("law", [TwoSizes(3, [1.0, 2.0, 9.0], [2.0, 1.0, 0.5]), Sphere(3, 2.0)])
def test_no_other_preconditioner_does_better_on_another_law(law, rng):
    """Where Omega is not diagonal the best preconditioner of independent coordinates need not be symmetric."""
    problem = replace(PROBLEM, covariance=np.asarray(law.covariance), fourth_moment=law.fourth_moment)
    best, least = lsa.optimal_preconditioner(problem), lsa.minimum_risk(problem)
    assert bool(np.max(np.abs(best - best.T)) > 1e-3) is law.independent
    assert lsa.risk(problem, best) == pytest.approx(least, rel=ROUNDING)
    for _ in range(5):
        change = 1e-3 * rng.normal(size=(3, 3))
        up, down = lsa.risk(problem, best + change), lsa.risk(problem, best - change)
        # A stationary point of a convex quadratic form: equal to both sides, and above.
        assert min(up, down) > least
        assert up - down == pytest.approx(0.0, abs=1e-9 * (up + down - 2 * least) + 1e-14)


def test_directions_that_no_prompt_shows_get_no_weight():
    """Random signs x and w along (1, 1): b = y x vanishes along (1, -1) in every prompt of one example."""
    task = LinearRegression(2, 1, task_covariance=np.ones((2, 2)), covariates=TwoSizes(2, 1.0))
    best = lsa.optimum(task)
    np.testing.assert_allclose(best.preconditioner, 0.25 * np.ones((2, 2)), atol=1e-12)
    assert best.risk == pytest.approx(1.0, rel=1e-12)


def test_distributions_without_a_closed_form_are_refused():
    with pytest.raises(UnsupportedProblemError, match="ExponentialDiagonal"):
        lsa.optimum(LinearRegression(3, 5, covariates=ExponentialDiagonal(3, 1.0)))


def test_bad_arguments_are_refused():
    with pytest.raises(InvalidValueError, match=r"context_length.*>= 1"):
        lsa.optimal_preconditioner(replace(PROBLEM, context_length=0))
    with pytest.raises(InvalidValueError, match="noise_variance"):
        lsa.optimal_preconditioner(replace(PROBLEM, noise_variance=-0.1))
    with pytest.raises(InvalidValueError, match="zero"):
        lsa.optimal_preconditioner(replace(PROBLEM, task_covariance=np.zeros((3, 3))))
    with pytest.raises(NotPositiveDefiniteError):
        lsa.optimal_preconditioner(replace(PROBLEM, covariance=np.diag([1.0, 1.0, 0.0])))
