"""Linear algebra of small symmetric matrices: checks, square roots, condition numbers, random rotations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError, NotPositiveDefiniteError
from icl_lab.core.typing import Array, Key

SINGULAR = 1e-14
"""Share of the largest eigenvalue below which the smallest one of a matrix in double precision may be rounding."""


def is_traced(x: object) -> bool:
    """Whether `x` is an abstract value inside a JAX transformation, whose numbers cannot be checked."""
    return isinstance(x, Tracer)


def check_covariance(matrix: Array, name: str = "covariance", *, allow_singular: bool = False) -> None:
    """Raise unless `matrix` is a symmetric positive (semi)definite (d, d) matrix; traced values are not checked.

    Raises:
      InvalidValueError: not a square matrix, or not finite.
      NotPositiveDefiniteError: not symmetric, or its smallest eigenvalue is not above rounding (`SINGULAR` times the largest;
        a semidefinite one may be 1e-12 of the largest below zero).
    """
    if is_traced(matrix):
        return
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InvalidValueError(f"`{name}` must be a square matrix; got shape {matrix.shape}.")
    if not np.all(np.isfinite(matrix)):
        raise InvalidValueError(f"`{name}` must be finite; it holds {np.sum(~np.isfinite(matrix))} NaN or infinite entries.")
    asymmetry = float(np.max(np.abs(matrix - matrix.T)))
    scale = float(np.max(np.abs(matrix)))
    if asymmetry > 1e-10 * max(scale, 1e-300):
        raise NotPositiveDefiniteError(
            f"`{name}` must be symmetric, as a covariance is; entries differ from their mirror image by up to {asymmetry:.3g}."
        )
    smallest, largest = np.linalg.eigvalsh(matrix)[[0, -1]]
    size = max(abs(largest), abs(smallest))
    if allow_singular and smallest < -1e-12 * size:
        raise NotPositiveDefiniteError(f"`{name}` must be positive semidefinite; its smallest eigenvalue is {smallest:.6g}.")
    if not allow_singular and smallest <= SINGULAR * size:
        raise NotPositiveDefiniteError(
            f"`{name}` must be positive definite; its smallest eigenvalue is {smallest:.6g} (d = {matrix.shape[0]}), not above "
            f"{SINGULAR:g} of the largest, {largest:.6g}. The closed-form limits need its inverse."
        )


def psd_root(matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * jnp.sqrt(jnp.clip(values, 0.0, None))[None, :]) @ vectors.T


def inverse_covariance(matrix: Float[Array, "d d"]) -> Float[np.ndarray, "d d"]:
    """The inverse of a symmetric positive definite matrix, symmetric to the last bit."""
    inverse = np.linalg.inv(matrix)
    return (inverse + inverse.T) / 2


def condition_number(matrix: Float[Array, "d d"]) -> float:
    """Largest over smallest eigenvalue of a symmetric positive definite matrix."""
    values = np.linalg.eigvalsh(np.asarray(matrix, dtype=np.float64))
    return float(values[-1] / values[0])


def haar_orthogonal(key: Key, dim: int) -> Float[Array, "d d"]:
    """A Haar-distributed orthogonal matrix: QR of a Gaussian matrix, with the signs of R's diagonal moved into Q."""
    q, r = jnp.linalg.qr(jax.random.normal(key, (dim, dim)))
    return q * jnp.sign(jnp.diagonal(r))[None, :]
