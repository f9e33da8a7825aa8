r"""Mixers whose state is a matrix S (K, V): one recurrence, and its recurrent, chunk and parallel forms.

.. math:: S_t = \operatorname{diag}(e^{g_t})\, S_{t-1} + w_t\, (v_t - S_{t-1}^\top r_t)^\top, \qquad o_t = S_t^\top q_t .

The state is read at the probe r_t and decays, and what was missing from v_t is written along w_t; then it is read at the query.
Without probes it is linear attention with a decay; with w = beta k and r = e^g k, which reads at k what the decay leaves, it is
the delta rule.

Inside a block the written rows u_t = v_t - S_{t-1}^T r_t solve a unit lower triangular system, (I + M) U = V - R S, with M_{ij}
the product of r_i and w_j under the decay between them (the UT transform of arXiv 2406.06484, Section 3; with decays arXiv
2412.06464). All of it but the products with S is worked out for many blocks at once, and the recurrence between blocks is left
with three products of matrices. Decays are exponentials of sums of g over the tokens between, so nothing overflows, and no sum
over many tokens is subtracted from another.
"""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Inexact

from icl_lab.core.typing import Array
from icl_lab.mixers.base import Mixer
from icl_lab.mixers.forms import in_form, state_before, sums_to_end

SUBSTITUTED = 8
"""Rows of a triangular matrix that are substituted one after the other."""


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


class Block(NamedTuple):
    """A block of C tokens, as far as it does not depend on the state S before it: everything is linear in S.

    What the tokens write is `own - probes S`, their outputs are `outputs + readers S`, and the state after them is what they
    leave of S and `writes^T` times what they write.

    Attributes:
      own: (C, V), what they write to an empty state.
      outputs: (C, V), what they put out from an empty state.
      readers: (C, K), the queries, less what the answers of the tokens before cancel.
      writes: (C, K), where each writes, decayed to the end of the block.
      left: (K,) or (1,), what is left of S; None is all.
      probes: (C, K), the probes, less the same; None is no correction.
    """

    own: Array
    outputs: Array
    readers: Array
    writes: Array
    left: Array | None
    probes: Array | None


def block_of(queries: Inexact[Array, "C K"], updates: Updates) -> Block:
    """The work on C tokens that needs no state, by products of matrices."""
    values, probes, writes, left = updates.values, updates.probes, updates.writes, None
    if updates.log_decay is None:
        read = jnp.tril(queries @ writes.T)
        probed = None if probes is None else jnp.tril(probes @ writes.T, -1)
    else:
        log_decay = updates.log_decay.reshape(len(writes), -1)
        read, probed, since, until = products_under_decay(queries, probes, writes, log_decay)
        queries, writes, left = decayed(queries, since), decayed(writes, until), jnp.exp(since[-1])
        probes = None if probes is None else decayed(probes, one_later(since))
    if probed is None:
        return Block(values, read @ values, queries, writes, left, None)
    solved = inverse(probed) @ jnp.concatenate([values, probes], axis=1)
    answers = read @ solved
    width = values.shape[1]
    return Block(solved[:, :width], answers[:, :width], queries - answers[:, width:], writes, left, solved[:, width:])


def advance_block(state: Inexact[Array, "K V"], block: Block) -> tuple[Inexact[Array, "K V"], Inexact[Array, "C V"]]:
    """The state after a block of C tokens, and their outputs."""
    written = block.own if block.probes is None else block.own - block.probes @ state
    kept = state if block.left is None else state * along_keys(block.left, state)
    return kept + block.writes.T @ written, block.outputs + block.readers @ state


