r"""One-layer linear self-attention on linear regression, any covariances and law of inputs: optimum and risks in closed form.

Conventions: the numbers (Lambda, Omega, s2, N) are a `theory.Problem`. Predictions are bilinear, yhat = x_q^T P (1/N) sum_i y_i
x_i, the preconditioner P acting on the *mean* over the context (with a plain sum the weights carry P / N). A risk is the excess
mean squared error E(yhat - w.x_q)^2: no factor 1/2, and a noisy query label adds s2. tau is the variance of a label.

These formulas are the lab's own: they contain the optima of Zhang, Frei, Bartlett (arXiv 2306.09927: Omega = I, s2 = 0) and of
Mahankali, Hashimoto, Ma (arXiv 2307.03576: Omega = Lambda^{-1}). That no other weights do better follows because the part
of the prediction that is even in (w, noise) only adds to the loss, and the odd part is linear in P. All that this uses of the
inputs is that they are independent of each other and of w. So their law enters by its fourth moment E[x x^T Omega x x^T] alone,
which is part of C_N = E[m m^T], m = (1/N) sum_i y_i x_i: for every law the optimum is P = Omega Lambda C_N^{-1}.
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

    .. math:: C_N = (1 - \tfrac1N)\,\Lambda\Omega\Lambda + \tfrac1N\,E[x x^\top \Omega x x^\top] + \tfrac{s_2}{N}\,\Lambda,

    for Gaussian inputs :math:`(1 + \tfrac1N)\,\Lambda\Omega\Lambda + \tfrac{\tau}{N}\,\Lambda`.

    Args:
      problem: the regression problem.

    Returns:
      (d, d).
    """
    signal = problem.covariance @ problem.task_covariance @ problem.covariance
    length = problem.context_length
    noise = problem.noise_variance / length * problem.covariance
    return (1 - 1 / length) * signal + problem.signal_moment / length + noise


def optimal_preconditioner(problem: Problem) -> Float[Array, "d d"]:
    r"""The preconditioner of every global minimiser over all weights of the layer.

    .. math:: B^* = \Omega\Lambda C_N^{-1}, \qquad \text{for Gaussian inputs }\;
              \Omega^{1/2}\left[(1+\tfrac1N)\,\Omega^{1/2}\Lambda\Omega^{1/2} + \tfrac{\tau}{N} I\right]^{-1}\Omega^{1/2}

    Args:
      problem: the regression problem.

    Returns:
      (d, d); symmetric positive semidefinite for Gaussian inputs. For others it is symmetric if C_N Lambda^{-1} Omega^{-1} is,
      as where Lambda and Omega are diagonal and the coordinates independent.

    Raises:
      NotPositiveDefiniteError: a covariance is not (semi)definite.
      InvalidValueError: a task covariance of zero.
    """
    check_covariance(problem.covariance)
    check_covariance(problem.task_covariance, "task_covariance", allow_singular=True)
    values, vectors = np.linalg.eigh(problem.task_covariance)
    if values[-1] <= 0:
        raise InvalidValueError("`task_covariance` must not be zero; every predictor of a zero task is optimal.")
    if problem.fourth_moment is not None:
        return _any_law(problem)
    root = (vectors * np.sqrt(np.clip(values, 0, None))[None, :]) @ vectors.T
    middle = (1 + 1 / problem.context_length) * root @ problem.covariance @ root
    middle = middle + problem.label_variance / problem.context_length * np.eye(problem.dim)
    # A rank-deficient Omega with N = inf leaves `middle` singular on directions that `root` annihilates.
    middle_values, middle_vectors = np.linalg.eigh(middle)
    kept = middle_values > 1e-14 * middle_values[-1]
    factor = root @ middle_vectors[:, kept]
    return (factor / middle_values[kept][None, :]) @ factor.T


def _any_law(problem: Problem) -> Float[Array, "d d"]:
    """Omega Lambda C_N^{-1}, the smallest one where C_N is singular."""
    factor = np.linalg.cholesky(problem.covariance)  # on whitened inputs C_N is as well conditioned as Lambda, not its square
    half = np.linalg.solve(factor, response_moment(problem))
    moment = np.linalg.solve(factor, half.T)
    values, vectors = np.linalg.eigh(0.5 * (moment + moment.T))
    # What C_N annihilates, no prompt shows: of a singular Omega at N = inf, or of inputs on few points.
    kept = values > 1e-14 * values[-1]
    inverse = (vectors[:, kept] / values[kept][None, :]) @ vectors[:, kept].T
    return problem.task_covariance @ factor @ np.linalg.solve(factor.T, inverse).T


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
    r"""The global minimum for any linear task of independent inputs, with balanced weights of a model that divides by N.

    On independent coordinates of variance v and kurtosis kappa, with Omega = I and no noise, it is a step of gradient descent,

    .. math:: P = \frac{N}{N + \kappa + d - 2}\,\frac{1}{v}\,I, \qquad
              \text{risk } d\,v\,\frac{\kappa + d - 2}{N + \kappa + d - 2},

    which for Gaussian inputs, kappa = 3, is the step of arXiv 2306.09927.

    Raises:
      UnsupportedProblemError: the inputs of a prompt share a random covariance, or their fourth moments are infinite or not
        known.

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
      >>> signs = tasks.TwoSizes(dim=2, kurtosis=1.0)
      >>> theory.lsa.optimum(tasks.LinearRegression(dim=2, context_length=8, covariates=signs)).preconditioner.round(3)
      array([[0.889, 0.   ],
             [0.   , 0.889]])
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
        source="icl_lab, extending arXiv 2306.09927 Theorem 4.1 to any task covariance, noise and law of independent inputs",
    )
