"""What a structured form of a loss must do, for every loss that has one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_lab import objectives
from icl_lab.models import LSAWeights
from icl_lab.models.initializers import zhang


def start_in_subspace(rng, dim):
    """Weights of the invariant subspace whose inputs block is random."""
    start = zhang(dim, 0.4)
    return LSAWeights(start.w_pv, start.w_kq + np.pad(rng.normal(size=(dim, dim)), ((0, 1), (0, 1))))


def check_structured_form(loss, start, dim, rounding):
    """It is half the risk, and its gradient the part of the loss's in the subspace; the loss's gradient at the start."""
    structured, point, embed = loss.coordinates(start)
    assert isinstance(structured, objectives.StructuredLoss)
    np.testing.assert_allclose(embed(point).w_kq, start.w_kq, atol=1e-14)
    assert float(structured(point)) == pytest.approx(0.5 * loss.risk(start), rel=rounding)
    gradient = jax.grad(structured)(jax.tree.map(jnp.asarray, point))
    full = jax.grad(loss)(jax.tree.map(jnp.asarray, start))
    moved = embed(gradient)
    np.testing.assert_allclose(moved.w_kq[:dim, :dim], full.w_kq[:dim, :dim], atol=rounding)
    np.testing.assert_allclose(moved.w_pv[-1, -1], full.w_pv[-1, -1], atol=rounding)
    return full
