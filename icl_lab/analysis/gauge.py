r"""The gauge freedom of linear attention, and the representative that comparisons use.

One layer of linear attention answers a regression prompt with tokens (x_i, y_i) and query token (x_q, 0). Of its
matrices only

.. math:: W_{PV} = \begin{pmatrix} \cdot & \cdot \\ p_1^\top & p_2 \end{pmatrix}, \qquad
          W_{KQ} = \begin{pmatrix} K_1 & \cdot \\ k_2^\top & \cdot \end{pmatrix}

enter the prediction: the last row of W_PV, since only the label slot is read, and the first d columns of W_KQ, since
the query's label slot is zero. The other entries have zero gradient and stay as they were initialised. What is left of
the freedom is the scale and sign (s W_PV, W_KQ / s), a phase too if the weights are complex.

Everything here is float64 numpy whatever JAX's precision; head or time axes may lead.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array, Weights
from icl_lab.models.weights import LSAWeights

SIGN_THRESHOLD = 1e-8
"""Below this share of the norm of p, p2 is rounding and cannot fix the sign."""


class ActiveParts(NamedTuple):
    """The entries of one layer's weights that its prediction depends on; axes of heads or times may lead.

    Attributes:
      p1: (..., d), last row of W_PV without its last entry.
      p2: (...,), last entry of that row.
      k1: (..., d, d), upper left block of W_KQ.
      k2: (..., d), last row of W_KQ without its last entry.
    """

    p1: Inexact[Array, "*lead d"]
    p2: Inexact[Array, "*lead"]
    k1: Inexact[Array, "*lead d d"]
    k2: Inexact[Array, "*lead d"]


def widened(weights: Weights) -> Weights:
    """The weights with every matrix as float64 or complex128 numpy, so that products are exact to that precision."""

    def wide(matrix: Array) -> np.ndarray:
        matrix = np.asarray(matrix)
        return matrix.astype(np.promote_types(matrix.dtype, np.float64))

    return jax.tree.map(wide, weights)


def _merged_layer(weights: Weights) -> LSAWeights:
    """The merged matrices of the only layer, widened."""
    if isinstance(weights, tuple | list):
        if len(weights) != 1:
            raise InvalidValueError(
                f"The gauge of a single layer was asked for, but the weights hold {len(weights)} layers. "
                "Compare deeper models as functions, with `analysis.compare_functions`."
            )
        weights = weights[0]
    return widened(weights).merged()


def active_parts(weights: Weights) -> ActiveParts:
    """The parts (p1, p2, K1, k2) of one layer's weights that its prediction on regression prompts depends on.

    Args:
      weights: one layer, merged or separate, D = d + 1 wide; axes of heads or times may lead.

    Returns:
      The parts, as numpy views.

    Raises:
      InvalidValueError: several layers.

    Source: Zhang, Frei, Bartlett, arXiv 2306.09927, eq. for the prediction: u12 = p1, u_{-1} = p2, U11 = K1, u21 = k2.
    """
    merged = _merged_layer(weights)
    return ActiveParts(
        p1=merged.w_pv[..., -1, :-1],
        p2=merged.w_pv[..., -1, -1],
        k1=merged.w_kq[..., :-1, :-1],
        k2=merged.w_kq[..., -1, :-1],
    )


def balance(weights: Weights) -> LSAWeights:
    r"""The representative of a layer with :math:`\lVert p \rVert = \lVert K \rVert_F` and p2 > 0, inactive entries zero.

    p = (p1, p2) is the active row of W_PV and K = (K1; k2^T) the active columns of W_KQ. Where p2 is negligible, the entry
    of p of largest modulus is made positive instead. A layer that predicts zero becomes zero. Heads are balanced one by
    one.

    Args:
      weights: one layer, merged or separate; axes of heads or times may lead.

    Returns:
      Merged weights of the same predictions on regression prompts, float64 numpy.

    Raises:
      InvalidValueError: several layers.
    """
    merged = _merged_layer(weights)
    row, columns = merged.w_pv[..., -1, :], merged.w_kq[..., :, :-1]
    row_norm, column_norm = np.linalg.norm(row, axis=-1), np.linalg.norm(columns, axis=(-2, -1))
    largest = np.take_along_axis(row, np.argmax(np.abs(row), axis=-1)[..., None], axis=-1)[..., 0]
    anchor = np.where(np.abs(row[..., -1]) > SIGN_THRESHOLD * row_norm, row[..., -1], largest)
    alive = (row_norm > 0) & (column_norm > 0)
    phase = np.conj(anchor) / np.where(alive, np.abs(anchor), 1.0)
    factor = np.where(alive, phase * np.sqrt(column_norm / np.where(alive, row_norm, 1.0)), 1.0)
    w_pv, w_kq = np.zeros_like(merged.w_pv), np.zeros_like(merged.w_kq)
    w_pv[..., -1, :] = np.where(alive, factor, 0.0)[..., None] * row
    w_kq[..., :, :-1] = np.where(alive, 1 / factor, 0.0)[..., None, None] * columns
    return LSAWeights(w_pv=w_pv, w_kq=w_kq)
