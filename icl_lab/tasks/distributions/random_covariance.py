"""Laws of covariates that are Gaussian given a covariance, which is drawn once for each prompt and shared by its inputs.

The moments are those of one input, the mean over the covariance included. On diagonal covariances with independent entries the
coordinates of one input are independent too, though two inputs are not.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from icl_lab.core.errors import InvalidValueError, MemoryBudgetError
from icl_lab.core.linalg import check_covariance, haar_orthogonal, is_traced, psd_root
from icl_lab.core.prng import stream
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.distributions.covariates import (
    NORMAL_MOMENTS,
    CovariateDistribution,
    check_order,
    check_positive,
    normals,
    rotation_invariant_fourth_moment,
)
from icl_lab.tasks.prompt import as_default_float, as_float64, check_count

_LARGEST_SUPPORT = 2**20
"""Spectra that `support` enumerates at most; d = 20 eigenvalues of two values each."""


class FiniteSpectrum(CovariateDistribution):
    """x | Λ ~ N(0, Λ), Λ drawn once per prompt with independent eigenvalues λ_i of finite support.

    Args:
      values: (d, m) the values of λ_1 .. λ_d, > 0.
      probabilities: (d, m) their probabilities, rows summing to 1; pad shorter supports with probability 0.
    """

    values: Float[Array, "d m"] = eqx.field(converter=as_float64)
    probabilities: Float[Array, "d m"] = eqx.field(converter=as_float64)
    dim: int = eqx.field(static=True, init=False)

    def __post_init__(self):
        self.dim = next(iter(np.shape(self.values)), 0)

    def __check_init__(self):
        _check_finite_distribution(self.values, self.probabilities)

    def support(self) -> tuple[Float[np.ndarray, "S d"], Float[np.ndarray, "S"]]:
        """Every spectrum λ (S, d) with its probability (S,); S <= m^d, spectra of probability 0 left out.

        Raises:
          MemoryBudgetError: more than 2^20 of them.
        """
        values, probabilities = np.asarray(self.values), np.asarray(self.probabilities)
        choices = [np.flatnonzero(row) for row in probabilities]
        size = int(np.prod([len(choice) for choice in choices], dtype=object))
        if size > _LARGEST_SUPPORT:
            raise MemoryBudgetError(f"`support` would enumerate {size} spectra, more than the {_LARGEST_SUPPORT} allowed.")
        index = np.array(list(itertools.product(*choices)))
        rows = np.arange(len(values))[None, :]
        return values[rows, index], np.prod(probabilities[rows, index], axis=1)

    def _sample_spectrum(self, key: Key) -> Float[Array, "d"]:
        """Each eigenvalue by inversion of its distribution function."""
        index = _choices(jax.random.uniform(key, (self.dim, 1)), self.probabilities)
        return jnp.take_along_axis(as_default_float(self.values), index, axis=1)[:, 0]

    def _squares(self) -> Float[Array, "d d"]:
        """E x_i^2 x_j^2 in the basis of the eigenvectors: 3 E λ_i^2 on the diagonal, E λ_i E λ_j off it."""
        mean, square = (self.values * self.probabilities).sum(1), (self.values**2 * self.probabilities).sum(1)
        eye = np.eye(self.dim)
        return mean[:, None] * mean[None, :] * (1 - eye) + 3 * square[:, None] * eye


class FiniteDiagonal(FiniteSpectrum):
    r"""x | λ ~ N(0, diag(λ)) with independent λ_i of finite support, drawn once per prompt.

    Args:
      values: (d, m) the values of λ_1 .. λ_d, > 0.
      probabilities: (d, m) their probabilities, rows summing to 1; pad shorter supports with probability 0.

    Source: the setting of Zhang, Frei, Bartlett (arXiv 2306.09927), Theorem 4.5.
    """

    independent = True
    shared_covariance = True

    def sample(self, key: Key, count: int) -> Float[Array, "count d"]:
        """`count` inputs that share one random covariance, as rows."""
        spectrum = self._sample_spectrum(stream(key, "covariance"))
        return normals(stream(key, "normals"), count, self.dim) * jnp.sqrt(spectrum)[None, :]

    def moments(self, order: int) -> Float[Array, "d"]:
        """E z^k E λ_i^(k/2), z standard normal."""
        check_order(order)
        return NORMAL_MOMENTS[order] * (self.values ** (order // 2) * self.probabilities).sum(1)

    def support_covariances(self) -> tuple[Float[np.ndarray, "S d d"], Float[np.ndarray, "S"]]:
        """diag(λ) of every spectrum of `support`."""
        spectra, probabilities = self.support()
        return spectra[:, :, None] * np.eye(self.dim), probabilities


class ExponentialDiagonal(CovariateDistribution):
    """x | λ ~ N(0, diag(λ)) with independent exponential λ_i of mean `scale`, drawn once per prompt.

    Source: the random-covariance experiment of Zhang, Frei, Bartlett (arXiv 2306.09927).
    """

    independent = True
    shared_covariance = True
    dim: int = eqx.field(static=True)
    scale: Float[Array, ""] = eqx.field(converter=as_float64, default=1.0)

    def __check_init__(self):
        check_count(self.dim, "dim", 1, "An input has at least one coordinate.")
        check_positive(self.scale, "scale", "it is the mean of every eigenvalue")

    def sample(self, key: Key, count: int) -> Float[Array, "count d"]:
        """`count` inputs that share one random covariance, as rows."""
        spectrum = as_default_float(self.scale) * jax.random.exponential(stream(key, "covariance"), (self.dim,))
        return normals(stream(key, "normals"), count, self.dim) * jnp.sqrt(spectrum)[None, :]

    def moments(self, order: int) -> Float[Array, "d"]:
        """E z^k E λ_i^(k/2), z standard normal and E λ_i^m = m! scale^m."""
        check_order(order)
        power = order // 2
        return NORMAL_MOMENTS[order] * math.factorial(power) * self.scale**power * np.ones(self.dim)


class RotatedSpectrum(FiniteSpectrum):
    r"""x | Λ ~ N(0, Λ), Λ = Q diag(λ) Q^T with Haar Q and independent λ_i of finite support, drawn once per prompt.

    The marginal distribution of x is rotation invariant, so with E|x|^4 = E[(tr Λ)^2 + 2 tr Λ^2]

    .. math:: E[x x^T A x x^T] = \frac{E|x|^4}{d (d + 2)} (A + A^T + \operatorname{tr}(A) I).

    Args:
      values: (d, m) the values of λ_1 .. λ_d, > 0.
      probabilities: (d, m) their probabilities, rows summing to 1.
    """

    @property
    def covariance(self) -> Float[Array, "d d"]:
        """E tr(Λ) / d times the identity."""
        return (self.values * self.probabilities).sum() / self.dim * np.eye(self.dim)

    def sample(self, key: Key, count: int) -> Float[Array, "count d"]:
        """`count` inputs that share one random covariance, as rows."""
        spectrum = self._sample_spectrum(stream(key, "covariance"))
        rotation = haar_orthogonal(stream(key, "rotation"), self.dim)
        # The prompt shares Q, so the inputs are Q diag(sqrt λ) z: no root of the full matrix is needed.
        return (normals(stream(key, "normals"), count, self.dim) * jnp.sqrt(spectrum)[None, :]) @ rotation.T

    def fourth_moment(self, matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
        """Rotation invariance leaves one constant, E|x|^4."""
        # sum_ij E x_i^2 x_j^2 = E|x|^4, in any basis.
        return rotation_invariant_fourth_moment(self._squares().sum(), matrix)


class GaussianMixture(CovariateDistribution):
    """x | Λ ~ N(0, Λ), Λ one of finitely many matrices, drawn once per prompt.

    Args:
      covariances: (S, d, d) symmetric positive definite.
      probabilities: (S,) of each, summing to 1.

    Attributes:
      roots: (S, d, d) their symmetric square roots, computed once. Derived: to change a covariance, make a new distribution.

    Raises:
      InvalidValueError: shapes that do not fit, or probabilities that do not sum to 1.
      NotPositiveDefiniteError: a matrix that is no covariance.

    Examples:
      >>> import numpy as np
      >>> from icl_lab import tasks
      >>> law = tasks.GaussianMixture([np.diag([1.0, 3.0]), np.diag([5.0, 1.0])], [0.75, 0.25])
      >>> law.covariance
      array([[2. , 0. ],
             [0. , 2.5]])
    """

    dim: int = eqx.field(static=True)
    covariances: Float[Array, "S d d"]
    probabilities: Float[Array, "S"]
    roots: Float[Array, "S d d"]

    def __init__(self, covariances: Any, probabilities: Any):
        try:
            self.covariances, self.probabilities = as_float64(covariances), as_float64(probabilities)
        except ValueError:
            raise InvalidValueError(
                "`covariances` must be matrices of one shape and `probabilities` numbers; got "
                f"{covariances!r} and {probabilities!r}."
            ) from None
        shape = np.shape(self.covariances)
        if len(shape) != 3 or shape[1] != shape[2] or 0 in shape or np.shape(self.probabilities) != shape[:1]:
            raise InvalidValueError(
                "`covariances` must have shape (S, d, d) and `probabilities` (S,), S, d >= 1; "
                f"got {shape} and {np.shape(self.probabilities)}."
            )
        self.dim = shape[1]
        for index, matrix in enumerate(self.covariances):
            check_covariance(matrix, f"covariances[{index}]")
        _check_probabilities(self.probabilities[None])
        self.roots = _roots(self.covariances)

    @property
    def covariance(self) -> Float[Array, "d d"]:
        """The mean of Λ."""
        return (self.probabilities[:, None, None] * self.covariances).sum(0)

    def sample(self, key: Key, count: int) -> Float[Array, "count d"]:
        """`count` inputs that share one random covariance, as rows."""
        index = _choices(jax.random.uniform(stream(key, "covariance"), (1, 1)), self.probabilities[None])[0, 0]
        return normals(stream(key, "normals"), count, self.dim) @ as_default_float(self.roots)[index]

    def fourth_moment(self, matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
        """The mean of Wick's formula."""
        given, weighted = self.covariances, self.probabilities[:, None, None] * self.covariances
        traces = (given * matrix[None]).sum((1, 2))[:, None, None]
        return (weighted @ (matrix + matrix.T)[None] @ given + traces * weighted).sum(0)

    def support_covariances(self) -> tuple[Float[Array, "S d d"], Float[Array, "S"]]:
        """All of them."""
        return self.covariances, self.probabilities


