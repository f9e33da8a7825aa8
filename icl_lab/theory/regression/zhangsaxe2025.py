r"""Training dynamics of linear attention with merged and with separate key and query matrices (arXiv 2501.16265).

Setting: x ~ N(0, Lambda), w ~ N(0, I), no noise, N examples, structured heads: head h has one value v_h (the corner of its
W_PV) and acts on the inputs by U_h. Merged heads train (v_h, U_h); separate heads of rank R train v_h and K_h, Q_h (R, d) with
U_h = K_h^T Q_h. The layer computes sum_h v_h b^T U_h x_q / N, b = sum_i y_i x_i, so all that counts is W = sum_h v_h U_h.

Gradient flow is that of *half* the mean squared error; losses below are mean squared errors. In the eigenbasis of Lambda,

    g_i = 1 + (1 + tr(Lambda) / lambda_i) / N.

Source of every formula: Zhang, Singh, Latham, Saxe (arXiv 2501.16265), re-derived, unless it says otherwise.
"""

from __future__ import annotations

import numpy as np
import scipy.integrate
from jaxtyping import Float

from icl_lab.core.typing import Array
from icl_lab.theory.regression import lsa
from icl_lab.theory.regression.problem import Problem
from icl_lab.theory.regression.stability import common_basis
from icl_lab.theory.regression.timecourse import RTOL, signal


def merged_invariant(values: Float[Array, "H"], inner: Float[Array, "H d d"]) -> Float[Array, "H H"]:
    """What merged heads conserve: v v^T less the inner products <U_a, U_b>."""
    rows = inner.reshape(len(values), -1)
    return np.outer(values, values) - rows @ rows.T


def separate_invariants(
    values: Float[Array, "H"], keys: Float[Array, "H R d"], queries: Float[Array, "H R d"]
) -> tuple[Float[Array, "H"], Float[Array, "H R R"]]:
    """What each separate head conserves: v^2 - ||K||_F^2 and K K^T - Q Q^T."""
    grams = keys @ keys.transpose(0, 2, 1) - queries @ queries.transpose(0, 2, 1)
    return values**2 - np.sum(keys**2, axis=(1, 2)), grams


def second_moment(covariance: Float[Array, "d d"], context_length: int | float) -> Float[Array, "d d"]:
    """E S^2 = Lambda^2 + (Lambda + tr(Lambda) I) Lambda / N of the sample covariance S = sum_i x_i x_i^T / N."""
    return covariance @ covariance + (covariance + np.trace(covariance) * np.eye(len(covariance))) @ covariance / context_length


def separate_velocity(
    values: Float[Array, "H"],
    keys: Float[Array, "H R d"],
    queries: Float[Array, "H R d"],
    covariance: Float[Array, "d d"],
    context_length: int | float,
) -> tuple[Float[Array, "H"], Float[Array, "H R d"], Float[Array, "H R d"]]:
    r"""Gradient flow of separate heads.

    .. math:: \dot v_h = \langle K_h^\top Q_h, E\rangle, \quad \dot K_h = v_h Q_h E^\top, \quad \dot Q_h = v_h K_h E,
              \qquad E = \Lambda^2 - \mathbb{E}\hat S^2\, W \Lambda

    Args:
      values: (H,), v_h.
      keys: (H, R, d), K_h.
      queries: (H, R, d), Q_h.
      covariance: (d, d), Lambda.
      context_length: N.

    Returns:
      (dv/dt, dK/dt, dQ/dt), of the same shapes.
    """
    product = np.einsum("h,hri,hrj->ij", values, keys, queries)
    error = covariance @ covariance - second_moment(covariance, context_length) @ product @ covariance
    scale = values[:, None, None]
    return np.einsum("hri,ij,hrj->h", keys, error, queries), scale * queries @ error.T, scale * keys @ error


def gains(spectrum: Float[Array, "d"], context_length: int | float) -> Float[Array, "d"]:
    """The factors g_i; 1 / (lambda_i g_i) is the eigenvalue of the optimal W."""
    return 1 + (1 + np.sum(spectrum) / spectrum) / context_length


def subset_product(spectrum: Float[Array, "d"], context_length: int | float, learned: Float[Array, "d"]) -> Float[Array, "d"]:
    """The eigenvalues of W at the fixed point that has learned a set of eigenvectors.

    Args:
      spectrum: (d,), eigenvalues of Lambda.
      context_length: N.
      learned: (d,), 1 for an eigenvector in the set, else 0. Each of the 2^d sets gives a fixed point.
    """
    return learned / (spectrum * gains(spectrum, context_length))


def subset_risk(spectrum: Float[Array, "d"], context_length: int | float, learned: Float[Array, "d"]) -> float:
    """The mean squared error at `subset_product`, tr(Lambda) - sum over the set of lambda_i / g_i.

    Args:
      spectrum: (d,), eigenvalues of Lambda.
      context_length: N.
      learned: (d,), 1 for an eigenvector in the set, else 0.
    """
    return float(np.sum(spectrum) - np.sum(learned * spectrum / gains(spectrum, context_length)))


