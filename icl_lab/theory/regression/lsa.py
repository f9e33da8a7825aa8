r"""One-layer linear self-attention on Gaussian linear regression with any covariances: optimum and risks in closed form.

Conventions: the numbers (Lambda, Omega, s2, N) are a `theory.Problem`. Predictions are bilinear, yhat = x_q^T P (1/N) sum_i y_i
x_i, the preconditioner P acting on the *mean* over the context (with a plain sum the weights carry P / N). A risk is the excess
mean squared error E(yhat - w.x_q)^2: no factor 1/2, and a noisy query label adds s2. tau is the variance of a label.

These formulas are the lab's own: they contain the optima of Zhang, Frei, Bartlett (arXiv 2306.09927: Omega = I, s2 = 0) and of
Mahankali, Hashimoto, Ma (arXiv 2307.03576: Omega = Lambda^{-1}). That no other weights do better follows because the part
of the prediction that is even in (w, noise) only adds to the loss, and the odd part is linear in P.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import check_covariance
from icl_lab.core.typing import Array
from icl_lab.tasks.regression.linear import LinearRegression
from icl_lab.theory.regression.optimum import Optimum, balanced_weights
from icl_lab.theory.regression.problem import Problem


def response_moment(problem: Problem) -> Float[Array, "d d"]:
    r"""Second moment E[m m^T] of the context statistic m = (1/N) sum_i y_i x_i.

    .. math:: C_N = (1 + \tfrac1N)\,\Lambda\Omega\Lambda + \tfrac{\tau}{N}\,\Lambda

    Args:
      problem: the regression problem.

    Returns:
      (d, d).
    """
    signal = problem.covariance @ problem.task_covariance @ problem.covariance
    length = problem.context_length
    return (1 + 1 / length) * signal + problem.label_variance / length * problem.covariance


def optimal_preconditioner(problem: Problem) -> Float[Array, "d d"]:
    r"""The preconditioner of every global minimiser over all weights of the layer.

    .. math:: B^* = \Omega^{1/2}\left[(1+\tfrac1N)\,\Omega^{1/2}\Lambda\Omega^{1/2} + \tfrac{\tau}{N} I\right]^{-1}\Omega^{1/2}

    Args:
      problem: the regression problem.

    Returns:
      (d, d), symmetric positive semidefinite.

    Raises:
      NotPositiveDefiniteError: a covariance is not (semi)definite.
      InvalidValueError: a task covariance of zero.
    """
    check_covariance(problem.covariance)
    check_covariance(problem.task_covariance, "task_covariance", allow_singular=True)
    values, vectors = np.linalg.eigh(problem.task_covariance)
    if values[-1] <= 0:
        raise InvalidValueError("`task_covariance` must not be zero; every predictor of a zero task is optimal.")
    root = (vectors * np.sqrt(np.clip(values, 0, None))[None, :]) @ vectors.T
    middle = (1 + 1 / problem.context_length) * root @ problem.covariance @ root
    middle = middle + problem.label_variance / problem.context_length * np.eye(problem.dim)
    # A rank-deficient Omega with N = inf leaves `middle` singular on directions that `root` annihilates.
    middle_values, middle_vectors = np.linalg.eigh(middle)
    kept = middle_values > 1e-14 * middle_values[-1]
    factor = root @ middle_vectors[:, kept]
    return (factor / middle_values[kept][None, :]) @ factor.T


def risk(problem: Problem, preconditioner: Float[Array, "d d"], query_moment: Float[Array, "d d"] | None = None) -> float:
    r"""Excess risk of any bilinear predictor at test time, where the problem need not be that of training.

    .. math:: \operatorname{tr}(\Lambda_q\Omega) - 2\operatorname{tr}(\Lambda_q B \Lambda \Omega)
              + \operatorname{tr}(\Lambda_q B C_N B^\top)

    Args:
      problem: the regression problem of the *test* prompts.
      preconditioner: (d, d), B; acts on (1/N) sum_i y_i x_i, N the length of the test prompts. Need not be symmetric.
      query_moment: (d, d), second moment E[x_q x_q^T] of the query (not its covariance, if its mean is not zero); None:
        the query has the distribution of the context inputs.

    Returns:
      E(yhat - w.x_q)^2.
    """
    query = problem.covariance if query_moment is None else query_moment
    zero = np.trace(query @ problem.task_covariance)
    cross = np.trace(query @ preconditioner @ problem.covariance @ problem.task_covariance)
    square = np.trace(query @ preconditioner @ response_moment(problem) @ preconditioner.T)
    return float(zero - 2 * cross + square)


def minimum_risk(problem: Problem) -> float:
    r"""Smallest excess risk of the layer, tr(Lambda Omega) - tr(Lambda B* Lambda Omega), on prompts like those of training.

    Args:
      problem: the regression problem.

    Returns:
      E(yhat - w.x_q)^2 at the optimum.

    Raises:
      NotPositiveDefiniteError: a covariance is not (semi)definite.
      InvalidValueError: a task covariance of zero.

    Examples:
      >>> import numpy as np
      >>> from icl_lab import theory
      >>> problem = theory.Problem(np.eye(2), np.eye(2), noise_variance=0.25, context_length=8)
      >>> round(theory.lsa.minimum_risk(problem), 3)
      0.578
      >>> long = theory.Problem(np.eye(2), np.eye(2), noise_variance=0.25, context_length=800)
      >>> round(theory.lsa.minimum_risk(long), 3)
      0.008
    """
    signal = problem.covariance @ problem.task_covariance
    return float(np.trace(signal) - np.trace(problem.covariance @ optimal_preconditioner(problem) @ signal))


def optimum(task: LinearRegression) -> Optimum:
    """The global minimum for any Gaussian linear task, with balanced weights of a model that divides by N.

    Raises:
      UnsupportedProblemError: the inputs are not Gaussian with one fixed covariance.

    Source: the lab's own; it contains Theorem 4.1 of arXiv 2306.09927 and Theorems 1 and 2 of arXiv 2307.03576.

    Examples:
      >>> import numpy as np
      >>> from icl_lab import tasks, theory
      >>> best = theory.lsa.optimum(tasks.LinearRegression(dim=2, context_length=8, noise_std=0.5))
      >>> best.preconditioner.round(3)
      array([[0.711, 0.   ],
             [0.   , 0.711]])
      >>> round(best.risk, 3)
      0.578
    """
    problem = Problem.of(task)
    preconditioner = optimal_preconditioner(problem)
    w_pv, w_kq = balanced_weights(preconditioner)
    return Optimum(
        name="optimal one-layer LSA",
        preconditioner=preconditioner,
        risk=minimum_risk(problem),
        w_pv=w_pv,
        w_kq=w_kq,
        source="icl_lab, extending arXiv 2306.09927 Theorem 4.1 to any task covariance and noise",
    )
