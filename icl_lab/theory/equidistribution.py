"""Points that fill a cube evenly: where the searches for a best point start, the same on every machine."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from icl_lab.core.typing import Array


def equidistributed(count: int, dim: int) -> Float[Array, "count dim"]:
    r"""The first points of an additive sequence in the open unit cube.

    .. math:: x_n = \tfrac12 + n\,(g^{-1}, g^{-2}, \dots, g^{-d}) \bmod 1, \qquad g^{d+1} = g + 1,\ g > 1

    In one dimension g is the golden ratio.

    Args:
      count: how many points.
      dim: d >= 1.

    Source: Weyl (1916), multiples of independent irrational numbers are equidistributed modulo 1.
    """
    g = 2.0
    for _ in range(64):  # a contraction by less than one half
        g = (1 + g) ** (1 / (dim + 1))
    return (0.5 + np.outer(np.arange(1, count + 1), g ** -np.arange(1.0, dim + 1))) % 1.0
