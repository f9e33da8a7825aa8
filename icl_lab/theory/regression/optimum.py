"""`Optimum`: what a theorem says trained linear self-attention becomes."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float

from icl_lab.core.typing import Array


@dataclasses.dataclass(frozen=True, eq=False)
class Optimum:
    r"""A global minimiser of the population loss, as a function and as balanced weights.

    The function is :math:`\hat y = x_q^\top P \, \tfrac1N \sum_i y_i x_i`, whatever the model's own normaliser is.

    Attributes:
      name: a few words for tables and legends.
      preconditioner: (d, d), P above; symmetric where inputs are Gaussian. It acts on the *mean* over the context.
      risk: smallest excess mean squared error E(yhat - w.x_q)^2; no factor 1/2, no query noise.
      w_pv: (d+1, d+1), projection-value matrix of the balanced minimiser (the limit of flow from a balanced start).
      w_kq: (d+1, d+1), key-query matrix of the same.
      normaliser: what the attention sum is divided by in the model that `w_pv` and `w_kq` belong to.
      source: paper, arXiv id and theorem.
    """

    name: str
    preconditioner: Float[Array, "d d"]
    risk: float
    w_pv: Float[Array, "D D"]
    w_kq: Float[Array, "D D"]
    source: str
    normaliser: Literal["context_length", "none"] = "context_length"


def balanced_weights(
    product: Float[Array, "d d"], imbalance: float = 0.0
) -> tuple[Float[Array, "d+1 d+1"], Float[Array, "d+1 d+1"]]:
    r"""The structured weights (W_PV, W_KQ) with u U^T = product and u^2 - ||U||_F^2 = imbalance.

    .. math:: u^2 = \tfrac12\left(\kappa + \sqrt{\kappa^2 + 4 \|P\|_F^2}\right), \quad U = P^\top / u

    W_PV has the single entry u in its last corner, W_KQ is blockdiag(U, 0). Gradient flow conserves the imbalance
    kappa, so it selects this point on the curve of minimisers (c U, u / c).

    Args:
      product: (d, d), the matrix u U^T; not zero.
      imbalance: kappa, 0 for a balanced start.

    Returns:
      W_PV and W_KQ, both (d+1, d+1), with u > 0.

    Source: kappa = 0 is Zhang, Frei, Bartlett (arXiv 2306.09927), Theorem 4.1; other kappa follow from the conserved imbalance.
    """
    dim = product.shape[0]
    norm = np.linalg.norm(product)
    scale = np.sqrt((imbalance + np.hypot(imbalance, 2 * norm)) / 2)
    w_pv = np.zeros((dim + 1, dim + 1))
    w_pv[-1, -1] = scale
    w_kq = np.zeros((dim + 1, dim + 1))
    w_kq[:dim, :dim] = product.T / scale
    return w_pv, w_kq
