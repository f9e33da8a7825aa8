"""What a token mixer is: a map from queries, keys and values to outputs, for one head of one sequence.

Conventions: tokens are rows, T or N of them; queries and keys are K wide, values V wide. A causal mixer answers query t from
the tokens up to and including t: it reads after it has written. `scale` multiplies the queries, K^{-1/2} by default, as in the
field; with `scale=1.0` a state is read as the matrix of a regression. There is no batch axis: `jax.vmap` makes heads and
batches. Gates are arrays by keyword, one number a token or one a token and key channel; a decay is given by its logarithm.

A sequence may have n pairs of key and value for each query, n T in all, with gates for each pair: query t is answered from the
first n t pairs. A token that writes n times is then n pairs; n steps of a delta rule multiply the state by n factors.

Forms of one and the same function, as far as a mixer has them:

    recurrent   one token after the other; the cheapest memory, and what the others are tested against
    chunk       matrix products inside blocks of `chunk` tokens, a recurrence between the blocks; O(T chunk)
    parallel    all tokens at once: one masked matrix, O(T^2); of channels on their own a scan of depth log T
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Inexact

from icl_lab.core.errors import InvalidValueError, NonFiniteError
from icl_lab.core.linalg import is_traced
from icl_lab.core.typing import Array
from icl_lab.tasks.prompt import check_count

FORMS = ("recurrent", "chunk", "parallel")
CHUNK = 64
"""Tokens in a block, by default."""


@dataclasses.dataclass(frozen=True)
class Gate:
    """A number that the sequence gives to the mixer at each token.

    Attributes:
      name: the keyword that it is passed by.
      lowest: smallest value, itself allowed; minus infinity if there is none.
      highest: largest value, itself allowed; infinity if there is none.
      per_channel: whether each of the K key channels has its own.
      meaning: what it does, as a clause for error messages.
    """

    name: str
    lowest: float
    highest: float
    meaning: str
    per_channel: bool = False

    @property
    def bounds(self) -> str:
        """The range as error messages say it."""
        if np.isinf(self.lowest):
            return "finite" if np.isinf(self.highest) else f"<= {self.highest:g}"
        return f">= {self.lowest:g}" if np.isinf(self.highest) else f"in [{self.lowest:g}, {self.highest:g}]"


@dataclasses.dataclass(frozen=True)
class Description:
    """What is known of a mixer without running it.

    Attributes:
      state_size: (N, K, V) -> how many numbers it keeps of N tokens.
      degree: c in the queries, keys and values together multiplies the outputs by c^degree; None if by no power.
      signature: the names in `signature.SYMMETRIES` that hold at generic parameters.
      source: arXiv identifier.
      gates: what it takes besides queries, keys and values; all are required.
      causal: whether output t depends on no later token.
      forms: the ones it has, of `FORMS`.
      channelwise: whether a channel of the keys acts on the same channel of the values alone, so that K = V.
    """

    state_size: Callable[[int, int, int], int]
    degree: int | None
    signature: frozenset[str]
    source: str
    gates: tuple[Gate, ...] = ()
    causal: bool = True
    forms: tuple[str, ...] = FORMS
    channelwise: bool = False

    @property
    def order_sensitive(self) -> bool:
        """Whether the answer to a query depends on the order of the tokens before it."""
        return "permute_pairs" not in self.signature


class Mixer(eqx.Module):
    """A token mixer with its own parameters: a pytree, and a pure function of one head's arrays.

    A family implements `description`, `mix` and `answer`; what reaches the last two is checked, scaled and of one dtype.

    Attributes:
      name: what it is called in `registry.MIXERS`.
      scale: multiplies the queries; None is K^{-1/2}.
    """

    name: ClassVar[str]
    scale: float | int | Float[Array, ""] | None = None

    def __check_init__(self):
        if self.scale is not None and not is_traced(self.scale) and not np.all(np.isfinite(np.asarray(self.scale))):
            raise InvalidValueError(f"`scale` must be finite, or None for K^(-1/2); got {self.scale!r}.")

    @property
    @abc.abstractmethod
    def description(self) -> Description:
        """What is known of this mixer at its parameters."""

    @abc.abstractmethod
    def mix(
        self,
        queries: Inexact[Array, "T K"],
        keys: Inexact[Array, "T K"],
        values: Inexact[Array, "T V"],
        gates: dict[str, Array],
        form: str,
        chunk: int,
        initial: Any,
    ) -> tuple[Inexact[Array, "T V"], Any]:
        """Outputs and last state for scaled queries and full-size gates."""

    @abc.abstractmethod
    def answer(
        self,
        query: Inexact[Array, "K"],
        keys: Inexact[Array, "N K"],
        values: Inexact[Array, "N V"],
        gates: dict[str, Array],
        initial: Any,
    ) -> Inexact[Array, "V"]:
        """The answer to one scaled query after the N tokens, in O(N)."""

    def outputs_and_state(
        self,
        queries: Inexact[Array, "..."],
        keys: Inexact[Array, "..."],
        values: Inexact[Array, "..."],
        *,
        form: str = "chunk",
        chunk: int = CHUNK,
        initial: Any = None,
        **gates: Any,
    ) -> tuple[Inexact[Array, "T V"], Any]:
        """The output of every token, and the state after the last one.

        Args:
          queries: (T, K).
          keys: (T, K); or (n T, K), of which each query is asked after n more.
          values: (T, V), or (n T, V); one for each key.
          form: one of `description.forms`; the result is the same up to rounding.
          chunk: pairs in a block of the form "chunk", any number >= 1; it need not divide their number.
          initial: the state before the first token, as this function returned it; empty by default.
          **gates: those of `description.gates`: one number for all pairs, or one a pair, (T,) or (n T,); of a gate per channel
            a number, (K,), or one a pair and channel.

        Returns:
          Outputs (T, V) and the last state; with it as `initial`, the next tokens continue the sequence.

        Raises:
          InvalidValueError: shapes that do not fit, no token, an unknown form, an unknown or missing gate, or one out of range.
          NonFiniteError: a NaN or an infinity in a gate.
        """
        if form not in self.description.forms:
            raise InvalidValueError(f"`form` must be one of {', '.join(self.description.forms)} for {self.name}; got {form!r}.")
        check_count(chunk, "chunk", 1, "It is the number of tokens in a block.")
        _check_tokens(queries, keys, values)
        count, pairs = queries.shape[0], keys.shape[0]
        if count < 1 or pairs % count:
            raise InvalidValueError(
                f"A causal sequence has as many queries as keys, or n keys for each query; got {count} and {pairs}."
            )
        queries, keys, values, initial, full = self._prepared(queries, keys, values, initial, gates)
        each = pairs // count
        outputs, state = self.mix(jnp.repeat(queries, each, axis=0), keys, values, full, form, chunk, initial)
        return outputs[each - 1 :: each], state

    def outputs(
        self,
        queries: Inexact[Array, "..."],
        keys: Inexact[Array, "..."],
        values: Inexact[Array, "..."],
        *,
        form: str = "chunk",
        chunk: int = CHUNK,
        initial: Any = None,
        **gates: Any,
    ) -> Inexact[Array, "T V"]:
        """The output (T, V) of every token of a causal sequence.

        Args:
          queries: (T, K).
          keys: (T, K); or (n T, K), of which each query is asked after n more.
          values: (T, V), or (n T, V); one for each key.
          form: one of `description.forms`; the result is the same up to rounding.
          chunk: pairs in a block of the form "chunk".
          initial: the state before the first token, as `outputs_and_state` returned it; empty by default.
          **gates: those of `description.gates`: one number for all pairs, or one a pair, (T,) or (n T,); of a gate per channel
            a number, (K,), or one a pair and channel.

        Raises:
          InvalidValueError: shapes that do not fit, no token, an unknown form, an unknown or missing gate, or one out of range.
          NonFiniteError: a NaN or an infinity in a gate.
        """
        return self.outputs_and_state(queries, keys, values, form=form, chunk=chunk, initial=initial, **gates)[0]

    def read(
        self,
        query: Inexact[Array, "..."],
        keys: Inexact[Array, "..."],
        values: Inexact[Array, "..."],
        *,
        initial: Any = None,
        **gates: Any,
    ) -> Inexact[Array, "V"]:
        """The answer to one query after N pairs, in O(N) time and memory; the query is not written.

        Args:
          query: (K,).
          keys: (N, K).
          values: (N, V).
          initial: the state before the first pair, as `outputs_and_state` returned it; empty by default.
          **gates: those of `description.gates`: one number for all pairs, or (N,); of a gate per channel a number, (K,) or
            (N, K).

        Returns:
          (V,), what a token with this query would put out if it came with the last pair.

        Raises:
          InvalidValueError: shapes that do not fit, no pair, an unknown or missing gate, or one out of range.
          NonFiniteError: a NaN or an infinity in a gate.
        """
        if query.ndim != 1:
            raise InvalidValueError(
                f"One query is read, of shape (K,); got shape {query.shape}. Map over more with `jax.vmap`."
            )
        _check_tokens(query[None], keys, values)
        query, keys, values, initial, full = self._prepared(query, keys, values, initial, gates)
        return self.answer(query, keys, values, full, initial)

    def check_gates(self, **gates: Any) -> None:
        """Raise unless `gates` are the ones of this mixer, all of them, and finite and in range where they are known."""
        expected = {gate.name: gate for gate in self.description.gates}
        if gates.keys() != expected.keys():
            raise InvalidValueError(f"{self.name} takes the gates {sorted(expected)}, each once; got {sorted(gates)}.")
        for name, value in gates.items():
            _check_range(value, expected[name])

    def _prepared(
        self, queries: Array, keys: Array, values: Array, initial: Any, gates: dict[str, Any]
    ) -> tuple[Array, Array, Array, Any, dict[str, Array]]:
        """Arrays and state in their common dtype, float32 at least, with the queries scaled, and gates of full size."""
        self.check_gates(**gates)
        if self.description.channelwise and keys.shape[1] != values.shape[1]:
            raise InvalidValueError(
                f"Keys and values of {self.name} must be equally wide, because each channel of a key acts on that channel of "
                f"the value; got keys {keys.shape}, values {values.shape}."
            )
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.result_type(jnp.float32, queries, keys, values, *jax.tree.leaves(initial))
        queries, keys, values = (jnp.asarray(array, dtype) for array in (queries, keys, values))
        initial = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), initial)
        length, width = keys.shape
        real = jnp.finfo(dtype).dtype
        full = {gate.name: _full_size(gates[gate.name], gate, length, width, real) for gate in self.description.gates}
        scale = width**-0.5 if self.scale is None else self.scale
        return queries * jnp.asarray(scale, dtype), keys, values, initial, full


def _check_tokens(queries: Array, keys: Array, values: Array) -> None:
    shapes = f"queries {queries.shape}, keys {keys.shape}, values {values.shape}"
    if not queries.ndim == keys.ndim == values.ndim == 2:
        raise InvalidValueError(
            f"A mixer takes one head of one sequence, tokens as rows; got {shapes}. Map over heads and batches with `jax.vmap`."
        )
    if keys.shape[0] < 1 or keys.shape[0] != values.shape[0]:
        raise InvalidValueError(f"A mixer needs at least one token, and as many values as keys; got {shapes}.")
    if queries.shape[1] != keys.shape[1] or min(keys.shape[1], values.shape[1]) < 1:
        raise InvalidValueError(f"Keys must be as wide as the queries, because their products are taken; got {shapes}.")


def _check_range(value: Any, gate: Gate) -> None:
    if is_traced(value):
        return
    known = np.asarray(value)
    if not np.all(np.isfinite(known)):
        raise NonFiniteError(f"`{gate.name}` holds {np.sum(~np.isfinite(known))} NaN or infinite value(s); {gate.meaning}.")
    outside = known[(known < gate.lowest) | (known > gate.highest)]
    if outside.size:
        raise InvalidValueError(f"`{gate.name}` must be {gate.bounds}, because {gate.meaning}; got {outside.flat[0]:g}.")


def _full_size(value: Any, gate: Gate, length: int, width: int, dtype: Any) -> Array:
    shape = (length, width) if gate.per_channel else (length,)
    accepted = ((), (width,), shape) if gate.per_channel else ((), shape)
    if np.shape(value) not in accepted:
        words = ", ".join(map(str, accepted[1:]))
        raise InvalidValueError(f"`{gate.name}` must be one number or have the shape {words}; got shape {np.shape(value)}.")
    return jnp.broadcast_to(jnp.asarray(value, dtype), shape)
