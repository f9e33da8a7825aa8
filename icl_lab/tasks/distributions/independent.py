r"""Laws of covariates whose coordinates are independent and symmetric about zero.

Exact losses know such a law by E x_i^2, E x_i^4 and E x_i^6 alone. kappa = E x_i^4 / (E x_i^2)^2 is its kurtosis: 1 for random
signs, 9/5 for the uniform law, 3 for the Gaussian.
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.core.linalg import is_traced
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.distributions.covariates import NORMAL_MOMENTS, CovariateDistribution, check_order, check_positive
from icl_lab.tasks.prompt import as_default_float, as_float64


class Uniform(CovariateDistribution):
    """Independent coordinates, uniform on [-half_width, half_width]: variance half_width^2 / 3.

    Papers that say (-1, 1) may draw on (-1/2, 1/2); here `half_width` = 1 is the interval (-1, 1).
    """

    independent = True
    dim: int = eqx.field(static=True)
    half_width: Float[Array, ""] = eqx.field(converter=as_float64, default=1.0)

    def __check_init__(self):
        check_positive(self.half_width, "half_width", "it is half the length of the interval")

    def sample(self, key: Key, count: int) -> Float[Array, "count d"]:
        """`count` independent inputs, as rows."""
        width = as_default_float(self.half_width)
        return width * jax.random.uniform(key, (count * self.dim,), minval=-1.0).reshape(count, self.dim)

    def moments(self, order: int) -> Float[Array, "d"]:
        """half_width^k / (k + 1)."""
        check_order(order)
        return self.half_width**order / (order + 1) * np.ones(self.dim)


class StudentT(CovariateDistribution):
    r"""Independent coordinates x_i = scale_i t_i, t_i of Student's law with nu degrees of freedom: heavy tails.

    .. math:: E t^2 = \frac{\nu}{\nu - 2}, \qquad
              E t^{2m} = \frac{(2m - 1)!!\, \nu^m}{(\nu - 2) (\nu - 4) \cdots (\nu - 2m)}, \quad \nu > 2m

    Args:
      dim: d >= 1.
      degrees_of_freedom: nu > 2, so that there is a covariance. The kurtosis is 3 + 6 / (nu - 4) and infinite up to nu = 4.
      scale: of every coordinate, or (d,) one of each.

    Raises:
      InvalidValueError: nu <= 2, or a scale that is not positive.

    Source of the draws: Bailey, Polar generation of random variates with the t-distribution (Math. Comp. 62, 1994), Box and
    Muller's method with a power in the place of the logarithm. A draw costs a tenth of one by way of a gamma variable.

    Examples:
      >>> from icl_lab import tasks
      >>> law = tasks.StudentT(dim=2, degrees_of_freedom=8.0)
      >>> law.moments(4) / law.moments(2) ** 2
      array([4.5, 4.5])
    """

    independent = True
    dim: int = eqx.field(static=True)
    degrees_of_freedom: Float[Array, ""] = eqx.field(converter=as_float64)
    scale: Float[Array, "*d"] = eqx.field(converter=as_float64, default=1.0)

    def __check_init__(self):
        check_positive(self.degrees_of_freedom, "degrees_of_freedom", "it is a number of degrees of freedom")
        if not is_traced(self.degrees_of_freedom) and not self.degrees_of_freedom > 2:
            raise InvalidValueError(
                "`degrees_of_freedom` must be > 2, since inputs need a covariance and up to 2 it is infinite; "
                f"got {float(self.degrees_of_freedom):g}."
            )
        _check_each(self.scale, self.dim, "scale", 0.0, "it is a length")

    def sample(self, key: Key, count: int) -> Float[Array, "count d"]:
        """`count` independent inputs, as rows."""
        radial, angle = jax.random.uniform(key, (2, count * self.dim))
        freedom = as_default_float(self.degrees_of_freedom)
        # U^(-2/nu) - 1 for U = 1 - radial, which is never zero.
        squared = freedom * jnp.expm1(-2.0 / freedom * jnp.log1p(-radial))
        draws = jnp.sqrt(squared) * jnp.cos(2.0 * np.pi * angle)
        return draws.reshape(count, self.dim) * _each(as_default_float(self.scale), self.dim)[None, :]

    def moments(self, order: int) -> Float[Array, "d"]:
        """Products of nu / (nu - 2m); `UnsupportedProblemError` from an order of nu on, where they are infinite."""
        check_order(order)
        freedom = self.degrees_of_freedom
        if not is_traced(freedom) and not freedom > order:
            raise UnsupportedProblemError(
                f"the moment of order {order} of Student's law is infinite up to {order} degrees of freedom; "
                f"these are {float(freedom):g}."
            )
        ratio = NORMAL_MOMENTS[order]
        for even in range(2, order + 1, 2):
            ratio = ratio * (freedom / (freedom - even))
        return ratio * _each(self.scale, self.dim) ** order


class TwoSizes(CovariateDistribution):
    r"""Independent coordinates that are plus or minus one of two sizes, at any variance v and any kurtosis kappa >= 1.

    .. math:: x_i^2 = v/2 \text{ with probability } 1 - p, \quad x_i^2 = (2 \kappa - 1) v \text{ with probability }
              p = \frac{1}{4 \kappa - 3}

    At kappa = 1 these are random signs of size sqrt(v). This law is bounded, has every moment and takes a single uniform number
    to draw. It never is zero: at a large kurtosis a law with an atom there would often give prompts in which a coordinate does
    not occur.

    Args:
      dim: d >= 1.
      kurtosis: kappa >= 1 of every coordinate, or (d,) one of each.
      variance: v > 0, of every coordinate, or (d,) one of each.

    Raises:
      InvalidValueError: a kurtosis below 1, which no variable has, or a variance that is not positive.

    Examples:
      >>> from icl_lab import tasks
      >>> law = tasks.TwoSizes(dim=2, kurtosis=6.0, variance=[1.0, 2.0])
      >>> law.moments(2), law.moments(4)
      (array([1., 2.]), array([ 6., 24.]))
    """

    independent = True
    dim: int = eqx.field(static=True)
    kurtosis: Float[Array, "*d"] = eqx.field(converter=as_float64)
    variance: Float[Array, "*d"] = eqx.field(converter=as_float64, default=1.0)

    def __check_init__(self):
        _check_each(self.kurtosis, self.dim, "kurtosis", 1.0, "E x^4 >= (E x^2)^2", attained=True)
        _check_each(self.variance, self.dim, "variance", 0.0, "it is a variance")

    def sample(self, key: Key, count: int) -> Float[Array, "count d"]:
        """`count` independent inputs, as rows."""
        kurtosis = _each(as_default_float(self.kurtosis), self.dim)[None, :]
        variance = _each(as_default_float(self.variance), self.dim)[None, :]
        # One number is both: its sign that of the input, its absolute value the choice of the size.
        uniform = jax.random.uniform(key, (count * self.dim,), minval=-1.0).reshape(count, self.dim)
        large = jnp.abs(uniform) <= 1.0 / (4.0 * kurtosis - 3.0)
        size = jnp.sqrt(variance * jnp.where(large, 2.0 * kurtosis - 1.0, 0.5))
        return jnp.where(uniform < 0, -size, size)

    def moments(self, order: int) -> Float[Array, "d"]:
        """v^(k/2) ((1 - p) 2^(-k/2) + p (2 kappa - 1)^(k/2))."""
        check_order(order)
        power, kurtosis = order // 2, _each(self.kurtosis, self.dim)
        chance = 1 / (4 * kurtosis - 3)
        return _each(self.variance, self.dim) ** power * ((1 - chance) / 2**power + chance * (2 * kurtosis - 1) ** power)


class IndependentCoordinates(CovariateDistribution):
    """Coordinates x_i = sqrt(variance_i) z_i with independent z_i of any standard law, given by a function that draws it.

    What is declared is believed: `tasks.check_distribution` compares it with draws.

    Args:
      dim: d >= 1.
      draw: a function of a random key and a shape that returns an array of that shape: independent numbers, symmetric about
        zero, of variance 1.
      kurtosis: E z^4.
      sixth: E z^6, if known; the exact loss needs it where the query is among the attended tokens.
      variance: of every coordinate, or (d,) one of each.

    Raises:
      InvalidValueError: a kurtosis below 1, which no variable has, or a variance that is not positive.

    Examples:
      >>> import jax
      >>> from icl_lab import tasks
      >>> def laplace(key, shape):
      ...     return jax.random.laplace(key, shape) / 2**0.5
      >>> law = tasks.IndependentCoordinates(3, laplace, kurtosis=6.0, sixth=90.0)
      >>> task = tasks.LinearRegression(dim=3, context_length=10, covariates=law)
      >>> task.sample(jax.random.key(0)).inputs.shape
      (10, 3)
    """

    independent = True
    dim: int = eqx.field(static=True)
    draw: Callable[[Key, tuple[int, ...]], Array] = eqx.field(static=True)
    kurtosis: Float[Array, ""] = eqx.field(converter=as_float64)
    sixth: Float[Array, ""] | None = eqx.field(converter=lambda x: None if x is None else as_float64(x), default=None)
    variance: Float[Array, "*d"] = eqx.field(converter=as_float64, default=1.0)

    def __check_init__(self):
        _check_each(self.kurtosis, self.dim, "kurtosis", 1.0, "E z^4 >= (E z^2)^2", attained=True)
        _check_each(self.variance, self.dim, "variance", 0.0, "it is a variance")

    def sample(self, key: Key, count: int) -> Float[Array, "count d"]:
        """`count` independent inputs, as rows."""
        size = jnp.sqrt(_each(as_default_float(self.variance), self.dim))
        return as_default_float(self.draw(key, (count, self.dim))) * size[None, :]

    def moments(self, order: int) -> Float[Array, "d"]:
        """variance^(k/2) times 1, the kurtosis or `sixth`; `UnsupportedProblemError` where that was not given."""
        check_order(order)
        standard = {2: 1.0, 4: self.kurtosis, 6: self.sixth}[order]
        if standard is None:
            raise UnsupportedProblemError("the sixth moment of `IndependentCoordinates` is needed; give it as `sixth`.")
        return standard * _each(self.variance, self.dim) ** (order // 2)


def _each(value: Float[Array, "*d"], dim: int) -> Float[Array, "d"]:
    """One value for each coordinate."""
    return value * np.ones(dim, value.dtype)


def _check_each(value: Array, dim: int, name: str, least: float, reason: str, attained: bool = False) -> None:
    """Raise `InvalidValueError` unless `value` is one number, or one for each coordinate, above `least`."""
    if np.shape(value) not in ((), (dim,)):
        raise InvalidValueError(f"`{name}` must be a number, or ({dim},) one for each coordinate; got shape {np.shape(value)}.")
    if is_traced(value):
        return
    if not np.all(np.isfinite(value) & ((value >= least) if attained else (value > least))):
        sign = ">=" if attained else ">"
        raise InvalidValueError(f"`{name}` must be finite and {sign} {least:g}, because {reason}; got {value.tolist()!r}.")
