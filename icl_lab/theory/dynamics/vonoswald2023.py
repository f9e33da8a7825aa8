r"""Von Oswald et al. 2023 (arXiv 2309.05858): in-context solvers of sequences, and what several layers compute.

Examples are rows of X (n, d) and Y (n, k); S = X^T X is not divided by n. Steps act on the summed loss.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from icl_lab.core.typing import Array


def ridge_paths(states: Float[Array, "T d"], penalty: float) -> Float[Array, "T-1 d d"]:
    r"""What_t = (sum_{i<t} x_{i+1} x_i^T)(S_{t-1} + lambda I)^{-1} by a direct solve at each position t = 2 .. T.

    Args:
      states: x_1 .. x_T in rows.
      penalty: lambda > 0.

    Source: arXiv 2309.05858, the mesa layer.
    """
    fitted = []
    for t in range(1, len(states)):
        inputs, labels = states[:t], states[1 : t + 1]
        fitted.append(np.linalg.solve(inputs.T @ inputs + penalty * np.eye(states.shape[1]), inputs.T @ labels).T)
    return np.array(fitted)


def full_context_steps(
    inputs: Float[Array, "n d"], labels: Float[Array, "n k"], query: Float[Array, "d"], step_size: float, layers: int
) -> Float[Array, "k"]:
    r"""Prediction of L residual layers that all see the whole context, L gradient steps: Y^T X [I - (I - eta S)^L] S^{-1} x_q.

    In the eigenbasis of S, so that S may be singular: the factor is then L eta.

    Args:
      inputs, labels, query: X, Y and x_q.
      step_size: eta.
      layers: L.
    """
    values, vectors = np.linalg.eigh(inputs.T @ inputs)
    factors = step_size * np.sum([(1 - step_size * values) ** j for j in range(layers)], axis=0)
    return labels.T @ inputs @ (vectors * factors[None, :]) @ vectors.T @ query


def causal_residuals(
    inputs: Float[Array, "n d"], labels: Float[Array, "n k"], step_size: float, layers: int
) -> Float[Array, "n k"]:
    r"""Residual labels after L causal layers, (I - eta tril(X X^T, strict))^L Y: no gradient descent.

    Args:
      inputs, labels: X and Y.
      step_size: eta.
      layers: L.
    """
    step = np.eye(len(inputs)) - step_size * np.tril(inputs @ inputs.T, -1)
    return np.linalg.matrix_power(step, layers) @ labels


def refined_query(
    gram: Float[Array, "d d"], query: Float[Array, "d"], penalty: float, step_sizes: Float[Array, "K"]
) -> Float[Array, "d"]:
    r"""The query after K refinements, [I - prod_k (I - eta_k (S + lambda))](S + lambda)^{-1} x_t.

    Args:
      gram: S.
      query: x_t.
      penalty: lambda > 0.
      step_sizes: eta_1 .. eta_K.
    """
    values, vectors = np.linalg.eigh(gram + penalty * np.eye(len(gram)))
    left = np.prod(1 - step_sizes[:, None] * values[None, :], axis=0)
    return (vectors * ((1 - left) / values)[None, :]) @ vectors.T @ query


def constant_step_factor(condition: float, steps: int) -> float:
    """Worst error of K refinements with the step 2/(m + M), ((kappa - 1)/(kappa + 1))^K.

    Args:
      condition: kappa = M/m > 1.
      steps: K.
    """
    return ((condition - 1) / (condition + 1)) ** steps


def chebyshev_factor(condition: float, steps: int) -> float:
    """Worst error of K refinements with steps at the Chebyshev nodes, 1/T_K((kappa + 1)/(kappa - 1)).

    Args:
      condition: kappa = M/m > 1.
      steps: K.
    """
    return float(1 / np.cosh(steps * np.arccosh((condition + 1) / (condition - 1))))
