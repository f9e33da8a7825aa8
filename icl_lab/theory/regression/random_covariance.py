r"""Training on prompts whose input covariance is itself random, drawn once a prompt: Zhang, Frei, Bartlett (arXiv 2306.09927).

Setting: Lambda from a distribution of finite support, x | Lambda ~ N(0, Lambda), w ~ N(0, I) and no noise unless said
otherwise, N examples, the clock of the half loss. Structured weights have a corner u of W_PV, an input block U of W_KQ, and
nothing else. For each covariance Gamma = (1 + 1/N) Lambda + (tr Lambda / N) I.

Diagonal covariances have independent eigenvalues lambda_i, given by (d, m) tables of values and probabilities.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import AssumptionError
from icl_lab.core.typing import Array
from icl_lab.theory.regression.lsa import response_moment
from icl_lab.theory.regression.optimum import balanced_weights
from icl_lab.theory.regression.problem import Problem
from icl_lab.theory.regression.zhang2023 import gamma


def velocity(
    u: float,
    inner: Float[Array, "d d"],
    covariances: Float[Array, "S d d"],
    probabilities: Float[Array, "S"],
    context_length: int,
) -> tuple[float, Float[Array, "d d"]]:
    r"""Gradient flow of structured weights.

    .. math:: \dot U = -u^2\,E[\Gamma\Lambda U\Lambda] + u\,E[\Lambda^2], \qquad
              \dot u = -u \operatorname{tr}E[\Gamma\Lambda U\Lambda U^\top] + \operatorname{tr}(E[\Lambda^2]U^\top)

    Args:
      u: corner of W_PV.
      inner: (d, d), U.
      covariances: (S, d, d), the support of Lambda, which need not commute.
      probabilities: (S,).
      context_length: N.

    Returns:
      du/dt and dU/dt (d, d).

    Source: arXiv 2306.09927, Lemma C.1.
    """
    square = np.einsum("s,sij,sjk->ik", probabilities, covariances, covariances)
    pulls = [gamma(matrix, context_length) @ matrix @ inner @ matrix for matrix in covariances]
    pull = np.einsum("s,sij->ij", probabilities, np.stack(pulls))
    return float(-u * np.sum(pull * inner) + np.sum(square * inner)), -(u**2) * pull + u * square


class DiagonalMoments(NamedTuple):
    """Moments of a diagonal distribution that decide the flow of structured weights.

    Attributes:
      gamma: (d,), E[(1 + 1/N) lambda_i^3 + lambda_i^2 tr(Lambda) / N].
      xi: (d,), E lambda_i^2.
      zeta: (d, d), E[(1 + 1/N) lambda_i^2 lambda_j + lambda_i lambda_j tr(Lambda) / N] off the diagonal, gamma on it.
    """

    gamma: Float[Array, "d"]
    xi: Float[Array, "d"]
    zeta: Float[Array, "d d"]


def diagonal_moments(
    values: Float[Array, "d m"], probabilities: Float[Array, "d m"], context_length: int | float
) -> DiagonalMoments:
    """The moments of independent eigenvalues, from their first three, without enumerating the joint distribution.

    Args:
      values: (d, m), lambda_i in row i.
      probabilities: (d, m).
      context_length: N.

    Source: arXiv 2306.09927, Corollary C.2; the trace includes the eigenvalue itself.
    """
    first, second, third = (np.sum(probabilities * values**k, axis=1) for k in (1, 2, 3))
    total, n = np.sum(first), context_length
    curve = (1 + 1 / n) * third + (third + second * (total - first)) / n
    cross = np.outer(second, first)
    others = total - first[:, None] - first[None, :]
    zeta = (1 + 1 / n) * cross + (cross + cross.T + np.outer(first, first) * others) / n
    np.fill_diagonal(zeta, curve)
    return DiagonalMoments(gamma=curve, xi=second, zeta=zeta)


def diagonal_velocity(u: float, inner: Float[Array, "d d"], moments: DiagonalMoments) -> tuple[float, Float[Array, "d d"]]:
    r"""`velocity` for a diagonal distribution, entry by entry: dU_ij/dt = -zeta_ij u^2 U_ij + delta_ij xi_i u.

    Args:
      u: corner of W_PV.
      inner: (d, d), U.
      moments: of the distribution, from `diagonal_moments`.

    Returns:
      du/dt and dU/dt (d, d).

    Source: arXiv 2306.09927, Corollary C.2.
    """
    matrix = -moments.zeta * u**2 * inner + np.diag(moments.xi) * u
    return float(-u * np.sum(moments.zeta * inner**2) + moments.xi @ np.diagonal(inner)), matrix


def minimum_reduced_loss(moments: DiagonalMoments) -> float:
    r"""The smallest half loss less that of zero weights, -1/2 sum_i xi_i^2 / gamma_i.

    Source: arXiv 2306.09927, Lemma C.4.
    """
    return float(-np.sum(moments.xi**2 / moments.gamma) / 2)


def loss_gap(u: float, inner: Float[Array, "d d"], moments: DiagonalMoments) -> float:
    r"""How far the half loss of structured weights is above its minimum.

    .. math:: \tfrac12\sum_i \gamma_i\left(u U_{ii} - \xi_i/\gamma_i\right)^2
              + \tfrac12\sum_{i \neq j} \zeta_{ij} u^2 U_{ij}^2

    Source: arXiv 2306.09927, Lemma C.4.
    """
    return float(np.sum(moments.zeta * (u * inner - preconditioner(moments)) ** 2) / 2)


def preconditioner(moments: DiagonalMoments) -> Float[Array, "d d"]:
    r"""The trained preconditioner :math:`E[\Gamma\Lambda^2]^{-1}E[\Lambda^2] = \operatorname{diag}(\xi_i/\gamma_i)`.

    Source: arXiv 2306.09927, Theorem 4.5.
    """
    return np.diag(moments.xi / moments.gamma)


def limit(moments: DiagonalMoments) -> tuple[Float[Array, "D D"], Float[Array, "D D"]]:
    r"""The limits of W_PV and W_KQ: u = ||R||_F^{1/2} and U = R / ||R||_F^{1/2} with R the `preconditioner`.

    Source: arXiv 2306.09927, Theorem 4.5.
    """
    return balanced_weights(preconditioner(moments))


def check_initialisation(
    scale: float,
    values: Float[Array, "d m"],
    probabilities: Float[Array, "d m"],
    context_length: int,
    theta: Float[Array, "d d"],
) -> None:
    r"""Raise `AssumptionError` unless sigma^2 sqrt(d) E[||Gamma|| ||Lambda||_F^2] < 2 ||E[Lambda] Theta||_F^2.

    Args:
      scale: sigma > 0.
      values: (d, m).
      probabilities: (d, m).
      context_length: N.
      theta: (d, d), Theta Theta^T of unit Frobenius norm.

    Source: arXiv 2306.09927, Theorem 4.5.
    """
    overlap, size = _start_constants(values, probabilities, context_length, theta)
    largest = float(np.sqrt(2 * overlap / (np.sqrt(len(values)) * size)))
    if not 0 < scale < largest:
        raise AssumptionError(
            f"`scale` (sigma) = {scale:.6g} is outside (0, {largest:.6g}): Theorem 4.5 of arXiv 2306.09927 needs "
            "sigma^2 sqrt(d) E[||Gamma|| ||Lambda||_F^2] < 2 ||E[Lambda] Theta||_F^2. Take a smaller initial scale."
        )


def scale_lower_bound(
    scale: float,
    values: Float[Array, "d m"],
    probabilities: Float[Array, "d m"],
    context_length: int,
    theta: Float[Array, "d d"],
) -> float:
    r"""A lower bound of u(t) along the whole flow.

    .. math:: \sqrt{\frac{\sigma^2}{2\sqrt d\,\|E\Lambda^2\|}\left[2\|E[\Lambda]\Theta\|_F^2
              - \sqrt d\,\sigma^2\,E(\|\Gamma\|\,\|\Lambda\|_F^2)\right]}

    Args:
      scale: sigma > 0.
      values: (d, m), the values of lambda_i in row i.
      probabilities: (d, m), their probabilities.
      context_length: N.
      theta: (d, d), Theta Theta^T of unit Frobenius norm.

    Raises:
      AssumptionError: the start violates the assumption of Theorem 4.5, see `check_initialisation`.

    Source: arXiv 2306.09927, Lemmas C.6 and C.7.
    """
    check_initialisation(scale, values, probabilities, context_length, theta)
    overlap, size = _start_constants(values, probabilities, context_length, theta)
    root = np.sqrt(len(values))
    largest = np.max(np.sum(probabilities * values**2, axis=1))
    return float(np.sqrt(scale**2 / (2 * root * largest) * (2 * overlap - root * scale**2 * size)))


def pl_constant(
    scale: float,
    values: Float[Array, "d m"],
    probabilities: Float[Array, "d m"],
    context_length: int,
    theta: Float[Array, "d d"],
) -> float:
    r"""A constant mu with |grad L|^2 >= mu (L - min L) along the flow.

    .. math:: \mu = 2 \min(\gamma_i, \zeta_{ij})\, u_{lb}^2, \qquad u_{lb} \text{ the } \texttt{scale\_lower\_bound}

    Args:
      scale: sigma > 0.
      values: (d, m), the values of lambda_i in row i.
      probabilities: (d, m), their probabilities.
      context_length: N.
      theta: (d, d), Theta Theta^T of unit Frobenius norm.

    Raises:
      AssumptionError: the start violates the assumption of Theorem 4.5, see `check_initialisation`.

    Source: arXiv 2306.09927, Lemma C.8; its proof gives twice the constant that is stated.
    """
    moments = diagonal_moments(values, probabilities, context_length)
    return float(2 * np.min(moments.zeta) * scale_lower_bound(scale, values, probabilities, context_length, theta) ** 2)


def _start_constants(values, probabilities, context_length, theta) -> tuple[float, float]:
    """||E[Lambda] Theta||_F^2 and E[||Gamma|| ||Lambda||_F^2], the second over the joint distribution of the eigenvalues."""
    mean = np.sum(probabilities * values, axis=1)
    size = 0.0
    for index in itertools.product(range(values.shape[1]), repeat=len(values)):
        rows = np.arange(len(values))
        spectrum, weight = values[rows, list(index)], np.prod(probabilities[rows, list(index)])
        norm = (1 + 1 / context_length) * np.max(spectrum) + np.sum(spectrum) / context_length
        size += weight * norm * np.sum(spectrum**2)
    return float(np.sum(mean**2 * np.diagonal(theta))), float(size)


def exponential_preconditioner(dim: int, context_length: int | float) -> float:
    r"""A of the trained preconditioner A I for independent exponential eigenvalues of mean one, N / (3N + d + 5).

    It tends to 1/3, not to 1: E lambda^2 / E lambda^3.

    Source: arXiv 2306.09927, discussion of Theorem 4.5 (the limit); the closed form is the lab's own.
    """
    return 1 / (3 + (dim + 5) / context_length)


def exponential_risk(step: float, dim: int, test_length: int | float, factor: float = 1.0) -> float:
    r"""Risk of the preconditioner A I on independent exponential eigenvalues of mean c.

    .. math:: d\left[c - 4Ac^2 + A^2c^3\left(6 + \frac{2d + 10}{M}\right)\right]

    Args:
      step: A, of whatever training.
      dim: d.
      test_length: M, `math.inf` allowed.
      factor: c.

    Returns:
      E(yhat - w.x_q)^2, w ~ N(0, I).

    Source: the lab's own.
    """
    return dim * (factor - 4 * step * factor**2 + step**2 * factor**3 * (6 + (2 * dim + 10) / test_length))


def optimal_preconditioner(problems: Sequence[Problem], probabilities: Float[Array, "S"]) -> Float[Array, "d d"]:
    r"""The best preconditioner for prompts that each come from one of several problems, whose covariances need not commute.

    .. math:: E[C_N \otimes \Lambda]\operatorname{vec}B = \operatorname{vec}E[\Lambda\Omega\Lambda]

    with vec stacking columns and C_N the `theory.lsa.response_moment` of each problem.

    Args:
      problems: the S regression problems, of equal d.
      probabilities: (S,).

    Returns:
      (d, d), not symmetric in general.

    Source: the lab's own, extending arXiv 2306.09927, Theorem 4.5.
    """
    dim = problems[0].dim
    left, right = np.zeros((dim**2, dim**2)), np.zeros((dim, dim))
    for weight, problem in zip(probabilities, problems, strict=True):
        left += weight * np.kron(response_moment(problem), problem.covariance)
        right += weight * problem.covariance @ problem.task_covariance @ problem.covariance
    return np.linalg.solve(left, right.ravel(order="F")).reshape(dim, dim, order="F")


def rotated_scale(
    values: Float[Array, "d m"], probabilities: Float[Array, "d m"], noise_variance: float, context_length: int
) -> float:
    r"""beta of the best preconditioner beta I for Haar-random eigenvectors, independent of the eigenvalues.

    .. math:: \beta = \frac{E\operatorname{tr}\Lambda^2}{E\operatorname{tr}(\Lambda C_N)}, \qquad
              C_N = \Gamma\Lambda + \tfrac{s_2}{N}\Lambda

    Args:
      values: (d, m).
      probabilities: (d, m).
      noise_variance: s2.
      context_length: N.

    Source: the lab's own.
    """
    moments = diagonal_moments(values, probabilities, context_length)
    # tr(Lambda Gamma Lambda) = sum_i (1 + 1/N) lambda_i^3 + lambda_i^2 tr(Lambda) / N.
    return float(np.sum(moments.xi) / (np.sum(moments.gamma) + noise_variance / context_length * np.sum(moments.xi)))
