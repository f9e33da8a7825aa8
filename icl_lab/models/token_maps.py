"""Layers that change every token by itself: they take a place among the layers of an attention model's weights.

`(Embedding(...), MLP(...), LSAWeights(...))` embeds the tokens, sends each through a small network, and attends to the
results. With W0 = 0 the attention layer is then a step of gradient descent on the features that the network computes
(von Oswald et al., arXiv 2212.07677, Proposition 2). The answer is read from the last slots of the widened token.
"""

from __future__ import annotations

import abc

import equinox as eqx
import jax
from jaxtyping import Float

from icl_lab.core.typing import Array


class TokenMap(eqx.Module):
    """A map of one token, applied to all of them."""

    @abc.abstractmethod
    def __call__(self, tokens: Float[Array, "T D"]) -> Float[Array, "T E"]:
        """The tokens after the map; their width may change."""

    @property
    @abc.abstractmethod
    def widths(self) -> tuple[int, int]:
        """Widths (D, E) of a token before and after."""


class Embedding(TokenMap):
    """A linear map to another width, without offset.

    Attributes:
      matrix: (E, D).
    """

    matrix: Float[Array, "E D"]

    def __call__(self, tokens: Float[Array, "T D"]) -> Float[Array, "T E"]:
        """The tokens times the matrix."""
        return tokens @ self.matrix.T

    @property
    def widths(self) -> tuple[int, int]:
        """(D, E)."""
        return self.matrix.shape[1], self.matrix.shape[0]


class MLP(TokenMap):
    """A residual network of one hidden layer: t + W_out gelu(W_in t + b_in) + b_out.

    Attributes:
      w_in: (h, D).  b_in: (h,).  w_out: (D, h).  b_out: (D,).
    """

    w_in: Float[Array, "h D"]
    b_in: Float[Array, "h"]
    w_out: Float[Array, "D h"]
    b_out: Float[Array, "D"]

    def __call__(self, tokens: Float[Array, "T D"]) -> Float[Array, "T D"]:
        """The tokens plus what the network adds."""
        hidden = jax.nn.gelu(tokens @ self.w_in.T + self.b_in[None])
        return tokens + hidden @ self.w_out.T + self.b_out[None]

    @property
    def widths(self) -> tuple[int, int]:
        """(D, D)."""
        return self.w_in.shape[1], self.w_out.shape[0]
