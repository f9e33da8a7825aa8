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
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Inexact

from icl_lab.core.typing import Array
from icl_lab.mixers.base import Mixer
from icl_lab.mixers.forms import in_form, state_before, sums_to_end

ONE_BY_ONE = 4
"""Tokens whose products are no longer taken by halves."""
SUBSTITUTED = 8
"""Tokens whose triangular system is no longer solved by halves."""


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
        rows = queries, probes, writes, updates.log_decay.reshape(len(writes), -1)
        read, probed, since, until = jax.tree.map(lambda x: x[0], products_under_decay(*jax.tree.map(lambda x: x[None], rows)))
        queries, writes, left = decayed(queries, since), decayed(writes, until), jnp.exp(since[-1])
        probes = None if probes is None else decayed(probes, one_later(since))
    if probes is None or probed is None:
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
    queries: Inexact[Array, "M C K"],
    probes: Inexact[Array, "M C K"] | None,
    writes: Inexact[Array, "M C K"],
    log_decay: Float[Array, "M C D"],
) -> tuple[Inexact[Array, "M C C"], Inexact[Array, "M C C"] | None, Float[Array, "M C D"], Float[Array, "M C D"]]:
    """Rows times what is left of the writes before them, in M parts of C tokens, by halves of the parts.

    A token of a later half and one of the earlier half have a boundary between them: the decay to it and the decay from it are
    at most 1, and each goes to its factor, so that no array has two axes of tokens and one of channels. (Parts are an axis
    because one `jax.vmap` inside another for every halving would make more axes than XLA multiplies.)

    Args:
      queries: (M, C, K), read after their own token was written.
      probes: (M, C, K), read before their own token decays the state; or None.
      writes: (M, C, K).
      log_decay: (M, C, K), or (M, C, 1) for all channels alike.

    Returns:
      Products of queries (M, C, C), lower triangular; of probes, strictly lower triangular; the log decays of each part up to
      token i, its own included; and those from token i on, its own not.
    """
    parts, count, _ = writes.shape
    if count <= ONE_BY_ONE:
        return jax.vmap(_products_one_by_one)(queries, probes, writes, log_decay)
    halved = jax.tree.map(_halves, (queries, probes, writes, log_decay))
    (read, probed, since, until), (queries, probes, writes, _) = jax.tree.map(
        lambda x: x.reshape(parts, 2, *x.shape[1:]).swapaxes(0, 1), (products_under_decay(*halved), halved)
    )
    reaching = decayed(writes[0], until[0]).swapaxes(1, 2)
    read = _joined(read, decayed(queries[1], since[1]) @ reaching)[:, :count, :count]
    if probes is not None:
        probed = _joined(probed, decayed(probes[1], one_later(since[1])) @ reaching)[:, :count, :count]
    since, until = (
        jnp.concatenate([since[0], since[0, :, -1:] + since[1]], axis=1),
        jnp.concatenate([until[0] + since[1, :, -1:], until[1]], axis=1),
    )
    return read, probed, since[:, :count], until[:, :count]


def _products_one_by_one(queries, probes, writes, log_decay):
    """`products_under_decay` of one part of a few tokens: each write is carried from token to token."""
    count, zero = len(writes), jnp.zeros((), writes.dtype)
    read, probed = ([[zero] * count for _ in range(count)] for _ in range(2))
    since = list(itertools.accumulate(log_decay))
    until = []
    for j in range(count):
        passed = jnp.zeros_like(log_decay[j])
        for i in range(j, count):
            passed = passed if i == j else passed + log_decay[i]
            left = decayed(writes[j], passed)
            read[i][j] = jnp.sum(queries[i] * left)
            if probes is not None and i + 1 < count:
                probed[i + 1][j] = jnp.sum(probes[i + 1] * left)
        until.append(passed)
    found = (jnp.stack([jnp.stack(row) for row in rows]) for rows in (read, probed))
    return next(found), None if probes is None else next(found), jnp.stack(since), jnp.stack(until)


@jax.custom_jvp
def inverse(products: Inexact[Array, "C C"]) -> Inexact[Array, "C C"]:
    """The inverse of the unit lower triangular matrix that has `products` below its diagonal.

    It takes what tokens are to write to what they do write, when each sees what those before it wrote.
    """
    return _inverses(products[None])[0]


@inverse.defjvp
def _inverse_tangent(primals, tangents):
    """Known from the inverse itself: nothing inside is differentiated."""
    solved = inverse(primals[0])
    return solved, -solved @ (jnp.tril(tangents[0], -1) @ solved)


def _inverses(products: Inexact[Array, "M C C"]) -> Inexact[Array, "M C C"]:
    """`inverse` of M matrices, by halves: those of both halves of the tokens, and what the later ones see of the earlier."""
    parts, count, _ = products.shape
    if count <= SUBSTITUTED:
        rows = [jnp.broadcast_to(row, (parts, count)) for row in jnp.eye(count, dtype=products.dtype)]
        for i in range(count):
            for j in range(i):
                rows[i] = rows[i] - products[:, i, j, None] * rows[j]
        return jnp.stack(rows, axis=1)
    filled = jnp.pad(products, ((0, 0), (0, count % 2), (0, count % 2)))
    half = filled.shape[1] // 2
    both = _inverses(jnp.concatenate([filled[:, :half, :half], filled[:, half:, half:]])).reshape(2, parts, half, half)
    return _joined(both, -both[1] @ (filled[:, half:, :half] @ both[0]))[:, :count, :count]


def _halves(rows: Inexact[Array, "M C K"]) -> Inexact[Array, "2*M H K"]:
    """Halves of parts as parts; after an odd number of tokens comes one of zeros."""
    parts, count, width = rows.shape
    return jnp.pad(rows, ((0, 0), (0, count % 2), (0, 0))).reshape(2 * parts, -1, width)


def _joined(diagonal: Inexact[Array, "2 M H H"], below: Inexact[Array, "M H H"]) -> Inexact[Array, "M 2*H 2*H"]:
    """Lower triangular matrices of two on the diagonal and one below."""
    upper = jnp.concatenate([diagonal[0], jnp.zeros_like(below)], axis=2)
    return jnp.concatenate([upper, jnp.concatenate([below, diagonal[1]], axis=2)], axis=1)


def decayed(rows: Inexact[Array, "*C K"], log_decay: Float[Array, "*C D"]) -> Inexact[Array, "*C K"]:
    """Rows times the exponential of theirs, one number a row or one a channel."""
    return rows * jnp.broadcast_to(jnp.exp(log_decay), rows.shape).astype(rows.dtype)


def one_later(sums: Float[Array, "*M C D"]) -> Float[Array, "*M C D"]:
    """Sums of which token i has that of the token before it, the first none."""
    return jnp.concatenate([jnp.zeros_like(sums[..., :1, :]), sums[..., :-1, :]], axis=-2)


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

    def prepare(rows: tuple[Array, Updates]) -> Block:
        return block_of(rows[0], rows[1])

    return in_form(token, advance_block, initial, (queries, updates), form, chunk, prepare)


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
