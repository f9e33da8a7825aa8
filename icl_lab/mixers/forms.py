"""Recurrences over a whole sequence: the state that they start from, and their forms, token by token or block by block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array

TOGETHER = 512
"""Tokens, at least one block, whose blocks are prepared at once: enough for two cores, and few enough for their caches."""

Tree = TypeVar("Tree")
State = TypeVar("State")
Rows = TypeVar("Rows")
Outputs = TypeVar("Outputs")


def in_blocks(tree: Tree, size: int) -> Tree:
    """Arrays (T, ...) as (blocks, size, ...), filled up with zeros at the end; None stays None."""

    def split(array):
        missing = -array.shape[0] % size
        filled = jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
        return filled.reshape(-1, size, *array.shape[1:])

    return jax.tree.map(split, tree)


def state_before(initial: Any, empty: State, meaning: str) -> State:
    """The state before the first token: `initial`, or the empty one if it is None.

    Raises:
      InvalidValueError: not the same tree of the same shapes as the empty state, whose `meaning` the message says.
    """
    if initial is None:
        return empty
    shapes, given = jax.tree.map(jnp.shape, (empty, initial))
    if jax.tree.structure(initial) != jax.tree.structure(empty) or given != shapes:
        raise InvalidValueError(f"`initial` must be the {meaning}, of shape {shapes}; got {given}.")
    return initial


def in_form(
    token: Callable[[State, Rows], tuple[State, Outputs]],
    block: Callable[[State, Any], tuple[State, Outputs]],
    initial: State,
    rows: Rows,
    form: str,
    chunk: int,
    prepare: Callable[[Rows], Any] | None = None,
) -> tuple[Outputs, State]:
    """Outputs of all tokens and the last state, in the form "recurrent", "chunk" or "parallel".

    Args:
      token: (state, arrays of one token) -> state after it, output.
      block: (state, what is prepared of arrays with a leading token axis) -> state after the last token, outputs of all.
      initial: the state before the first token.
      rows: arrays (T, ...), T >= 1.
      form: one of `base.FORMS`.
      chunk: tokens in a block; a last block that is not full ends with tokens of zeros.
      prepare: arrays with a leading token axis -> the work on a block that needs no state, done for several blocks at once;
        None prepares nothing.

    Returns:
      Outputs (T, ...), state.
    """
    prepared = prepare or (lambda rows: rows)
    if form == "parallel":
        state, outputs = block(initial, prepared(rows))
        return outputs, state
    if form == "recurrent":
        state, outputs = jax.lax.scan(token, initial, rows)
        return outputs, state
    count = jax.tree.leaves(rows)[0].shape[0]
    size = min(chunk, count)
    blocks = -(-count // size)
    groups = -(-blocks * size // TOGETHER) if prepare else blocks

    def group(state, rows):
        return jax.lax.scan(block, state, jax.vmap(prepared)(rows))

    # What a group computes inside is computed again for the gradient, so that memory is that of one group.
    grouped = in_blocks(in_blocks(rows, size), -(-blocks // groups))
    state, outputs = jax.lax.scan(jax.checkpoint(group), initial, grouped)
    return jax.tree.map(lambda array: array.reshape(-1, *array.shape[3:])[:count], outputs), state


def sums_to_end(numbers: Float[Array, "N *K"]) -> Float[Array, "N+1 *K"]:
    """Entry i is the sum of the numbers from i on, and the last is 0: of log decays, what token i - 1 loses after its write."""
    return jax.lax.cumsum(jnp.pad(numbers, [(0, 1)] + [(0, 0)] * (numbers.ndim - 1)), reverse=True)