def is_strict_saddle(learned: Float[Array, "d"]) -> bool:
    """Whether balanced heads at a fixed point (unused ones at zero) have a Hessian with a negative eigenvalue.

    They do unless the set is a prefix, the leading eigenvectors and no others: a head then turns from its eigenvector towards a
    larger one that is not in the set. At a prefix W is the best matrix of its rank, and only a new head, which enters in the
    third order, lowers the loss; that is why plateaus last a power of the initial scale.

    Args:
      learned: (d,), 1 for an eigenvector in the set, in descending order of their (distinct) eigenvalues.

    Source: the lab's own.
    """
    return bool(np.any(np.diff(learned) > 0))


def plateau_risks(spectrum: Float[Array, "d"], context_length: int | float) -> Float[Array, "d+1"]:
    """The mean squared errors at which rank-one heads rest in turn, from a small start: 0, 1, ..., d leading eigenvectors.

    Between two drops the layer does in-context principal component regression with that many components.
    """
    ordered = np.sort(spectrum)[::-1]
    prefixes = np.tri(len(ordered) + 1, len(ordered), -1)
    return np.array([subset_risk(ordered, context_length, learned) for learned in prefixes])


def head_sizes(spectrum: Float[Array, "d"], context_length: int | float) -> Float[Array, "d"]:
    """v* = (lambda_i g_i)^{-1/3}: |v| of a balanced rank-one head that has learned eigenvector i, also the norm of k and q."""
    return (spectrum * gains(spectrum, context_length)) ** (-1 / 3)


def head_time(start: float, end: float, eigenvalue: float, gain: float) -> float:
    r"""Time that a balanced head on one eigenvector takes to grow: dv/dt = lambda^2 v^2 - lambda^3 g v^5.

    .. math:: t = \frac{P(v/v^*) - P(v_0/v^*)}{\lambda^2 v^*}, \qquad
              P(x) = -\tfrac1x - \tfrac13\ln(1-x) + \tfrac16\ln(1+x+x^2) - \tfrac{1}{\sqrt3}\arctan\tfrac{2x+1}{\sqrt3}

    so that the plateau lasts about 1 / (lambda^2 v_0): a power of the initial scale, where merged heads have its logarithm.

    Args:
      start, end: values of v, 0 < start <= end < v*.
      eigenvalue: lambda.
      gain: g.

    Source: the implicit solution is the lab's own.
    """
    final = (eigenvalue * gain) ** (-1 / 3)

    def primitive(x: float) -> float:
        angle = np.arctan((2 * x + 1) / np.sqrt(3)) / np.sqrt(3)
        return -1 / x - np.log(1 - x) / 3 + np.log(1 + x + x**2) / 6 - angle

    return float((primitive(end / final) - primitive(start / final)) / (eigenvalue**2 * final))


def full_rank_limit(product: Float[Array, "d d"]) -> tuple[float, Float[Array, "d d"]]:
    """The balanced head v K^T Q = B* with K = Q = v^{-1/2} B*^{1/2}: v = (tr B*)^{1/3} and K^T K.

    Args:
      product: (d, d), B*, symmetric positive semidefinite.

    Returns:
      v, and K^T K = B* / v (d, d).

    Source: the lab's own, from the conserved v^2 - ||K||_F^2 = 0.
    """
    value = float(np.trace(product)) ** (1 / 3)
    return value, product / value


def full_rank_flow(problem: Problem, sigma: float, times: Float[Array, "S"]) -> tuple[Float[Array, "S"], Float[Array, "S d"]]:
    r"""One separate head of full rank along its flow from v = sigma and K = Q = sigma / sqrt(d) in the eigenbasis.

    .. math:: \dot v = \sum_i d_i k_i^2 - v \sum_i c_i l_i k_i^4, \qquad \dot k_i = v\,d_i k_i - v^2 c_i l_i k_i^3

    d_i, c_i, l_i are the eigenvalues of D, C (see `theory.timecourse`) and Lambda, which commute.

    Args:
      problem: the regression problem.
      sigma: initial scale.
      times: (S,).

    Returns:
      v (S,) and k (S, d), in the order of `theory.stability.common_basis`.

    Raises:
      AssumptionError: Lambda and Omega do not commute.

    Source: the lab's own.
    """
    basis = common_basis(problem.covariance, problem.task_covariance)
    values = np.diag(basis.T @ problem.covariance @ basis)
    drive = np.diag(basis.T @ signal(problem.covariance, problem.task_covariance) @ basis)
    pull = np.diag(basis.T @ lsa.response_moment(problem) @ basis) * values

    def rates(_: float, state: np.ndarray) -> np.ndarray:
        v, k = state[0], state[1:]
        return np.concatenate([[np.sum(drive * k**2 - v * pull * k**4)], v * drive * k - v**2 * pull * k**3])

    start = sigma * np.concatenate([[1.0], np.full(len(values), len(values) ** -0.5)])
    solution = scipy.integrate.solve_ivp(
        rates, (0.0, float(times[-1])), start, method="DOP853", t_eval=times, rtol=RTOL, atol=RTOL * 1e-2 * sigma
    )
    return solution.y[0], solution.y[1:].T
