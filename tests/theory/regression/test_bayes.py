"""Risks of classical predictors: Wishart moments, tabulated values, one dimension, brute-force sampling."""

import math

import numpy as np
import pytest
from scipy.integrate import quad

from icl_lab.claims.simulation import normal_batches
from icl_lab.core.errors import InvalidValueError
from icl_lab.theory.regression import bayes
from icl_lab.theory.regression.problem import Problem


@pytest.mark.parametrize(("dim", "count"), [(3, 7), (5, 20), (8, 4), (4, 4), (1, 5), (6, 3), (20, 40), (3, 10**6)])
def test_linear_statistics_have_the_moments_of_a_wishart_matrix(dim, count):
    assert bayes.eigenvalue_mean(lambda s: s, dim, count) == pytest.approx(dim * count, rel=1e-12)
    assert bayes.eigenvalue_mean(lambda s: s**2, dim, count) == pytest.approx(dim * count * (count + dim + 1), rel=1e-12)
    if count > dim + 1:
        assert bayes.eigenvalue_mean(lambda s: 1 / s, dim, count) == pytest.approx(dim / (count - dim - 1), rel=1e-12)


@pytest.mark.parametrize(
    ("length", "bayes_risk", "rival"),
    [
        (2, 3.1850164973, 3.25),
        (3, 2.3701759234, 2.75),
        (5, 1.1380456743, math.inf),
        (8, 0.4206844169, 0.625),
        (10, 0.2672048163, 0.3125),
        (20, 0.0870136992, 0.0892857143),
        (40, 0.0364478782, 0.0367647059),
    ],
)
def test_values_at_five_dimensions(length, bayes_risk, rival):
    assert bayes.isotropic_risk(5, length, 0.25) == pytest.approx(bayes_risk, abs=1e-10)
    closed = bayes.ols_risk(5, length, 0.25) if length >= 5 else bayes.minimum_norm_risk(5, length, 0.25, 1.0, 5.0)
    assert closed == pytest.approx(rival, abs=1e-10)
    if math.isfinite(rival):
        # Ridge without penalty is (minimum-norm) least squares: the same number by an integral.
        assert bayes.isotropic_ridge_risk(5, length, 0.25, 0.0) == pytest.approx(closed, rel=1e-12)


@pytest.mark.parametrize(
    ("dim", "length", "noise", "expected"), [(3, 5, 0.5, 0.5863273431), (20, 40, 0.5, 0.4986494087), (1, 5, 0.7, 0.1678945994)]
)
def test_other_values(dim, length, noise, expected):
    # The second value is known to seven digits only: it comes from sampling.
    assert bayes.isotropic_risk(dim, length, noise) == pytest.approx(expected, abs=1e-10 if dim < 20 else 1e-6)


@pytest.mark.parametrize("noise", [1e-6, 1e-2, 3.0])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_one_dimension_is_an_integral_over_a_chi_square(noise, length):
    def density(t):
        log = (length - 1) * math.log(t) - t * t / 2 - (length / 2 - 1) * math.log(2) - math.lgamma(length / 2)
        return noise / (noise + t * t) * math.exp(log)

    expected = quad(density, 0, 40, points=[noise**0.5, 0.1, 1.0, 4.0], limit=500, epsabs=0, epsrel=1e-11)[0]
    assert bayes.isotropic_risk(1, length, noise) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("length", [2, 6])
def test_any_pair_of_covariances_against_the_definition(length, rng):
    lam = np.array([[1.5, 0.4, 0.0], [0.4, 1.0, 0.1], [0.0, 0.1, 0.6]])
    om = np.array([[0.7, 0.0, 0.2], [0.0, 1.3, 0.0], [0.2, 0.0, 0.4]])
    x = rng.standard_normal((20_000, length, 3)) @ np.linalg.cholesky(lam).T
    posterior = np.linalg.inv(np.linalg.inv(om)[None] + x.transpose(0, 2, 1) @ x / 0.3)
    traces = np.einsum("pij,ji->p", posterior, lam)
    value, error = bayes.risk(Problem(lam, om, 0.3, length), normal_batches(20_000, length, 3, seed=3))
    assert abs(value - traces.mean()) < 4 * math.hypot(error, traces.std() / 20_000**0.5)


def test_a_pair_that_whitens_to_the_identity_is_exact():
    lam = np.array([[1.5, 0.4], [0.4, 1.0]])
    value, error = bayes.risk(Problem(lam, 2 * np.linalg.inv(lam), 0.3, 5), ())
    assert error == 0
    assert value == pytest.approx(bayes.isotropic_risk(2, 5, 0.3, signal=2.0), rel=1e-13)
    assert value == pytest.approx(2 * bayes.isotropic_risk(2, 5, 0.15), rel=1e-12)


def test_without_noise_the_prior_of_the_unseen_directions_remains():
    lam, om = np.diag([2.0, 1.0, 0.5]), np.diag([1.5, 0.4, 0.7])
    assert bayes.risk(Problem(lam, om, 0.0, 3), normal_batches(100_000, 3, 3, seed=0))[0] == 0
    without, almost = (bayes.risk(Problem(lam, om, s2, 2), normal_batches(100_000, 2, 3, seed=0))[0] for s2 in (0.0, 1e-12))
    assert without == pytest.approx(almost, rel=1e-6)
    assert bayes.isotropic_risk(3, 2, 0.0) == pytest.approx(1.0, rel=1e-13)


def test_the_infinite_means():
    assert math.isinf(bayes.ols_risk(4, 4, 0.1))
    assert math.isinf(bayes.ols_risk(4, 5, 0.1))
    assert math.isinf(bayes.minimum_norm_risk(4, 3, 0.1, 1.0, 4.0))
    assert bayes.ols_risk(4, 4, 0.0) == 0
    assert bayes.minimum_norm_risk(8, 4, 0.3, 1.0, 8.0) == pytest.approx(4.4)


def test_thresholds_and_limits():
    assert bayes.longest_winning_context(5, 4.0) == pytest.approx(16.6666666667)
    assert bayes.longest_winning_test(5, 4.0) == 10
    assert bayes.scaled_limit(Problem(np.diag([2.0, 1.0]), np.diag([1.0, 3.0]), 0.5, 1)) == pytest.approx(3 * 5 + 1)
    long = 10**6
    assert long * bayes.isotropic_risk(3, long, 0.5) == pytest.approx(1.5, rel=1e-5)


def test_misuse_is_refused():
    with pytest.raises(InvalidValueError, match="`dim` and `count`"):
        bayes.eigenvalue_mean(lambda s: s, 0, 3)
    with pytest.raises(InvalidValueError, match="minimum_norm_risk"):
        bayes.ols_risk(4, 3, 0.1)
    with pytest.raises(InvalidValueError, match="ols_risk"):
        bayes.minimum_norm_risk(4, 4, 0.1, 1.0, 4.0)
