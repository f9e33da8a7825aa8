r"""Mixers whose state is a matrix S (K, V): one recurrence, and its recurrent, chunk and parallel forms.

.. math:: S_t = \operatorname{diag}(e^{g_t})\, S_{t-1} + w_t\, (v_t - S_{t-1}^\top r_t)^\top, \qquad o_t = S_t^\top q_t .

The state is read at the probe r_t and decays, and what was missing from v_t is written along w_t; then it is read at the query.
Without probes it is linear attention with a decay; with w = beta k and r = e^g k, which reads at k what the decay leaves, it is
the delta rule.

Inside a block the written rows u_t = v_t - S_{t-1}^T r_t solve a unit lower triangular system, (I + M) U = V - R S, with M_{ij}
the product of r_i and w_j under the decay between them (the UT transform of arXiv 2406.06484, Section 3; with decays arXiv
2412.06464). Decays are exponentials of sums of g over the tokens between, so nothing overflows, and no sum over many tokens is
subtracted from another.
"""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Float, Inexact

from icl_lab.core.typing import Array
from icl_lab.mixers.base import Mixer
from icl_lab.mixers.forms import in_form, state_before, sums_to_end


class Updates(NamedTuple):
    """What T tokens do to the state.

    Attributes:
      writes: (T, K), w_t.
      values: (T, V), v_t.
      log_decay: g_t <= 0, (T,) for all channels alike or (T, K); None is no decay.
      probes: (T, K), r_t, where the state is read before it decays; None is no correction.
    """

    writes: Array
    values: Array
    log_decay: Array | None = None
    probes: Array | None = None


def advance(state: Inexact[Array, "K V"], token: Updates) -> Inexact[Array, "K V"]:
    """The state after one token, whose arrays have no token axis."""
    missing = token.values if token.probes is None else token.values - token.probes @ state
    if token.log_decay is not None:
        state = state * along_keys(jnp.exp(token.log_decay), state)
    return state + token.writes[:, None] * missing[None, :]


def advance_block(
    state: Inexact[Array, "K V"], queries: Inexact[Array, "C K"], block: Updates
) -> tuple[Inexact[Array, "K V"], Inexact[Array, "C V"]]:
    """The state after a block of C tokens, and their outputs, by products of matrices."""
    dtype = state.dtype
    between = None if block.log_decay is None else decays_between(block.log_decay).astype(dtype)
    before, after = (None, None) if between is None else (between[:-1], between[1:])

    def carried(rows, left):
        """What rows (C, K) read of the state before the block, of which a decay has left something."""
        return (rows if left is None else rows * along_keys(left[:, 0], rows)) @ state

    def products(rows, left):
        """(C, C): row i times what is left of write j."""
        if left is None or left.ndim == 2:
            plain = rows @ block.writes.T
            return plain if left is None else plain * left[:, 1:]
        return jnp.sum(rows[:, None, :] * block.writes[None, :, :] * left[:, 1:], axis=2)

    written = block.values
    if block.probes is not None:
        written = written_rows(products(block.probes, before), written - carried(block.probes, before))
    outputs = carried(queries, after) + jnp.tril(products(queries, after)) @ written
    if between is None:
        return state + block.writes.T @ written, outputs
    kept, writes = state * along_keys(between[-1, 0], state), block.writes * along_keys(between[-1, 1:], block.writes)
    return kept + writes.T @ written, outputs


def written_rows(products: Inexact[Array, "C C"], missing: Inexact[Array, "C V"]) -> Inexact[Array, "C V"]:
    """U with u_i = missing_i - sum_{j < i} products_{ij} u_j: what tokens write when they see what those before them wrote."""
    system = jnp.tril(products, -1) + jnp.eye(products.shape[0], dtype=products.dtype)
    return solve_triangular(system, missing, lower=True, unit_diagonal=True)


