"""The forms of a recurrence: what a token does to the state, or what a block of tokens does, over a whole sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Float

from icl_lab.core.typing import Array

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


def in_form(
    token: Callable[[State, Rows], tuple[State, Outputs]],
    block: Callable[[State, Rows], tuple[State, Outputs]],
    initial: State,
    rows: Rows,
    form: str,
    chunk: int,
) -> tuple[Outputs, State]:
    """Outputs of all tokens and the last state, in the form "recurrent", "chunk" or "parallel".

    Args:
      token: (state, arrays of one token) -> state after it, output.
      block: (state, arrays with a leading token axis) -> state after the last token, outputs of all.
      initial: the state before the first token.
      rows: arrays (T, ...), T >= 1.
      form: one of `base.FORMS`.
      chunk: tokens in a block; a last block that is not full ends with tokens of zeros.

    Returns:
      Outputs (T, ...), state.
    """
    if form == "parallel":
        state, outputs = block(initial, rows)
        return outputs, state
    if form == "recurrent":
        state, outputs = jax.lax.scan(token, initial, rows)
        return outputs, state
    count = jax.tree.leaves(rows)[0].shape[0]
    # What a block computes inside is computed again for the gradient: kept, decays per channel are T x chunk x K numbers.
    state, outputs = jax.lax.scan(jax.checkpoint(block), initial, in_blocks(rows, min(chunk, count)))
    return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:])[:count], outputs), state


def sums_to_end(numbers: Float[Array, "N *K"]) -> Float[Array, "N+1 *K"]:
    """Entry i is the sum of the numbers from i on, and the last is 0: of log decays, what token i - 1 loses after its write."""
    return jax.lax.cumsum(jnp.concatenate([numbers, jnp.zeros_like(numbers[:1])]), reverse=True)
