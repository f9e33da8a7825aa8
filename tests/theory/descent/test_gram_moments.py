"""Moments of the Gram matrix: integers, rationals and rules against enumeration and each other."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.theory.descent import gram_moments


def test_gaussian_moments_are_the_known_integers():
    assert gram_moments.gaussian_moments(10, 10, 8) == [
        *(10, 100, 2100, 56400, 1734000, 58384800, 2106064800, 80388806400, 3222603014400)
    ]
    assert gram_moments.gaussian_moments(4, 3, 5) == [4, 12, 96, 1032, 13392, 200880]


def test_uniform_moments_are_the_known_rationals():
    known = [33.3333333, 220, 1807.6190476190, 16714.4126984127, 167005.5988456, 1766560.1871060]
    found = [float(m) for m in gram_moments.iid_moments(10, 10, 6, "uniform")[1:]]
    np.testing.assert_allclose(found, known, rtol=2e-9)


@pytest.mark.parametrize(("dim", "length"), [(1, 1), (3, 2), (2, 5)])
def test_walks_and_recursion_agree(dim, length):
    assert gram_moments.iid_moments(dim, length, 6, "gaussian") == gram_moments.gaussian_moments(dim, length, 6)


def test_moments_equal_the_sum_over_all_indices():
    d, n, k = 2, 2, 3
    total = Fraction(0)
    for columns in itertools.product(range(d), repeat=k):
        for rows in itertools.product(range(n), repeat=k):
            powers = {}
            for j in range(k):
                for column in (columns[j], columns[(j + 1) % k]):
                    powers[rows[j], column] = powers.get((rows[j], column), 0) + 1
            term = Fraction(1)
            for power in powers.values():
                term *= gram_moments.unit_moment("uniform", power)
            total += term
    assert gram_moments.iid_moments(d, n, k, "uniform")[k] == total


def test_rules_reproduce_their_moments():
    moments = gram_moments.gaussian_moments(5, 20, 27)
    nodes, weights = gram_moments.gauss_rule(moments)
    assert len(nodes) == 14
    assert np.all(weights > 0)
    np.testing.assert_allclose([weights @ nodes**k for k in range(28)], np.array(moments, float), rtol=1e-12)
    nodes, weights = gram_moments.spectral_rule("gaussian", 5, 20, 26, scale=0.5)
    np.testing.assert_allclose(
        [weights @ nodes**k for k in range(27)], [m * 0.25**k for k, m in enumerate(moments[:27])], rtol=1e-12
    )


def test_what_cannot_be_computed_is_refused():
    with pytest.raises(InvalidValueError, match="one of gaussian, uniform"):
        gram_moments.unit_moment("cauchy", 2)
    with pytest.raises(UnsupportedProblemError, match="up to order 9; got 12"):
        gram_moments.iid_moments(2, 2, 12, "uniform")
    with pytest.raises(InvalidValueError, match="an even number"):
        gram_moments.gauss_rule([1, 1, 1])
    with pytest.raises(InvalidValueError, match="no measure with more than 1 points"):
        gram_moments.gauss_rule([1, 1, 1, 1])
