"""The balanced gauge: what it leaves alone, and that it removes the freedom."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_lab import analysis
from icl_lab.core.errors import InvalidValueError
from icl_lab.models import LSAWeights, SeparateWeights

EPS = np.finfo(np.float64).eps
SEEDS = st.integers(0, 2**31 - 1)
SCALES = st.floats(0.01, 100.0).flatmap(lambda s: st.sampled_from([s, -s]))


def random_weights(seed, d=3, heads=None, complex_data=False):
    rng = np.random.default_rng(seed)
    shape = (d + 1, d + 1) if heads is None else (heads, d + 1, d + 1)
    extra = 1j if complex_data else 0.0
    w_pv, w_kq = (rng.normal(size=shape) + extra * rng.normal(size=shape) for _ in range(2))
    return LSAWeights(w_pv, w_kq)


def literal_prediction(weights, seed, n=5):
    """The query's label slot after one layer, token by token: only what the definition of the layer says."""
    rng = np.random.default_rng(seed)
    d = weights.w_pv.shape[-1] - 1
    tokens = rng.normal(size=(n + 1, d + 1))
    tokens[-1, -1] = 0.0
    update = sum(weights.w_pv @ e * (e @ weights.w_kq @ tokens[-1]) for e in tokens) / n
    return update[-1]


@given(SEEDS)
def test_balancing_changes_no_prediction(seed):
    weights = random_weights(seed)
    before, after = literal_prediction(weights, seed), literal_prediction(analysis.balance(weights), seed)
    scale = np.linalg.norm(weights.w_pv) * np.linalg.norm(weights.w_kq) * 100
    np.testing.assert_allclose(after, before, atol=100 * EPS * scale)


@given(SEEDS, SCALES)
def test_gauge_equivalent_weights_have_one_representative(seed, s):
    weights = random_weights(seed)
    moved = LSAWeights(s * weights.w_pv, weights.w_kq / s)
    one, other = analysis.balance(weights), analysis.balance(moved)
    np.testing.assert_allclose(other.w_pv, one.w_pv, atol=100 * EPS * np.linalg.norm(one.w_pv))
    np.testing.assert_allclose(other.w_kq, one.w_kq, atol=100 * EPS * np.linalg.norm(one.w_kq))


@given(SEEDS, SCALES)
def test_the_sign_rule_holds_where_the_corner_of_the_value_matrix_is_zero(seed, s):
    weights = random_weights(seed)
    weights.w_pv[-1, -1] = 0.0
    one = analysis.balance(weights)
    other = analysis.balance(LSAWeights(s * weights.w_pv, weights.w_kq / s))
    np.testing.assert_allclose(other.w_pv, one.w_pv, atol=100 * EPS * np.linalg.norm(one.w_pv))
    assert np.max(np.abs(one.w_pv)) == np.max(one.w_pv) > 0


def test_the_representative_is_balanced_with_a_positive_corner_and_no_inactive_entries():
    parts = analysis.active_parts(analysis.balance(random_weights(1)))
    row, columns = np.append(parts.p1, parts.p2), np.vstack([parts.k1, parts.k2])
    np.testing.assert_allclose(np.linalg.norm(row), np.linalg.norm(columns), rtol=10 * EPS)
    assert parts.p2 > 0
    balanced = analysis.balance(random_weights(1))
    np.testing.assert_array_equal(balanced.w_pv[:-1], 0)
    np.testing.assert_array_equal(balanced.w_kq[:, -1], 0)


def test_a_complex_phase_is_removed_too():
    weights, s = random_weights(2, complex_data=True), 3.0 * np.exp(1.1j)
    one = analysis.balance(weights)
    other = analysis.balance(LSAWeights(s * weights.w_pv, weights.w_kq / s))
    np.testing.assert_allclose(other.w_pv, one.w_pv, atol=100 * EPS * np.linalg.norm(one.w_pv))
    np.testing.assert_allclose(other.w_kq, one.w_kq, atol=100 * EPS * np.linalg.norm(one.w_kq))
    assert abs(one.w_pv[-1, -1].imag) < 10 * EPS
    assert one.w_pv[-1, -1].real > 0


def test_heads_and_times_are_balanced_one_by_one():
    stacked = random_weights(3, heads=4)
    together = analysis.balance(stacked)
    for h in range(4):
        alone = analysis.balance(LSAWeights(stacked.w_pv[h], stacked.w_kq[h]))
        np.testing.assert_array_equal(together.w_pv[h], alone.w_pv)
        np.testing.assert_array_equal(together.w_kq[h], alone.w_kq)


def test_a_layer_that_predicts_zero_becomes_zero():
    weights = random_weights(4)
    weights.w_pv[-1] = 0.0
    balanced = analysis.balance(weights)
    np.testing.assert_array_equal(balanced.w_pv, 0)
    np.testing.assert_array_equal(balanced.w_kq, 0)


def test_separate_weights_are_balanced_as_the_merged_weights_of_the_same_function():
    rng = np.random.default_rng(5)
    w_p, w_v, w_k, w_q = (
        rng.normal(size=(4, 2)),
        rng.normal(size=(2, 4)),
        rng.normal(size=(3, 4)),
        rng.normal(size=(3, 4)),
    )
    one = analysis.balance(SeparateWeights(w_p, w_v, w_k, w_q))
    other = analysis.balance(LSAWeights(w_p @ w_v, w_k.T @ w_q))
    np.testing.assert_allclose(one.w_pv, other.w_pv, rtol=1e-12)
    np.testing.assert_allclose(one.w_kq, other.w_kq, rtol=1e-12)


@pytest.mark.default_precision
def test_outside_the_float64_scope_the_gauge_is_still_fixed_in_float64():
    weights = random_weights(6)
    before, after = literal_prediction(weights, 6), literal_prediction(analysis.balance(weights), 6)
    np.testing.assert_allclose(after, before, rtol=1e-12)


def test_several_layers_are_refused_with_the_remedy():
    with pytest.raises(InvalidValueError, match=r"hold 2 layers.*compare_functions"):
        analysis.balance((random_weights(0), random_weights(1)))