def _choices(uniform: Float[Array, "d 1"], probabilities: Float[Array, "d m"]) -> Int[Array, "d 1"]:
    """An index for each row of `probabilities`, by inversion of its distribution function."""
    below = jnp.cumsum(as_default_float(probabilities), axis=1)[:, :-1]
    return jnp.sum(uniform >= below, axis=1, keepdims=True)


def _roots(covariances: Float[Array, "S d d"]) -> Float[Array, "S d d"]:
    if is_traced(covariances):
        return jax.vmap(psd_root)(covariances)
    values, vectors = np.linalg.eigh(np.asarray(covariances))
    return (vectors * np.sqrt(np.clip(values, 0.0, None))[:, None, :]) @ np.swapaxes(vectors, 1, 2)


def _check_finite_distribution(values: Array, probabilities: Array) -> None:
    if values.ndim != 2 or values.size == 0 or values.shape != probabilities.shape:
        raise InvalidValueError(
            f"`values` and `probabilities` must share one shape (d, m), d, m >= 1; "
            f"got {values.shape} and {probabilities.shape}."
        )
    if is_traced(values) or is_traced(probabilities):
        return
    if not np.all(np.isfinite(values)) or np.min(values) <= 0:
        raise InvalidValueError(f"`values` must be finite and > 0, as eigenvalues are; the smallest is {np.min(values):.6g}.")
    _check_probabilities(probabilities)


def _check_probabilities(probabilities: Float[Array, "d m"]) -> None:
    if is_traced(probabilities):
        return
    off = np.max(np.abs(np.sum(probabilities, axis=1) - 1))
    if not (off <= 1e-9 and np.min(probabilities) >= 0):
        raise InvalidValueError(f"`probabilities` must be >= 0 with rows that sum to 1; a row is off by {off:.3g}.")
