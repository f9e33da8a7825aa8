"""Separate key and query: plateaus, fixed points and the time of one head."""

import numpy as np
import pytest
import scipy.integrate

from icl_lab.theory import lsa, zhangsaxe2025

SPECTRUM, LENGTH = np.array([1.0, 0.6, 0.36]), 31


def test_plateaus_of_a_known_spectrum():
    expected = [1.96, 1.0471613663, 0.5197511584, 0.2217096154]
    np.testing.assert_allclose(zhangsaxe2025.plateau_risks(SPECTRUM, LENGTH), expected, rtol=1e-9)


def test_a_fixed_point_has_the_risk_of_its_product():
    for learned in ([1.0, 0.0, 1.0], [0.0, 1.0, 0.0]):
        product = np.diag(zhangsaxe2025.subset_product(SPECTRUM, LENGTH, np.array(learned)))
        risk = lsa.risk(product, np.diag(SPECTRUM), np.eye(3), 0.0, LENGTH)
        np.testing.assert_allclose(zhangsaxe2025.subset_risk(SPECTRUM, LENGTH, np.array(learned)), risk, rtol=1e-12)


@pytest.mark.parametrize(("start", "expected"), [(0.01, 273.208466), (0.001, 2773.208560)])
def test_the_time_of_one_head(start, expected):
    gain = zhangsaxe2025.gains(SPECTRUM, LENGTH)[1]
    half = zhangsaxe2025.head_sizes(SPECTRUM, LENGTH)[1] / 2
    np.testing.assert_allclose(zhangsaxe2025.head_time(start, half, 0.6, gain), expected, rtol=1e-8)


def test_the_time_of_one_head_is_that_of_its_equation():
    value, gain = 0.7, 1.3
    time = zhangsaxe2025.head_time(0.2, 0.5, value, gain)
    solution = scipy.integrate.solve_ivp(
        lambda _, v: value**2 * v**2 - value**3 * gain * v**5, (0.0, time), [0.2], method="DOP853", rtol=1e-12, atol=1e-14
    )
    np.testing.assert_allclose(solution.y[0, -1], 0.5, rtol=1e-10)


def test_a_head_of_full_rank_ends_balanced():
    best = lsa.optimal_preconditioner(np.diag(SPECTRUM), np.eye(3), 0.0, LENGTH)
    value, gram = zhangsaxe2025.full_rank_limit(best)
    np.testing.assert_allclose(value, 1.6723997976, rtol=1e-9)
    np.testing.assert_allclose(value**2, np.trace(gram), rtol=1e-12)
    np.testing.assert_allclose(value * gram, best, rtol=1e-12)
