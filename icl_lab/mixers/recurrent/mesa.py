r"""Mixers that solve linear equations: ridge regression of the values on the keys, at every token.

Both keep the Gram matrix of the keys, and add a diagonal penalty L to it only where they solve:

.. math:: H_t = e^{g_t} H_{t-1} + \beta_t\, k_t k_t^\top .

Mesa keeps the sums of the normal equations and solves them for each query, directly or by some steps of conjugate gradients
from zero; the preconditioned delta rule keeps their solution, and takes for each token one delta step that H_t^{-1} corrects:

.. math:: S_t = e^{g_t} S_{t-1} + \beta_t\, k_t v_t^\top, \quad o_t = s\, S_t^\top (H_t + L)^{-1} q_t
          \qquad\text{and}\qquad
          S_t = S_{t-1} + (H_t + L)^{-1} k_t\, (v_t - S_{t-1}^\top k_t)^\top, \quad o_t = s\, S_t^\top q_t .

Without decay and with beta = 1 the two are one function, recursive least squares. With a decay they are not: mesa forgets pairs
and never its penalty, which recursive least squares with forgetting, started at H_0 = L, does as well.

    mixer                     gates                          source
    mesa                      write_strength, log_decay      von Oswald et al.     arXiv 2506.05233
    preconditioned_delta      none                           arXiv 2604.21100
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Inexact

from icl_lab.core.typing import Array
from icl_lab.mixers.base import Description, Gate, Mixer
from icl_lab.mixers.forms import in_form, state_before
from icl_lab.mixers.parameters import ChannelParameter, check_parameter, per_channel
from icl_lab.mixers.recurrent.linear import LOG_DECAY
from icl_lab.mixers.recurrent.matrix_state import Updates, advance, advance_block, block_of, read_weights
from icl_lab.tasks.prompt import check_count

Operator = Callable[[Array], Array]
"""Rows (..., K) -> rows (..., K), each times the matrix of its own token."""


class Solution(NamedTuple):
    """What is kept of the tokens so far.

    Attributes:
      gram: (K, K), the weighted sum of k k^T, without the penalty.
      matrix: (K, V), of mesa the weighted sum of k v^T, of the preconditioned delta rule the regression matrix.
    """

    gram: Array
    matrix: Array


class SolvingMixer(Mixer):
    """What the mixers of this module have in common: the Gram matrix, as linear attention of the keys on themselves.

    Attributes:
      penalty: L > 0, one number or the diagonal, (K,).
    """

    penalty: ChannelParameter = eqx.field(default=1.0, kw_only=True)

    def __check_init__(self):
        check_parameter(self.penalty, "penalty", "it makes the equations of a short prompt solvable")

    @abc.abstractmethod
    def solve(self, gram: Operator, rows: Inexact[Array, "*T K"]) -> Inexact[Array, "*T K"]:
        """x with (H_t^T + L) x_t = row t; `gram` multiplies rows by H_t."""

    @abc.abstractmethod
    def step(self, solve: Operator, queries: Array, keys: Array, updates: Updates) -> tuple[Array, Updates]:
        """What reads the matrix of the state, and what the tokens do to it; of one token or of several."""

    @abc.abstractmethod
    def start(self, initial: Solution) -> Inexact[Array, "K V"]:
        """The right-hand side of the normal equations that a state solves, or will."""

    def grams(self, keys: Inexact[Array, "T K"], gates: dict[str, Array]) -> Updates:
        """What the tokens do to the Gram matrix: every key is written on itself."""
        writes = keys.conj()
        if "write_strength" in gates:
            writes = gates["write_strength"].astype(keys.dtype)[:, None] * writes
        return Updates(writes, keys, gates.get("log_decay"))

    def mix(self, queries, keys, values, gates, form, chunk, initial):
        """Outputs and last state; inside a block no token needs the Gram matrix of another one, only its products."""

        def token(state, row):
            query, grams, value = row
            gram = advance(state.gram, grams)
            reader, updates = self.step(
                lambda rows: self.solve(lambda x: x @ gram, rows), query, grams.values, grams._replace(values=value)
            )
            matrix = advance(state.matrix, updates)
            return Solution(gram, matrix), reader @ matrix

        def block(state, rows):
            queries, grams, values = rows
            readers, updates = self.step(
                lambda rows: self.solve(lambda x: advance_block(state.gram, block_of(x, grams))[1], rows),
                queries,
                grams.values,
                grams._replace(values=values),
            )
            matrix, outputs = advance_block(state.matrix, block_of(readers, updates))
            return Solution(advance_block(state.gram, block_of(queries, grams))[0], matrix), outputs

        rows = queries, self.grams(keys, gates), values
        return in_form(token, block, _state(initial, keys, values), rows, form, chunk)

    def answer(self, query, keys, values, gates, initial):
        """The solution of the normal equations of all tokens, at the query."""
        grams, state = self.grams(keys, gates), _state(initial, keys, values)

        def product(row, rows, start):
            weights, left = read_weights(row, grams)
            return weights @ rows + left @ start

        return product(self.solve(lambda row: product(row, keys, state.gram), query), values, self.start(state))

    def penalised(self, gram: Operator, rows: Inexact[Array, "*T K"]) -> Inexact[Array, "*T K"]:
        """Rows times H_t + L."""
        penalty = per_channel(self.penalty, "penalty", rows.shape[-1], jnp.finfo(rows.dtype).dtype)
        return gram(rows) + penalty.astype(rows.dtype).reshape(*(1,) * (rows.ndim - 1), -1) * rows


class Mesa(SolvingMixer):
    """The mesa layer: ridge regression on pairs that are weighted by their write strength and by what is left of it.

    Attributes:
      steps: of conjugate gradients from zero for each query, >= 1; None solves directly. K steps are exact but for rounding;
        one is linear attention, times |q|^2 / q^T (H_t + L) q.
    """

    name: ClassVar[str] = "mesa"
    steps: int | None = eqx.field(static=True, default=None, kw_only=True)

    def __check_init__(self):
        if self.steps is not None:
            check_count(self.steps, "steps", 1, "It is the number of conjugate gradient steps; None solves directly.")

    @property
    def description(self) -> Description:
        """No degree: the penalty does not scale with the keys."""
        strength = Gate("write_strength", 0.0, 1.0, "it is the weight of a pair's squared error")
        return Description(solution_size, None, frozenset({"scale_values"}), "2506.05233", (strength, LOG_DECAY))

    def solve(self, gram, rows):
        """Directly, or by conjugate gradients."""
        operator = functools.partial(self.penalised, gram)
        return directly(operator, rows) if self.steps is None else conjugate_gradients(operator, rows, self.steps)

    def step(self, solve, queries, keys, updates):
        """A linear attention that the solutions read."""
        return solve(queries), updates

    def start(self, initial):
        """The sum over the pairs so far is the state."""
        return initial.matrix


class PreconditionedDelta(SolvingMixer):
    """The delta rule whose steps go along (H_t + L)^{-1} k_t: recursive least squares started from the penalty.

    Its `read` is the closed form, the ridge regression of all pairs, and its other forms are the recurrence.
    """

    name: ClassVar[str] = "preconditioned_delta"

    @property
    def description(self) -> Description:
        """As the state is that of ridge regression, the order of the pairs does not count."""
        return Description(solution_size, None, frozenset({"permute_pairs", "scale_values"}), "2604.21100")

    def solve(self, gram, rows):
        """Directly."""
        return directly(functools.partial(self.penalised, gram), rows)

    def step(self, solve, queries, keys, updates):
        """A delta rule that writes along the solutions."""
        return queries, updates._replace(writes=solve(keys).conj(), probes=keys)

    def start(self, initial):
        """The right-hand side whose solution is the state."""
        return self.penalised(lambda rows: rows @ initial.gram.T, initial.matrix.T).T


def directly(operator: Operator, rows: Inexact[Array, "*T K"]) -> Inexact[Array, "*T K"]:
    """The x that a Hermitian positive definite operator, x_t -> x_t M_t, maps to the rows: by Cholesky, a matrix a row."""

    @functools.partial(jnp.vectorize, signature="(k,k),(k)->(k)")
    def solve(matrix, row):
        return jax.scipy.linalg.solve(matrix, row, assume_a="pos")

    basis = jnp.eye(rows.shape[-1], dtype=rows.dtype)
    images = jax.vmap(lambda vector: operator(jnp.broadcast_to(vector, rows.shape)))(basis)
    # The image of a basis vector is a column of the matrix that the solver takes.
    return solve(jnp.moveaxis(images, 0, -1), rows)


def conjugate_gradients(operator: Operator, rows: Inexact[Array, "*T K"], steps: int) -> Inexact[Array, "*T K"]:
    """What `steps` steps of conjugate gradients from zero make of the equation of each row.

    Args:
      operator: Hermitian positive definite, x_t -> x_t M_t.
      rows: (K,) or (T, K), the right-hand sides.
      steps: >= 1. A row whose residual has become rounding takes no more.
    """

    def square(x):
        return jnp.sum(jnp.abs(x) ** 2, axis=-1, keepdims=True)

    rounding = jnp.finfo(rows.dtype).eps ** 2 * square(rows)

    def quotient(above, below, moving):
        return jnp.where(moving, above / jnp.where(moving, below, 1), 0).astype(rows.dtype)

    def step(carry, _):
        x, residual, direction, squares = carry
        moving, product = squares > rounding, operator(direction)
        length = quotient(squares, jnp.sum(jnp.real(direction.conj() * product), axis=-1, keepdims=True), moving)
        x, residual = x + length * direction, residual - length * product
        left = square(residual)
        return (x, residual, residual + quotient(left, squares, moving) * direction, left), None

    return jax.lax.scan(step, (jnp.zeros_like(rows), rows, rows, square(rows)), length=steps)[0][0]


def solution_size(tokens: int, key_width: int, value_width: int) -> int:
    """Numbers in a `Solution`: K (K + V), however many tokens there were."""
    return key_width * (key_width + value_width)


def _state(initial: Any, keys: Array, values: Array) -> Solution:
    width = keys.shape[1]
    empty = Solution(jnp.zeros((width, width), keys.dtype), jnp.zeros((width, values.shape[1]), keys.dtype))
    return state_before(initial, empty, "`Solution` of earlier tokens")
