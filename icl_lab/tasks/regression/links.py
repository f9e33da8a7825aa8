"""Link functions g of single-index responses g(u.x), with their one-dimensional Gaussian moments.

A direction u of length r makes the index of a standard Gaussian input r z, z ~ N(0, 1). `Link.moments` averages over z and,
through the moments of r that it is given, over a random length.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import UnsupportedProblemError
from icl_lab.core.typing import Array
from icl_lab.tasks.prompt import check_count


class Link(eqx.Module):
    """A scalar function g of the index s = u.x.

    `moments` takes `radial`, the function power -> E r^power of the length r of the direction, and gives
    E g(rz)^2, E g(rz)^2 z^2 and E (E[z g(rz) | r])^2 for z ~ N(0, 1).
    """

    @property
    @abc.abstractmethod
    def odd(self) -> bool:
        """Whether g(-s) = -g(s)."""

    @abc.abstractmethod
    def __call__(self, s: Float[Array, ""]) -> Float[Array, ""]:
        """g(s)."""

    def moments(self, radial: Callable[[int], float]) -> tuple[float, float, float]:
        """The three one-dimensional moments.

        Raises:
          UnsupportedProblemError: not known for this link.
        """
        raise UnsupportedProblemError(
            f"No closed-form moments are known for the link `{type(self).__name__}`; estimate them from samples."
        )


class Monomial(Link):
    """g(s) = s^power, power >= 0."""

    power: int = eqx.field(static=True)

    def __check_init__(self):
        check_count(self.power, "power", 0, "A monomial is a whole power of the index.")

    @property
    def odd(self) -> bool:
        """Whether the power is odd."""
        return self.power % 2 == 1

    def __call__(self, s: Float[Array, ""]) -> Float[Array, ""]:
        return s**self.power

    def moments(self, radial: Callable[[int], float]) -> tuple[float, float, float]:
        """From E z^{2m} = (2m - 1)!!."""
        return _polynomial_moments(np.eye(self.power + 1)[self.power], radial)


class Hermite(Link):
    """g(s) = He_degree(s), the probabilists' Hermite polynomial: 1, s, s^2 - 1, s^3 - 3s, ...; E He_k(z)^2 = k!.

    On the sphere or an axis E[z He_k(z)] = 0 unless k = 1: every other degree is invisible to linear predictors.
    """

    degree: int = eqx.field(static=True)

    def __check_init__(self):
        check_count(self.degree, "degree", 0, "Hermite polynomials are indexed from 0.")

    @property
    def odd(self) -> bool:
        """Whether the degree is odd."""
        return self.degree % 2 == 1

    def __call__(self, s: Float[Array, ""]) -> Float[Array, ""]:
        previous, current = jnp.zeros_like(s), jnp.ones_like(s)
        for k in range(self.degree):  # He_{k+1} = s He_k - k He_{k-1}
            previous, current = current, s * current - k * previous
        return current

    def moments(self, radial: Callable[[int], float]) -> tuple[float, float, float]:
        """Through the monomial coefficients, so that directions of random length are covered."""
        return _polynomial_moments(np.polynomial.hermite_e.herme2poly(np.eye(self.degree + 1)[self.degree]), radial)


class Sign(Link):
    """g(s) = sign(s)."""

    @property
    def odd(self) -> bool:
        """The sign is odd."""
        return True

    def __call__(self, s: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.sign(s)

    def moments(self, radial: Callable[[int], float]) -> tuple[float, float, float]:
        """E |z| = sqrt(2/π); the length of the direction does not matter."""
        return 1.0, 1.0, 2 / math.pi


class ReLU(Link):
    """g(s) = max(s, 0)."""

    @property
    def odd(self) -> bool:
        """No parity."""
        return False

    def __call__(self, s: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.maximum(s, 0.0)

    def moments(self, radial: Callable[[int], float]) -> tuple[float, float, float]:
        """Half the moments of the identity link, and a quarter of its correlation."""
        return radial(2) / 2, 3 * radial(2) / 2, radial(2) / 4


def _polynomial_moments(coefficients: np.ndarray, radial: Callable[[int], float]) -> tuple[float, float, float]:
    """The moments of `Link.moments` for g(s) = sum_i coefficients[i] s^i."""

    def normal(power: int) -> float:  # E z^power
        return 0.0 if power % 2 else float(math.prod(range(power - 1, 0, -2)))

    terms = [(float(c), i) for i, c in enumerate(coefficients) if c]
    # r and z enter as (rz)^(i + j); E r^(i + j) is needed for even i + j only, where the moment of z does not vanish.
    pairs = [(a * b * radial(i + j), i, j) for a, i in terms for b, j in terms if (i + j) % 2 == 0]
    return (
        sum(c * normal(i + j) for c, i, j in pairs),
        sum(c * normal(i + j + 2) for c, i, j in pairs),
        sum(c * normal(i + 1) * normal(j + 1) for c, i, j in pairs),
    )
