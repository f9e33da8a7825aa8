r"""The layer of arXiv 2405.16845 trained without a mask on x_1 = c (1, .., 1): two-sided preconditioned gradient descent.

By permutation symmetry the flow from K = a I, P = b I stays on

    K = a' J + (a - a') I,   P = b' J + (b - b') I,   J all ones,

where a and a' are the diagonal and the off-diagonal entries. With (a0, a1) = (a - a', a') and (b0, b1) likewise the prediction
is linear in the four products (b0 a0, b0 a1, b1 a0, b1 a1), with features made of power sums p_k = sum_j lambda_j^k of the
phases.
Everything here is the lab's own; the paper shows only that the layer is not plain gradient descent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import scipy.integrate
from jaxtyping import Float, Int

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.theory.dynamics.zheng2024 import check_start


class Quadratic(NamedTuple):
    """The loss (variance - 2 cross.theta + theta.gram.theta) / 2 of the four products.

    Attributes:
      variance: (), d (T - 2) c^2.
      cross: (4,).
      gram: (4, 4).
    """

    variance: float
    cross: Float[Array, "4"]
    gram: Float[Array, "4 4"]

    def loss(self, a: float, a_off: float, b: float, b_off: float) -> float:
        """The loss at diagonal entries a, b and off-diagonal entries a', b'."""
        theta = np.outer([b - b_off, b_off], [a - a_off, a_off]).ravel()
        return float(self.variance - 2 * self.cross @ theta + theta @ self.gram @ theta) / 2

    def slopes(self, a: float, a_off: float, b: float, b_off: float) -> Float[Array, "4"]:
        """The derivatives of the loss in a, a', b, b'."""
        left, right = np.array([b - b_off, b_off]), np.array([a - a_off, a_off])
        slope = (self.gram @ np.outer(left, right).ravel() - self.cross).reshape(2, 2)
        in_right, in_left = left @ slope, slope @ right
        return np.array([in_right[0], in_right[1] - in_right[0], in_left[0], in_left[1] - in_left[0]])


class Weights(NamedTuple):
    """Diagonal and off-diagonal entries of K (a, a_off) and P (b, b_off)."""

    a: float
    a_off: float
    b: float
    b_off: float


def power_sum_moment(exponents: Sequence[Int[Array, "*batch"]], dim: int) -> Float[Array, "*batch"]:
    """E prod_r p_{k_r} for d independent uniform phases.

    Opening the product, each factor picks a coordinate; those that pick the same one must have exponents that add up to zero.
    So the mean is the sum over set partitions of the factors with all block sums zero of d (d-1) .. (d - blocks + 1).

    Args:
      exponents: k_1 .. k_R, each of the shape of a batch of products.
      dim: d.
    """
    count = len(exponents)
    shape = np.broadcast_shapes(*(np.shape(k) for k in exponents))
    cancels = {}
    for mask in range(1, 2**count):
        cancels[mask] = sum(exponents[r] for r in range(count) if mask >> r & 1) == 0
    total = np.zeros(shape)
    for blocks in _partitions(2**count - 1):
        ways = np.prod([float(dim - r) for r in range(len(blocks))])
        if ways:
            total += ways * np.logical_and.reduce([np.broadcast_to(cancels[block], shape) for block in blocks])
    return total


def _partitions(mask: int) -> Iterator[tuple[int, ...]]:
    """Set partitions of the bits of `mask`, as tuples of bit masks."""
    if not mask:
        yield ()
        return
    lowest = mask & -mask
    rest = mask ^ lowest
    others = rest
    while True:
        for tail in _partitions(rest ^ others):
            yield (lowest | others, *tail)
        if not others:
            return
        others = (others - 1) & rest


def quadratic(dim: int, length: int, scale: float = 1.0) -> Quadratic:
    """The loss as a quadratic form in the four products.

    Args:
      dim: d.
      length: T >= 3.
      scale: c.

    Raises:
      InvalidValueError: T < 3.
    """
    if length < 3:
        raise InvalidValueError(f"`length` must be >= 3; got {length!r}. The loss sums over t = 2 .. T - 1.")
    pairs = [np.stack([*np.indices((t - 1, t - 1)).reshape(2, -1) + 1, np.full((t - 1) ** 2, t)]) for t in range(2, length)]
    i, j, t = np.concatenate(pairs, axis=1)
    # Feature r is v_r(i) times a product of power sums; v is x_{i+1} for the first two and the vector of ones for the others.
    alone = _power_sums(i, t)
    starred = [[-k for k in product] for product in _power_sums(j, t)]
    weight = 1 / (t - 1.0) ** 2
    gram = np.zeros((4, 4))
    for r in range(4):
        for q in range(r + 1):
            # The inner product v_q(j)^* v_r(i) is itself a power sum.
            inner = (i if r < 2 else 0 * i) - (j if q < 2 else 0 * j)
            moment = power_sum_moment([inner, *alone[r], *starred[q]], dim)
            gram[r, q] = gram[q, r] = np.sum(weight * moment)
    steps = [np.stack([np.arange(1, t), np.full(t - 1, t)]) for t in range(2, length)]
    i, t = np.concatenate(steps, axis=1)
    products = _power_sums(i, t)
    cross = [np.sum(power_sum_moment([(i if r < 2 else 0 * i) - t, *products[r]], dim) / (t - 1.0)) for r in range(4)]
    return Quadratic(dim * (length - 2) * scale**2, scale**4 * np.array(cross), scale**6 * gram)


def _power_sums(i: Int[Array, "B"], t: Int[Array, "B"]) -> list[list[Int[Array, "B"]]]:
    """Exponents of the power sums of each feature: x_i^* x_t, x_i^* J x_t, then both with 1^* x_{i+1} in front."""
    direct, spread = [t - i], [1 - i, t - 1]
    return [direct, spread, [i, *direct], [i, *spread]]


def minimiser(form: Quadratic) -> Weights:
    """The minimum of the loss with b = 1, reached from plain gradient descent; its products do not depend on that scale."""
    matrix = form.gram.reshape(2, 2, 2, 2)
    cross = form.cross.reshape(2, 2)
    left = np.array([1.0, 0.0])
    # Alternating least squares; each half step is exact, and the error shrinks by a constant factor.
    for _ in range(10_000):
        right = np.linalg.solve(np.einsum("p,paqb,q->ab", left, matrix, left), left @ cross)
        new = np.linalg.solve(np.einsum("a,paqb,b->pq", right, matrix, right), cross @ right)
        new = new / np.sum(new)
        change, left = np.max(np.abs(new - left)), new
        if change < 1e-15:
            break
    right = np.linalg.solve(np.einsum("p,paqb,q->ab", left, matrix, left), left @ cross)
    return Weights(float(np.sum(right)), float(right[1]), 1.0, float(left[1]))


def limit(form: Quadratic, dim: int, a0: float, b0: float) -> Weights:
    """The limit of the flow from K = a0 I, P = b0 I.

    The products are those of the minimum, and the flow conserves d (b^2 - a^2) + d (d-1) (b'^2 - a'^2).

    Args:
      form: the loss, from `quadratic`.
      dim: d.
      a0: diagonal of K at the start.
      b0: diagonal of P at the start.

    Raises:
      AssumptionError: a0 = -b0.
    """
    check_start(a0, b0)
    best = minimiser(form)
    key_ratio, value_ratio = best.a_off / best.a, best.b_off / best.b
    key_norm, value_norm = 1 + (dim - 1) * key_ratio**2, 1 + (dim - 1) * value_ratio**2
    # b^2 value_norm - a^2 key_norm = b0^2 - a0^2 with a b given, solved for a^2.
    gap = b0**2 - a0**2
    a_squared = (np.hypot(gap, 2 * best.a * np.sqrt(key_norm * value_norm)) - gap) / (2 * key_norm)
    a = float(np.sign(a0 + b0) * np.sqrt(a_squared))
    b = best.a * best.b / a
    return Weights(a, a * key_ratio, b, b * value_ratio)


def flow(form: Quadratic, dim: int, a0: float, b0: float, times: Float[Array, "S"]) -> Float[Array, "S 4"]:
    """(a, a', b, b') along gradient flow of the matrix entries from K = a0 I, P = b0 I.

    Args:
      form: the loss, from `quadratic`.
      dim: d.
      a0: diagonal of K at the start.
      b0: diagonal of P at the start.
      times: (S,), increasing, t >= 0.

    Returns:
      (S, 4).
    """
    times = np.asarray(times, dtype=np.float64)
    solution = scipy.integrate.solve_ivp(
        lambda _, state: -form.slopes(*state) / _shares(dim),
        (0.0, float(times[-1])),
        [a0, 0.0, b0, 0.0],
        method="LSODA",
        t_eval=times,
        rtol=1e-12,
        atol=1e-14,
    )
    return solution.y.T


def descent(form: Quadratic, dim: int, a0: float, b0: float, step_size: float, steps: int) -> Float[Array, "K 4"]:
    """(a, a', b, b') along gradient descent on the matrix entries from K = a0 I, P = b0 I, the start included.

    Args:
      form: the loss, from `quadratic`.
      dim: d.
      a0: diagonal of K at the start.
      b0: diagonal of P at the start.
      step_size: of gradient descent.
      steps: how many.

    Returns:
      (steps + 1, 4).
    """
    path = [np.array([a0, 0.0, b0, 0.0])]
    for _ in range(steps):
        path.append(path[-1] - step_size * form.slopes(*path[-1]) / _shares(dim))
    return np.array(path)


def _shares(dim: int) -> Float[np.ndarray, "4"]:
    """How many matrix entries share each of the four numbers, which divides its derivative."""
    off = max(dim * (dim - 1), 1)
    return np.array([dim, off, dim, off], dtype=np.float64)
