r"""Distributions of the covariates x_1 .. x_N, x_q of one prompt, with the moments each knows in closed form.

`sample(key, count)` draws all inputs of one prompt, the query included, as rows. Where the covariance is itself random
it is drawn once per call, so that the inputs of a prompt share it. `covariance` = E[x x^T] and `fourth_moment(A)` =
E[x x^T A x x^T] belong to the marginal distribution of a single x, the expectation over a random covariance included. Every
distribution is centred.

Moments are formed with operators only: numpy in, numpy float64 out; traced in, traced out.
"""

from __future__ import annotations

import abc
import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.core import compiled
from icl_lab.core.errors import InvalidValueError, MemoryBudgetError
from icl_lab.core.linalg import check_covariance, haar_orthogonal, is_traced
from icl_lab.core.prng import stream
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.distributions.spectra import apply_root, as_covariance, covariance_root
from icl_lab.tasks.prompt import as_default_float, as_float64, check_count

_BLOCK = 2**14
"""Normals drawn at once in a batch of prompts: 128 kB, which stay in cache."""
_LARGEST_SUPPORT = 2**20
"""Spectra that `support` enumerates at most; d = 20 eigenvalues of two values each."""


class CovariateDistribution(eqx.Module):
    """The distribution of the inputs of one prompt."""

    dim: eqx.AbstractVar[int]

    @property
    @abc.abstractmethod
    def covariance(self) -> Float[Array, "d d"]:
        """(d, d) E[x x^T]."""

    @abc.abstractmethod
    def sample(self, key: Key, count: int) -> Float[Array, "count d"]:
        """`count` inputs of one prompt, as rows."""

    @abc.abstractmethod
    def fourth_moment(self, matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
        """E[x x^T A x x^T] for the (d, d) matrix A, symmetric or not."""


class Gaussian(CovariateDistribution):
    r"""x ~ N(0, Λ).

    .. math:: E[x x^T A x x^T] = Λ A Λ + Λ A^T Λ + \operatorname{tr}(A Λ) Λ

    Args:
      covariance: (d, d) symmetric positive definite Λ, or its (d,) spectrum on the coordinate axes.

    Attributes:
      matrix: (d, d) Λ.
      root: square root of Λ, computed once (see `spectra.covariance_root`); None if Λ is the identity. Derived: to
        change the covariance, make a new distribution.
    """

    dim: int = eqx.field(static=True)
    matrix: Float[Array, "d d"]
    root: Array | None

    def __init__(self, covariance: Any):
        covariance = as_float64(covariance)
        if covariance.ndim == 0 or covariance.size == 0:
            raise InvalidValueError(f"`covariance` must be a (d,) spectrum or a (d, d) matrix; got shape {covariance.shape}.")
        self.dim = covariance.shape[0]
        self.matrix = as_covariance(covariance, self.dim)
        check_covariance(self.matrix)
        self.root = covariance_root(self.matrix)

    @property
    def covariance(self) -> Float[Array, "d d"]:
        """Λ."""
        return self.matrix

    def sample(self, key: Key, count: int) -> Float[Array, "count d"]:
        """`count` independent inputs, as rows."""
        return apply_root(self.root, normals(key, count, self.dim))

    def fourth_moment(self, matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
        """Wick's formula, three pairings."""
        cov = self.matrix
        return cov @ (matrix + matrix.T) @ cov + (matrix * cov).sum() * cov


class Uniform(CovariateDistribution):
    """Independent coordinates, uniform on [-half_width, half_width]: variance half_width^2 / 3.

    Papers that say (-1, 1) may draw on (-1/2, 1/2); here `half_width` = 1 is the interval (-1, 1).
    """

    dim: int = eqx.field(static=True)
    half_width: Float[Array, ""] = eqx.field(converter=as_float64, default=1.0)

    def __check_init__(self):
        check_count(self.dim, "dim", 1, "An input has at least one coordinate.")
        _check_positive(self.half_width, "half_width", "it is half the length of the interval")

    @property
    def covariance(self) -> Float[Array, "d d"]:
        """half_width^2 / 3 times the identity."""
        return self.half_width**2 / 3 * np.eye(self.dim)

    def sample(self, key: Key, count: int) -> Float[Array, "count d"]:
        """`count` independent inputs, as rows."""
        width = as_default_float(self.half_width)
        return width * jax.random.uniform(key, (count * self.dim,), minval=-1.0).reshape(count, self.dim)

    def fourth_moment(self, matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
        """From E x_i^4 = h^4 / 5 and E x_i^2 x_j^2 = h^4 / 9."""
        return _sign_symmetric_fourth_moment(self.half_width**4 * _two_level(self.dim, 1 / 5, 1 / 9), matrix)


class Sphere(CovariateDistribution):
    """x uniform on the sphere of the given radius: covariance radius^2 / d times the identity."""

    dim: int = eqx.field(static=True)
    radius: Float[Array, ""] = eqx.field(converter=as_float64, default=1.0)

    def __check_init__(self):
        check_count(self.dim, "dim", 1, "An input has at least one coordinate.")
        _check_positive(self.radius, "radius", "it is the length of every input")

    @property
    def covariance(self) -> Float[Array, "d d"]:
        """radius^2 / d times the identity."""
        return self.radius**2 / self.dim * np.eye(self.dim)

    def sample(self, key: Key, count: int) -> Float[Array, "count d"]:
        """`count` independent inputs, as rows."""
        draws = normals(key, count, self.dim)
        return as_default_float(self.radius) * draws / jnp.linalg.norm(draws, axis=1, keepdims=True)

    def fourth_moment(self, matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
        """From E x_i^4 = 3 r^4 / (d (d + 2)) and E x_i^2 x_j^2 = r^4 / (d (d + 2))."""
        return _rotation_invariant_fourth_moment(self.radius**4, matrix)


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
        uniform = jax.random.uniform(key, (self.dim, 1))
        below = jnp.cumsum(as_default_float(self.probabilities), axis=1)[:, :-1]
        index = jnp.sum(uniform >= below, axis=1, keepdims=True)
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

    @property
    def covariance(self) -> Float[Array, "d d"]:
        """diag(E λ_i)."""
        return (self.values * self.probabilities).sum(1)[:, None] * np.eye(self.dim)

    def sample(self, key: Key, count: int) -> Float[Array, "count d"]:
        """`count` inputs that share one random covariance, as rows."""
        spectrum = self._sample_spectrum(stream(key, "covariance"))
        return normals(stream(key, "normals"), count, self.dim) * jnp.sqrt(spectrum)[None, :]

    def fourth_moment(self, matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
        """From E x_i^4 = 3 E λ_i^2 and E x_i^2 x_j^2 = E λ_i E λ_j."""
        return _sign_symmetric_fourth_moment(self._squares(), matrix)


class ExponentialDiagonal(CovariateDistribution):
    """x | λ ~ N(0, diag(λ)) with independent exponential λ_i of mean `scale`, drawn once per prompt.

    Source: the random-covariance experiment of Zhang, Frei, Bartlett (arXiv 2306.09927).
    """

    dim: int = eqx.field(static=True)
    scale: Float[Array, ""] = eqx.field(converter=as_float64, default=1.0)

    def __check_init__(self):
        check_count(self.dim, "dim", 1, "An input has at least one coordinate.")
        _check_positive(self.scale, "scale", "it is the mean of every eigenvalue")

    @property
    def covariance(self) -> Float[Array, "d d"]:
        """`scale` times the identity."""
        return self.scale * np.eye(self.dim)

    def sample(self, key: Key, count: int) -> Float[Array, "count d"]:
        """`count` inputs that share one random covariance, as rows."""
        spectrum = as_default_float(self.scale) * jax.random.exponential(stream(key, "covariance"), (self.dim,))
        return normals(stream(key, "normals"), count, self.dim) * jnp.sqrt(spectrum)[None, :]

    def fourth_moment(self, matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
        """From E λ_i^2 = 2 scale^2, so E x_i^4 = 6 scale^2 and E x_i^2 x_j^2 = scale^2."""
        return _sign_symmetric_fourth_moment(self.scale**2 * _two_level(self.dim, 6.0, 1.0), matrix)


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
        return _rotation_invariant_fourth_moment(self._squares().sum(), matrix)


def covariates_for(dim: int, covariance: Any, covariates: CovariateDistribution | None) -> CovariateDistribution:
    """The inputs of a regression task: `covariates` if given, else Gaussian of the given covariance (None: the identity).

    Raises:
      InvalidValueError: both given, or a distribution of another dimension.
    """
    check_count(dim, "dim", 1, "An input has at least one coordinate.")
    if covariates is None:
        return Gaussian(as_covariance(covariance, dim))
    if covariance is not None:
        raise InvalidValueError("Give `covariance` or `covariates`, not both; a covariate distribution has its own covariance.")
    if covariates.dim != dim:
        raise InvalidValueError(
            f"`covariates` must have dimension dim = {dim}; got a distribution of dimension {covariates.dim}."
        )
    return covariates


def normals(key: Key, count: int, dim: int) -> Float[Array, "count d"]:
    """`count` rows of standard normals."""
    size = count * dim

    @jax.custom_batching.custom_vmap
    def draw(key):
        return jax.random.normal(key, (size,))

    @draw.def_vmap
    def draw_batch(axis_size, _, keys):
        return _normals_in_blocks(keys, size), True

    return draw(key).reshape(count, dim)


@compiled.jit
def _normals_in_blocks(keys: Key, size: int) -> Float[Array, "B size"]:
    """The numbers of `vmap`, drawn in a loop over blocks of keys.

    The loop keeps XLA (jax 0.10, CPU) from evaluating the inverse error function again in every operation that reads the
    numbers, which is a third of the sampling time.
    """
    block = min(keys.shape[0], max(1, _BLOCK // size))
    return jax.lax.map(lambda key: jax.random.normal(key, (size,)), keys, batch_size=block)


def _two_level(dim: int, diagonal: float, off_diagonal: float) -> np.ndarray:
    return np.full((dim, dim), off_diagonal) + (diagonal - off_diagonal) * np.eye(dim)


def _sign_symmetric_fourth_moment(squares: Array, matrix: Array) -> Array:
    """E[x x^T A x x^T] from `squares` = E x_i^2 x_j^2, for x whose distribution survives flipping the sign of any
    coordinate.
    """
    eye = np.eye(matrix.shape[0])
    return squares * (matrix + matrix.T) * (1 - eye) + (squares @ (matrix * eye)).sum(1)[:, None] * eye


def _rotation_invariant_fourth_moment(norm_fourth: Any, matrix: Array) -> Array:
    """E[x x^T A x x^T] from E|x|^4, for x whose distribution survives every rotation."""
    dim = matrix.shape[0]
    return norm_fourth / (dim * (dim + 2)) * (matrix + matrix.T + matrix.trace() * np.eye(dim))


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
    off = np.max(np.abs(np.sum(probabilities, axis=1) - 1))
    if not (off <= 1e-9 and np.min(probabilities) >= 0):
        raise InvalidValueError(f"`probabilities` must be >= 0 with rows that sum to 1; a row is off by {off:.3g}.")


def _check_positive(value: Array, name: str, reason: str) -> None:
    if not is_traced(value) and not (np.ndim(value) == 0 and np.isfinite(value) and value > 0):
        raise InvalidValueError(f"`{name}` must be a finite number > 0, because {reason}; got {np.asarray(value).tolist()!r}.")
