r"""The population risk of a whole one-layer linear self-attention, by conditioning: a slow, certain reference.

Setting: x ~ N(0, Lambda), w ~ N(0, Omega), y_i = w.x_i + noise of variance s2, and any weights. Given the task vector w,
context tokens v_i = (x_i, y_i) are independent N(0, V_w), so that their Gram matrix G = sum_i v_i v_i^T is Wishart:

    E G = N V,     E[G A G] = N^2 V A V + N V A^T V + N tr(A V) V.

What remains is a polynomial of degree four in w, which a fully symmetric cubature of degree five integrates exactly with
2 d^2 + 1 points. The terms of the query token inside the sum are Gaussian moments of degree up to six of x_q, summed
over all pairings. No algebra is shared with the closed formula that `objectives` trains on, and nothing is sampled.

Conventions: the risk is E(yhat - w.x_q)^2 (no 1/2, no query noise), yhat = last entry of W_PV (E E^T / rho) W_KQ (x_q, 0).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from icl_lab.core.typing import Array
from icl_lab.theory.regression.problem import Problem


def risk(
    problem: Problem,
    w_pv: Float[Array, "*H D D"],
    w_kq: Float[Array, "*H D D"],
    *,
    query_in_sum: bool,
    rho: float | None = None,
) -> float:
    """Excess risk of one layer, of one head or of several (leading axis), at any weights.

    Args:
      problem: the regression problem, of a finite context.
      w_pv: (d+1, d+1) or (H, d+1, d+1).
      w_kq: (d+1, d+1) or (H, d+1, d+1).
      query_in_sum: whether the query token (x_q, 0) takes part in the attention sum.
      rho: what the sum is divided by; None: N.

    Returns:
      E(yhat - w.x_q)^2, exact up to rounding.
    """
    problem.check_gaussian()
    dim, covariance, length = problem.dim, problem.covariance, problem.context_length
    rho = float(length) if rho is None else rho
    # The prediction reads the last row of W_PV, and the query's zero label hides the last column of W_KQ.
    values = w_pv.reshape(-1, dim + 1, dim + 1)[:, -1, :]
    keys = w_kq.reshape(-1, dim + 1, dim + 1)[:, :, :dim]
    tasks, weights = _gaussian_points(problem.task_covariance)
    token_covariance = _token_covariances(tasks, covariance, problem.noise_variance)

    # yhat = g.x_q + h(x_q), g = sum_h K_h^T G p_h / rho, h = sum_h (p1_h.x_q)(x_q^T K1_h x_q) / rho.
    mean_gram = length * token_covariance
    slope = np.einsum("hij,pik,hk->pj", keys, mean_gram, values) / rho
    square = np.zeros(len(tasks))
    for p, k in zip(values, keys, strict=True):
        for q, m in zip(values, keys, strict=True):
            square = square + np.einsum("i,pij,j->p", p, _wishart(token_covariance, k @ covariance @ m.T, length), q)
    conditional = square / rho**2 - 2 * np.einsum("pi,ij,pj->p", tasks, covariance, slope)
    conditional = conditional + np.einsum("pi,ij,pj->p", tasks, covariance, tasks)
    if query_in_sum:
        heads = list(zip(values[:, :dim], keys[:, :dim, :], strict=True))
        first = sum(_gaussian_moment([p, k], covariance, free=True) for p, k in heads) / rho
        second = sum(_gaussian_moment([p, k, q, m], covariance) for p, k in heads for q, m in heads) / rho**2
        conditional = conditional + 2 * (slope - tasks) @ first + second
    return float(weights @ conditional)


def risk_gradient(
    problem: Problem, w_pv: Float[Array, "*H D D"], w_kq: Float[Array, "*H D D"], **options
) -> tuple[Float[Array, "*H D D"], Float[Array, "*H D D"]]:
    """Gradient of `risk` with respect to W_PV and W_KQ.

    Central differences of unit step: the risk is quadratic in every single entry, so they are exact up to rounding.

    Args:
      problem: the regression problem.
      w_pv: (d+1, d+1) or (H, d+1, d+1).
      w_kq: (d+1, d+1) or (H, d+1, d+1).
      **options: the keyword arguments of `risk`.

    Returns:
      Two arrays, of the shapes of `w_pv` and `w_kq`.
    """

    def difference(vary, matrix):
        gradient = np.zeros_like(matrix)
        for index in np.ndindex(*matrix.shape):
            step = np.zeros_like(matrix)
            step[index] = 1.0
            gradient[index] = (vary(matrix + step) - vary(matrix - step)) / 2
        return gradient

    return (
        difference(lambda matrix: risk(problem, matrix, w_kq, **options), w_pv),
        difference(lambda matrix: risk(problem, w_pv, matrix, **options), w_kq),
    )


def _gaussian_points(covariance: Float[Array, "d d"]) -> tuple[Float[Array, "P d"], Float[Array, "P"]]:
    """Points and weights that integrate every polynomial of degree five against N(0, covariance) exactly.

    Source: the fully symmetric rule of McNamee and Stenger (1967) with generators 0, (r), (r, r), r^2 = 3.
    """
    dim = len(covariance)
    axis = np.sqrt(3) * np.eye(dim)
    pairs = [a * axis[i] + b * axis[j] for i, j in itertools.combinations(range(dim), 2) for a in (1, -1) for b in (1, -1)]
    points = np.concatenate([np.zeros((1, dim)), axis, -axis, np.reshape(pairs, (-1, dim))])
    weights = np.concatenate([[1 + (dim**2 - 7 * dim) / 18], np.full(2 * dim, (4 - dim) / 18), np.full(len(pairs), 1 / 36)])
    values, vectors = np.linalg.eigh(covariance)
    return points @ (vectors * np.sqrt(np.clip(values, 0, None))[None, :]).T, weights


def _token_covariances(
    tasks: Float[Array, "P d"], covariance: Float[Array, "d d"], noise_variance: float
) -> Float[Array, "P d+1 d+1"]:
    """Covariance of a context token (x, w.x + noise), for every task vector."""
    count, dim = tasks.shape
    lift = np.concatenate([np.tile(np.eye(dim), (count, 1, 1)), tasks[:, None, :]], axis=1)
    tokens = lift @ covariance @ lift.transpose(0, 2, 1)
    tokens[:, -1, -1] += noise_variance
    return tokens


def _wishart(tokens: Float[Array, "P D D"], middle: Float[Array, "D D"], count: int | float) -> Float[Array, "P D D"]:
    """E[G A G] of the Gram matrix G of `count` tokens, for any (not only symmetric) A."""
    trace = np.einsum("ij,pji->p", middle, tokens)
    through = tokens @ middle @ tokens
    crossed = tokens @ middle.T @ tokens
    return count**2 * through + count * crossed + count * trace[:, None, None] * tokens


def _gaussian_moment(factors: list[Array], covariance: Float[Array, "d d"], free: bool = False) -> Float[Array, "..."]:
    """E of a product of linear forms (vectors) and quadratic forms (matrices) of x ~ N(0, covariance), over all pairings.

    With `free` the product is also multiplied by x itself, and the expectation is a vector.
    """
    subscripts, position = [], 0
    for factor in factors:
        subscripts.append("abcdefgh"[position : position + factor.ndim])
        position += factor.ndim
    letters = "".join(subscripts) + ("z" if free else "")
    total = np.zeros(len(covariance)) if free else np.zeros(())
    for pairing in _pairings(letters):
        equation = ",".join(subscripts + pairing) + "->" + ("z" if free else "")
        total = total + np.einsum(equation, *factors, *[covariance] * len(pairing), optimize=True)
    return np.asarray(total)


def _pairings(letters: str) -> Iterator[list[str]]:
    """Every way to split an even number of letters into pairs."""
    if not letters:
        yield []
        return
    for i in range(1, len(letters)):
        for rest in _pairings(letters[1:i] + letters[i + 1 :]):
            yield [letters[0] + letters[i], *rest]
