r"""Delta rules that descend in another way: with momentum, or with one gradient for a mini-batch of tokens.

Read as online gradient descent on the errors of the pairs, both keep a second matrix beside the state S:

.. math:: \text{momentum:}\quad M_t = \mu_t M_{t-1} + \beta_t\, k_t\, (v_t - S_{t-1}^\top k_t)^\top, \quad S_t = S_{t-1} + M_t

.. math:: \text{mini-batches:}\quad S_t = S_{t-1} + \beta_t\, k_t\, (v_t - B_t^\top k_t)^\top, \quad
          B_t \text{ the state before the batch of token } t

Without momentum, or with batches of one token, they are the delta rule; in one batch of all tokens, linear attention whose
keys are multiplied by beta. Inside a block the written rows solve a triangular system, as in `matrix_state`: only what a token
sees of an earlier write is another multiple of it.

    mixer              kept beside the state               source
    momentum_delta     the last step, M                    Behrouz et al.     arXiv 2501.00663
    ttt                the state before the batch, B       Sun et al.         arXiv 2407.04620
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Inexact

from icl_lab.core.typing import Array
from icl_lab.mixers.base import Gate
from icl_lab.mixers.forms import in_form, state_before
from icl_lab.mixers.recurrent.delta import ExplicitStep
from icl_lab.mixers.recurrent.matrix_state import empty, inverse
from icl_lab.tasks.prompt import check_count

LOG_MOMENTUM = Gate("log_momentum", -math.inf, 0.0, "it is the logarithm of the share of the last step that is taken again")


class Moving(NamedTuple):
    """A state with its last step.

    Attributes:
      matrix: (K, V), S.
      step: (K, V), M.
    """

    matrix: Array
    step: Array


class MomentumDelta(ExplicitStep):
    """The delta rule with momentum: the memory of Titans, linear and without forgetting. Its state is a `Moving`."""

    name: ClassVar[str] = "momentum_delta"
    source: ClassVar[str] = "2501.00663"
    decays: ClassVar[tuple[Gate, ...]] = (LOG_MOMENTUM,)

    @property
    def description(self):
        """That of the delta rule, but for two matrices as a state."""
        return dataclasses.replace(super().description, state_size=lambda n, k, v: 2 * k * v)

    def mix(self, queries, keys, values, gates, form, chunk, initial):
        """Outputs and last state."""
        # Tokens that fill up the last block would go on moving the state.
        moves = jnp.ones_like(queries[:, 0])
        rows = queries, keys, values, self.updates(keys, values, gates).writes, gates["log_momentum"], moves
        return in_form(_moving_token, _moving_block, _moving_start(initial, keys, values), rows, form, chunk)

    def answer(self, query, keys, values, gates, initial):
        """The query is taken back through the tokens, with what it reads of the step beside what it reads of the state."""

        def back(rows, token):
            key, write, log_momentum = token
            of_matrix, of_step = rows.matrix, rows.matrix + rows.step
            weight = of_step @ write
            return Moving(of_matrix - weight * key, of_step * jnp.exp(log_momentum).astype(write.dtype)), weight

        tokens = keys, self.updates(keys, values, gates).writes, gates["log_momentum"]
        rows, weights = jax.lax.scan(back, Moving(query, jnp.zeros_like(query)), tokens, reverse=True)
        start = _moving_start(initial, keys, values)
        return weights @ values + rows.matrix @ start.matrix + rows.step @ start.step


def _moving_start(initial, keys, values) -> Moving:
    nothing = empty(keys, values)
    return state_before(initial, Moving(nothing, nothing), "`Moving` state of earlier tokens")


def _moving_token(state: Moving, row: tuple[Array, ...]) -> tuple[Moving, Array]:
    query, key, value, write, log_momentum, _ = row
    missing = value - key @ state.matrix
    step = jnp.exp(log_momentum).astype(missing.dtype) * state.step + write[:, None] * missing[None, :]
    return Moving(state.matrix + step, step), query @ (state.matrix + step)


def _moving_block(state: Moving, rows: tuple[Array, ...]) -> tuple[Moving, Array]:
    """After i tokens the step holds left_{ij} times the write of token j, and the state the sum of that from j to i."""
    queries, keys, values, writes, log_momentum, moves = rows
    left = decays_between(log_momentum).astype(queries.dtype)
    # The step before the block is in the state already: of it only what is taken again counts.
    reached = jnp.cumsum(jnp.concatenate([jnp.zeros_like(left[:1]), left[1:] * moves[:, None]]), axis=0)

    def carried(rows, reached):
        return rows @ state.matrix + reached[:, :1] * (rows @ state.step)

    missing = values - carried(keys, reached[:-1])
    written = inverse(keys @ writes.T * reached[:-1, 1:]) @ missing
    outputs = carried(queries, reached[1:]) + (queries @ writes.T * reached[1:, 1:]) @ written

    def added(multiples):
        return multiples[0] * state.step + (writes * multiples[1:, None]).T @ written

    return Moving(state.matrix + added(reached[-1]), added(left[-1])), outputs


def decays_between(log_decay: Float[Array, "C"]) -> Float[Array, "C+1 C+1"]:
    """Entry (i, j): what is left after i tokens of what was there after j <= i tokens, exp(g_{j+1} + .. + g_i); else 0."""
    count = len(log_decay) + 1
    steps = jnp.broadcast_to(jnp.pad(log_decay, (1, 0))[:, None], (count, count))
    # Zeros up to token j: no sum over earlier tokens is subtracted.
    summed = jnp.cumsum(jnp.tril(steps, -1), axis=0)
    return jnp.exp(jnp.where(jnp.tri(count, dtype=bool), summed, -jnp.inf))


class Batched(NamedTuple):
    """A state inside a mini-batch.

    Attributes:
      matrix: (K, V), S.
      before: (K, V), the state before the batch of the last token.
      position: tokens of that batch so far; 0 if the next token begins one.
    """

    matrix: Array
    before: Array
    position: Array


class TTT(ExplicitStep):
    """The delta rule in mini-batches: test-time training of a linear model. Its state is a `Batched`.

    Attributes:
      batch: tokens whose errors are taken at one state, the one before them; 1 is the delta rule.
    """

    name: ClassVar[str] = "ttt"
    source: ClassVar[str] = "2407.04620"
    decays: ClassVar[tuple[Gate, ...]] = ()
    batch: int = eqx.field(static=True, default=4, kw_only=True)

    def __check_init__(self):
        check_count(self.batch, "batch", 1, "It is the number of tokens whose errors are taken at one state.")

    @property
    def description(self):
        """That of the delta rule, but for two matrices and a position as a state."""
        return dataclasses.replace(super().description, state_size=lambda n, k, v: 2 * k * v + 1)

    def mix(self, queries, keys, values, gates, form, chunk, initial):
        """Outputs and last state."""
        start = _batched_start(initial, keys, values)
        rows = queries, keys, values, self.updates(keys, values, gates).writes, self._begins(start, keys)
        # The position follows from the number of tokens; blocks carry the two matrices.
        outputs, state = in_form(_batched_token, _batched_block, start[:2], rows, form, chunk)
        return outputs, Batched(*state, (start.position + keys.shape[0]) % self.batch)

    def answer(self, query, keys, values, gates, initial):
        """The query is taken back through the tokens; what a batch takes off it comes off where the batch begins."""
        start = _batched_start(initial, keys, values)

        def back(rows, token):
            row, taken = rows
            key, write, begins = token
            weight = row @ write
            taken = taken + weight * key
            return (jnp.where(begins, row - taken, row), jnp.where(begins, 0, taken)), weight

        tokens = keys, self.updates(keys, values, gates).writes, self._begins(start, keys)
        (row, taken), weights = jax.lax.scan(back, (query, jnp.zeros_like(query)), tokens, reverse=True)
        return weights @ values + row @ start.matrix - taken @ start.before

    def _begins(self, start: Batched, keys: Inexact[Array, "T K"]) -> Bool[Array, "T"]:
        """Whether each token is the first of a batch."""
        return (jnp.real(start.position).astype(int) + jnp.arange(keys.shape[0])) % self.batch == 0


def _batched_start(initial, keys, values) -> Batched:
    nothing = empty(keys, values)
    return state_before(initial, Batched(nothing, nothing, jnp.zeros((), keys.dtype)), "`Batched` state of earlier tokens")


def _batched_token(state: tuple[Array, Array], row: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
    (matrix, before), (query, key, value, write, begins) = state, row
    before = jnp.where(begins, matrix, before)
    matrix = matrix + write[:, None] * (value - key @ before)[None, :]
    return (matrix, before), query @ matrix


def _batched_block(state: tuple[Array, Array], rows: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
    """A token sees the writes of earlier batches only, those of the batch that goes on from before the block not at all."""
    (matrix, before), (queries, keys, values, writes, begins) = state, rows
    batch = jnp.cumsum(begins)
    seen = jnp.where((batch == 0)[:, None], keys @ before, keys @ matrix)
    earlier = batch[:, None] > batch[None, :]
    written = inverse(jnp.where(earlier, keys @ writes.T, 0)) @ (values - seen)
    outputs = queries @ matrix + jnp.tril(queries @ writes.T) @ written
    begun = matrix + jnp.where(earlier[-1][:, None], writes, 0).T @ written
    return (matrix + writes.T @ written, jnp.where(batch[-1] == 0, before, begun)), outputs
