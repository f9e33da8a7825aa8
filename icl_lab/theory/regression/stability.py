r"""Gradient flow and gradient descent near rest: the saddle at zero, the balanced optimum, the drift of finite steps.

Notation and the clock are those of `theory.timecourse`; losses are half the mean squared
error, so that Hessians are those of L = MSE / 2. All results are the lab's own.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import AssumptionError
from icl_lab.core.typing import Array
from icl_lab.theory.regression import lsa, structured, timecourse
from icl_lab.theory.regression.problem import Problem

COMMUTING = 1e-10
"""Largest relative commutator of Lambda and Omega that counts as zero."""


@dataclasses.dataclass(frozen=True, eq=False)
class LateRates:
    """Eigenvalues of the Hessian in (u, U) at the balanced optimum, in the common eigenbasis of Lambda and Omega.

    Attributes:
      diagonal: (d + 1,), ascending, of u with the diagonal of U: 0 (the gauge), then h_1 <= h_2 <= ...
      off_diagonal: (d, d), u^2 c_i l_j of the entry U_ij; the diagonal, which belongs to the others, is infinite.
    """

    diagonal: Float[Array, "n"]
    off_diagonal: Float[Array, "d d"]

    @property
    def spectrum(self) -> Float[Array, "m"]:
        """All d^2 + 1 eigenvalues, ascending."""
        off = self.off_diagonal[np.isfinite(self.off_diagonal)]
        return np.sort(np.concatenate([self.diagonal, off]))

    @property
    def slowest(self) -> float:
        """The smallest rate but for the gauge: weights converge like exp(-h t), the loss gap like exp(-2 h t)."""
        return float(self.spectrum[1])

    @property
    def largest_step(self) -> float:
        """The step below which gradient descent is stable on the structured subspace, 2 over the largest eigenvalue."""
        return float(2 / self.spectrum[-1])


def common_basis(covariance: Float[Array, "d d"], task_covariance: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """Common eigenvectors, as columns, of two covariances that commute.

    Raises:
      AssumptionError: they do not.
    """
    commutator = covariance @ task_covariance - task_covariance @ covariance
    if np.linalg.norm(commutator) > COMMUTING * np.linalg.norm(covariance) * np.linalg.norm(task_covariance):
        raise AssumptionError("`covariance` and `task_covariance` must commute: the formula is one of common eigenmodes.")
    # A generic combination has the common eigenvectors even where one of the two is degenerate.
    mixture = covariance / np.linalg.norm(covariance) + np.sqrt(2) * task_covariance / np.linalg.norm(task_covariance)
    return np.linalg.eigh(mixture)[1]


def late_rates(problem: Problem) -> LateRates:
    r"""The Hessian's eigenvalues at the balanced optimum u^2 = ||U||_F^2 of commuting Lambda and Omega.

    Off-diagonal entries U_ij decouple, with rate u^2 c_i l_j. The diagonal ones form with u an arrow matrix of diagonal
    r_i = u^2 c_i l_i, border d_i and corner sum_i c_i l_i U_i^2, whose eigenvalues are 0 and the roots of

    .. math:: h - \sum_i c_i l_i U_i^2 = \sum_i \frac{d_i^2}{h - r_i}

    (d_i, c_i, l_i are the eigenvalues of D, C, Lambda).

    Args:
      problem: the regression problem.

    Raises:
      AssumptionError: Lambda and Omega do not commute.
    """
    covariance, task_covariance = problem.covariance, problem.task_covariance
    basis = common_basis(covariance, task_covariance)
    drive, moment, values = (
        np.diag(basis.T @ matrix @ basis)
        for matrix in (timecourse.signal(covariance, task_covariance), lsa.response_moment(problem), covariance)
    )
    product = drive / (moment * values)
    scale = np.sqrt(np.linalg.norm(product))
    inner = product / scale
    rates = scale**2 * np.outer(moment, values)
    arrow = np.diag(np.concatenate([[np.sum(moment * values * inner**2)], np.diag(rates)]))
    arrow[0, 1:] = arrow[1:, 0] = drive
    return LateRates(np.linalg.eigvalsh(arrow), np.where(np.eye(len(values), dtype=bool), np.inf, rates))


def origin_spectrum(covariance: Float[Array, "d d"], task_covariance: Float[Array, "d d"]) -> Float[Array, "(d+1)**2"]:
    """Eigenvalues, ascending, of the Hessian at zero in the active entries p = (p1, p2) and K = (K1, k2).

    They are -||D||_F and ||D||_F (p2 with K1 along D), plus and minus each singular value of D (p1 with k2), and otherwise 0.
    """
    drive = timecourse.signal(covariance, task_covariance)
    size, norm, singular = len(drive), np.linalg.norm(drive), np.linalg.svd(drive, compute_uv=False)
    return np.sort(np.concatenate([[norm, -norm], singular, -singular, np.zeros(size**2 - 1)]))


def escape_exponent(covariance: Float[Array, "d d"], task_covariance: Float[Array, "d d"]) -> float:
    """The power of sigma with which (p1, k2) vanish at the escape from zero, 1 - ||D||_op / ||D||_F.

    Entries of a random start of size sigma grow for a time ln(1/sigma) / ||D||_F until the structured ones reach order one.
    """
    drive = timecourse.signal(covariance, task_covariance)
    return float(1 - np.linalg.norm(drive, 2) / np.linalg.norm(drive))


def descent(
    problem: Problem, u: float, inner: Float[Array, "d d"], step: float, steps: int
) -> tuple[float, Float[Array, "d d"], float]:
    r"""Gradient descent on (u, U), and the drift of the imbalance kappa = u^2 - ||U||_F^2 that it adds up.

    Each step changes kappa by exactly h^2 (g_u^2 - ||G_U||_F^2), since u g_u = <U, G_U> wherever the loss depends on u U only.

    Args:
      problem: the regression problem.
      u: corner of W_PV at the start.
      inner: (d, d), U at the start.
      step: h.
      steps: how many.

    Returns:
      u and U at the end, and kappa at the end *as the start's plus the sum of the changes*.
    """
    kappa = u**2 - np.sum(inner**2)
    for _ in range(steps):
        du, slope = structured.general_velocity(problem, u, inner)
        kappa += step**2 * (du**2 - np.sum(slope**2))
        u, inner = u + step * du, inner + step * slope
    return u, inner, float(kappa)
