"""The weights of linear self-attention, as plain immutable dataclasses in the papers' names.

Conventions (tokens are rows e_j, D = token width):

    e_j <- e_j + (1/rho) sum_i W_PV e_i (e_i^* W_KQ e_j)

so `w_pv` maps the attended token to the update and `w_kq` scores key e_i against query e_j. Any weights class may carry
a leading head axis on every matrix; heads add. A model of several layers takes a tuple of weights, one a layer.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array


class LSAWeights(eqx.Module):
    """Merged parametrisation (Zhang, Frei, Bartlett, arXiv 2306.09927, eq. for LSA).

    Attributes:
      w_pv: (D, D) or (H, D, D), projection times value, W_PV = P V.
      w_kq: (D, D) or (H, D, D), key-query, W_KQ = W_K^T W_Q.
    """

    w_pv: Inexact[Array, "*H D D"]
    w_kq: Inexact[Array, "*H D D"]

    def merged(self) -> LSAWeights:
        """Itself."""
        return self

    def check_width(self, width: int, place: str) -> None:
        """Raise `InvalidValueError` unless the matrices of `place` are made for tokens of this width."""
        for name, matrix in (("w_pv", self.w_pv), ("w_kq", self.w_kq)):
            if matrix.ndim not in (2, 3) or matrix.shape[-2:] != (width, width):
                raise InvalidValueError(
                    f"`{name}` of {place} must be ({width}, {width}), with an optional head axis first, because "
                    f"the tokens are {width} wide; got shape {tuple(matrix.shape)}."
                )

    def with_head_axis(self) -> LSAWeights:
        """The same weights with a leading head axis, of length one if there was none."""
        return self if self.w_pv.ndim == 3 else LSAWeights(w_pv=self.w_pv[None], w_kq=self.w_kq[None])


class SeparateWeights(eqx.Module):
    """Separate parametrisation (von Oswald et al., arXiv 2212.07677): same functions, another gradient flow.

    Attributes:
      w_p: (D, v) or (H, D, v), projection.  w_v: (v, D) or (H, v, D), value.
      w_k: (r, D) or (H, r, D), key.  w_q: (r, D) or (H, r, D), query; r is the rank of a head.
    """

    w_p: Inexact[Array, "*H D v"]
    w_v: Inexact[Array, "*H v D"]
    w_k: Inexact[Array, "*H r D"]
    w_q: Inexact[Array, "*H r D"]

    def merged(self) -> LSAWeights:
        """The merged weights of the same function: W_PV = P V, W_KQ = W_K^* W_Q; numpy stays numpy."""
        return LSAWeights(w_pv=self.w_p @ self.w_v, w_kq=self.w_k.swapaxes(-1, -2).conj() @ self.w_q)


class PairedWeights(eqx.Module):
    """The two blocks of a layer on tokens (0, x_t, x_{t-1}) that gradient flow moves; all others are zero.

    Attributes:
      value: (d, d), P: from the attended token's x_i to the answer.
      key_query: (d, d), K: scores the attended token's x_{i-1} against the query token's x_t.

    Source: Zheng et al. (arXiv 2405.16845), Assumption 3.1.
    """

    value: Inexact[Array, "d d"]
    key_query: Inexact[Array, "d d"]

    def merged(self) -> LSAWeights:
        """The full (3d, 3d) matrices; numpy stays numpy."""
        xp = np if isinstance(self.value, np.ndarray) else jnp
        dim = self.value.shape[0]
        return LSAWeights(
            w_pv=xp.pad(self.value, ((0, 2 * dim), (dim, dim))), w_kq=xp.pad(self.key_query, ((2 * dim, 0), (dim, dim)))
        )
