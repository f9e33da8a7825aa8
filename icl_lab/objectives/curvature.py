"""Second-order facts about an objective at given weights: the Newton step that estimates the distance to a stationary
point, and the extreme eigenvalues that tell a minimum from a saddle.

Three routes, by size and structure: dense Hessian and `eigh` up to `DENSE_LIMIT` unknowns, the arrow form for
`StructuredLoss` at any size, conjugate gradients and Lanczos-type iterations on Hessian-vector products elsewhere.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse.linalg import lobpcg_standard
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from icl_lab.objectives.arrow import arrow_from_products
from icl_lab.objectives.objective import Objective
from icl_lab.objectives.population import StructuredLoss
from icl_lab.typing import Array, Key, Weights

DENSE_LIMIT = 400
NULL_SHARE = 1e-11
"""Eigenvalues below this share of the largest are gauge directions, along which the loss does not change."""


class Curvature(eqx.Module):
    """Second-order summary at a point.

    Attributes:
      newton_step: pytree like the weights, -H^+ g: the estimated displacement to the nearby stationary point. Its norm
        estimates the weight error; a small gradient alone does not (at condition number 100 a gradient of 1e-7 hid an
        error of 1e-4).
      smallest, largest: extreme eigenvalues of the Hessian.
    """

    newton_step: Weights
    smallest: Float[Array, ""]
    largest: Float[Array, ""]


@eqx.filter_jit
def loss_and_norm(objective: Objective, weights: Weights, key: Key | None = None) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The half loss and the Euclidean norm of its gradient."""
    loss, gradient = jax.value_and_grad(objective)(weights, key)
    return loss, jnp.sqrt(sum(jnp.sum(jnp.abs(g) ** 2) for g in jax.tree.leaves(gradient)))


@eqx.filter_jit
def curvature(objective: Objective, weights: Weights) -> Curvature:
    """The `Curvature` of an objective at real weights."""
    flat, unravel = ravel_pytree(weights)

    def loss(x):
        return objective(unravel(x))

    gradient = jax.grad(loss)

    def product(v):
        return jax.jvp(gradient, (flat,), (v,))[1]

    if isinstance(objective, StructuredLoss):
        arrow = arrow_from_products(product, flat)  # pyright: ignore[reportArgumentType]
        step = arrow.solve_singular(-gradient(flat))
        smallest, largest = arrow.extreme_eigenvalues()
    elif flat.size <= DENSE_LIMIT:
        step, smallest, largest = _dense(jax.hessian(loss)(flat), gradient(flat))
    else:
        step, smallest, largest = _matrix_free(product, gradient(flat))
    return Curvature(newton_step=unravel(step), smallest=smallest, largest=largest)  # pyright: ignore[reportArgumentType]


def _dense(hessian, gradient):
    values, vectors = jnp.linalg.eigh(0.5 * (hessian + hessian.T))
    largest = jnp.maximum(jnp.abs(values[0]), values[-1])
    live = jnp.abs(values) > NULL_SHARE * largest
    inverse = jnp.where(live, 1.0 / jnp.where(live, values, 1.0), 0.0)
    return -vectors @ (inverse * (vectors.T @ gradient)), values[0], values[-1]


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
