"""Mixers that answer a query by a weighted sum of all the values it sees: one row of an attention map, and its forms.

A family says the weights of one query. What such a mixer keeps of the past is every token, so every form takes O(T^2) time:

    recurrent   one query after the other
    chunk       `chunk` queries at a time; O(T chunk) memory
    parallel    the whole map, O(T^2) memory

A window or a cluster is a weight of zero, so that here no form skips the tokens outside.
"""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Inexact, Int

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.mixers.base import Mixer


class Cache(NamedTuple):
    """The tokens so far.

    Attributes:
      keys: (N, K).
      values: (N, V).
      gates: those of each token, by name.
    """

    keys: Array
    values: Array
    gates: dict[str, Array]


class Sight(eqx.Module):
    """What one query sees.

    Attributes:
      keys: (N, K) of all tokens.
      gates: those of all tokens, by name.
      seen: (N,), which tokens count.
      place: the number of the query's own token; for one that is not written, that of the last one.
    """

    keys: Inexact[Array, "N K"]
    gates: dict[str, Array]
    seen: Bool[Array, "N"]
    place: Int[Array, ""]

    @property
    def count(self) -> Float[Array, ""]:
        """How many tokens are seen."""
        return jnp.sum(self.seen, dtype=jnp.finfo(self.keys.dtype).dtype)

    def masked(self, logits: Float[Array, "N"]) -> Float[Array, "N"]:
        """Logits, minus infinity where nothing is seen."""
        return jnp.where(self.seen, logits, -jnp.inf)

    def products(self, query: Inexact[Array, "K"]) -> Float[Array, "N"]:
        """The real products of the keys with a query."""
        return jnp.real(self.keys.conj() @ query)


class AttentionMap(Mixer):
    """A mixer whose outputs are sums of values under the `weights` of each query; its state is a `Cache`."""

    @abc.abstractmethod
    def weights(self, query: Inexact[Array, "K"], sight: Sight) -> Float[Array, "N"]:
        """The weight of each value for one scaled query: 0 where nothing is seen."""

    def mix(self, queries, keys, values, gates, form, chunk, initial):
        """Outputs, and the cache with the new tokens."""
        cache = extended(initial, keys, values, gates)
        count = cache.keys.shape[0]

        @jax.checkpoint
        def row(query: Array, place: Array) -> Array:
            seen = jnp.arange(count) <= place
            return self.weights(query, Sight(cache.keys, cache.gates, seen, place)).astype(values.dtype) @ cache.values

        places = jnp.arange(count - queries.shape[0], count)
        if form == "parallel":
            return jax.vmap(row)(queries, places), cache
        size = 1 if form == "recurrent" else min(chunk, queries.shape[0])
        return jax.lax.map(lambda pair: row(*pair), (queries, places), batch_size=size), cache

    def answer(self, query, keys, values, gates, initial):
        """The sum of the values under one row of weights."""
        cache = extended(initial, keys, values, gates)
        count = cache.keys.shape[0]
        sight = Sight(cache.keys, cache.gates, jnp.ones(count, bool), jnp.asarray(count - 1))
        return self.weights(query, sight).astype(values.dtype) @ cache.values


def cache_size(tokens: int, key_width: int, value_width: int) -> int:
    """Numbers in the cache of a mixer without gates."""
    return tokens * (key_width + value_width)


def extended(initial: Any, keys: Array, values: Array, gates: dict[str, Array]) -> Cache:
    """The cache of earlier tokens, or none, with more behind it.

    Raises:
      InvalidValueError: something else than the cache of tokens of the same widths and gates.
    """
    more = Cache(keys, values, gates)
    if initial is None:
        return more

    def rows(cache: Cache) -> Any:
        return jax.tree.map(lambda array: jnp.shape(array)[1:], cache)

    fits = isinstance(initial, Cache) and rows(initial) == rows(more)
    if not fits or len({len(array) for array in jax.tree.leaves(initial)}) > 1:
        raise InvalidValueError(
            f"`initial` must be the `Cache` of earlier tokens, keys (N, {keys.shape[1]}), values (N, {values.shape[1]}) and "
            f"gates {sorted(gates)}; got {jax.tree.map(jnp.shape, initial)}."
        )
    return jax.tree.map(lambda before, after: jnp.concatenate([before, after]), initial, more)
