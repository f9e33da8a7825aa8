r"""Softmax attention: the answer to a query is a mean of the values, weighted by exponentials of products with the keys.

.. math:: o_t = \sum_{i \le t} p_{ti}\, v_i, \qquad p_t = \operatorname{softmax}_{i \le t}\; s\, q_t \cdot k_i

Read as a regression of values on keys it is the estimator of Nadaraya and Watson with the kernel exp(s q . k); 1 / s is the
temperature. With the logit s (q . k - |k|^2 / 2) the kernel is the Gaussian one of bandwidth s^{-1/2}. The past is kept whole,
every key and value.

    mixer        logit of token i at token t           source
    softmax      s q_t . k_i                           Vaswani et al.   arXiv 1706.03762
    forgetting   s q_t . k_i + sum_{i < j <= t} g_j    Lin et al.       arXiv 2503.02130
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Float, Inexact

from icl_lab.core.typing import Array
from icl_lab.mixers.base import Description, Mixer
from icl_lab.mixers.forms import in_blocks, sums_to_end
from icl_lab.mixers.maps.attention_map import AttentionMap, cache_size, extended
from icl_lab.mixers.recurrent.linear import LOG_DECAY


class SoftmaxAttention(Mixer):
    """Causal softmax attention; its state is a `Cache`. The recurrent form is a stream: a key updates all queries after it.

    Attributes:
      key_norm: whether half the squared length of a key is subtracted from its product with the query.
    """

    name: ClassVar[str] = "softmax"
    key_norm: bool = eqx.field(static=True, default=False)

    @property
    def description(self) -> Description:
        """No degree, since the weights sum to one; the state grows with every token."""
        symmetries = {"permute_pairs", "duplicate_prompt", "shift_values", "scale_values"}
        symmetries |= {"shift_keys_and_query" if self.key_norm else "shift_keys"}
        return Description(cache_size, None, frozenset(symmetries), "1706.03762")

    def mix(self, queries, keys, values, gates, form, chunk, initial):
        """Outputs, and the cache with the new tokens."""
        cache = extended(initial, keys, values, gates)
        positions = jnp.arange(queries.shape[0]) + cache.keys.shape[0] - queries.shape[0]
        queries, keys = self._lifted(queries, cache.keys)
        if form != "parallel":
            return streamed(queries, positions, keys, cache.values, 1 if form == "recurrent" else chunk), cache
        logits = masked_logits(queries, positions, keys, jnp.arange(keys.shape[0]))
        return jax.nn.softmax(logits, axis=1).astype(values.dtype) @ cache.values, cache

    def answer(self, query, keys, values, gates, initial):
        """The mean of the values under one row of softmax weights."""
        cache = extended(initial, keys, values, gates)
        query, keys = self._lifted(query, cache.keys)
        return jax.nn.softmax(jnp.real(keys.conj() @ query)).astype(values.dtype) @ cache.values

    def _lifted(self, queries: Inexact[Array, "*T K"], keys: Inexact[Array, "N K"]) -> tuple[Array, Array]:
        """Queries and keys whose products are the logits: with the length of the keys, one channel more."""
        if not self.key_norm:
            return queries, keys
        scale = keys.shape[1] ** -0.5 if self.scale is None else self.scale
        half = jnp.full((*queries.shape[:-1], 1), -0.5 * scale, queries.dtype)
        squares = jnp.sum(jnp.abs(keys) ** 2, axis=1, keepdims=True).astype(keys.dtype)
        return jnp.concatenate([queries, half], axis=-1), jnp.concatenate([keys, squares], axis=1)


class ForgettingAttention(AttentionMap):
    """Softmax attention that forgets: a logit falls by the log decays of all tokens after its own, up to the query's."""

    name: ClassVar[str] = "forgetting"

    @property
    def description(self) -> Description:
        """No degree; the cache keeps the decays, too. Of a prompt that comes twice the copies fade alike."""
        symmetries = frozenset({"duplicate_prompt", "shift_values", "scale_values", "shift_keys"})
        return Description(lambda n, k, v: n * (k + v + 1), None, symmetries, "2503.02130", (LOG_DECAY,))

    def weights(self, query, sight):
        """A softmax of products and what is left of each token."""
        lost = sums_to_end(jnp.where(sight.seen, sight.gates["log_decay"], 0.0))[1:]
        return jax.nn.softmax(sight.masked(sight.products(query) + lost))


def masked_logits(
    queries: Inexact[Array, "T K"], positions: Array, keys: Inexact[Array, "C K"], key_positions: Array
) -> Float[Array, "T C"]:
    """The real products of queries and keys, minus infinity where the key comes after the query."""
    return jnp.where(key_positions[None, :] <= positions[:, None], jnp.real(queries @ keys.conj().T), -jnp.inf)


def streamed(
    queries: Inexact[Array, "T K"], positions: Array, keys: Inexact[Array, "N K"], values: Inexact[Array, "N V"], block: int
) -> Inexact[Array, "T V"]:
    """Softmax attention over blocks of keys one after the other, in O(T block) memory.

    Each query carries its largest logit so far, and the sums of weights and of weighted values relative to it; both shrink when
    a larger logit comes. Every query comes after the first key, so its largest logit is finite from the first block on.

    Args:
      queries: (T, K), scaled.
      positions: (T,), the position of each query among the keys.
      keys, values: of all tokens.
      block: keys in a block.

    Returns:
      (T, V).

    Source: Milakov and Gimelshein, arXiv 1805.02867.
    """
    count = keys.shape[0]
    size = min(block, count)

    @jax.checkpoint
    def step(carry, tokens):
        largest, total, weighted = carry
        keys, values, key_positions = tokens
        logits = masked_logits(queries, positions, keys, key_positions)
        # The answer does not depend on what the exponents are shifted by.
        larger = jax.lax.stop_gradient(jnp.maximum(largest, jnp.max(logits, axis=1)))
        shrink, weights = jnp.exp(largest - larger), jnp.exp(logits - larger[:, None])
        total = total * shrink + jnp.sum(weights, axis=1)
        weighted = weighted * shrink.astype(values.dtype)[:, None] + weights.astype(values.dtype) @ values
        return (larger, total, weighted), None

    # Filled-up keys of the last block stand after every query, so they are masked with what is really later.
    key_positions = jnp.arange(-(-count // size) * size).reshape(-1, size)
    shape, real = queries.shape[0], jnp.finfo(queries.dtype).dtype
    empty = jnp.full(shape, -jnp.inf, real), jnp.zeros(shape, real), jnp.zeros((shape, values.shape[1]), queries.dtype)
    (_, total, weighted), _ = jax.lax.scan(step, empty, (*in_blocks((keys, values), size), key_positions))
    return weighted / total.astype(weighted.dtype)[:, None]
