r"""Zhang, Frei, Bartlett 2023 (arXiv 2306.09927, JMLR 25(49)): trained linear self-attention on noiseless linear prompts.

Setting: x ~ N(0, Lambda), w ~ N(0, I), no noise, N examples in a training prompt, attention divided by the length of the prompt
it reads (N in training, M at test), the query token inside the sum. Tokens are rows here, columns in the paper. On the
structured weights reached by Assumption 3.3, W_PV = u e e^T (e the last unit vector) and W_KQ = blockdiag(U, 0).

Conventions: risks are excess mean squared errors E(yhat - w.x_q)^2; the flow is that of *half* of it, d theta / dt = -grad L,
which sets the unit of time and of sigma. Everything is written with

    Gamma = (1 + 1/N) Lambda + (tr Lambda / N) I.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import AssumptionError, InvalidValueError, UnsupportedProblemError
from icl_lab.core.linalg import check_covariance
from icl_lab.core.typing import Array
from icl_lab.tasks.regression.linear import LinearRegression
from icl_lab.theory.regression.optimum import Optimum, balanced_weights
from icl_lab.theory.regression.problem import Problem


def gamma(covariance: Float[Array, "d d"], context_length: int | float) -> Float[Array, "d d"]:
    r"""The matrix Gamma = (1 + 1/N) Lambda + (tr Lambda / N) I, whose inverse is the trained preconditioner.

    Args:
      covariance: (d, d), Lambda, symmetric positive definite.
      context_length: N >= 1 of the *training* prompts, `math.inf` allowed.

    Returns:
      (d, d), symmetric positive definite; commutes with Lambda.

    Raises:
      NotPositiveDefiniteError: Lambda is not symmetric positive definite.
      InvalidValueError: `context_length` below 1.

    Source: arXiv 2306.09927, Theorem 4.1.
    """
    check_covariance(covariance)
    if not context_length >= 1:
        raise InvalidValueError(f"`context_length` must be >= 1; got {context_length!r}. Gamma averages over examples.")
    return (1 + 1 / context_length) * covariance + np.trace(covariance) / context_length * np.eye(len(covariance))


def limit(
    covariance: Float[Array, "d d"], context_length: int | float
) -> tuple[Float[Array, "d+1 d+1"], Float[Array, "d+1 d+1"]]:
    r"""The limits of W_PV and W_KQ under gradient flow from Assumption 3.3.

    .. math:: W_{PV} \to \operatorname{tr}(\Gamma^{-2})^{1/4} e e^\top, \quad
              W_{KQ} \to \operatorname{tr}(\Gamma^{-2})^{-1/4} \operatorname{blockdiag}(\Gamma^{-1}, 0)

    Args:
      covariance: (d, d), Lambda, symmetric positive definite.
      context_length: N >= 1 of the training prompts, `math.inf` allowed.

    Returns:
      W_PV and W_KQ, (d+1, d+1) each.

    Raises:
      NotPositiveDefiniteError: Lambda is not symmetric positive definite.
      InvalidValueError: `context_length` below 1.

    Source: arXiv 2306.09927, Theorem 4.1.

    Examples:
      >>> import numpy as np
      >>> from icl_lab import theory
      >>> w_pv, w_kq = theory.zhang2023.limit(np.eye(2), context_length=8)
      >>> w_kq.round(3)
      array([[0.717, 0.   , 0.   ],
             [0.   , 0.717, 0.   ],
             [0.   , 0.   , 0.   ]])
    """
    return balanced_weights(_inverse(gamma(covariance, context_length)))


def optimum(task: LinearRegression) -> Optimum:
    """The global minimum of Theorem 4.1 for a noiseless task with standard normal task vectors.

    Raises:
      UnsupportedProblemError: inputs not Gaussian, task covariance not the identity, or label noise.

    Source: Zhang, Frei, Bartlett (arXiv 2306.09927), Theorem 4.1; the risk is its Theorem 4.2 at M = N.
    """
    problem = Problem.of(task)
    problem.check_gaussian()
    covariance = problem.covariance
    if problem.noise_variance != 0 or np.max(np.abs(problem.task_covariance - np.eye(task.dim))) > 1e-12:
        raise UnsupportedProblemError(
            f"Theorem 4.1 of arXiv 2306.09927 needs task_covariance = I and noise_std = 0; got noise variance "
            f"{problem.noise_variance:g} or another task covariance. Use `theory.lsa.optimum`, which takes both."
        )
    preconditioner = _inverse(gamma(covariance, task.context_length))
    w_pv, w_kq = limit(covariance, task.context_length)
    return Optimum(
        name="limit of gradient flow",
        preconditioner=preconditioner,
        risk=risk(covariance, task.context_length, task.context_length),
        w_pv=w_pv,
        w_kq=w_kq,
        source="Zhang, Frei, Bartlett, arXiv 2306.09927, Theorem 4.1",
    )


def risk(covariance: Float[Array, "d d"], context_length: int | float, test_length: int | float) -> float:
    r"""Risk of the trained layer on linear prompts of length M, averaged over w ~ N(0, I).

    .. math:: R = \tfrac1M[\operatorname{tr}(\Lambda)\,t_2 + t_3]
              + \tfrac{1}{N^2}[t_3 + 2\operatorname{tr}(\Lambda)\,t_2 + \operatorname{tr}(\Lambda)^2\,t_1],
              \quad t_k = \operatorname{tr}(\Gamma^{-2}\Lambda^k)

    Args:
      covariance: (d, d), Lambda of training and test.
      context_length: N of the training prompts; Gamma uses this one.
      test_length: M of the test prompts, `math.inf` allowed.

    Returns:
      E(yhat - w.x_q)^2.

    Source: arXiv 2306.09927, Theorem 4.2 for noiseless linear labels, averaged over the task vector.
    """
    trace = np.trace(covariance)
    inverse_square = np.linalg.matrix_power(_inverse(gamma(covariance, context_length)), 2)
    t1, t2, t3 = (np.trace(inverse_square @ np.linalg.matrix_power(covariance, k)) for k in (1, 2, 3))
    variance = (trace * t2 + t3) / test_length
    bias = (t3 + 2 * trace * t2 + trace**2 * t1) / context_length**2
    return float(variance + bias)


def largest_init_scale(covariance: Float[Array, "d d"], context_length: int | float) -> float:
    r"""The supremum of the initial scales sigma that Assumption 3.3 admits, sqrt(2 / (||Gamma||_op sqrt d)).

    Source: arXiv 2306.09927, Assumption 3.3 and the bound of Theorem 4.1.
    """
    norm = np.linalg.norm(gamma(covariance, context_length), ord=2)
    return float(np.sqrt(2 / (norm * np.sqrt(len(covariance)))))


def check_initialisation(
    scale: float,
    covariance: Float[Array, "d d"],
    context_length: int | float,
    theta: Float[Array, "d d"] | None = None,
) -> None:
    r"""Raise `AssumptionError` unless a start satisfies Assumption 3.3 and sigma^2 ||Gamma||_op sqrt(d) < 2.

    Args:
      scale: sigma > 0 of the start W_PV = sigma e e^T, W_KQ = sigma blockdiag(Theta Theta^T, 0).
      covariance: (d, d), Lambda, positive definite (so that Theta Lambda = 0 only for Theta = 0).
      context_length: N.
      theta: (d, d), the matrix Theta Theta^T, which must have unit Frobenius norm; None: I / sqrt(d).

    Source: arXiv 2306.09927, Assumption 3.3 and the bound of Theorem 4.1.
    """
    largest = largest_init_scale(covariance, context_length)
    if not 0 < scale < largest:
        raise AssumptionError(
            f"`scale` (sigma) = {scale:.6g} is outside (0, {largest:.6g}): Assumption 3.3 of arXiv 2306.09927 needs sigma > 0, "
            "Theorem 4.1 sigma^2 ||Gamma|| sqrt(d) < 2, without which convergence is not proved. Take a smaller initial scale."
        )
    if theta is not None:
        norm = float(np.linalg.norm(theta))
        if not abs(norm - 1) <= 1e-9:
            raise AssumptionError(
                f"`theta` = Theta Theta^T must have Frobenius norm 1 (Assumption 3.3 of arXiv 2306.09927); got {norm:.6g}. "
                "The start is balanced only then. Divide it by its norm."
            )


def scale_lower_bound(
    scale: float, covariance: Float[Array, "d d"], context_length: int | float, theta: Float[Array, "d d"]
) -> float:
    r"""A lower bound of u(t) along the whole flow, which keeps it away from the saddle at zero.

    .. math:: \sqrt{\frac{\sigma^2}{2\sqrt d\,\|\Lambda\|^2}\,\|\Lambda\Theta\|_F^2\,
              \left[2 - \sqrt d\,\sigma^2\|\Gamma\|\right]}

    Args:
      scale: sigma.
      covariance: (d, d), Lambda.
      context_length: N.
      theta: (d, d), Theta Theta^T; ||Lambda Theta||_F^2 = tr(Lambda Theta Theta^T Lambda).

    Raises:
      AssumptionError: the start violates Assumption 3.3.

    Source: arXiv 2306.09927, Lemmas A.4 and A.5.
    """
    check_initialisation(scale, covariance, context_length, theta)
    norm = np.linalg.norm(covariance, ord=2)
    return float(np.sqrt(_escape(scale, covariance, context_length, theta) / (2 * np.sqrt(len(covariance)) * norm**2)))


def start_loss_bound(
    scale: float, covariance: Float[Array, "d d"], context_length: int | float, theta: Float[Array, "d d"]
) -> float:
    r"""An upper bound, below zero, of the start's half loss relative to that of zero weights.

    .. math:: -\tfrac{\sigma^2}{2}\,\|\Lambda\Theta\|_F^2\,\left[2 - \sqrt d\,\sigma^2\|\Gamma\|\right]

    Args:
      scale: sigma.
      covariance: (d, d), Lambda.
      context_length: N.
      theta: (d, d), Theta Theta^T of unit Frobenius norm.

    Raises:
      AssumptionError: the start violates Assumption 3.3.

    Source: arXiv 2306.09927, Lemma A.4.
    """
    check_initialisation(scale, covariance, context_length, theta)
    return -_escape(scale, covariance, context_length, theta) / 2


def pl_constant(
    scale: float, covariance: Float[Array, "d d"], context_length: int | float, theta: Float[Array, "d d"]
) -> float:
    r"""A constant mu with |grad L|^2 >= mu (L - min L) along the flow, so that the gap decays at least as exp(-mu t).

    .. math:: \mu = \frac{\sigma^2\|\Lambda\Theta\|_F^2\left[2 - \sqrt d\,\sigma^2\|\Gamma\|\right]}
              {\sqrt d\,\|\Lambda\|^2\operatorname{tr}(\Gamma^{-1}\Lambda^{-1})\operatorname{tr}(\Lambda^{-1})}

    L is the *half* mean squared error.

    Args:
      scale: sigma.
      covariance: (d, d), Lambda.
      context_length: N.
      theta: (d, d), Theta Theta^T of unit Frobenius norm.

    Raises:
      AssumptionError: the start violates Assumption 3.3.

    Source: arXiv 2306.09927, Lemma 5.4.
    """
    check_initialisation(scale, covariance, context_length, theta)
    inverse = _inverse(covariance)
    norm = np.linalg.norm(covariance, ord=2)
    traces = np.trace(_inverse(gamma(covariance, context_length)) @ inverse) * np.trace(inverse)
    return float(_escape(scale, covariance, context_length, theta) / (np.sqrt(len(covariance)) * norm**2 * traces))


def reduced_flow(
    scale: float,
    covariance: Float[Array, "d d"],
    context_length: int | float,
    theta: Float[Array, "d d"],
    times: Float[Array, "S"],
) -> tuple[Float[Array, "S"], Float[Array, "S d d"]]:
    r"""The time course (u(t), U(t)) of gradient flow from Assumption 3.3, by integrating the two-factor equations.

    .. math:: \dot U = u\Lambda^2 - u^2\,\Gamma\Lambda U\Lambda, \qquad
              \dot u = \operatorname{tr}(\Lambda^2 U^\top) - u\operatorname{tr}(\Gamma\Lambda U\Lambda U^\top)

    Args:
      scale: sigma.
      covariance: (d, d), Lambda.
      context_length: N.
      theta: (d, d), Theta Theta^T of unit Frobenius norm.
      times: (S,), increasing, t >= 0; the unit of time is that of the half mean squared error.

    Returns:
      u (S,) and U (S, d, d), to a relative accuracy of about 1e-11 (DOP853).

    Raises:
      AssumptionError: the start violates Assumption 3.3.

    Source: arXiv 2306.09927, Lemma 5.2.
    """
    check_initialisation(scale, covariance, context_length, theta)
    dim = len(covariance)
    square = covariance @ covariance
    drift = gamma(covariance, context_length) @ covariance

    def velocity(_: float, state: np.ndarray) -> np.ndarray:
        u, matrix = state[0], state[1:].reshape(dim, dim)
        pull = drift @ matrix @ covariance
        du = np.sum(square * matrix) - u * np.sum(pull * matrix)
        return np.concatenate([[du], (u * square - u**2 * pull).ravel()])

    start = np.concatenate([[scale], scale * theta.ravel()])
    times = np.asarray(times, dtype=np.float64)
    # Every run asks this module for its closed form, and few for a time course.
    from scipy.integrate import solve_ivp

    solution = solve_ivp(velocity, (0.0, float(times[-1])), start, method="DOP853", t_eval=times, rtol=1e-12, atol=1e-14)
    return solution.y[0], solution.y[1:].T.reshape(-1, dim, dim)


def _escape(scale, covariance, context_length, theta) -> float:
    """sigma^2 ||Lambda Theta||_F^2 (2 - sqrt(d) sigma^2 ||Gamma||): twice how far the start is below the saddle at zero."""
    norm = np.linalg.norm(gamma(covariance, context_length), ord=2)
    overlap = np.trace(covariance @ theta @ covariance)
    return float(scale**2 * overlap * (2 - np.sqrt(len(covariance)) * scale**2 * norm))


def _inverse(matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """The inverse of a symmetric positive definite matrix, symmetric to the last bit."""
    factor = np.linalg.inv(np.linalg.cholesky(matrix))
    return factor.T @ factor
