"""Distributions of the first vector of a sequence x_{t+1} = W x_t, with all their moments."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import is_traced
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.distributions.covariates import normals
from icl_lab.tasks.prompt import as_default_float, as_float64


class StartMoments(NamedTuple):
    """Moments of one start vector, the same for every coordinate j.

    Attributes:
      m2: E |x_j|^2.
      kappa1: E |x_j|^4.
      kappa2: E |x_j|^6.
      kappa3: sum over r != j of E |x_j|^2 |x_r|^4.

    Source: the constants of Zheng et al. (arXiv 2405.16845), Theorem 4.1.
    """

    m2: Array | float
    kappa1: Array | float
    kappa2: Array | float
    kappa3: Array | float


class StartDistribution(eqx.Module):
    """A distribution of x_1 that does not change when its coordinates are permuted.

    `scale` is the standard deviation of a coordinate (Gaussian distributions) or the size of a non-zero one.
    `sign_symmetric`: the distribution survives flipping the sign of any one coordinate.
    """

    scale: Float[Array, ""] = eqx.field(converter=as_float64, default=1.0)
    sign_symmetric: bool = eqx.field(static=True, default=True, init=False)

    def __check_init__(self):
        if not is_traced(self.scale) and not (np.ndim(self.scale) == 0 and np.isfinite(self.scale) and self.scale > 0):
            raise InvalidValueError(
                f"`scale` must be a finite number > 0, the size of a start vector; got {np.asarray(self.scale).tolist()!r}."
            )

    @abc.abstractmethod
    def sample(self, key: Key, dim: int) -> Inexact[Array, "d"]:
        """One first state x_1."""

    @abc.abstractmethod
    def mixed_moment(self, powers: Sequence[tuple[int, int]], dim: int) -> Array | float:
        """E prod_g x_{j_g}^u_g conj(x_{j_g})^v_g over distinct coordinates j_g, one for each pair (u_g, v_g) of `powers`."""

    def moments(self, dim: int) -> StartMoments:
        """The second, fourth and sixth moments."""
        m2, kappa1, kappa2 = (self.mixed_moment([(n, n)], dim) for n in (1, 2, 3))
        return StartMoments(m2, kappa1, kappa2, (dim - 1) * self.mixed_moment([(1, 1), (2, 2)], dim))


class IndependentStart(StartDistribution):
    """A distribution with independent coordinates."""

    @abc.abstractmethod
    def coordinate_moment(self, u: int, v: int) -> Array | float:
        """E x^u conj(x)^v of one coordinate."""

    def mixed_moment(self, powers: Sequence[tuple[int, int]], dim: int) -> Array | float:
        """The product over the coordinates."""
        return math.prod(self.coordinate_moment(u, v) for u, v in powers)


class GaussianStart(IndependentStart):
    """x_1 ~ N(0, scale^2 I)."""

    def sample(self, key: Key, dim: int) -> Inexact[Array, "d"]:
        """One first state x_1."""
        return as_default_float(self.scale) * normals(key, 1, dim)[0]

    def coordinate_moment(self, u: int, v: int) -> Array | float:
        """(n - 1)!! scale^n for even n = u + v."""
        n = u + v
        return 0.0 if n % 2 else math.prod(range(1, n, 2)) * self.scale**n


class ComplexGaussianStart(IndependentStart):
    """x_1 circular complex Gaussian, E |x_j|^2 = scale^2."""

    def sample(self, key: Key, dim: int) -> Inexact[Array, "d"]:
        """One complex first state x_1."""
        dtype = jnp.result_type(complex)
        return jnp.asarray(self.scale, dtype) * jax.random.normal(key, (dim,), dtype)

    def coordinate_moment(self, u: int, v: int) -> Array | float:
        """|x|^2 is exponential and the phase uniform: u! scale^2u if u = v."""
        return math.factorial(u) * self.scale ** (2 * u) if u == v else 0.0


class SparseStart(StartDistribution):
    """x_1 uniform on the 2d vectors scale e_j, -scale e_j."""

    def sample(self, key: Key, dim: int) -> Inexact[Array, "d"]:
        """One first state x_1."""
        index = jax.random.randint(key, (), 0, 2 * dim)
        signed = jnp.where(index < dim, as_default_float(self.scale), -as_default_float(self.scale))
        return signed * jax.nn.one_hot(index % dim, dim, dtype=jnp.result_type(float))

    def mixed_moment(self, powers: Sequence[tuple[int, int]], dim: int) -> Array | float:
        """scale^n / d for one coordinate and even n = u + v; no two coordinates are non-zero together."""
        if len(powers) > 1 or sum(powers[0]) % 2:
            return 0.0
        return self.scale ** sum(powers[0]) / dim


class RademacherStart(IndependentStart):
    """x_1 with independent coordinates +-scale."""

    def sample(self, key: Key, dim: int) -> Inexact[Array, "d"]:
        """One first state x_1."""
        return as_default_float(self.scale) * jax.random.rademacher(key, (dim,), jnp.result_type(float))

    def coordinate_moment(self, u: int, v: int) -> Array | float:
        """scale^n for even n = u + v."""
        return 0.0 if (u + v) % 2 else self.scale ** (u + v)


class ConstantStart(IndependentStart):
    """x_1 = scale (1, .., 1): the even moments of the Rademacher start without its symmetry."""

    sign_symmetric: bool = eqx.field(static=True, default=False, init=False)

    def sample(self, key: Key, dim: int) -> Inexact[Array, "d"]:
        """The start; the key is not used."""
        return jnp.full((dim,), as_default_float(self.scale))

    def coordinate_moment(self, u: int, v: int) -> Array | float:
        """scale^n, n = u + v."""
        return self.scale ** (u + v)
