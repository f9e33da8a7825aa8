r"""Mahankali, Hashimoto, Ma 2023 (arXiv 2307.03576): the best layer is one step of gradient descent.

Conventions of the paper: the attention sum is neither divided by n nor contains the query token, and eta multiplies a *sum*,

    yhat = eta sum_i y_i x_q^T Sigma^{-1} x_i          (isotropic inputs: Sigma = I)

With the mean convention of the rest of the lab the preconditioner is n eta Sigma^{-1} and the in-context step size is n eta.
Inputs are N(0, Sigma), tasks N(0, Sigma^{-1}), so y has the same distribution for every Sigma and so has eta:

    eta = E[b^T w_ridge] / E[b^T Sigma^{-1} b] = 1 / (n + d + 1 + s2),     b = sum_i y_i x_i,

w_ridge being the Bayes estimate with penalty s2 Sigma. Risks are excess risks: their loss compares with a noisy label, which
adds s2.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import UnsupportedProblemError
from icl_lab.core.typing import Array
from icl_lab.tasks.regression.linear import LinearRegression
from icl_lab.theory.regression import exact_loss
from icl_lab.theory.regression.lsa import response_moment
from icl_lab.theory.regression.optimum import Optimum, balanced_weights
from icl_lab.theory.regression.problem import Problem


def step_size(dim: int, context_length: int | float, noise_variance: float) -> float:
    """Step size eta of the sum convention, 1 / (n + d + 1 + s2); `context_length` times it in the mean convention.

    Source: Mahankali, Hashimoto, Ma (arXiv 2307.03576), Theorems 1 and 2, whose ratio of expectations is evaluated here.
    """
    return 1 / (context_length + dim + 1 + noise_variance)


def minimum_risk(dim: int, context_length: int, noise_variance: float) -> float:
    """Smallest excess risk, d (d + 1 + s2) / (n + d + 1 + s2), the same for every Sigma.

    Source: the constant of the proof of Theorem 1 of arXiv 2307.03576, evaluated here.
    """
    return dim * (dim + 1 + noise_variance) * step_size(dim, context_length, noise_variance)


def optimum(task: LinearRegression) -> Optimum:
    """One preconditioned gradient step, with balanced weights of a layer that sums without dividing.

    Args:
      task: Gaussian inputs of covariance Sigma and task vectors of covariance Sigma^{-1}; Sigma = I is Theorem 1.

    Raises:
      UnsupportedProblemError: the inputs are not Gaussian, or the task covariance is not the inverse covariance.

    Source: Mahankali, Hashimoto, Ma (arXiv 2307.03576), Theorem 1 (isotropic) and Theorem 2.
    """
    problem = Problem.of(task)
    step, identity = _step(problem), np.eye(task.dim)
    isotropic = bool(np.linalg.norm(problem.covariance - identity) <= 1e-12 * np.linalg.norm(identity))
    w_pv, w_kq = balanced_weights(step)
    return Optimum(
        name="one GD step" if isotropic else "one preconditioned GD step",
        preconditioner=task.context_length * step,
        risk=minimum_risk(task.dim, task.context_length, problem.noise_variance),
        w_pv=w_pv,
        w_kq=w_kq,
        source=f"Mahankali, Hashimoto, Ma, arXiv 2307.03576, Theorem {1 if isotropic else 2}",
        normaliser="none",
    )


def _step(problem: Problem) -> Float[Array, "d d"]:
    """eta Sigma^{-1}, refused unless tasks have the inverse covariance of the inputs."""
    problem.check_gaussian()
    identity = np.eye(problem.dim)
    gap = np.linalg.norm(problem.covariance @ problem.task_covariance - identity) / np.linalg.norm(identity)
    if gap > 1e-9:
        raise UnsupportedProblemError(
            "Theorems 1 and 2 of arXiv 2307.03576 need tasks with the inverse covariance of the inputs; "
            f"covariance @ task_covariance differs from the identity by {gap:.3g} (relative). "
            "Use `theory.lsa.optimum`, which takes any pair."
        )
    # The inverse of a positive definite matrix, symmetric to the last bit.
    factor = np.linalg.inv(np.linalg.cholesky(problem.covariance))
    return step_size(problem.dim, problem.context_length, problem.noise_variance) * factor.T @ factor


def effective_predictor(
    values: Float[Array, "D"],
    keys: Float[Array, "D d"],
    inputs: Float[Array, "n d"],
    labels: Float[Array, "n"],
) -> tuple[Float[Array, "d"], Float[Array, "d"]]:
    r"""The layer as a linear predictor of one prompt, yhat = (even + odd).x_q, split by parity in the labels.

    .. math:: v = \underbrace{K_1^\top S p_1 + c\, p_2 k_2}_{\text{even}} + \underbrace{B b}_{\text{odd}}, \qquad
              B = p_2 K_1^\top + k_2 p_1^\top

    with S = sum x_i x_i^T, b = sum y_i x_i, c = sum y_i^2 over the context.

    Args:
      values: (d+1,), p = W_V^T h = (p1, p2).
      keys: (d+1, d), the first d columns of W_K^T W_Q: K1 over the row k2.
      inputs: (n, d).
      labels: (n,).

    Returns:
      The even and the odd part, (d,) each.

    Source: Mahankali, Hashimoto, Ma (arXiv 2307.03576), the reparametrisation of Section 3.
    """
    p1, p2, k1, k2 = values[:-1], values[-1], keys[:-1], keys[-1]
    gram, moment, power = inputs.T @ inputs, inputs.T @ labels, labels @ labels
    return k1.T @ gram @ p1 + power * p2 * k2, (p2 * k1.T + np.outer(k2, p1)) @ moment


def context_moment(problem: Problem) -> Float[Array, "d d"]:
    """E[b b^T] of b = sum_i y_i x_i, N(N+1) Lam Om Lam + N tau Lam; n (n + d + 1 + s2) I for Lam = Om = I.

    Args:
      problem: the regression problem, of a finite context.

    Source: proof of Theorem 1 of Mahankali, Hashimoto, Ma (arXiv 2307.03576), evaluated for any pair of covariances.
    """
    return problem.context_length**2 * response_moment(problem)


def bayes_moment(problem: Problem) -> Float[Array, "d d"]:
    """E[b w_ridge^T] = E[b w^T] = N Lam Om; n I for Lam = Om = I.

    Args:
      problem: the regression problem, of a finite context.

    Source: proof of Theorem 1 of Mahankali, Hashimoto, Ma (arXiv 2307.03576): w_ridge is the conditional mean of w.
    """
    return problem.context_length * problem.covariance @ problem.task_covariance


def distance_to_step(problem: Problem, w_pv: Float[Array, "D D"], w_kq: Float[Array, "D D"]) -> float:
    """E (v - eta Sigma^{-1} b)^T Sigma (v - eta Sigma^{-1} b), exactly, for any layer that sums without dividing.

    The difference of the two predictors is a layer of two heads; the mean square of any predictor u is half the sum of the
    risks of u and -u, less that of zero.

    Args:
      problem: the regression problem, of inputs of covariance Sigma and tasks of covariance Sigma^{-1}.
      w_pv: (d+1, d+1).
      w_kq: (d+1, d+1).

    Raises:
      UnsupportedProblemError: the task covariance is not the inverse covariance.

    Source: Lemma 2 of Mahankali, Hashimoto, Ma (arXiv 2307.03576).
    """
    step_pv, step_kq = balanced_weights(_step(problem))
    values, keys = np.stack([w_pv, -step_pv]), np.stack([w_kq, step_kq])
    risks = [exact_loss.risk(problem, sign * values, keys, query_in_sum=False, rho=1.0) for sign in (1.0, -1.0)]
    return float(np.mean(risks)) - problem.dim


def scaled_gap(dim: int, noise_variance: float) -> float:
    """lim (excess risk of the layer) / (excess Bayes risk) as n grows, (d + 1 + s2) / s2: the layer never becomes optimal."""
    return (dim + 1 + noise_variance) / noise_variance