def decays_between(log_decay: Float[Array, "C *K"]) -> Float[Array, "C+1 C+1 *K"]:
    """Entry (i, j): what is left after i tokens of what was there after j <= i tokens, exp(g_{j+1} + .. + g_i); else 0."""
    count = log_decay.shape[0] + 1
    column = (slice(None), slice(None), *(None,) * (log_decay.ndim - 1))
    after, visible = jnp.tri(count, k=-1, dtype=bool)[column], jnp.tri(count, dtype=bool)[column]
    steps = jnp.concatenate([jnp.zeros_like(log_decay[:1]), log_decay])[:, None]
    shape = (count, count, *log_decay.shape[1:])
    summed = jnp.cumsum(jnp.where(jnp.broadcast_to(after, shape), jnp.broadcast_to(steps, shape), 0.0), axis=0)
    return jnp.exp(jnp.where(jnp.broadcast_to(visible, shape), summed, -jnp.inf))


def run(
    queries: Inexact[Array, "T K"], updates: Updates, initial: Inexact[Array, "K V"], form: str, chunk: int
) -> tuple[Inexact[Array, "T V"], Inexact[Array, "K V"]]:
    """Outputs of T tokens and the last state, in the form "recurrent", "chunk" or "parallel"; all arrays of one dtype.

    Args:
      queries: (T, K), scaled.
      updates: what each token does to the state.
      initial: (K, V), the state before the first token.
      form: one of `base.FORMS`.
      chunk: tokens in a block; a last block that is not full holds tokens that write nothing.

    Returns:
      Outputs (T, V), state (K, V).
    """

    def token(state, row):
        state = advance(state, row[1])
        return state, row[0] @ state

    return in_form(token, lambda state, rows: advance_block(state, *rows), initial, (queries, updates), form, chunk)


def read_weights(query: Inexact[Array, "K"], updates: Updates) -> tuple[Inexact[Array, "N"], Inexact[Array, "K"]]:
    """The answer to one query after N tokens as a sum of the values: it is linear in them, and in the initial state.

    The query is taken back through the tokens, last one first, in O(N K); no matrix state is formed.

    Args:
      query: (K,), scaled.
      updates: what each token does to the state; its values play no part.

    Returns:
      Weights (N,) of the values, and the row (K,) that multiplies the initial state.
    """
    if updates.probes is None:
        if updates.log_decay is None:
            return updates.writes @ query, query
        left = jnp.exp(sums_to_end(updates.log_decay)).astype(query.dtype)
        return (updates.writes * along_keys(left[1:], updates.writes)) @ query, query * left[0]

    def back(row, token):
        write, probe, log_decay = token
        weight = row @ write
        row = row if log_decay is None else row * jnp.exp(log_decay).astype(row.dtype)
        return row - weight * probe, weight

    row, weights = jax.lax.scan(back, query, (updates.writes, updates.probes, updates.log_decay), reverse=True)
    return weights, row


def along_keys(decay: Array, rows: Array) -> Array:
    """A decay in the dtype of `rows` and with as many axes, so that the two multiply."""
    return decay.astype(rows.dtype).reshape(*decay.shape, *(1,) * (rows.ndim - decay.ndim))


class MatrixStateMixer(Mixer):
    """A mixer that is a recurrence of this module; a family says what its tokens do to the state."""

    @abc.abstractmethod
    def updates(self, keys: Inexact[Array, "T K"], values: Inexact[Array, "T V"], gates: dict[str, Array]) -> Updates:
        """What each token does to the state, for full-size gates."""

    def mix(self, queries, keys, values, gates, form, chunk, initial) -> tuple[Array, Any]:
        """Outputs and last state, by `run`."""
        start = state_before(initial, empty(keys, values), "state S_0, (K, V)")
        return run(queries, self.updates(keys, values, gates), start, form, chunk)

    def answer(self, query, keys, values, gates, initial):
        """The answer to one query, by `read_weights`."""
        updates = self.updates(keys, values, gates)
        weights, row = read_weights(query, updates)
        answer = weights @ updates.values
        return answer if initial is None else answer + row @ state_before(initial, empty(keys, values), "state S_0, (K, V)")


def empty(keys: Inexact[Array, "N K"], values: Inexact[Array, "N V"]) -> Inexact[Array, "K V"]:
    """The matrix state of no tokens."""
    return jnp.zeros((keys.shape[1], values.shape[1]), keys.dtype)


def matrix_size(tokens: int, key_width: int, value_width: int) -> int:
    """Numbers in a matrix state: K V, however many tokens there were."""
    return key_width * value_width
