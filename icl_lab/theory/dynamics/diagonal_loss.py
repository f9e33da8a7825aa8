r"""The loss of arXiv 2405.16845 and its gradient at diagonal weights K = diag(a_j), P = diag(b_j), for any start of sequences.

The phases average every product of features to zero except for index coincidences whose exponents cancel; at diagonal weights
these can be listed. Conventions and distributions as in `theory.zheng2024`; everything here is the lab's own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Inexact

from icl_lab.core.typing import Array
from icl_lab.theory.dynamics.zheng2024 import Constants, constants, mean_inverse_length


def loss(
    key_query: Inexact[Array, "d"],
    value: Inexact[Array, "d"],
    second: Float[Array, "d"],
    fourth: Float[Array, "d"],
    sixth: Float[Array, "d"],
    mixed: Float[Array, "d d"],
    length: int,
) -> float:
    r"""The population loss at K = diag(a_j), P = diag(b_j), for any distribution of x_1.

    .. math:: L = \tfrac12\sum_{t=2}^{T-1}\sum_j \Big\{ E|x_j|^2 - 2\operatorname{Re}(a_j b_j) E|x_j|^4
              + |b_j|^2\Big[|a_j|^2 E|x_j|^6 + \tfrac{1}{t-1}\sum_{l\ne j}|a_l|^2 E|x_j|^2|x_l|^4\Big]\Big\}

    Args:
      key_query: (d,), the a_j.
      value: (d,), the b_j.
      second, fourth, sixth: (d,), E|x_j|^2, E|x_j|^4, E|x_j|^6.
      mixed: (d, d), E|x_j|^2 |x_l|^4 in row j, column l; the diagonal is not read.
      length: T.
    """
    off_diagonal = mixed - np.diag(np.diag(mixed))
    keys, values = np.abs(key_query) ** 2, np.abs(value) ** 2
    cross = np.real(np.asarray(key_query) * np.asarray(value)) * fourth
    square = values * (keys * sixth + mean_inverse_length(length) * (off_diagonal @ keys))
    return float((length - 2) / 2 * np.sum(second - 2 * cross + square))


def exchangeable(moments: Constants, key_query: Inexact[Array, "d"], value: Inexact[Array, "d"], length: int) -> float:
    """`loss` for a distribution of x_1 whose coordinates, and pairs of coordinates, are alike.

    Args:
      moments: constants of the distribution, from `zheng2024.constants`.
      key_query: (d,), diagonal of K.
      value: (d,), diagonal of P.
      length: T >= 3.
    """
    dim = len(key_query)
    mixed = np.full((dim, dim), moments.kappa3 / max(dim - 1, 1))
    ones = np.ones(dim)
    return loss(key_query, value, moments.m2 * ones, moments.kappa1 * ones, moments.kappa2 * ones, mixed, length)


class OddMoments(NamedTuple):
    """Moments of two or three different coordinates of x_1 that vanish under Assumption 4.1 (j, l, m different).

    Attributes:
      third: E x_j^3 x_l.  fifth: E x_j^5 x_l.  cubes: E x_j^3 x_l^3.
      spread: sum over m of E x_m^2 x_j^3 x_l.
    """

    third: float
    fifth: float
    cubes: float
    spread: float


def odd_moments(distribution: str, dim: int, scale: float) -> OddMoments:
    """The odd moments of a distribution of x_1.

    Args:
      distribution: one of `zheng2024.DISTRIBUTIONS`.
      dim: d.
      scale: standard deviation of a coordinate, or the size of a non-zero one.

    Raises:
      InvalidValueError: an unknown distribution.
    """
    constants(distribution, dim, scale)
    if distribution == "constant":
        return OddMoments(scale**4, scale**6, scale**6, (dim - 2) * scale**6)
    # Coordinates of the skew distribution are independent with mean zero and third moment 2.
    return OddMoments(0.0, 0.0, 4.0 * scale**6 if distribution == "skew" else 0.0, 0.0)


def off_diagonal_gradient(odd: OddMoments, length: int, a: float, b: float) -> tuple[float, float]:
    r"""dL/dK_{lj} and dL/dP_{lj}, l != j, at K = a I, P = b I, for real x_1 with coordinates that are alike.

    .. math:: \frac{\partial L}{\partial K_{lj}} = \sum_{n=1}^{T-2} \Big\{ -\frac bn E x_j^3 x_l
              + \frac{a b^2}{n}\left(E x_j^5 x_l + E x_j^3 x_l^3\right)
              + \frac{a b^2}{n^2} \sum_m E x_m^2 x_j^3 x_l \Big\}, \qquad
              \frac{\partial L}{\partial P_{lj}} = \sum_{n=1}^{T-2} \frac{a^2 b}{n} E x_j^3 x_l^3

    Args:
      odd: moments of x_1; needs d >= 2.
      length: T.
      a, b: the weights.
    """
    inverse = 1 / np.arange(1, length - 1)
    key = np.sum(inverse) * (a * b**2 * (odd.fifth + odd.cubes) - b * odd.third) + np.sum(inverse**2) * a * b**2 * odd.spread
    return float(key), float(np.sum(inverse) * a**2 * b * odd.cubes)
