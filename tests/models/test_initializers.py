"""The starts of training: their entries, their balance, and what any gradient leaves unchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_lab.core import precision
from icl_lab.core.errors import AssumptionError, InvalidValueError
from icl_lab.models import LinearSelfAttention, SoftmaxSelfAttention, initializers
from tests.models.attention_reference import random_prompt


def test_the_structured_start_has_the_stated_entries():
    weights = initializers.zhang(2, 0.3)
    np.testing.assert_array_equal(weights.w_pv, [[0, 0, 0], [0, 0, 0], [0, 0, 0.3]])
    corner = 0.3 / np.sqrt(2)
    np.testing.assert_allclose(weights.w_kq, [[corner, 0, 0], [0, corner, 0], [0, 0, 0]], rtol=1e-15)


def test_theta_enters_as_its_square_with_unit_norm():
    weights = initializers.zhang(2, 2.0, theta=np.array([[1.0, 2.0], [0.0, 1.0]]))
    # Theta Theta^T = [[5, 2], [2, 1]], whose Frobenius norm is sqrt(34).
    np.testing.assert_allclose(weights.w_kq[:2, :2], 2 * np.array([[5, 2], [2, 1]]) / np.sqrt(34), rtol=1e-15)


def test_the_structured_start_is_balanced(key):
    weights = initializers.zhang(4, 0.2, theta=initializers.random_theta(key, 4))
    assert np.linalg.norm(weights.w_kq) == pytest.approx(weights.w_pv[-1, -1], rel=1e-14)


def test_a_random_theta_has_a_square_of_unit_norm(key):
    theta = initializers.random_theta(key, 4)
    assert np.linalg.norm(theta @ theta.T) == pytest.approx(1.0, rel=1e-14)
    assert not np.allclose(theta, initializers.random_theta(jax.random.fold_in(key, 1), 4))


@pytest.mark.parametrize("scale", [0.0, -0.1, np.inf, np.nan])
def test_a_scale_that_is_not_positive_is_refused(key, scale):
    with pytest.raises(AssumptionError, match=r"Assumption 3.3"):
        initializers.zhang(2, scale)
    with pytest.raises(InvalidValueError, match="`scale` must be a finite number > 0"):
        initializers.gaussian(key, 3, scale)
    with pytest.raises(InvalidValueError, match="`scale` must be a finite number > 0"):
        initializers.separate_gaussian(key, 3, scale)


def test_a_bad_theta_is_refused():
    with pytest.raises(AssumptionError, match="must not be zero"):
        initializers.zhang(2, 0.1, theta=np.zeros((2, 2)))
    with pytest.raises(InvalidValueError, match=r"finite \(2, 2\) matrix"):
        initializers.zhang(2, 0.1, theta=np.ones((3, 3)))
    with pytest.raises(InvalidValueError, match=r"finite \(2, 2\) matrix"):
        initializers.zhang(2, 0.1, theta=np.array([[np.nan, 0.0], [0.0, 1.0]]))


@pytest.mark.parametrize(("name", "value"), [("rank", 0), ("value_rank", 0), ("heads", 0), ("token_dim", 0)])
def test_sizes_below_one_are_named(key, name, value):
    with pytest.raises(InvalidValueError, match=f"`{name}` must be an integer >= 1"):
        initializers.separate_gaussian(key, **{"token_dim": 3, "scale": 0.1, name: value})


def test_shapes_with_and_without_heads(key):
    assert initializers.gaussian(key, 3, 0.1).w_pv.shape == (3, 3)
    assert initializers.gaussian(key, 3, 0.1, heads=2).w_kq.shape == (2, 3, 3)
    separate = initializers.separate_gaussian(key, 3, 0.1, heads=2, rank=2, value_rank=1)
    shapes = [matrix.shape for matrix in (separate.w_p, separate.w_v, separate.w_k, separate.w_q)]
    assert shapes == [(2, 3, 1), (2, 1, 3), (2, 2, 3), (2, 2, 3)]


def test_gaussian_entries_have_the_scale_asked_for(key):
    weights = initializers.gaussian(key, 100, 0.3)
    for matrix in (weights.w_pv, weights.w_kq):
        # 10^4 entries: mean within 4 standard errors 0.3 / 100, variance within 4 of 0.09 sqrt(2 / 10^4).
        assert abs(matrix.mean()) < 4 * 0.3 / 100
        assert abs(matrix.var() - 0.09) < 4 * 0.09 * np.sqrt(2e-4)
    # The two matrices are independent draws: correlation within 4 standard errors 1 / 100.
    assert abs(np.corrcoef(weights.w_pv.ravel(), weights.w_kq.ravel())[0, 1]) < 4 / 100


@pytest.mark.default_precision
def test_draws_are_the_same_float64_numbers_outside_the_scope(key):
    outside = initializers.gaussian(key, 3, 0.1)
    with precision.float64():
        inside = initializers.gaussian(key, 3, 0.1)
    assert outside.w_pv.dtype == np.float64
    np.testing.assert_array_equal(outside.w_pv, inside.w_pv)


def test_an_ensemble_of_starts_by_vmap(key):
    keys = jax.random.split(key, 3)
    ensemble = jax.vmap(lambda k: initializers.gaussian(k, 3, 0.1))(keys)
    np.testing.assert_allclose(ensemble.w_kq[1], initializers.gaussian(keys[1], 3, 0.1).w_kq, rtol=1e-15)


def test_balanced_factors_are_the_same_function_and_balanced(key):
    merged = initializers.gaussian(key, 3, 0.5, heads=2)
    separate = initializers.balanced(merged)
    np.testing.assert_allclose(separate.w_p @ separate.w_v, merged.w_pv, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(separate.w_k.swapaxes(1, 2) @ separate.w_q, merged.w_kq, rtol=1e-12, atol=1e-14)
    keys = separate.w_k @ separate.w_k.swapaxes(1, 2) - separate.w_q @ separate.w_q.swapaxes(1, 2)
    values = separate.w_p.swapaxes(1, 2) @ separate.w_p - separate.w_v @ separate.w_v.swapaxes(1, 2)
    np.testing.assert_allclose(keys, 0, atol=1e-14)
    np.testing.assert_allclose(values, 0, atol=1e-14)


def test_balanced_factors_may_have_the_rank_of_the_matrix_and_no_less():
    start = initializers.zhang(3, 0.4)
    separate = initializers.balanced(start, rank=3, value_rank=1)
    assert separate.w_k.shape == (3, 4)
    assert separate.w_p.shape == (4, 1)
    np.testing.assert_allclose(separate.w_k.T @ separate.w_q, start.w_kq, atol=1e-15)
    with pytest.raises(InvalidValueError, match="`rank` must be between 3"):
        initializers.balanced(start, rank=2)
    with pytest.raises(InvalidValueError, match="and 4; got 5"):
        initializers.balanced(start, value_rank=5)


def losses(model, rng):
    """A loss of a two-layer model on three prompts, no symmetry in it."""
    prompts = [random_prompt(rng, 4, 2, 1) for _ in range(3)]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *prompts)

    def loss(layers):
        return jnp.sum(jnp.cos(jax.vmap(model, in_axes=(None, 0))(layers, batch)))

    return jax.jit(jax.grad(loss))


def rate(product):
    """The derivative of a Gram-like matrix along the flow, from <w, gradient>, up to sign."""
    return product + product.T


def test_no_gradient_moves_the_merged_invariants(rng, key):
    layers = tuple(initializers.gaussian(jax.random.fold_in(key, i), 3, 0.5, heads=2) for i in range(2))
    for layer, gradient in zip(layers, losses(LinearSelfAttention(), rng)(layers), strict=True):
        values = rate(np.einsum("gab,hab->gh", layer.w_pv, gradient.w_pv))
        keys = rate(np.einsum("gab,hab->gh", layer.w_kq, gradient.w_kq))
        assert np.abs(values).max() > 1e-3
        np.testing.assert_allclose(values, keys, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("model", [LinearSelfAttention(), SoftmaxSelfAttention()])
def test_no_gradient_moves_the_separate_invariants(rng, key, model):
    layers = tuple(initializers.separate_gaussian(jax.random.fold_in(key, i), 3, 0.7, heads=2, rank=2) for i in range(2))
    for layer, gradient in zip(layers, losses(model, rng)(layers), strict=True):
        for head in range(2):
            w, g = (jax.tree.map(lambda leaf, h=head: np.asarray(leaf[h]), tree) for tree in (layer, gradient))
            keys, queries = rate(w.w_k @ g.w_k.T), rate(w.w_q @ g.w_q.T)
            assert np.abs(keys).max() > 1e-5
            np.testing.assert_allclose(keys, queries, rtol=1e-10, atol=1e-14)
            np.testing.assert_allclose(rate(w.w_p.T @ g.w_p), rate(w.w_v @ g.w_v.T), rtol=1e-10, atol=1e-14)
            scale_is_a_gauge = np.isclose(np.sum(w.w_p * g.w_p), np.sum(w.w_k * g.w_k), rtol=1e-10)
            assert scale_is_a_gauge == isinstance(model, LinearSelfAttention)
