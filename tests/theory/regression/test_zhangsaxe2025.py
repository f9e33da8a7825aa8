"""Separate key and query: plateaus, fixed points and the time of one head."""

import itertools

import numpy as np
import pytest
import scipy.integrate

from icl_lab.theory.regression import lsa, zhangsaxe2025
from icl_lab.theory.regression.problem import Problem

SPECTRUM, LENGTH = np.array([1.0, 0.6, 0.36]), 31


def test_plateaus_of_a_known_spectrum():
    expected = [1.96, 1.0471613663, 0.5197511584, 0.2217096154]
    np.testing.assert_allclose(zhangsaxe2025.plateau_risks(SPECTRUM, LENGTH), expected, rtol=1e-9)


def test_a_fixed_point_has_the_risk_of_its_product():
    for learned in ([1.0, 0.0, 1.0], [0.0, 1.0, 0.0]):
        product = np.diag(zhangsaxe2025.subset_product(SPECTRUM, LENGTH, np.array(learned)))
        risk = lsa.risk(Problem(np.diag(SPECTRUM), np.eye(3), 0.0, LENGTH), product)
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
    best = lsa.optimal_preconditioner(Problem(np.diag(SPECTRUM), np.eye(3), 0.0, LENGTH))
    value, gram = zhangsaxe2025.full_rank_limit(best)
    np.testing.assert_allclose(value, 1.6723997976, rtol=1e-9)
    np.testing.assert_allclose(value**2, np.trace(gram), rtol=1e-12)
    np.testing.assert_allclose(value * gram, best, rtol=1e-12)


def risk(values, keys, queries, covariance, length):
    """Of the heads' product, as a bilinear predictor."""
    product = np.einsum("h,hri,hrj->ij", values, keys, queries)
    return lsa.risk(Problem(covariance, np.eye(len(covariance)), 0.0, length), product.T)


def test_the_velocity_is_minus_the_gradient_of_half_the_risk(rng):
    root = rng.standard_normal((3, 3))
    covariance = root @ root.T + np.eye(3)
    heads = [rng.standard_normal(2), rng.standard_normal((2, 2, 3)), rng.standard_normal((2, 2, 3))]
    velocity = zhangsaxe2025.separate_velocity(*heads, covariance, 5)
    for part in range(3):
        for index in np.ndindex(*heads[part].shape):
            sides = []
            for sign in (1, -1):
                moved = [array.copy() for array in heads]
                moved[part][index] += sign
                sides.append(risk(*moved, covariance, 5) / 2)
            # The risk is quadratic in a single entry.
            assert velocity[part][index] == pytest.approx(-(sides[0] - sides[1]) / 2, rel=1e-10, abs=1e-8)


def test_invariants_do_not_change(rng):
    covariance = np.diag([1.0, 0.5])
    heads = [rng.standard_normal(2), rng.standard_normal((2, 2, 2)), rng.standard_normal((2, 2, 2))]
    velocity = zhangsaxe2025.separate_velocity(*heads, covariance, 4)
    moved = [[a + s * 1e-6 * v for a, v in zip(heads, velocity, strict=True)] for s in (1, -1)]
    for ahead, behind in zip(*(zhangsaxe2025.separate_invariants(*side) for side in moved), strict=True):
        np.testing.assert_allclose(ahead - behind, 0.0, atol=1e-12)


def test_the_merged_invariant_of_aligned_heads_vanishes():
    inner = np.array([np.eye(2), 2 * np.eye(2)]) / np.sqrt(2)
    np.testing.assert_allclose(zhangsaxe2025.merged_invariant(np.array([1.0, 2.0]), inner), 0.0, atol=1e-15)


def test_every_set_of_eigenvectors_is_a_fixed_point():
    covariance = np.diag(SPECTRUM)
    sizes = zhangsaxe2025.head_sizes(SPECTRUM, LENGTH)
    for learned in itertools.product([0.0, 1.0], repeat=3):
        active = np.array(learned) * sizes
        vectors = (active[:, None] * np.eye(3))[:, None]
        for part in zhangsaxe2025.separate_velocity(active, vectors, vectors, covariance, LENGTH):
            np.testing.assert_allclose(part, 0.0, atol=1e-14)
        product = np.einsum("h,hri,hrj->ij", active, vectors, vectors)
        expected = zhangsaxe2025.subset_product(SPECTRUM, LENGTH, np.array(learned))
        np.testing.assert_allclose(np.diag(product), expected, rtol=1e-12)
        assert zhangsaxe2025.subset_risk(SPECTRUM, LENGTH, np.array(learned)) == pytest.approx(
            risk(active, vectors, vectors, covariance, LENGTH), rel=1e-12
        )


def test_prefixes_are_no_strict_saddles():
    sets = itertools.product([0.0, 1.0], repeat=3)
    strict = [learned for learned in sets if zhangsaxe2025.is_strict_saddle(np.array(learned))]
    assert strict == [(0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 1)]


def test_the_last_plateau_is_the_optimum():
    optimum = lsa.minimum_risk(Problem(np.diag(SPECTRUM), np.eye(3), 0.0, LENGTH))
    assert zhangsaxe2025.plateau_risks(SPECTRUM, LENGTH)[-1] == pytest.approx(optimum, rel=1e-12)


def test_the_flow_of_full_rank_is_the_separate_flow():
    problem = Problem(np.diag([1.0, 0.4]), np.eye(2), 0.0, 6)
    v, k = zhangsaxe2025.full_rank_flow(problem, 0.5, np.array([0.0, 1e-6, 0.3]))
    keys = 0.5 / np.sqrt(2) * np.eye(2)[None]
    dv, dk, _ = zhangsaxe2025.separate_velocity(np.array([0.5]), keys, keys, problem.covariance, 6)
    assert (v[1] - v[0]) / 1e-6 == pytest.approx(dv[0], rel=1e-4)
    np.testing.assert_allclose(np.sort((k[1] - k[0]) / 1e-6), np.sort(np.diag(dk[0])), rtol=1e-4)


def test_the_flow_of_full_rank_ends_at_its_limit():
    problem = Problem(np.diag(SPECTRUM), np.eye(3), 0.0, LENGTH)
    value, gram = zhangsaxe2025.full_rank_limit(lsa.optimal_preconditioner(problem))
    v, k = zhangsaxe2025.full_rank_flow(problem, 0.2, np.array([0.0, 5.0, 400.0]))
    np.testing.assert_allclose(v**2, np.sum(k**2, axis=1), rtol=1e-9)
    np.testing.assert_allclose(v[-1], value, rtol=1e-9)
    np.testing.assert_allclose(np.sort(k[-1] ** 2), np.sort(np.diag(gram)), rtol=1e-8)
