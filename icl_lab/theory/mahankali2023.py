r"""Mahankali, Hashimoto, Ma 2023 (arXiv 2307.03576): the best layer is one step of gradient descent.

Conventions of the paper: the attention sum is neither divided by n nor contains the query token, and eta multiplies a *sum*,

    yhat = eta sum_i y_i x_q^T Sigma^{-1} x_i          (isotropic inputs: Sigma = I)

With the mean convention of the rest of the lab the preconditioner is n eta Sigma^{-1} and the in-context step size is n eta.
Inputs are N(0, Sigma), tasks N(0, Sigma^{-1}), so y has the same law for every Sigma and so has eta:

    eta = E[b^T w_ridge] / E[b^T Sigma^{-1} b] = 1 / (n + d + 1 + s2),     b = sum_i y_i x_i,

w_ridge being the Bayes estimate with penalty s2 Sigma. Risks are excess risks: their loss compares with a noisy label, which
adds s2.
"""

from __future__ import annotations

import numpy as np

from icl_lab.errors import UnsupportedProblemError
from icl_lab.tasks.linear import LinearRegression
from icl_lab.theory.lsa import gaussian_parameters
from icl_lab.theory.optimum import Optimum, balanced_weights


def step_size(dim: int, context_length: int, noise_variance: float) -> float:
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
    covariance, task_covariance, noise_variance = gaussian_parameters(task)
    identity = np.eye(task.dim)
    gap = np.linalg.norm(covariance @ task_covariance - identity) / np.linalg.norm(identity)
    if gap > 1e-9:
        raise UnsupportedProblemError(
            "Theorems 1 and 2 of arXiv 2307.03576 need tasks with the inverse covariance of the inputs; "
            f"covariance @ task_covariance differs from the identity by {gap:.3g} (relative). "
            "Use `theory.lsa.optimum`, which takes any pair."
        )
    eta = step_size(task.dim, task.context_length, noise_variance)
    isotropic = bool(np.linalg.norm(covariance - identity) <= 1e-12 * np.linalg.norm(identity))
    # The inverse of a positive definite matrix, symmetric to the last bit.
    factor = np.linalg.inv(np.linalg.cholesky(covariance))
    step = eta * factor.T @ factor
    w_pv, w_kq = balanced_weights(step)
    return Optimum(
        name="one GD step" if isotropic else "one preconditioned GD step",
        preconditioner=task.context_length * step,
        risk=minimum_risk(task.dim, task.context_length, noise_variance),
        w_pv=w_pv,
        w_kq=w_kq,
        source=f"Mahankali, Hashimoto, Ma, arXiv 2307.03576, Theorem {1 if isotropic else 2}",
        normaliser="none",
    )
