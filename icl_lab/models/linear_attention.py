"""Linear self-attention: one layer adds to token e_j

    (1/rho) sum_i W_PV e_i (e_i^* W_KQ e_j),   summed over heads, i over the tokens that j attends to.

The sum over i is a D x D matrix, the Gram G = (1/rho) sum_i e_i e_i^*, so a layer costs O(T D^2) time, and the answer to
one query O(T D): no array with two token axes exists. A causal layer carries the Gram of the prefix.

The normaliser, in the papers' own versions:

    paper                                      rho                     query in the sum   answer
    Zhang, Frei, Bartlett   arXiv 2306.09927   N, though N+1 are summed  yes               + label slot
    von Oswald et al.       arXiv 2212.07677   N (P holds eta/N)         no                - label slot
    Mahankali et al.        arXiv 2307.03576   1                         no                + label slot
    Zheng et al.            arXiv 2405.16845   t - 1 at position t       yes, causal       + first block
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.models.attention import AttentionLayer, SelfAttention
from icl_lab.models.weights import LSAWeights

NORMALISERS = ("context_length", "none")


class LinearLayer(AttentionLayer):
    """A layer of linear attention.

    Attributes:
      normaliser: "context_length", rho = T - 1, the number of tokens before the query (causal: max(t - 1, 1) at
        position t = 1, 2, ...; with tokens of two slots an example, "interleaved", T - 1 is twice the number of
        examples), or "none", rho = 1.
    """

    normaliser: str = eqx.field(static=True, kw_only=True, default="context_length")

    def __check_init__(self):
        if self.normaliser not in NORMALISERS:
            raise InvalidValueError(f"`normaliser` must be one of {', '.join(NORMALISERS)}; got {self.normaliser!r}.")

    def normaliser_at(self, token_count: int) -> int:
        """The normaliser of the query token among `token_count` tokens; never below 1."""
        return max(token_count - 1, 1) if self.normaliser == "context_length" else 1

    def gram(self, tokens: Inexact[Array, "T D"]) -> Inexact[Array, "D D"]:
        """The Gram matrix that the query token sees, (1/rho) sum_i e_i e_i^* over the tokens it attends to.

        One layer answers readout_sign * (label block of q + W_PV G W_KQ q), q the query token.

        Args:
          tokens: (T, D), the query token last.

        Returns:
          (D, D), Hermitian positive semidefinite.
        """
        attended = tokens if self.query_in_sum else tokens[:-1]
        return attended.T @ jnp.conj(attended) / self.normaliser_at(tokens.shape[0])

    def query_update(self, weights: LSAWeights, tokens: Inexact[Array, "T D"]) -> Inexact[Array, "D"]:
        """W_PV G W_KQ q, summed over heads, by the scores of the query alone: O(T D) time a head, and G is not formed."""
        attended = tokens if self.query_in_sum else tokens[:-1]
        keyed = jnp.einsum("hbc,c->hb", weights.w_kq, tokens[-1])
        scores = keyed @ jnp.conj(attended).T / self.normaliser_at(tokens.shape[0])
        return jnp.einsum("hab,hb->a", weights.w_pv, scores @ attended)

    def updates(self, weights: LSAWeights, tokens: Inexact[Array, "T D"]) -> Inexact[Array, "T D"]:
        """W_PV G W_KQ e_j for every token e_j, summed over heads; the causal G is that of the prefix."""
        keyed = jnp.einsum("hbc,tc->thb", weights.w_kq, tokens)
        seen = self._causal_mix(keyed, tokens) if self.causal else keyed @ self.gram(tokens).T
        return jnp.einsum("hab,thb->ta", weights.w_pv, seen)

    def _causal_mix(self, keyed: Inexact[Array, "T H D"], tokens: Inexact[Array, "T D"]) -> Inexact[Array, "T H D"]:
        """G_t applied to the vectors of position t, G_t the normalised Gram of the tokens before (and at) t."""

        def step(before, inputs):
            token, vectors = inputs
            through = before + jnp.outer(token, jnp.conj(token))
            return through, vectors @ (through if self.query_in_sum else before).T

        count, width = tokens.shape
        _, mixed = jax.lax.scan(step, jnp.zeros((width, width), tokens.dtype), (tokens, keyed))
        rho = jnp.asarray([self.normaliser_at(t + 1) for t in range(count)], dtype=tokens.dtype)
        return mixed / rho[:, None, None]


class LinearSelfAttention(LinearLayer, SelfAttention):
    """Linear self-attention, as a static description that is applied to weights.

    Attributes:
      query_in_sum, causal: which token attends to which, see `models.attention`.
      normaliser: "context_length" or "none", see `LinearLayer`.
      embedding, loops, readout_sign, layer_norm, clip: tokens, loops and readout, see `models.learner`.

    Examples:
      >>> import jax
      >>> from icl_lab import models, tasks, theory
      >>> task = tasks.LinearRegression(dim=2, context_length=8)
      >>> w_pv, w_kq = theory.zhang2023.limit(task.covariance, task.context_length)
      >>> model = models.LinearSelfAttention()
      >>> model(models.LSAWeights(w_pv, w_kq), task.sample(jax.random.key(0))).shape
      (1,)
    """
