r"""Trained weights joined to constructed ones by a straight segment, once both are in the same gauge.

A layer of linear attention computes the same with (W_PV, W_KQ) and with (beta W_PV, W_KQ / beta), so that two layers of one
function may lie far apart and what lies halfway between them computes something else. Dividing W_KQ by the mean of the
diagonal of its input block makes that mean 1, as in the constructions of gradient descent. This beta is negative as often as
positive, and must keep its sign.

Source: von Oswald et al. (arXiv 2212.07677), who interpolate between trained and constructed weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.analysis.gauge import widened
from icl_lab.core import compiled, precision
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array, Weights
from icl_lab.models import LSAWeights
from icl_lab.objectives import Objective


def key_query_scale(layer: Weights, label_dim: int = 1) -> Float[np.ndarray, "*lead"]:
    r"""The number :math:`\beta = \tfrac1d \sum_{i \le d} (W_{KQ})_{ii}` of one layer, with its sign; one for each head or time.

    Args:
      layer: one layer, merged or separate; axes of heads or times may lead.
      label_dim: k, slots of a token after its d inputs.
    """
    w_kq = widened(layer).merged().w_kq
    dim = w_kq.shape[-1] - label_dim
    return np.asarray(np.mean(np.diagonal(w_kq, axis1=-2, axis2=-1)[..., :dim], axis=-1))


def rescaled(weights: Weights, label_dim: int = 1) -> Weights:
    r"""The weights :math:`(\beta W_{PV}, W_{KQ} / \beta)` of the same function, layer by layer and head by head.

    beta is the `key_query_scale` of each.

    Args:
      weights: one layer, or a tuple of layers, merged or separate; axes of heads or times may lead.
      label_dim: k, slots of a token after its d inputs.

    Returns:
      Merged weights, one layer or a tuple as given, float64 numpy.

    Raises:
      InvalidValueError: a layer whose beta is zero.
    """
    if isinstance(weights, tuple | list):
        return tuple(rescaled(layer, label_dim) for layer in weights)
    merged, beta = widened(weights).merged(), key_query_scale(weights, label_dim)
    if not np.all(beta):
        raise InvalidValueError(
            "The mean of the diagonal of W_KQ's input block is zero, so that no scale makes it 1: this layer is no step of "
            "gradient descent."
        )
    return LSAWeights(w_pv=beta[..., None, None] * merged.w_pv, w_kq=merged.w_kq / beta[..., None, None])


def interpolate(first: Weights, second: Weights, shares: Sequence[float] | Float[Array, "S"]) -> Weights:
    """The points (1 - s) first + s second, entry by entry and in the gauge in which they are given.

    Args:
      first, second: weights of the same structure and shapes, both merged or both separate.
      shares: (S,), s.

    Returns:
      Weights with a leading axis S, float64 numpy.

    Raises:
      InvalidValueError: weights of different structure or shapes.
    """
    first, second = widened(first), widened(second)
    shapes = [jax.tree.map(np.shape, weights) for weights in (first, second)]
    if shapes[0] != shapes[1]:
        raise InvalidValueError(
            "Only weights of one structure can be averaged: layers, heads, and merged or separate matrices must agree; got "
            f"{shapes[0]} and {shapes[1]}."
        )
    share = np.asarray(shares, dtype=np.float64)

    def points(a: Array, b: Array) -> np.ndarray:
        s = share.reshape(-1, *(1,) * np.ndim(a))
        return (1 - s) * a[None] + s * b[None]

    return jax.tree.map(points, first, second)


def losses_along_segment(
    objective: Objective,
    first: Weights,
    second: Weights,
    shares: Sequence[float] | Float[Array, "S"] = (0.0, 0.25, 0.5, 0.75, 1.0),
    rescale: bool = True,
) -> Float[np.ndarray, "S"]:
    """Half losses on the segment between two sets of weights.

    Args:
      objective: any objective; it is called without a key.
      first, second: weights of the same structure, such as trained and constructed ones.
      shares: (S,), the share of `second`.
      rescale: whether both are rescaled first, see `rescaled`; without it, how far the gauges are apart shows.

    Raises:
      InvalidValueError: weights of different structure or shapes, or a layer that cannot be rescaled because its beta is zero.
    """
    if rescale:
        first, second = (rescaled(weights, objective.task.label_dim) for weights in (first, second))
    with precision.float64():
        return np.asarray(_losses(objective, jax.tree.map(jnp.asarray, interpolate(first, second, shares))))


@compiled.jit
def _losses(objective: Objective, points: Weights) -> Float[Array, "S"]:
    return jax.lax.map(objective, points)
