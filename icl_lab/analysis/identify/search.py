"""Least squares fits of a few parameters, from the best points of a grid, of which held-out prompts choose one."""

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
STARTS = 4
"""Best points of a grid that are starts. With GD++ they end at different minima."""


@compiled.jit
def least_squares(answer: Answer, grid: Array, extra: Any, seen: Any, held: Any, iterations: int) -> tuple[Array, Array]:
    """The parameters with which a family's answers are closest to given ones, by Levenberg and Marquardt.

    Args:
      answer: the family.
      grid: (G, p), points to start from: the best `STARTS` of them.
      extra: whatever else the family needs, arrays.
      seen: prompts that are fitted to: `data` decomposed, `answers` (M, k) and `weights` (M,).
      held: others, which choose between the ends and the starts.
      iterations: most steps from each.

    Returns:
      The parameters (p,), and the squared distances (H,) that they leave on the held-out prompts.
    """

    def residual(point):
        apart = answer(point, extra, seen.data) - seen.answers
        return reals((jnp.sqrt(seen.weights).astype(apart.dtype)[:, None] * apart).reshape(-1))

    def squares(point):
        return jnp.sum(jnp.abs(answer(point, extra, held.data) - held.answers) ** 2, axis=1)

    def finite(value):
        return jnp.where(jnp.isfinite(value), value, jnp.inf)

    def loss(point):
        return finite(jnp.sum(residual(point) ** 2))

    grid = jnp.asarray(grid)
    starts = grid[jnp.argsort(jax.lax.map(loss, grid))[:STARTS]]

    def descend(start):
        # In units of where it starts: what is damped and where to stop must not depend on how close the grid came.
        scale = jnp.sqrt(jnp.maximum(loss(start), jnp.finfo(start.dtype).tiny))
        solver = optimistix.LevenbergMarquardt(rtol=1e-7, atol=1e-10)
        found = optimistix.least_squares(
            lambda point, _: residual(point) / scale, solver, start, max_steps=iterations, throw=False
        ).value
        return jnp.where(loss(found) <= loss(start), found, start)

    ends = jnp.concatenate([jax.lax.map(descend, starts), starts])
    best = ends[jnp.argmin(jax.lax.map(lambda point: finite(jnp.sum(held.weights * squares(point))), ends))]
    return best, squares(best)


def reals(values: Inexact[Array, "n *m"]) -> Float[Array, "rows *m"]:
    """Real and imaginary parts one after the other, for real parameters."""
    return jnp.concatenate([jnp.real(values), jnp.imag(values)]) if jnp.iscomplexobj(values) else values
