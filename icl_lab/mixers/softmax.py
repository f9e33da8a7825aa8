r"""Softmax attention: the answer to a query is a mean of the values, weighted by exponentials of products with the keys.

.. math:: o_t = \sum_{i \le t} p_{ti}\, v_i, \qquad p_t = \operatorname{softmax}_{i \le t}\; s\, q_t \cdot k_i

Read as a regression of values on keys it is the estimator of Nadaraya and Watson with the kernel exp(s q . k); 1 / s is the
temperature. What it keeps of the past is every key and value.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.mixers.base import Description, Mixer
from icl_lab.mixers.forms import in_blocks


class Cache(NamedTuple):
    """The tokens so far.

    Attributes:
      keys: (N, K).
      values: (N, V).
    """

    keys: Array
    values: Array


class SoftmaxAttention(Mixer):
    """Causal softmax attention; its state is a `Cache`. The recurrent form is a stream: a key updates all queries after it."""

    name: ClassVar[str] = "softmax"

    @property
    def description(self) -> Description:
        """No degree, since the weights sum to one; the state grows with every token."""
        symmetries = {"permute_pairs", "duplicate_prompt", "shift_values", "scale_values", "shift_keys"}
        return Description(lambda n, k, v: n * (k + v), None, frozenset(symmetries), "1706.03762")

    def mix(self, queries, keys, values, gates, form, chunk, initial):
        """Outputs, and the cache with the new tokens."""
        cache = _extended(initial, keys, values)
        positions = jnp.arange(queries.shape[0]) + cache.keys.shape[0] - queries.shape[0]
        if form != "parallel":
            return streamed(queries, positions, cache, 1 if form == "recurrent" else chunk), cache
        logits = masked_logits(queries, positions, cache.keys, jnp.arange(cache.keys.shape[0]))
        return jax.nn.softmax(logits, axis=1).astype(values.dtype) @ cache.values, cache

    def answer(self, query, keys, values, gates, initial):
        """The mean of the values under one row of softmax weights."""
        cache = _extended(initial, keys, values)
        return jax.nn.softmax(jnp.real(cache.keys.conj() @ query)).astype(values.dtype) @ cache.values


def masked_logits(
    queries: Inexact[Array, "T K"], positions: Array, keys: Inexact[Array, "C K"], key_positions: Array
) -> Float[Array, "T C"]:
    """The real products of queries and keys, minus infinity where the key comes after the query."""
    return jnp.where(key_positions[None, :] <= positions[:, None], jnp.real(queries @ keys.conj().T), -jnp.inf)


def streamed(queries: Inexact[Array, "T K"], positions: Array, cache: Cache, block: int) -> Inexact[Array, "T V"]:
    """Softmax attention over blocks of keys one after the other, in O(T block) memory.

    Each query carries its largest logit so far, and the sums of weights and of weighted values relative to it; both shrink when
    a larger logit comes. Every query comes after the first key, so its largest logit is finite from the first block on.

    Args:
      queries: (T, K), scaled.
      positions: (T,), the position of each query among the keys.
      cache: keys and values of all tokens.
      block: keys in a block.

    Returns:
      (T, V).

    Source: Milakov and Gimelshein, arXiv 1805.02867.
    """
    count = cache.keys.shape[0]
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
    empty = jnp.full(shape, -jnp.inf, real), jnp.zeros(shape, real), jnp.zeros((shape, cache.values.shape[1]), queries.dtype)
    (_, total, weighted), _ = jax.lax.scan(step, empty, (*in_blocks(tuple(cache), size), key_positions))
    return weighted / total.astype(weighted.dtype)[:, None]


def _extended(initial: Any, keys: Array, values: Array) -> Cache:
    if initial is None:
        return Cache(keys, values)
    if not (
        isinstance(initial, Cache)
        and initial.keys.shape[1:] == keys.shape[1:]
        and initial.values.shape[1:] == values.shape[1:]
        and initial.keys.shape[0] == initial.values.shape[0]
    ):
        raise InvalidValueError(
            f"`initial` must be the `Cache` of earlier tokens, keys (N, {keys.shape[1]}) and values (N, {values.shape[1]}); "
            f"got {jax.tree.map(jnp.shape, initial)}."
        )
    return Cache(jnp.concatenate([initial.keys, keys]), jnp.concatenate([initial.values, values]))
