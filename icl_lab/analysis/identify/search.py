"""Least squares fits of a few parameters, from the best points of a grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optimistix
from jaxtyping import Float, Inexact

from icl_lab.core import compiled
from icl_lab.core.typing import Array

Answer = Callable[[Array, Any, Any], Array]
"""Parameters (p,), whatever else a family needs, decomposed prompts -> answers (M, k)."""


@compiled.jit
def least_squares(
    answer: Answer, grid: Array, extra: Any, data: Any, answers: Array, keep: int, iterations: int
) -> tuple[Array, Array]:
    """The parameters with which a family's answers are closest to given ones, by Levenberg and Marquardt.

    Args:
      answer: the family.
      grid: (G, p), points to start from.
      extra: whatever else the family needs, arrays.
      data: the prompts, decomposed.
      answers: (M, k), what is fitted to.
      keep: how many of the grid's best points are starts.
      iterations: most steps from each.

    Returns:
      The parameters (p,), and the squared distances (M,) that they leave.
    """

    def residual(point):
        return reals((answer(point, extra, data) - answers).reshape(-1))

    def loss(point):
        value = jnp.sum(residual(point) ** 2)
        return jnp.where(jnp.isfinite(value), value, jnp.inf)

    grid = jnp.asarray(grid)
    starts = grid[jnp.argsort(jax.lax.map(loss, grid))[:keep]]

    def descend(start):
        # In units of where it starts: what is damped and where to stop must not depend on how close the grid came.
        scale = jnp.sqrt(jnp.maximum(loss(start), jnp.finfo(start.dtype).tiny))
        solver = optimistix.LevenbergMarquardt(rtol=1e-7, atol=1e-10)
        found = optimistix.least_squares(
            lambda point, _: residual(point) / scale, solver, start, max_steps=iterations, throw=False
        ).value
        return jnp.where(loss(found) <= loss(start), found, start)

    ends = jax.lax.map(descend, starts)
    best = ends[jnp.argmin(jax.lax.map(loss, ends))]
    return best, jnp.sum(jnp.abs(answer(best, extra, data) - answers) ** 2, axis=1)


def reals(values: Inexact[Array, "n *m"]) -> Float[Array, "rows *m"]:
    """Real and imaginary parts one after the other, for real parameters."""
    return jnp.concatenate([jnp.real(values), jnp.imag(values)]) if jnp.iscomplexobj(values) else values
