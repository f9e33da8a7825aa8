"""Second-order facts about an objective at given weights: the Newton step that estimates the distance to a stationary
point, and the extreme eigenvalues that tell a minimum from a saddle.

Three routes, by size and structure: dense Hessian and `eigh` up to `DENSE_LIMIT` unknowns, the arrow form for
losses with a `relaxation` at any size, conjugate gradients and Lanczos-type iterations on Hessian-vector products elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse.linalg import lobpcg_standard
from jax.flatten_util import ravel_pytree
from jaxtyping import Float, Int

from icl_lab.core import compiled
from icl_lab.core.typing import Array, Weights
from icl_lab.objectives.arrow import arrow_from_products
from icl_lab.objectives.objective import Loss

DENSE_LIMIT = 400
NULL_SHARE = 1e-11
"""Eigenvalues below this share of the largest are lost in rounding: symmetries of the loss, or directions too slow to see."""
GAUGE_SHARE = 1e-10
"""The same for the squared singular values of the derivative of the coefficients by the weights, columns of unit length."""
NEGATIVE_SHARE = 1e-6
"""Size of a negative eigenvalue, rows of one size, from which on it is no rounding."""
SCALINGS = 12
"""Rounds that bring the rows of a graded Hessian to one size."""


class Curvature(eqx.Module):
    """Second-order summary at a point.

    Attributes:
      newton_step: pytree like the weights, -H^+ g: the estimated displacement to the nearby stationary point. Its norm
        estimates the weight error; a small gradient alone does not (at condition number 100 a gradient of 1e-7 hid an
        error of 1e-4).
      smallest, largest: extreme eigenvalues of the Hessian.
      rate: at which the displacement relaxes, the Rayleigh quotient of `newton_step`.
      unresolved: number of directions, symmetries apart, whose curvature is lost in rounding: nothing is known about the
        weights along them.
    """

    newton_step: Weights
    smallest: Float[Array, ""]
    largest: Float[Array, ""]
    rate: Float[Array, ""]
    unresolved: Int[Array, ""]


@compiled.jit
def loss_and_norm(
    objective: Callable[..., Float[Array, ""]], weights: Weights, batch: Any = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The half loss and the Euclidean norm of its gradient, of an objective (`batch` is its key) or any loss of a batch."""
    loss, gradient = jax.value_and_grad(objective)(weights, batch)
    return loss, jnp.sqrt(sum(jnp.sum(jnp.abs(g) ** 2) for g in jax.tree.leaves(gradient)))


@compiled.jit
def curvature(objective: Loss, weights: Weights, graded: bool = False) -> Curvature:
    """The `Curvature` of an objective at real weights.

    Args:
      objective: any objective.
      weights: real weights.
      graded: whether the rates of the problem may lie further apart than rounding, see `Objective.graded`. Then a direction of
        next to no curvature counts as a symmetry only if it is one: if it leaves the coefficients of the prediction unchanged.
    """
    flat, unravel = ravel_pytree(weights)

    def loss(x):
        return objective(unravel(x))

    slope = jax.grad(loss)
    gradient = slope(flat)

    def product(v):
        return jax.jvp(slope, (flat,), (v,))[1]

    unresolved = jnp.zeros((), int)
    if objective.relaxation is not None:
        arrow = arrow_from_products(product, flat)  # pyright: ignore[reportArgumentType]
        step = arrow.solve_singular(-gradient)
        smallest, largest = arrow.extreme_eigenvalues()
    elif flat.size <= DENSE_LIMIT:
        hessian = jax.hessian(loss)(flat)
        hessian = 0.5 * (hessian + hessian.T)
        if graded:
            step, unresolved = _graded(hessian, gradient, flat, _symmetries(objective, hessian, flat, unravel))
            smallest, largest = jnp.linalg.eigvalsh(hessian)[jnp.array([0, -1])]
        else:
            step, smallest, largest = _dense(hessian, gradient)
    else:
        step, smallest, largest = _matrix_free(product, gradient)
        # Conjugate gradients stop long before they have seen a slow direction beside one 1e9 times faster.
        unresolved = jnp.full((), int(graded))
    square = jnp.sum(step**2)
    rate = jnp.where(square > 0, -jnp.sum(step * gradient) / jnp.where(square > 0, square, 1.0), jnp.inf)
    return Curvature(unravel(step), smallest, largest, rate, unresolved)  # pyright: ignore[reportArgumentType]


