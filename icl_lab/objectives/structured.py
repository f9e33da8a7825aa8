r"""Losses of one head on the invariant subspace p1 = k2 = 0, in coordinates in which gradient flow is elementwise.

p1 are the first d entries of the label row of W_PV, k2 those of the label row of W_KQ. Where the labels of a prompt may all
change sign, a layer that starts without them never gets them: the flow moves u, the last entry of W_PV, and U, the top-left
block of W_KQ, alone. In them the loss is quadratic in u U, so that an orthogonal change of the coordinates of U makes it

.. math:: L = \tfrac12\Big(c - 2u\langle V,D\rangle + u^2\sum_{ij} A_{ij} V_{ij}^2\Big).

Gradient flow in these coordinates *is* gradient flow in the weights. The Hessian is an arrow matrix, and one compiled program
for each d serves every loss of the kind, exact or sampled.

Source: the reduced dynamics of arXiv 2306.09927, Lemma 5.2, for any quadratic form in place of the Gaussian one.
"""

from __future__ import annotations

import abc

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.core.typing import Array, Key, Weights
from icl_lab.models.weights import LSAWeights
from icl_lab.objectives.objective import Loss


class StructuredWeights(eqx.Module):
    """Coordinates of the subspace p1 = k2 = 0.

    Attributes:
      value: u, the bottom-right entry of W_PV.
      key_query: (d, d), V, the top-left block U of W_KQ on the axes of the loss.
    """

    value: Float[Array, ""]
    key_query: Float[Array, "d d"]


class StructuredLoss(Loss):
    """The loss above, O(d^2) per evaluation.

    Attributes:
      offset: c, the risk of the answer zero.
      signal: D.
      curvature: A.
      rounding: relative error of the limit that the rounding of the axes leaves.
    """

    offset: Float[Array, "*S"]
    signal: Float[Array, "*S d d"]
    curvature: Float[Array, "*S d d"]
    rounding: Float[Array, "*S"]

    def __call__(self, weights: StructuredWeights, key: Key | None = None) -> Float[Array, ""]:
        u, v = weights.value, weights.key_query
        return 0.5 * (self.offset - 2 * u * jnp.sum(v * self.signal) + u**2 * jnp.sum(self.curvature * v**2))

    @property
    def relaxation(self) -> tuple[Float[Array, "*S d d"], Float[Array, "*S d d"]]:
        return self.signal, self.curvature

    @property
    def rate_spread(self) -> float:
        return float(np.max(self.curvature) / np.min(self.curvature))

    @property
    def input_rounding(self) -> float | Float[Array, "*S"]:
        return self.rounding


class Axes(eqx.Module):
    """Orthogonal axes of the matrices U, and the entries of the weights outside the subspace, which stay as they are."""

    frozen: eqx.AbstractVar[LSAWeights]

    @abc.abstractmethod
    def turned(self, block: Float[Array, "d d"]) -> Float[Array, "d d"]:
        """V of U."""

    @abc.abstractmethod
    def back(self, turned: Float[Array, "d d"]) -> Float[Array, "d d"]:
        """U of V."""

    @property
    def start(self) -> StructuredWeights:
        """The coordinates of the weights that are frozen outside the subspace."""
        dim = self.frozen.w_kq.shape[-1] - 1
        return StructuredWeights(
            value=np.asarray(self.frozen.w_pv[-1, -1]), key_query=np.asarray(self.turned(self.frozen.w_kq[:dim, :dim]))
        )

    def __call__(self, structured: StructuredWeights) -> LSAWeights:
        """The full weights at coordinates."""
        block = self.back(structured.key_query)
        dim = block.shape[0]
        return LSAWeights(
            w_pv=jnp.asarray(self.frozen.w_pv).at[-1, -1].set(structured.value),
            w_kq=jnp.asarray(self.frozen.w_kq).at[:dim, :dim].set(block),
        )


class Sides(Axes):
    """Axes of the rows and axes of the columns: V = Q^T U P.

    Attributes:
      left, right: (d, d) Q and P, orthogonal.
    """

    frozen: LSAWeights
    left: Float[Array, "d d"]
    right: Float[Array, "d d"]

    def turned(self, block: Float[Array, "d d"]) -> Float[Array, "d d"]:
        return self.left.T @ block @ self.right

    def back(self, turned: Float[Array, "d d"]) -> Float[Array, "d d"]:
        return self.left @ turned @ self.right.T


class Entries(Axes):
    """Axes of the d^2 entries.

    Attributes:
      basis: (d^2, d^2) orthogonal, an axis a column; entries of U in the order of its rows.
    """

    frozen: LSAWeights
    basis: Float[Array, "dd dd"]

    def turned(self, block: Float[Array, "d d"]) -> Float[Array, "d d"]:
        return (self.basis.T @ block.reshape(-1)).reshape(block.shape)

    def back(self, turned: Float[Array, "d d"]) -> Float[Array, "d d"]:
        return (self.basis @ turned.reshape(-1)).reshape(turned.shape)


def in_subspace(weights: Weights) -> bool:
    """Whether weights are those of one head with p1 = k2 = 0, without a head axis.

    With a head axis the flow is that of all weights, which a claim about the subspace itself is about.
    """
    if not isinstance(weights, LSAWeights) or weights.w_pv.ndim != 2 or np.iscomplexobj(weights.w_pv):
        return False
    return not (np.any(weights.w_pv[-1, :-1]) or np.any(weights.w_kq[-1, :-1]))
