"""Softmax self-attention: one layer adds to token e_j

    sum_i a_ij W_PV e_i,   a_.j = softmax_i( beta e_i^T W_KQ e_j ),   summed over heads, i over the tokens j attends to.

Weights, layers, loops and readout are those of linear attention, so that one can be put in place of the other. There is
no normaliser, since the softmax is one. As beta -> 0 with W_PV/beta fixed, two heads of opposite W_KQ and W_PV give the
linear layer with *centred* context tokens (von Oswald et al., arXiv 2212.07677, section on softmax attention).
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Inexact

from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.core.typing import Array
from icl_lab.models.attention import AttentionLayer, SelfAttention
from icl_lab.models.weights import LSAWeights


class SoftmaxLayer(AttentionLayer):
    """A layer of softmax attention; real tokens and weights only. A token that may attend to none is left unchanged.

    Attributes:
      inverse_temperature: beta > 0, multiplies the scores, e.g. 1 / sqrt(D).
    """

    inverse_temperature: float = eqx.field(static=True, kw_only=True, default=1.0)

    def __check_init__(self):
        if not (np.isfinite(self.inverse_temperature) and self.inverse_temperature > 0):
            raise InvalidValueError(
                f"`inverse_temperature` must be a finite number > 0; got {self.inverse_temperature!r}. "
                "It multiplies the scores, whose sign belongs in W_KQ."
            )

    def query_update(self, weights: LSAWeights, tokens: Inexact[Array, "T D"]) -> Inexact[Array, "D"]:
        """The update of the last token: O(T D) time a head beside W_KQ and W_PV, and O(T) memory."""
        _require_real(tokens)
        attended = tokens if self.query_in_sum else tokens[:-1]
        keyed = jnp.einsum("hbc,c->hb", weights.w_kq, tokens[-1])
        attention = jax.nn.softmax(self.inverse_temperature * (keyed @ attended.T), axis=1)
        return jnp.einsum("hab,hb->a", weights.w_pv, attention @ attended)

    def updates(self, weights: LSAWeights, tokens: Inexact[Array, "T D"]) -> Inexact[Array, "T D"]:
        """The updates of all tokens, with a T x T score matrix a head."""
        _require_real(tokens)
        attends = jnp.asarray(self._attends(tokens.shape[0]))[None]
        # A token that may attend to none gets a softmax over all and then weight 0: finite, and so is its gradient.
        masked = attends | ~attends.any(axis=2, keepdims=True)
        keyed = jnp.einsum("hbc,tc->htb", weights.w_kq, tokens)
        scores = jnp.where(masked, self.inverse_temperature * (keyed @ tokens.T), -jnp.inf)
        attention = jax.nn.softmax(scores, axis=2) * attends.astype(tokens.dtype)
        return jnp.einsum("hab,htb->ta", weights.w_pv, attention @ tokens)

    def _attends(self, count: int) -> np.ndarray:
        """(T, T), entry (j, i) true where token j attends to token i."""
        if self.causal:
            return np.tri(count, k=0 if self.query_in_sum else -1, dtype=bool)
        return np.tile(np.arange(count) < (count if self.query_in_sum else count - 1), (count, 1))


class SoftmaxSelfAttention(SoftmaxLayer, SelfAttention):
    """Softmax self-attention, as a static description that is applied to weights. Real tokens and weights only.

    Attributes:
      query_in_sum, causal: which token attends to which, see `models.attention`.
      inverse_temperature: beta > 0, multiplies the scores.
      embedding, loops, readout_sign, layer_norm, clip: tokens, loops and readout, see `models.learner`.
    """


def _require_real(tokens: Array) -> None:
    if jnp.iscomplexobj(tokens):
        raise UnsupportedProblemError(
            f"Softmax attention needs real tokens and weights; got {tokens.dtype}. A softmax of complex scores is not "
            "defined: use `LinearSelfAttention`."
        )
