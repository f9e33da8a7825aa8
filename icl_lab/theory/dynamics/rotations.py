r"""Sequences x_{t+1} = W x_t + noise with a random orthogonal W: one gradient step, least squares, and a real attention layer.

x_1 ~ N(0, I), noise ~ N(0, sigma^2 I). W is built of m = d/2 rotations by independent uniform angles, in any orthonormal basis,
or Haar on O(d) or SO(d). One causal attention layer predicts x_{t+1} by (s/(t-1)) F_t, F_t = sum_{i<t} x_{i+1} x_i^T x_t: one
gradient step from W = 0. Given W, Cov(x_a, x_b) = (1 + (min(a, b) - 1) sigma^2) W^{a-b}.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array


class StepMoments(NamedTuple):
    """What the risk of one step at a position depends on: target E||x_{t+1}||^2, cross E x_{t+1}.F_t, square E||F_t||^2."""

    target: float
    cross: float
    square: float


def mean_cosines(*frequencies: Int[Array, "..."]) -> Int[Array, "..."]:
    """E prod_r 2 cos(n_r theta), theta uniform: the number of signs with sum_r +-n_r = 0.

    Args:
      frequencies: integer arrays n_r of one shape.
    """
    counts = np.zeros_like(frequencies[0])
    for signs in itertools.product((1, -1), repeat=len(frequencies)):
        counts = counts + (sum(sign * n for sign, n in zip(signs, frequencies, strict=True)) == 0)
    return counts


def mean_traces(blocks: int, exponents: list[Int[Array, "..."]]) -> Float[Array, "..."]:
    """E prod_r tr W^{n_r} over m independent rotation angles, up to three traces; tr W^n = sum over blocks of 2 cos(n theta).

    Args:
      blocks: m.
      exponents: one to three integer arrays.
    """
    m, n = blocks, exponents
    if len(n) == 1:
        return 1.0 * m * mean_cosines(*n)
    alone = [mean_cosines(x) for x in n]
    if len(n) == 2:
        return m * mean_cosines(*n) + m * (m - 1.0) * alone[0] * alone[1]
    pairs = sum(mean_cosines(n[a], n[b]) * alone[c] for a, b, c in ((0, 1, 2), (0, 2, 1), (1, 2, 0)))
    return m * mean_cosines(*n) + m * (m - 1.0) * pairs + m * (m - 1.0) * (m - 2.0) * alone[0] * alone[1] * alone[2]


def step_moments(dim: int, position: int, noise_variance: float = 0.0) -> StepMoments:
    r"""Moments of one gradient step at position t, W of rotation blocks.

    Isserlis' theorem: a product of scalar products is a sum over pairings of its vectors, each a product of traces of powers
    of W (one a cycle). Without noise c_t = 4m(t-1) and M_t = m[12((t-1)^2 + (t-1)) + 8(m-1)(t-1)].

    Args:
      dim: d = 2m.
      position: t >= 2, so t - 1 observed pairs.
      noise_variance: sigma^2.

    Raises:
      InvalidValueError: an odd dimension, or t < 2.
    """
    if dim % 2 or position < 2:
        raise InvalidValueError(
            f"rotation blocks need an even d, and one step a position t >= 2; got d = {dim}, t = {position}."
        )
    seen = np.arange(1, position)
    i, j = seen[:, None], seen[None, :]
    here, ahead = np.full_like(seen, position), np.full_like(seen, position + 1)
    cross = _mean_of_products([ahead, seen + 1, seen, here], dim // 2, noise_variance)
    square = _mean_of_products([i + 1, j + 1, i, 0 * i + position, j, 0 * j + position], dim // 2, noise_variance)
    return StepMoments(dim * (1 + position * noise_variance), float(np.sum(cross)), float(np.sum(square)))


def _mean_of_products(times: list[Int[Array, "..."]], blocks: int, noise_variance: float) -> Float[Array, "..."]:
    """E of the product of x_{times[0]}.x_{times[1]}, x_{times[2]}.x_{times[3]}, ..."""
    times = list(np.broadcast_arrays(*times))
    total = np.zeros(times[0].shape)
    for pairing in _pairings(tuple(range(len(times)))):
        partner = {a: b for pair in pairing for a, b in (pair, pair[::-1])}
        weight = np.ones(times[0].shape)
        for a, b in pairing:
            weight = weight * (1 + (np.minimum(times[a], times[b]) - 1) * noise_variance)
        exponents, left = [], set(range(len(times)))
        while left:
            slot, exponent = min(left), np.zeros_like(times[0])
            while slot in left:
                mate = slot ^ 1  # the other vector of the scalar product
                left -= {slot, mate}
                exponent = exponent + times[mate] - times[partner[mate]]
                slot = partner[mate]
            exponents.append(exponent)
        total = total + weight * mean_traces(blocks, exponents)
    return total


def _pairings(slots: tuple[int, ...]) -> Iterator[list[tuple[int, int]]]:
    """All ways to pair the slots up."""
    if not slots:
        yield []
        return
    for k in range(1, len(slots)):
        for rest in _pairings(slots[1:k] + slots[k + 1 :]):
            yield [(slots[0], slots[k]), *rest]


def best_step(dim: int, length: int, noise_variance: float = 0.0) -> tuple[float, float]:
    r"""The product s* of the trained layer, and its half loss summed over the positions t = 2 .. T - 1.

    .. math:: s^* = \frac{\sum_t c_t/(t-1)}{\sum_t M_t/(t-1)^2}, \qquad
              L = \tfrac12\sum_t E\|x_{t+1}\|^2 - \tfrac12 s^*\sum_t \frac{c_t}{t-1}

    Args:
      dim: d, even.
      length: T >= 3.
      noise_variance: sigma^2.
    """
    target = cross = square = 0.0
    for position in range(2, length):
        moments = step_moments(dim, position, noise_variance)
        target += moments.target
        cross += moments.cross / (position - 1)
        square += moments.square / (position - 1) ** 2
    return cross / square, (target - cross**2 / square) / 2


def best_step_excess(dim: int, position: int, noise_variance: float = 0.0) -> float:
    """Excess of the best single step for one position t, E||W x_t||^2 - c_t^2 / M_t.

    Args:
      dim: d, even.
      position: t >= 2.
      noise_variance: sigma^2.
    """
    moments = step_moments(dim, position, noise_variance)
    return moments.target - dim * noise_variance - moments.cross**2 / moments.square


def haar_step_limits(dim: int, special: bool = False) -> tuple[float, float]:
    r"""Limits of E x^T S x / t and E||S x||^2 / t^2, S = sum_{i<=t} x_i x_i^T, as t grows, for noise-free Haar W.

    2d + 1 and 6d + 9 on O(d) and on SO(d) with d odd; 2d and 6d on SO(d) with d even, where no eigenvalue is forced to be +-1.

    Args:
      dim: d.
      special: SO(d) instead of O(d).
    """
    return (2.0 * dim, 6.0 * dim) if special and dim % 2 == 0 else (2.0 * dim + 1, 6.0 * dim + 9)


def minimum_norm_risk(dim: int, position: int) -> float:
    """Risk of minimum-norm least squares at position t on noise-free Haar O(d), max(d - t + 1, 0), which is that of Bayes.

    Args:
      dim: d.
      position: t >= 1, so t - 1 observed pairs.
    """
    return float(max(dim - position + 1, 0))


def unit_root_excess(dim: int, position: int, noise_variance: float) -> float:
    """Excess 2 d^2 sigma^2 / t of in-context least squares once t sigma^2 >> 1: twice that of a stationary series.

    Args:
      dim: d, even.
      position: t.
      noise_variance: sigma^2.
    """
    return 2.0 * dim**2 * noise_variance / position


class PlanarLayer(NamedTuple):
    """A real layer on planar rotations: W_PV block (answer, x_t) p I, W_KQ blocks (x_{t-1}, x_t) k I, (x_t, x_{t-1}) q I.

    Attributes:
      value: p.  key_query: k.  reverse: q.  loss: half loss summed over t = 2 .. T - 1.
    """

    value: float
    key_query: float
    reverse: float
    loss: float


def planar_form(length: int, scale: float = 1.0) -> tuple[float, Float[Array, "2"], Float[Array, "2 2"]]:
    r"""v, c, M of the summed loss (1/2)(v - 2 c.theta + theta^T M theta), theta = (p k, p q), for planar rotations, d = 2.

    In complex notation x_t = e^{i theta (t-1)} z and x_a.x_b = |z|^2 cos((a-b) theta), so that prediction and target are
    Laurent polynomials in e^{i theta}; their products average to products of coefficients.

    Args:
      length: T >= 3.
      scale: standard deviation of a coordinate of x_1.
    """
    # E|z|^2, E|z|^4, E|z|^6 for two normal coordinates.
    second, fourth, sixth = 2 * scale**2, 8 * scale**4, 48 * scale**6
    v, c, square = 0.0, np.zeros(2), np.zeros((2, 2))
    for t in range(2, length):
        zero = 2 * length
        terms = np.zeros((2, 4 * length + 1))
        for i in range(1, t + 1):
            for row, other in ((0, i - 1 - t), (1, i - t + 1)):
                if row == 0 and i == 1:
                    continue  # x_0 = 0
                for sign in (1, -1):
                    terms[row, zero + i - 1 + sign * other] += 0.5 / (t - 1)
        v += second
        c += fourth * terms[:, zero + t]
        square += sixth * terms @ terms.T
    return v, c, square


def planar_limit(length: int, a0: float, b0: float, scale: float = 1.0) -> PlanarLayer:
    """Where gradient flow of all real weights ends from the start p = b0, k = a0, q = 0, if no other entry moves.

    The products minimise the quadratic form, and p^2 - k^2 - q^2 is conserved.

    Args:
      length: T.
      a0, b0: start, positive.
      scale: standard deviation of a coordinate of x_1.
    """
    v, c, square = planar_form(length, scale)
    theta = np.linalg.solve(square, c)
    conserved = b0**2 - a0**2
    value = np.sqrt((conserved + np.sqrt(conserved**2 + 4 * theta @ theta)) / 2)
    return PlanarLayer(float(value), float(theta[0] / value), float(theta[1] / value), float(v - c @ theta) / 2)


def planar_diagonal(length: int, scale: float = 1.0) -> tuple[float, float]:
    """Best product p k with q = 0, and its half loss: what the complex theorem would predict of a real layer.

    Args:
      length: T.
      scale: standard deviation of a coordinate of x_1.
    """
    v, c, square = planar_form(length, scale)
    return float(c[0] / square[0, 0]), float(v - c[0] ** 2 / square[0, 0]) / 2


def planar_reverse_gradient(length: int, a: float, b: float, scale: float = 1.0) -> float:
    """Gradient of the half loss in a diagonal entry of the block (x_t, x_{t-1}) of W_KQ at p = b, k = a, q = 0.

    Args:
      length: T.
      a, b: the weights.
      scale: standard deviation of a coordinate of x_1.
    """
    _, c, square = planar_form(length, scale)
    # Both diagonal entries share q.
    return float(b * (square[1, 0] * a * b - c[1]) / 2)
