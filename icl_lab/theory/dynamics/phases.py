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
    """Nodes and weights with the moments of one coordinate of unit scale up to order 6, for distributions of independent
    coordinates.

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
    raise InvalidValueError(f"`distribution` must have independent coordinates and be known; got {distribution!r}.")


def start_nodes(distribution: str, dim: int, scale: float) -> tuple[Inexact[Array, "M d"], Float[Array, "M"]]:
    """Start vectors and weights whose average replaces the expectation over x_1.

    A common phase of all coordinates does not change the squared error, so for distributions with that symmetry, or with the
    sign's, the first coordinate is kept positive.

    Args:
      distribution: its name.
      dim: d.
      scale: of the distribution.
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
      distribution, dim, scale: of x_1.
      length: T.
      angles: N for each phase; `angle_count(length)` if omitted.
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
      distribution, scale: of x_1.
      length: T.
      angles: as in `sequences`.

    Source: icl_lab; the setting of arXiv 2405.16845.
    """
    total = 0.0
    for states, weights in sequences(distribution, len(w_pv), length, scale, angles):
        errors = predictions(w_pv, w_kq, states) - states[:, 2:]
        total += float(np.sum(weights[:, None, None] * np.abs(errors) ** 2)) / 2
    return total


def live_blocks(
    value: Inexact[Array, "d d"], key_query: Inexact[Array, "d d"]
) -> tuple[Inexact[Array, "d D"], Inexact[Array, "D D"]]:
    """The matrices of `loss` whose only non-zero blocks are P (the first of W_PV) and K (row x_{t-1}, column x_t)."""
    dim = len(value)
    return np.pad(value, ((0, 0), (0, dim))), np.pad(key_query, ((dim, 0), (0, dim)))


def sampled_loss(
    w_pv: Inexact[Array, "d D"],
    w_kq: Inexact[Array, "D D"],
    distribution: str,
    length: int,
    scale: float,
    samples: int,
    seed: int,
) -> tuple[float, float]:
    """`loss` by Monte Carlo, where an exact average would take too many sequences; the mean and its standard error.

    Args:
      w_pv, w_kq, distribution, length, scale: as in `loss`.
      samples: sequences, with random phases and start vectors drawn from the nodes of `start_nodes`.
      seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    dim = len(w_pv)
    values = []
    for first in range(0, samples, CHUNK):
        size = min(CHUNK, samples - first)
        start = draw_starts(distribution, dim, scale, size, rng)
        turns = np.exp(1j * rng.uniform(0, 2 * np.pi, (size, 1, dim)) * np.arange(length)[None, :, None])
        states = start[:, None, :] * turns
        values.append(np.sum(np.abs(predictions(w_pv, w_kq, states) - states[:, 2:]) ** 2, axis=(1, 2)) / 2)
    drawn = np.concatenate(values)
    return float(np.mean(drawn)), float(np.std(drawn, ddof=1) / np.sqrt(samples))


def draw_starts(distribution: str, dim: int, scale: float, samples: int, rng: np.random.Generator) -> Inexact[Array, "B d"]:
    """Random start vectors with the moments of the distribution up to order 6; args as in `sampled_loss`."""
    if distribution == "sparse":
        return scale * np.eye(dim)[rng.integers(dim, size=samples)]
    nodes, weights = coordinate_nodes(distribution)
    return scale * rng.choice(nodes, size=(samples, dim), p=weights)
