r"""The lemmas behind Theorem 4.1 of Zhang, Frei, Bartlett (arXiv 2306.09927): what the layer computes, and its reduced loss.

The layer reads the last row (p1, p2) of W_PV and the first d columns [K1; k2^T] of W_KQ. *Structured* weights have p1 = 0 and
k2 = 0; then only u = p2 and U = K1 are left, and gradient flow never leaves them. The clock is that of the half loss
L = 1/2 E(yhat - w.x_q)^2, and

    Gamma = (1 + 1/N) Lambda + (tr Lambda / N) I.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from icl_lab.core.typing import Array
from icl_lab.theory.regression.lsa import response_moment
from icl_lab.theory.regression.problem import Problem
from icl_lab.theory.regression.zhang2023 import gamma


def prediction(
    w_pv: Float[Array, "D D"],
    w_kq: Float[Array, "D D"],
    inputs: Float[Array, "N d"],
    labels: Float[Array, "N"],
    query: Float[Array, "d"],
) -> float:
    r"""The layer's answer as a bilinear form of the two parts of its weights that matter.

    .. math:: \hat y = (p_1^\top\ p_2)\, \tfrac1N E E^\top \begin{bmatrix} K_1 \\ k_2^\top \end{bmatrix} x_q

    Args:
      w_pv, w_kq: (d+1, d+1).
      inputs: (N, d), examples as rows.
      labels: (N,).
      query: (d,); its token (x_q, 0) takes part in E E^T.

    Source: arXiv 2306.09927, equation (3.5) and the remark after it.
    """
    return float(w_pv[-1] @ _gram(inputs, labels, query) @ w_kq[:, :-1] @ query)


def quadratic_form(inputs: Float[Array, "N d"], labels: Float[Array, "N"], query: Float[Array, "d"]) -> Float[Array, "P P"]:
    r"""The matrix H with yhat = vec(U)^T H vec(U), U = [[K1, p1], [k2^T, p2]] and vec stacking columns.

    .. math:: H = \tfrac12 X \otimes \tfrac1N E E^\top, \qquad X = \begin{bmatrix} 0 & x_q \\ x_q^\top & 0 \end{bmatrix}

    Args:
      inputs: (N, d).
      labels: (N,).
      query: (d,).

    Returns:
      ((d+1)^2, (d+1)^2), symmetric and indefinite.

    Source: arXiv 2306.09927, Lemma 5.1.
    """
    dim = len(query)
    cross = np.zeros((dim + 1, dim + 1))
    cross[:dim, dim] = cross[dim, :dim] = query
    return np.kron(cross, _gram(inputs, labels, query)) / 2


def quadratic_form_eigenvalues(
    inputs: Float[Array, "N d"], labels: Float[Array, "N"], query: Float[Array, "d"]
) -> Float[Array, "P"]:
    r"""The eigenvalues of `quadratic_form` in increasing order: +-|x_q| s_j^2 / (2N), s_j the singular values of E, and zeros.

    Args:
      inputs: (N, d).
      labels: (N,).
      query: (d,).

    Returns:
      ((d+1)^2,).

    Source: the lab's own, from arXiv 2306.09927, Lemma 5.1: the eigenvalues of a Kronecker product.
    """
    dim = len(query)
    singular = np.linalg.svd(_tokens(inputs, labels, query), compute_uv=False)
    values = np.linalg.norm(query) * singular**2 / (2 * len(inputs))
    zeros = np.zeros((dim + 1) ** 2 - 2 * len(values))
    return np.sort(np.concatenate([values, -values, zeros]))


def negative_directions(dim: int, context_length: int) -> int:
    """Number of negative eigenvalues of `quadratic_form` for noiseless linear labels: the rank of E, min(d, N) + 1.

    Source: the lab's own, from arXiv 2306.09927, Lemma 5.1.
    """
    return min(dim, context_length) + 1


def velocity(
    u: float, inner: Float[Array, "d d"], covariance: Float[Array, "d d"], context_length: int | float
) -> tuple[float, Float[Array, "d d"]]:
    r"""Gradient flow of structured weights for standard normal tasks without noise.

    .. math:: \dot u = -\operatorname{tr}[u\,\Gamma\Lambda U\Lambda U^\top - \Lambda^2 U^\top], \qquad
              \dot U = -u^2\,\Gamma\Lambda U\Lambda + u\Lambda^2

    Args:
      u: corner of W_PV.
      inner: (d, d), U, the input block of W_KQ.
      covariance: (d, d), Lambda.
      context_length: N.

    Returns:
      du/dt and dU/dt (d, d).

    Source: arXiv 2306.09927, Lemma 5.2.
    """
    square = covariance @ covariance
    pull = gamma(covariance, context_length) @ covariance @ inner @ covariance
    return float(-np.trace(u * pull @ inner.T - square @ inner.T)), -(u**2) * pull + u * square


def general_velocity(problem: Problem, u: float, inner: Float[Array, "d d"]) -> tuple[float, Float[Array, "d d"]]:
    r"""Gradient flow of structured weights for any task covariance and noise.

    .. math:: \dot u = \langle U, D\rangle - u\langle U, C_N U\Lambda\rangle, \qquad
              \dot U = u D - u^2\, C_N U \Lambda, \qquad D = \Lambda\Omega\Lambda

    with C_N the `theory.lsa.response_moment`.

    Args:
      problem: the regression problem.
      u: corner of W_PV.
      inner: (d, d), U, the input block of W_KQ.

    Returns:
      du/dt and dU/dt (d, d).

    Source: the lab's own, extending arXiv 2306.09927, Lemma 5.2.
    """
    signal = problem.covariance @ problem.task_covariance @ problem.covariance
    pull = response_moment(problem) @ inner @ problem.covariance
    return float(np.sum(inner * signal) - u * np.sum(inner * pull)), u * signal - u**2 * pull


def reduced_loss(u: float, inner: Float[Array, "d d"], covariance: Float[Array, "d d"], context_length: int | float) -> float:
    r"""The half loss of structured weights less its value 1/2 tr(Lambda) at zero.

    .. math:: \ell(U, u) = \operatorname{tr}[\tfrac12 u^2\,\Gamma\Lambda U\Lambda U^\top - u\Lambda^2 U^\top]

    Args:
      u: corner of W_PV.
      inner: (d, d), U, the input block of W_KQ.
      covariance: (d, d), Lambda.
      context_length: N.

    Source: arXiv 2306.09927, Lemma A.1.
    """
    pull = gamma(covariance, context_length) @ covariance @ inner @ covariance
    return float(np.trace(u**2 / 2 * pull @ inner.T - u * covariance @ covariance @ inner.T))


def minimum_reduced_loss(covariance: Float[Array, "d d"], context_length: int | float) -> float:
    r"""The smallest `reduced_loss`, -1/2 tr(Lambda^2 Gamma^{-1}).

    Source: arXiv 2306.09927, Corollary A.2.
    """
    return float(-np.trace(covariance @ covariance @ np.linalg.inv(gamma(covariance, context_length))) / 2)


def loss_gap(u: float, inner: Float[Array, "d d"], covariance: Float[Array, "d d"], context_length: int | float) -> float:
    r"""How far the loss of structured weights is above its minimum.

    .. math:: \ell - \min\ell = \tfrac12\,
              \lVert\Gamma^{1/2}(u\Lambda^{1/2}U\Lambda^{1/2} - \Lambda\Gamma^{-1})\rVert_F^2

    Args:
      u: corner of W_PV.
      inner: (d, d), U, the input block of W_KQ.
      covariance: (d, d), Lambda.
      context_length: N.

    Source: arXiv 2306.09927, Corollary A.2.
    """
    matrix = gamma(covariance, context_length)
    root = _root(covariance)
    return float(np.linalg.norm(_root(matrix) @ (u * root @ inner @ root - covariance @ np.linalg.inv(matrix))) ** 2 / 2)


def _tokens(inputs, labels, query) -> Float[Array, "D T"]:
    """E of the paper, tokens as columns."""
    return np.concatenate([np.column_stack([inputs, labels]), np.append(query, 0.0)[None]]).T


def _gram(inputs, labels, query) -> Float[Array, "D D"]:
    """E E^T / N."""
    tokens = _tokens(inputs, labels, query)
    return tokens @ tokens.T / len(inputs)


def _root(matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values)[None, :]) @ vectors.T