def products_under_decay(
    queries: Inexact[Array, "C K"],
    probes: Inexact[Array, "C K"] | None,
    writes: Inexact[Array, "C K"],
    log_decay: Float[Array, "C D"],
) -> tuple[Inexact[Array, "C C"], Inexact[Array, "C C"] | None, Float[Array, "C D"], Float[Array, "C D"]]:
    """Rows times what is left of the writes before them, by halves: K-wide products with the decays between are never formed.

    A token of the later half and one of the earlier half have the boundary between them: the decay to it and the decay from it
    are at most 1, and each goes to its factor. No exponent is positive, and no sum over many tokens is subtracted from another.

    Args:
      queries: (C, K), read after their own token was written.
      probes: (C, K), read before their own token decays the state; or None.
      writes: (C, K).
      log_decay: (C, K), or (C, 1) for all channels alike.

    Returns:
      Products of queries (C, C), lower triangular; of probes, strictly lower triangular; the log decays since before the first
      token, that of token i included; and those until after the last token, that of token i not.
    """
    count = len(writes)
    if count == 1:
        own = jnp.sum(queries * writes, axis=1, keepdims=True)
        return own, None if probes is None else jnp.zeros_like(own), log_decay, jnp.zeros_like(log_decay)
    (_, later), (earlier, _) = queries, writes = halves(queries), halves(writes)
    probes = None if probes is None else halves(probes)
    read, probed, since, until = jax.vmap(products_under_decay)(queries, probes, writes, halves(log_decay))
    reaching = decayed(earlier, until[0]).T
    read = joined(read, decayed(later, since[1]) @ reaching)[:count, :count]
    if probes is not None:
        probed = joined(probed, decayed(probes[1], one_later(since[1])) @ reaching)[:count, :count]
    since, until = (
        jnp.concatenate([since[0], since[0, -1:] + since[1]]),
        jnp.concatenate([until[0] + since[1, -1:], until[1]]),
    )
    return read, probed, since[:count], until[:count]


@jax.custom_jvp
def inverse(products: Inexact[Array, "C C"]) -> Inexact[Array, "C C"]:
    """The inverse of the unit lower triangular matrix that has `products` below its diagonal, by halves.

    It takes what tokens are to write to what they do write, when each sees what those before it wrote. Of two halves of the
    tokens, both inverses are worked out at once.
    """
    count = len(products)
    if count <= SUBSTITUTED:
        rows = list(jnp.eye(count, dtype=products.dtype))
        for i in range(count):
            for j in range(i):
                rows[i] -= products[i, j] * rows[j]
        return jnp.stack(rows)
    filled = jnp.pad(products, (0, count % 2))
    half = len(filled) // 2
    first, last = both = jax.vmap(inverse)(jnp.stack([filled[:half, :half], filled[half:, half:]]))
    return joined(both, -last @ (filled[half:, :half] @ first))[:count, :count]


@inverse.defjvp
def _inverse_tangent(primals, tangents):
    """Known from the inverse itself: nothing inside is differentiated."""
    solved = inverse(*primals)
    return solved, -solved @ (jnp.tril(*tangents, -1) @ solved)


def halves(rows: Array) -> Array:
    """Rows as (2, half, ...); after an odd number of them comes one of zeros."""
    filled = jnp.pad(rows, [(0, len(rows) % 2)] + [(0, 0)] * (rows.ndim - 1))
    return filled.reshape(2, -1, *rows.shape[1:])


def joined(diagonal: Inexact[Array, "2 H H"], below: Inexact[Array, "H H"]) -> Inexact[Array, "2*H 2*H"]:
    """The lower triangular matrix of two on its diagonal and one below."""
    return jnp.block([[diagonal[0], jnp.zeros_like(below)], [below, diagonal[1]]])


def decayed(rows: Inexact[Array, "C K"], log_decay: Float[Array, "C D"]) -> Inexact[Array, "C K"]:
    """Rows times the exponential of theirs, one number a row or one a channel."""
    return rows * jnp.broadcast_to(jnp.exp(log_decay), rows.shape).astype(rows.dtype)


def one_later(sums: Float[Array, "C D"]) -> Float[Array, "C D"]:
    """Sums of which token i has that of the token before it, the first none."""
    return jnp.concatenate([jnp.zeros_like(sums[:1]), sums[:-1]])


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

    return in_form(token, advance_block, initial, (queries, updates), form, chunk, lambda rows: block_of(*rows))


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
