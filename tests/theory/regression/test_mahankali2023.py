"""The step size of Theorems 1 and 2: printed values, the general optimum, and the ratio of expectations by sampling."""

import numpy as np
import pytest

from icl_lab.core.errors import UnsupportedProblemError
from icl_lab.tasks.regression.linear import LinearRegression
from icl_lab.theory.regression import exact_loss, lsa, mahankali2023
from icl_lab.theory.regression.problem import Problem

PRINTED = 1e-9


@pytest.mark.parametrize(
    ("dim", "length", "noise_variance", "eta", "excess"),
    [
        (3, 5, 0.5, 0.1052631579, 1.4210526316),
        (5, 20, 1.0, 0.0370370370, 1.2962962963),
        (4, 2, 0.1, 0.1408450704, 2.8732394366),
        (8, 40, 0.25, 0.0203045685, 1.5025380711),
    ],
)
def test_reference_numbers(dim, length, noise_variance, eta, excess):
    assert mahankali2023.step_size(dim, length, noise_variance) == pytest.approx(eta, abs=PRINTED)
    assert mahankali2023.minimum_risk(dim, length, noise_variance) == pytest.approx(excess, abs=PRINTED)


def test_one_dimension_by_hand():
    # d = 1, one example, no noise: minimise E (eta w x^2 x_q - w x_q)^2 = 1 - 2 eta E x^2 + eta^2 E x^4.
    assert mahankali2023.step_size(1, 1, 0.0) == pytest.approx(1 / 3, rel=1e-15)
    assert mahankali2023.minimum_risk(1, 1, 0.0) == pytest.approx(2 / 3, rel=1e-15)


def test_the_optimum_is_the_general_one_at_the_inverse_task_covariance(rng):
    root = rng.normal(size=(3, 3))
    covariance = root @ root.T + 0.5 * np.eye(3)
    inverse = np.linalg.inv(covariance)
    task = LinearRegression(3, 7, covariance, (inverse + inverse.T) / 2, noise_std=0.6)
    ours, lab = mahankali2023.optimum(task), lsa.optimum(task)
    np.testing.assert_allclose(ours.preconditioner, lab.preconditioner, rtol=1e-11)
    assert ours.risk == pytest.approx(lab.risk, rel=1e-11)
    assert "Theorem 2" in ours.source
    # Its weights belong to a layer that sums.
    problem = Problem(covariance, inverse, 0.36, 7)
    summed = exact_loss.risk(problem, ours.w_pv, ours.w_kq, query_in_sum=False, rho=1.0)
    assert summed == pytest.approx(ours.risk, rel=1e-11)
    averaged = exact_loss.risk(problem, ours.w_pv, ours.w_kq, query_in_sum=False)
    assert averaged > 1.1 * ours.risk


def test_isotropic_tasks_fall_under_theorem_1():
    best = mahankali2023.optimum(LinearRegression(2, 4))
    assert "Theorem 1" in best.source
    np.testing.assert_allclose(best.preconditioner, 4 / 7 * np.eye(2), atol=1e-15)


def test_the_step_size_is_the_ratio_of_simulated_expectations(rng):
    # With penalty s2 Sigma the Bayes estimate is (S + s2 Sigma)^{-1} b; nothing is whitened here.
    samples, length, noise_variance = 100_000, 5, 0.5
    covariance = np.array([[1.4, 0.5], [0.5, 0.6]])
    inverse = np.linalg.inv(covariance)
    x = rng.normal(size=(samples, length, 2)) @ np.linalg.cholesky(covariance).T
    w = rng.normal(size=(samples, 2)) @ np.linalg.cholesky(inverse).T
    y = np.einsum("pnd,pd->pn", x, w) + np.sqrt(noise_variance) * rng.normal(size=(samples, length))
    b = np.einsum("pn,pnd->pd", y, x)
    gram = np.einsum("pni,pnj->pij", x, x)
    bayes = np.linalg.solve(gram + noise_variance * covariance[None], b[:, :, None])[:, :, 0]
    top, bottom = np.sum(bayes * b, axis=1), np.einsum("pi,ij,pj->p", b, inverse, b)
    ratio = np.mean(top) / np.mean(bottom)
    standard_error = np.std(top - ratio * bottom) / np.sqrt(samples) / np.mean(bottom)
    eta = mahankali2023.step_size(2, length, noise_variance)
    assert abs(ratio - eta) < 4 * standard_error
    # Resolution: leaving out the 1 of n + d + 1 + s2, or the noise, must be seen.
    assert abs(1 / (length + 2 + noise_variance) - eta) > 8 * standard_error
    assert abs(1 / (length + 2 + 1) - eta) > 8 * standard_error


def test_other_task_covariances_are_refused():
    with pytest.raises(UnsupportedProblemError, match="inverse covariance"):
        mahankali2023.optimum(LinearRegression(3, 5, covariance=[2.0, 1.0, 0.5]))