def _dense(hessian, gradient):
    values, vectors = jnp.linalg.eigh(hessian)
    largest = jnp.maximum(jnp.abs(values[0]), values[-1])
    active = jnp.abs(values) > NULL_SHARE * largest
    inverse = jnp.where(active, 1.0 / jnp.where(active, values, 1.0), 0.0)
    return -vectors @ (inverse * (vectors.T @ gradient)), values[0], values[-1]


def _graded(hessian, gradient, weights, symmetries):
    """The Newton step of a Hessian whose rows differ in size by more than rounding, and how many directions it leaves out.

    Scaled to rows of one size, a Hessian that is graded along the coordinates shows its slow directions beside its fast ones.
    Of the directions that still vanish (to within gradient over weights, where a symmetry of the loss leaves them away from a
    stationary point), as many as there are `symmetries` are these; any other, or one of negative curvature, is not known.
    """

    def rescale(_, scale):
        rows = jnp.max(jnp.abs(hessian) / jnp.outer(scale, scale), axis=1)
        return scale * jnp.sqrt(jnp.where(rows > 0, rows, 1.0))

    scale = jax.lax.fori_loop(0, SCALINGS, rescale, jnp.ones_like(gradient))
    values, vectors = jnp.linalg.eigh(hessian / jnp.outer(scale, scale))
    share = 10 * jnp.linalg.norm(gradient / scale) / jnp.maximum(jnp.linalg.norm(weights * scale), 1e-300)
    faint = jnp.sum(jnp.abs(values) <= jnp.maximum(share, NULL_SHARE))
    negative = jnp.sum(values < -jnp.maximum(share, NEGATIVE_SHARE))
    active = jnp.abs(values) > NULL_SHARE
    inverse = jnp.where(active, 1.0 / jnp.where(active, values, 1.0), 0.0)
    step = -(vectors @ (inverse * (vectors.T @ (gradient / scale)))) / scale
    # The shortest of the steps that differ by symmetries.
    null = jnp.where(active[None], 0.0, vectors / scale[:, None])
    null = null / jnp.maximum(jnp.linalg.norm(null, axis=0, keepdims=True), 1e-300)
    step = step - null @ jnp.linalg.lstsq(null, step)[0]
    return step, jnp.maximum(faint - symmetries, 0) + negative


def _symmetries(objective: Loss, hessian, flat, unravel):
    """The number of directions along which the prediction does not change.

    By the derivative of its coefficients, or where it has none (softmax, several layers) the weights that are not read at all.
    """
    if objective.coefficients(unravel(flat)) is None:
        return jnp.sum(jnp.all(hessian == 0, axis=0))

    def coefficients(x):
        given = jnp.ravel(jnp.asarray(objective.coefficients(unravel(x))))  # pyright: ignore[reportArgumentType]
        return jnp.concatenate([jnp.real(given), jnp.imag(given)])

    derivative = jax.jacfwd(coefficients)(flat)
    lengths = jnp.linalg.norm(derivative, axis=0)
    scaled = derivative / jnp.where(lengths > 0, lengths, 1.0)[None]
    values = jnp.linalg.eigvalsh(scaled.T @ scaled)
    return jnp.sum(values < GAUGE_SHARE * values[-1])


def _matrix_free(product, gradient):
    size = gradient.size
    start = jax.random.normal(jax.random.key(0), (size, 1), gradient.dtype)
    products = jax.vmap(product, in_axes=1, out_axes=1)
    largest = lobpcg_standard(products, start, m=60)[0][0]
    smallest = largest - lobpcg_standard(lambda v: largest * v - products(v), start, m=200)[0][0]
    step, _ = jax.scipy.sparse.linalg.cg(product, -gradient, tol=1e-6, maxiter=500)
    return step, smallest, largest


def norm(weights: Weights) -> float:
    """Euclidean norm of a pytree of weights."""
    return float(np.sqrt(sum(np.sum(np.abs(np.asarray(w)) ** 2) for w in jax.tree.leaves(weights))))
