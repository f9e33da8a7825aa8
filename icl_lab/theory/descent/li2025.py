r"""Li et al. 2025 (arXiv 2504.04308): one step of weighted gradient descent on tasks that change along the context.

Each example has its own task vector, correlated with the query's; coordinates are independent and of variance 1, inputs are
N(0, I). A layer that weights the examples answers

    yhat = x_q^T sum_i c_i y_i x_i

and its risk E(yhat - w_q.x_q)^2 is a quadratic in c,

.. math:: d\,(1 - 2\, r \cdot c + c^\top A c), \qquad A = R + (d + 1 + \sigma^2) I,

where R holds the correlations in the context and r those with the query. It is ridge regression of the query's task on the
tasks of the context: what one example tells badly is the penalty, d + 1 + s2 whatever the correlations are.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float
from numpy.polynomial import Polynomial

from icl_lab.core.typing import Array
from icl_lab.tasks.regression.correlated import CorrelatedRegression

REAL = 1e-6
"""Imaginary part, relative to a root's size, below which a root of a polynomial counts as real."""


@dataclasses.dataclass(frozen=True, eq=False)
class CorrelatedTasks:
    """What the closed forms depend on.

    Attributes:
      context: (N, N), R, the correlations of the tasks in the context; positive semidefinite with ones on the diagonal.
      query: (N,), r, their correlations with the query's task.
      dim: d >= 1.
      noise_variance: s2 >= 0, of a label.
    """

    context: Float[Array, "N N"]
    query: Float[Array, "N"]
    dim: int
    noise_variance: float

    @classmethod
    def of(cls, task: CorrelatedRegression) -> CorrelatedTasks:
        """Those of a task, in float64 numpy."""
        joint = np.asarray(task.correlations, dtype=np.float64)
        return cls(joint[:-1, :-1], joint[:-1, -1], task.dim, float(np.asarray(task.noise_std)) ** 2)

    @property
    def penalty(self) -> float:
        """d + 1 + s2, the variance that one example adds."""
        return self.dim + 1 + self.noise_variance

    @property
    def matrix(self) -> Float[Array, "N N"]:
        """A = R + (d + 1 + s2) I."""
        return self.context + self.penalty * np.eye(len(self.query))


def risk(problem: CorrelatedTasks, lags: Float[Array, "N"]) -> float:
    """d (1 - 2 r.c + c^T A c), the risk of weights c.

    Source: the setting of arXiv 2504.04308; derived for the lab.
    """
    return float(problem.dim * (1 - 2 * problem.query @ lags + lags @ problem.matrix @ lags))


def best_weights(problem: CorrelatedTasks) -> Float[Array, "N"]:
    """c* = A^{-1} r.

    Source: the optimal weighting of arXiv 2504.04308; derived for the lab.
    """
    return np.linalg.solve(problem.matrix, problem.query)


def minimum_risk(problem: CorrelatedTasks) -> float:
    """d (1 - r^T c*), the smallest risk of any weights.

    Source: as `best_weights`.
    """
    return float(problem.dim * (1 - problem.query @ best_weights(problem)))


def weights_norm(problem: CorrelatedTasks) -> float:
    """|c*| from the spectrum of R: every component of r shrinks by its eigenvalue plus the penalty, so |c*| falls with noise.

    Source: derived for the lab.
    """
    values, vectors = np.linalg.eigh(problem.context)
    return float(np.linalg.norm(vectors.T @ problem.query / (values + problem.penalty)))


def best_equal_weight(problem: CorrelatedTasks) -> tuple[float, float]:
    """The best weight if all examples have the same, sum(r) / sum(A), and its risk d (1 - sum(r)^2 / sum(A)).

    It is one step of plain gradient descent.

    Source: derived for the lab.
    """
    total, square = float(np.sum(problem.query)), float(np.sum(problem.matrix))
    return total / square, problem.dim * (1 - total**2 / square)


def group_weights(
    sizes: tuple[int, int], correlations: tuple[float, float], between: float, dim: int, noise_variance: float
) -> Float[Array, "2"]:
    """The best weight in each of two groups of examples; within a group all have one task.

    Args:
      sizes: of the groups.
      correlations: of each group's task with the query's.
      between: of the two groups' tasks.
      dim: d.
      noise_variance: s2.

    Source: the N equations for c* summed over each group; derived for the lab.
    """
    first, second = sizes
    a, b = first + dim + 1 + noise_variance, second + dim + 1 + noise_variance
    one, two = correlations
    gains = np.array([b * one - second * between * two, a * two - first * between * one])
    return gains / (a * b - first * second * between**2)


def best_decay(problem: CorrelatedTasks) -> tuple[float, float]:
    """The best factor gamma in (0, 1] of weights c_i = s gamma^(N - i), at its best scale s, and the risk.

    At the best scale the risk is d (1 - p(gamma)^2 / q(gamma)), p = sum r_i gamma^(N - i) and q = c^T A c at s = 1. Between
    the ends gamma is a root of 2 p' q - p q'.

    Source: derived for the lab.
    """
    p = Polynomial(problem.query[::-1])
    flipped = problem.matrix[::-1, ::-1]
    q = Polynomial([np.trace(flipped[:, ::-1], offset) for offset in range(len(flipped) - 1, -len(flipped), -1)])
    roots = (2 * p.deriv() * q - p * q.deriv()).roots()
    real = roots.real[np.abs(roots.imag) < REAL * np.abs(roots)]
    candidates = np.append(real[(real > 0) & (real < 1)], 1.0)
    risks = problem.dim * (1 - p(candidates) ** 2 / q(candidates))
    best = int(np.argmin(risks))
    return float(candidates[best]), float(risks[best])


def gain_of_the_oldest(problem: CorrelatedTasks) -> float:
    r"""By how much the first example lowers the smallest risk, a square over a Schur complement and so never negative.

    .. math:: d\, \frac{(r_1 - a^\top B^{-1} r_{2:})^2}{A_{11} - a^\top B^{-1} a}

    Here a is the rest of the first column of A, and B is A without its first row and column.

    Args:
      problem: at least two examples.

    Source: inverse of a bordered matrix; derived for the lab.
    """
    matrix, query = problem.matrix, problem.query
    known = np.linalg.solve(matrix[1:, 1:], matrix[1:, 0])
    news = query[0] - known @ query[1:]
    return float(problem.dim * news**2 / (matrix[0, 0] - known @ matrix[1:, 0]))
