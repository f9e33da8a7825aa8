r"""One-layer linear self-attention on Gaussian linear regression with any covariances: optimum and risks in closed form.

    x ~ N(0, Lambda),  w ~ N(0, Omega),  y_i = w.x_i + noise of variance s2,  N context examples.

Conventions: predictions are bilinear, yhat = x_q^T P (1/N) sum_i y_i x_i, the preconditioner P acting on the *mean* over the
context (with a plain sum the weights carry P / N). A risk is the excess mean squared error E(yhat - w.x_q)^2: no factor 1/2,
and a noisy query label adds s2. tau = tr(Lambda Omega) + s2 is the variance of a label.

These formulas are the lab's own: they contain the optima of Zhang, Frei, Bartlett (arXiv 2306.09927: Omega = I, s2 = 0) and of
Mahankali, Hashimoto, Ma (arXiv 2307.03576: Omega = Lambda^{-1}). That no other weights do better follows because the part
of the prediction that is even in (w, noise) only adds to the loss, and the odd part is linear in P.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.core.linalg import check_covariance
from icl_lab.core.typing import Array
from icl_lab.tasks.distributions.covariates import Gaussian
from icl_lab.tasks.regression.linear import LinearRegression
from icl_lab.theory.regression.optimum import Optimum, balanced_weights


def response_moment(
    covariance: Float[Array, "d d"],
    task_covariance: Float[Array, "d d"],
    noise_variance: float,
    length: int | float,
) -> Float[Array, "d d"]:
    r"""Second moment E[m m^T] of the context statistic m = (1/M) sum_i y_i x_i.

    .. math:: C_M = (1 + \tfrac1M)\,\Lambda\Omega\Lambda + \tfrac{\tau}{M}\,\Lambda

    Args:
      covariance: (d, d), Lambda.
      task_covariance: (d, d), Omega; w w^T for one fixed task.
      noise_variance: s2 >= 0.
      length: M >= 1, `math.inf` allowed.

    Returns:
      (d, d).
    """
    signal = covariance @ task_covariance @ covariance
    label_variance = np.trace(covariance @ task_covariance) + noise_variance
    return (1 + 1 / length) * signal + label_variance / length * covariance


def optimal_preconditioner(
    covariance: Float[Array, "d d"],
    task_covariance: Float[Array, "d d"],
    noise_variance: float,
    context_length: int | float,
) -> Float[Array, "d d"]:
    r"""The preconditioner of every global minimiser over all weights of the layer.

    .. math:: B^* = \Omega^{1/2}\left[(1+\tfrac1N)\,\Omega^{1/2}\Lambda\Omega^{1/2} + \tfrac{\tau}{N} I\right]^{-1}\Omega^{1/2}

    Args:
      covariance: (d, d), Lambda, positive definite.
      task_covariance: (d, d), Omega, positive semidefinite and not zero; need not commute with Lambda.
      noise_variance: s2 >= 0.
      context_length: N >= 1, `math.inf` allowed.

    Returns:
      (d, d), symmetric positive semidefinite.

    Raises:
      NotPositiveDefiniteError: a covariance is not (semi)definite.
      InvalidValueError: `context_length` below 1, negative noise, or a task covariance of zero.
    """
    check_covariance(covariance)
    check_covariance(task_covariance, "task_covariance", allow_singular=True)
    if not context_length >= 1:
        raise InvalidValueError(f"`context_length` must be >= 1; got {context_length!r}. The optimum averages over examples.")
    if not noise_variance >= 0:
        raise InvalidValueError(f"`noise_variance` must be >= 0; got {noise_variance!r}.")
    values, vectors = np.linalg.eigh(task_covariance)
    if values[-1] <= 0:
        raise InvalidValueError("`task_covariance` must not be zero; every predictor of a zero task is optimal.")
    root = (vectors * np.sqrt(np.clip(values, 0, None))[None, :]) @ vectors.T
    label_variance = np.trace(covariance @ task_covariance) + noise_variance
    middle = (1 + 1 / context_length) * root @ covariance @ root
    middle = middle + label_variance / context_length * np.eye(len(values))
    # A rank-deficient Omega with N = inf leaves `middle` singular on directions that `root` annihilates.
    middle_values, middle_vectors = np.linalg.eigh(middle)
    kept = middle_values > 1e-14 * middle_values[-1]
    factor = root @ middle_vectors[:, kept]
    return (factor / middle_values[kept][None, :]) @ factor.T


def risk(
    preconditioner: Float[Array, "d d"],
    covariance: Float[Array, "d d"],
    task_covariance: Float[Array, "d d"],
    noise_variance: float,
    length: int | float,
    query_moment: Float[Array, "d d"] | None = None,
) -> float:
    r"""Excess risk of any bilinear predictor on any Gaussian test distribution, which need not be the training distribution.

    .. math:: \operatorname{tr}(\Lambda_q\Omega') - 2\operatorname{tr}(\Lambda_q B \Lambda' \Omega')
              + \operatorname{tr}(\Lambda_q B C'_M B^\top)

    Args:
      preconditioner: (d, d), B; acts on (1/M) sum_i y_i x_i, M the *test* length. Need not be symmetric.
      covariance: (d, d), Lambda' of the context inputs at test time.
      task_covariance: (d, d), Omega' of the test tasks; w w^T for one fixed task.
      noise_variance: s2' of the context labels.
      length: M >= 1, `math.inf` allowed.
      query_moment: (d, d), second moment E[x_q x_q^T] of the query (not its covariance, if its mean is not zero); None:
        the query has the distribution of the context inputs.

    Returns:
      E(yhat - w.x_q)^2.
    """
    query = covariance if query_moment is None else query_moment
    moment = response_moment(covariance, task_covariance, noise_variance, length)
    zero = np.trace(query @ task_covariance)
    cross = np.trace(query @ preconditioner @ covariance @ task_covariance)
    square = np.trace(query @ preconditioner @ moment @ preconditioner.T)
    return float(zero - 2 * cross + square)


def minimum_risk(
    covariance: Float[Array, "d d"],
    task_covariance: Float[Array, "d d"],
    noise_variance: float,
    context_length: int | float,
) -> float:
    r"""Smallest excess risk of the layer, tr(Lambda Omega) - tr(Lambda B* Lambda Omega), on prompts like those of training.

    Args:
      covariance: (d, d), Lambda, positive definite.
      task_covariance: (d, d), Omega, positive semidefinite and not zero.
      noise_variance: s2 >= 0.
      context_length: N >= 1, `math.inf` allowed.

    Returns:
      E(yhat - w.x_q)^2 at the optimum.

    Examples:
      >>> import numpy as np
      >>> from icl_lab import theory
      >>> round(theory.lsa.minimum_risk(np.eye(2), np.eye(2), noise_variance=0.25, context_length=8), 3)
      0.578
      >>> round(theory.lsa.minimum_risk(np.eye(2), np.eye(2), noise_variance=0.25, context_length=800), 3)
      0.008
    """
    best = optimal_preconditioner(covariance, task_covariance, noise_variance, context_length)
    return float(np.trace(covariance @ task_covariance) - np.trace(covariance @ best @ covariance @ task_covariance))


def gaussian_parameters(task: LinearRegression) -> tuple[Float[Array, "d d"], Float[Array, "d d"], float]:
    """(Lambda, Omega, s2) of a linear task with Gaussian inputs, in float64 numpy.

    Raises:
      UnsupportedProblemError: the inputs are not Gaussian with one fixed covariance.
    """
    if not isinstance(task.covariates, Gaussian):
        raise UnsupportedProblemError(
            f"The closed form needs Gaussian inputs with a fixed covariance; the task draws them from "
            f"{type(task.covariates).__name__}. Use `objectives.population`, which samples the moments of any distribution."
        )
    return (
        np.asarray(task.covariance, dtype=np.float64),
        np.asarray(task.task_covariance, dtype=np.float64),
        float(np.asarray(task.noise_std)) ** 2,
    )


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
    covariance, task_covariance, noise_variance = gaussian_parameters(task)
    parameters = (covariance, task_covariance, noise_variance, task.context_length)
    preconditioner = optimal_preconditioner(*parameters)
    w_pv, w_kq = balanced_weights(preconditioner)
    return Optimum(
        name="optimal one-layer LSA",
        preconditioner=preconditioner,
        risk=minimum_risk(*parameters),
        w_pv=w_pv,
        w_kq=w_kq,
        source="icl_lab, extending arXiv 2306.09927 Theorem 4.1 to any task covariance and noise",
    )
