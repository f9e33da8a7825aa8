"""The linear solver that makes implicit steps O(n) on the structured regression loss.

diffrax's implicit methods solve (I - h gamma J) x = r, dense by default: O(n^3) with n = d^2 + 1 unknowns. The Jacobian of
the structured flow is an arrow matrix, so the system is one as well, known from two products and solved by elimination.
"""

from __future__ import annotations

from typing import Any

import jax
import lineax as lx
from jax.flatten_util import ravel_pytree

from icl_lab.objectives.arrow import Arrow, arrow_from_products


class ArrowSolver(lx.AbstractLinearSolver):
    """A lineax solver for operators that are arrow matrices in raveled `StructuredWeights` coordinates."""

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> Arrow:
        zeros = jax.tree.map(lambda s: jax.numpy.zeros(s.shape, s.dtype), operator.in_structure())
        flat, unravel = ravel_pytree(zeros)
        return arrow_from_products(lambda v: ravel_pytree(operator.mv(unravel(v)))[0], flat)  # pyright: ignore[reportArgumentType]

    def compute(self, state: Arrow, vector: Any, options: dict[str, Any]):
        flat, unravel = ravel_pytree(vector)
        return unravel(state.solve(flat)), lx.RESULTS.successful, {}  # pyright: ignore[reportArgumentType]

    def transpose(self, state: Arrow, options: dict[str, Any]):
        return state, options

    def conj(self, state: Arrow, options: dict[str, Any]):
        return state, options

    def assume_full_rank(self) -> bool:
        return True
