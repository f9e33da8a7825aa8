"""Arrow matrices [[s, b^T], [b, diag(a)]]: the Hessian of the structured regression loss, solved in O(n).

The tip comes first, as in a raveled `StructuredWeights` (u, then the entries of V).
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Float

from icl_lab.core.typing import Array

BISECTIONS = 100


class Arrow(eqx.Module):
    """A symmetric or near-symmetric arrow matrix of size n + 1.

    Attributes:
      tip: s.
      border: (n,), b.
      diagonal: (n,), a.
    """

    tip: Float[Array, ""]
    border: Float[Array, "n"]
    diagonal: Float[Array, "n"]

    def solve(self, right: Float[Array, "m"]) -> Float[Array, "m"]:
        """The solution of A x = right by eliminating the diagonal block; every a must be non-zero."""
        schur = self.tip - jnp.sum(self.border**2 / self.diagonal)
        first = (right[0] - jnp.sum(self.border * right[1:] / self.diagonal)) / schur
        return jnp.concatenate([first[None], (right[1:] - self.border * first) / self.diagonal])

    def solve_singular(self, right: Float[Array, "m"]) -> Float[Array, "m"]:
        """The least-norm solution of A x = right for positive a and a vanishing Schur complement, the case of a minimum
        with one gauge direction (1, -b/a); `right` must be orthogonal to that direction, as a gradient is."""
        safe = jnp.where(self.diagonal == 0, 1.0, self.diagonal)
        particular = jnp.concatenate([jnp.zeros((1,), right.dtype), right[1:] / safe])
        null = jnp.concatenate([jnp.ones((1,), right.dtype), -self.border / safe])
        return particular - null * ((null @ particular) / (null @ null))

    def extreme_eigenvalues(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The smallest and the largest eigenvalue, by bisection of the secular equation outside the range of a."""
        reach = jnp.linalg.norm(self.border) + 1e-300
        low, high = jnp.min(self.diagonal), jnp.max(self.diagonal)

        def secular(x):
            gap = self.diagonal - x
            return self.tip - x - jnp.sum(jnp.where(gap == 0, 0.0, self.border**2 / jnp.where(gap == 0, 1.0, gap)))

        def bisect(_, bounds):
            left, right = bounds
            middle = 0.5 * (left + right)
            # The secular function falls from plus to minus infinity on either side of the range of a.
            above = secular(middle) > 0
            return jnp.where(above, middle, left), jnp.where(above, right, middle)

        smallest = jax.lax.fori_loop(0, BISECTIONS, bisect, (jnp.minimum(low, self.tip) - reach, low))
        largest = jax.lax.fori_loop(0, BISECTIONS, bisect, (high, jnp.maximum(high, self.tip) + reach))
        return smallest[1], largest[0]


def arrow_from_products(product: Callable[[Float[Array, "m"]], Float[Array, "m"]], like: Float[Array, "m"]) -> Arrow:
    """The arrow matrix behind a matrix-vector product, from two products: with the tip direction and with all others."""
    tip_direction = jnp.zeros_like(like).at[0].set(1.0)
    column = product(tip_direction)
    return Arrow(tip=column[0], border=column[1:], diagonal=product(1.0 - tip_direction)[1:])
