r"""Laws of the covariates x_1 .. x_N, x_q of one prompt, with the moments each knows in closed form.

`sample(key, count)` draws all inputs of one prompt, the query included, as rows. Where the covariance is itself random
it is drawn once per call, so that the inputs of a prompt share it. `covariance` = E[x x^T], `fourth_moment(A)` =
E[x x^T A x x^T] and `moments(k)` = E x_i^k belong to the marginal distribution of a single x, the expectation over a random
covariance included. Every law is centred.

Here are the base class and the rotation invariant laws; `independent` holds those of independent coordinates and
`random_covariance` those that draw a covariance for each prompt.

Moments are formed with operators only: numpy in, numpy float64 out; traced in, traced out.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.core import compiled
from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.core.linalg import check_covariance, is_traced
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.distributions.spectra import apply_root, as_covariance, covariance_root
from icl_lab.tasks.prompt import as_default_float, as_float64, check_count

_BLOCK = 2**14
"""Normals drawn at once in a batch of prompts: 128 kB, which stay in cache."""
NORMAL_MOMENTS = {2: 1.0, 4: 3.0, 6: 15.0}
"""Those of a standard normal variable."""


class CovariateDistribution(eqx.Module):
    """The law of the inputs of one prompt.

    A subclass writes `sample` and says what it knows: a law of independent symmetric coordinates sets `independent = True` and
    writes `moments`, from which the other moments follow; any other law writes `covariance` and `fourth_moment`. Exact losses
    and closed forms ask for these and for nothing else. Numbers are array fields and sizes static ones, so that a law of other
    numbers runs the same compiled programs.

    Attributes:
      dim: d, static.
      independent: whether the coordinates of one input are independent and symmetric about zero.
      shared_covariance: whether the inputs of a prompt have something random in common, as a covariance drawn for each prompt.
        Only of a law that denies it may a prompt be drawn in pieces, or the moments of two examples be multiplied. Unless a
        law says otherwise, it is true but for independent coordinates.

    Raises:
      InvalidValueError: a dimension below 1, or a subclass that says neither.
    """

    dim: eqx.AbstractVar[int]
    independent: ClassVar[bool] = False
    shared_covariance: ClassVar[bool] = True

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if "independent" in vars(cls) and "shared_covariance" not in vars(cls):
            cls.shared_covariance = not cls.independent

    def __check_init__(self):
        check_count(self.dim, "dim", 1, "An input has at least one coordinate.")
        law, base = type(self), CovariateDistribution
        if self.independent and law.moments is base.moments:
            raise InvalidValueError(f"`{law.__name__}` has independent coordinates, so it must have a method `moments`.")
        if not self.independent and (law.covariance is base.covariance or law.fourth_moment is base.fourth_moment):
            raise InvalidValueError(
                f"`{law.__name__}` must have `covariance` and `fourth_moment`, or `independent = True` and `moments`, from "
                "which they follow."
            )

    @abc.abstractmethod
    def sample(self, key: Key, count: int) -> Float[Array, "count d"]:
        """`count` inputs of one prompt, as rows."""

    def moments(self, order: int) -> Float[Array, "d"]:
        """(d,) E x_i^k of independent coordinates, k = `order` 2, 4 or 6.

        Raises:
          UnsupportedProblemError: infinite, or not known.
        """
        raise UnsupportedProblemError(f"`{type(self).__name__}` has no moments of single coordinates (asked for {order}).")

    @property
    def covariance(self) -> Float[Array, "d d"]:
        """(d, d) E[x x^T]."""
        return self.moments(2)[:, None] * np.eye(self.dim)

    def fourth_moment(self, matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
        """E[x x^T A x x^T] for the (d, d) matrix A, symmetric or not.

        Raises:
          UnsupportedProblemError: infinite, or not known.
        """
        variances, eye = self.moments(2), np.eye(self.dim)
        squares = variances[:, None] * variances[None, :] * (1 - eye) + self.moments(4)[:, None] * eye
        # Flipping the sign of a coordinate changes nothing, so that only E x_i^2 x_j^2 are left.
        return squares * (matrix + matrix.T) * (1 - eye) + (squares @ (matrix * eye)).sum(1)[:, None] * eye

    def support_covariances(self) -> tuple[Float[Array, "S d d"], Float[Array, "S"]] | None:
        """The finitely many covariances, one of which a prompt has, and their probabilities, if inputs are Gaussian given it.

        Returns:
          (S, d, d) and (S,), or None for any other law.
        """
        return None


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

    shared_covariance = False
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

    def support_covariances(self) -> tuple[Float[Array, "1 d d"], Float[np.ndarray, "1"]]:
        """Λ alone."""
        return self.matrix[None], np.ones(1)


class Sphere(CovariateDistribution):
    """x uniform on the sphere of the given radius: covariance radius^2 / d times the identity."""

    shared_covariance = False
    dim: int = eqx.field(static=True)
    radius: Float[Array, ""] = eqx.field(converter=as_float64, default=1.0)

    def __check_init__(self):
        check_positive(self.radius, "radius", "it is the length of every input")

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
        return rotation_invariant_fourth_moment(self.radius**4, matrix)


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


def rotation_invariant_fourth_moment(norm_fourth: Any, matrix: Array) -> Array:
    """E[x x^T A x x^T] from E|x|^4, for x whose distribution survives every rotation."""
    dim = matrix.shape[0]
    return norm_fourth / (dim * (dim + 2)) * (matrix + matrix.T + matrix.trace() * np.eye(dim))


def check_positive(value: Array, name: str, reason: str) -> None:
    if not is_traced(value) and not (np.ndim(value) == 0 and np.isfinite(value) and value > 0):
        raise InvalidValueError(f"`{name}` must be a finite number > 0, because {reason}; got {np.asarray(value).tolist()!r}.")


def check_order(order: int) -> None:
    """Raise `InvalidValueError` unless a law is asked for one of its moments 2, 4, 6."""
    if order not in NORMAL_MOMENTS:
        raise InvalidValueError(f"`order` must be 2, 4 or 6, since odd moments vanish and no loss needs more; got {order!r}.")
