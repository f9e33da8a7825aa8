r"""The population loss on x_{t+1} = W x_t, W diagonal unitary, by brute force: an exact finite average over sequences.

The squared error at position t is a polynomial in the phases and in x_1, of degree at most 6 in each coordinate and with phase
exponents of size at most 3 (T - 2). So a phase may be replaced by N > 3 (T - 2) equally spaced angles, a Gaussian coordinate by
four Gauss-Hermite nodes, and the average over all combinations is the expectation. The attention is the literal formula.

Distributions of x_1 are named as in `theory.zheng2024`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Complex, Float, Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array

CHUNK = 2**15


def coordinate_nodes(distribution: str) -> tuple[Inexact[Array, "M"], Float[Array, "M"]]:
    """Nodes and weights with the moments, up to order 6, of one coordinate of unit scale.

    Args:
      distribution: one with independent coordinates: all of `zheng2024.DISTRIBUTIONS` but "sparse".

    Raises:
      InvalidValueError: another distribution.
    """
    if distribution == "gaussian":
        # The roots of the Hermite polynomial x^4 - 6 x^2 + 3.
        squares = 3 + np.sqrt(6) * np.array([1.0, -1.0, -1.0, 1.0])
        return np.array([-1.0, -1.0, 1.0, 1.0]) * np.sqrt(squares), 1 / (4 * squares)
    if distribution == "complex_gaussian":
        squares, weights = np.polynomial.laguerre.laggauss(2)
        turns = np.exp(0.5j * np.pi * np.arange(4))
        return np.outer(np.sqrt(squares), turns).ravel(), np.repeat(weights / 4, 4)
    if distribution == "rademacher":
        return np.array([1.0, -1.0]), np.array([0.5, 0.5])
    if distribution == "constant":
        return np.ones(1), np.ones(1)
    if distribution == "skew":
        return np.array([2.0, -1.0]), np.array([1.0, 2.0]) / 3
    raise InvalidValueError(
        f"`distribution` must be one with independent coordinates, not {distribution!r}, for which no nodes are known."
    )


def start_nodes(distribution: str, dim: int, scale: float) -> tuple[Inexact[Array, "M d"], Float[Array, "M"]]:
    """Start vectors and weights whose average replaces the expectation over x_1.

    A common phase of all coordinates does not change the squared error, so for distributions with that symmetry, or with the
    sign's, the first coordinate is kept positive.

    Args:
      distribution: one of `zheng2024.DISTRIBUTIONS`.
      dim: d.
      scale: standard deviation of a coordinate, or the size of a non-zero one.

    Returns:
      Start vectors (M, d) and their weights (M,), which sum to 1.
    """
    if distribution == "sparse":
        return scale * np.eye(dim), np.full(dim, 1 / dim)
    nodes, weights = coordinate_nodes(distribution)
    first = np.isreal(nodes) & (np.real(nodes) > 0) if distribution != "skew" else np.ones(len(nodes), bool)
    kept = weights[first] / np.sum(weights[first])
    points = itertools.product(scale * nodes[first], *[scale * nodes] * (dim - 1))
    shares = itertools.product(kept, *[weights] * (dim - 1))
    return np.array(list(points)), np.array([np.prod(share) for share in shares])


def angle_count(length: int) -> int:
    """The smallest number of equally spaced angles that is exact for sequences of length T."""
    return 3 * (length - 2) + 1


def sequence_count(distribution: str, dim: int, length: int) -> int:
    """How many sequences `loss` averages over."""
    return len(start_nodes(distribution, dim, 1.0)[0]) * angle_count(length) ** dim


def sequences(
    distribution: str, dim: int, length: int, scale: float, angles: int | None = None
) -> Iterator[tuple[Complex[Array, "B T d"], Float[Array, "B"]]]:
    """Chunks of sequences x_1 .. x_T and their weights, which sum to one over all chunks.

    Args:
      distribution: of x_1, one of `zheng2024.DISTRIBUTIONS`.
      dim: d.
      length: T >= 3.
      scale: standard deviation of a coordinate of x_1, or the size of a non-zero one.
      angles: how many angles replace each phase; `angle_count(length)` by default.
    """
    count = angle_count(length) if angles is None else angles
    points, weights = start_nodes(distribution, dim, scale)
    total = len(points) * count**dim
    for first in range(0, total, CHUNK):
        which = np.arange(first, min(first + CHUNK, total))
        start, phase = which // count**dim, which % count**dim
        digits = phase[:, None] // count ** np.arange(dim)[None, :] % count
        powers = digits[:, None, :] * np.arange(length)[None, :, None]
        yield points[start][:, None, :] * np.exp(2j * np.pi / count * powers), weights[start] / count**dim


def predictions(
    w_pv: Inexact[Array, "d D"], w_kq: Inexact[Array, "D D"], states: Inexact[Array, "B T d"]
) -> Complex[Array, "B T-2 d"]:
    r"""The layer's predictions of x_{t+1} at t = 2 .. T - 1.

    .. math:: \hat y_t = W^{PV}\Big(\tfrac{1}{t-1}\sum_{i\le t} e_i e_i^*\Big) W^{KQ} e_t, \qquad e_t = (x_t, x_{t-1}),\ x_0 = 0

    Args:
      w_pv: (d, 2d).
      w_kq: (2d, 2d).
      states: (B, T, d), x_1 .. x_T.
    """
    dim = states.shape[2]
    previous = np.concatenate([np.zeros_like(states[:, :1]), states[:, :-1]], axis=1)
    tokens = np.concatenate([states, previous], axis=2)
    gram = np.zeros((len(states), 2 * dim, 2 * dim), complex)
    answers = []
    for t in range(1, states.shape[1]):
        token = tokens[:, t - 1]
        gram += token[:, :, None] * token[:, None, :].conj()
        if t >= 2:
            answers.append(np.squeeze(gram @ (token @ w_kq.T)[:, :, None], axis=2) @ w_pv.T / (t - 1))
    return np.stack(answers, axis=1)


def half_squared_errors(
    w_pv: Inexact[Array, "d D"], w_kq: Inexact[Array, "D D"], states: Inexact[Array, "B T d"]
) -> Float[Array, "B"]:
    """Half the squared error of each sequence, summed over the predictions at t = 2 .. T - 1.

    Args:
      w_pv: (d, 2d).
      w_kq: (2d, 2d).
      states: (B, T, d), x_1 .. x_T.

    Returns:
      (B,).
    """
    return np.sum(np.abs(predictions(w_pv, w_kq, states) - states[:, 2:]) ** 2, axis=(1, 2)) / 2


def loss(
    w_pv: Inexact[Array, "d D"],
    w_kq: Inexact[Array, "D D"],
    distribution: str,
    length: int,
    scale: float,
    angles: int | None = None,
) -> float:
    """The population loss, the sum over t = 2 .. T - 1 of half the expected squared error.

    Args:
      w_pv: (d, 2d), from the attended token (x_i, x_{i-1}) to the answer.
      w_kq: (2d, 2d).
      distribution: of x_1, one of `zheng2024.DISTRIBUTIONS`.
      length: T >= 3.
      scale: standard deviation of a coordinate of x_1, or the size of a non-zero one.
      angles: how many angles replace each phase; `angle_count(length)` by default.

    Source: icl_lab; the setting of arXiv 2405.16845.
    """
    batches = sequences(distribution, len(w_pv), length, scale, angles)
    return sum(float(weights @ half_squared_errors(w_pv, w_kq, states)) for states, weights in batches)
