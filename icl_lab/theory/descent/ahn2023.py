r"""Closed forms of Ahn et al. 2023 (arXiv 2306.00297): linear attention layers as preconditioned gradient descent.

Conventions: tokens are columns (x_i, y_i), the query's label slot starts at 0, and a layer is
Z <- Z + (1/n) P Z M Z^T Q Z, where M removes the query from the sum. The answer is *minus* the query's label slot, and risks
E(yhat - w.x_q)^2 carry no factor 1/2. In the notation of `models.LinearSelfAttention`, P is W_PV and Q is W_KQ.
With several covariances, and for general tasks in Theorem 1, see `theory.lsa`.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from icl_lab.core.typing import Array
from icl_lab.theory.descent import descent_steps

COMPLEX_STEP = 1e-30
CORRECTED_STARTS = 20
"""Random starts for each layer of GD++, whose risk has local minima."""


def descent_weights(
    preconditioners: Float[Array, "L d d"], inputs: Float[Array, "N d"], labels: Float[Array, "N"]
) -> Float[Array, "L d"]:
    r"""The iterates that layers with P = diag(0, 1) and Q_l = -diag(A_l, 0) hold: preconditioned gradient descent from zero.

    .. math:: w_{l+1} = w_l - A_l^\top \nabla R(w_l), \qquad R(w) = \frac{1}{2n} \sum_i (w \cdot x_i - y_i)^2

    The paper writes A_l; its own definition of attention gives the transpose, which matters for no symmetric A_l.

    Args:
      preconditioners: (L, d, d), A_l.
      inputs: (N, d), x_i in rows.
      labels: (N,), y_i; need not be realisable.

    Returns:
      (L, d), w_1 .. w_L.

    Source: arXiv 2306.00297, Lemma 1, corrected.
    """
    weights, path = np.zeros(inputs.shape[1]), []
    for matrix in preconditioners:
        gradient = inputs.T @ (inputs @ weights - labels) / len(labels)
        weights = weights - matrix.T @ gradient
        path.append(weights)
    return np.array(path)


def shrinkage(eigenvalues: Float[Array, "d"], context_length: int) -> Float[Array, "d"]:
    r"""Eigenvalues of the optimal preconditioner of one layer, tasks standard normal, in the eigenbasis of Sigma.

    .. math:: \left(\tfrac{n+1}{n} \lambda_i + \tfrac1n \sum_k \lambda_k\right)^{-1}

    Args:
      eigenvalues: (d,), lambda of the input covariance, positive.
      context_length: n >= 1.

    Returns:
      (d,); all are n / (n + d + 1) for the identity.

    Source: arXiv 2306.00297, Theorem 1.
    """
    values = np.asarray(eigenvalues, dtype=np.float64)
    return 1 / ((context_length + 1) / context_length * values + np.sum(values) / context_length)


def one_layer_risk(eigenvalues: Float[Array, "d"], context_length: int) -> float:
    r"""The smallest risk of one layer over all weights, tasks standard normal.

    .. math:: f^* = \sum_i \lambda_i (1 - \lambda_i a_i)

    with a the `shrinkage`; d (d + 1) / (n + d + 1) for the identity.

    Args:
      eigenvalues: (d,), lambda of the input covariance, positive.
      context_length: n >= 1.

    Source: the risk at the optimum of arXiv 2306.00297, Theorem 1; derived for the lab.
    """
    values = np.asarray(eigenvalues, dtype=np.float64)
    return float(np.sum(values * (1 - values * shrinkage(values, context_length))))


def stack_rule(dim: int, context_length: int, layers: int, corrected: bool) -> descent_steps.Rule:
    """The spectral measure of W = X^T X for standard normal inputs, exact for the squared error of some layers.

    Args:
      dim: d.
      context_length: n >= 1.
      layers: L.
      corrected: whether layers also move the inputs (GD++), which makes the error a polynomial of degree (3^L - 1)/2, not L.
    """
    return descent_steps.Rule.exact("gaussian", dim, context_length, 1.0, 3**layers - 1 if corrected else 2 * layers)


def stack_risk(steps: Float[Array, "L"], moves: Float[Array, "L"], dim: int, context_length: int) -> float:
    r"""Risk of layers with Q_l = -diag(a_l Sigma^{-1}, 0) and P_l = diag(b_l I, 1), for w ~ N(0, Sigma^{-1}) and any Sigma.

    They are GD++ with step sizes a_l and curvatures a_l b_l / n in whitened inputs, so Sigma drops out.

    Args:
      steps: (L,), a.
      moves: (L,), b; zeros for gradient descent. The last has no effect.
      dim: d.
      context_length: n >= 1.

    Source: arXiv 2306.00297, Theorems 3 and 4.
    """
    rule = stack_rule(dim, context_length, len(steps), corrected=bool(np.any(moves)))
    return 2 * descent_steps.loss(rule, steps, steps * moves / context_length)


def stack_slopes(
    steps: Float[Array, "L"], moves: Float[Array, "L"], dim: int, context_length: int
) -> tuple[Float[Array, "L"], Float[Array, "L"]]:
    r"""Derivatives of `stack_risk` by a and by b, to rounding.

    At A_l = a_l Sigma^{-1} and B_l = b_l I the derivatives by whole matrices are (1/d) df/da_l Sigma and (1/d) df/db_l I: along
    Sigma and not along Sigma^{-1}, so that gradient flow leaves this set, though its critical points on the set are critical.

    Args:
      steps: (L,), a.
      moves: (L,), b.
      dim: d.
      context_length: n >= 1.

    Returns:
      df/da and df/db, (L,) each.

    Source: arXiv 2306.00297, Theorems 3 and 4.
    """
    rule = stack_rule(dim, context_length, len(steps), corrected=True)
    point, slopes = np.concatenate([steps, moves]).astype(np.complex128), []
    for i in range(len(point)):
        moved = point.copy()
        moved[i] += 1j * COMPLEX_STEP
        error = shrinkage = np.ones_like(rule.nodes)
        for a, b in zip(*np.split(moved, 2), strict=True):
            gram = rule.nodes / context_length * shrinkage**2
            error, shrinkage = error * (1 - a * gram), shrinkage * (1 - a * b * gram)
        slopes.append(rule.weights @ np.imag(error**2) / COMPLEX_STEP)
    by_step, by_move = np.split(np.array(slopes), 2)
    return by_step, by_move


def best_stack(
    dim: int, context_length: int, layers: int, corrected: bool
) -> tuple[Float[Array, "L"], Float[Array, "L"], float]:
    """The best a and b (zeros unless `corrected`) and their risk; a is ascending for gradient descent, where order is free.

    Args:
      dim: d.
      context_length: n >= 1.
      layers: L.
      corrected: whether b is free.

    Source: arXiv 2306.00297, Theorems 3 and 4 say that they are critical; the values are derived for the lab.
    """
    if not corrected or layers == 1:
        best = descent_steps.best_steps("gaussian", dim, context_length, 1.0, layers)
    else:
        rule = stack_rule(dim, context_length, layers, corrected=True)
        best = descent_steps.best_corrected(rule, layers, tied=False, starts=CORRECTED_STARTS * layers)
    moves = context_length * best.curvatures / best.step_sizes
    return best.step_sizes, moves, 2 * best.loss


def relu_step(dim: int, context_length: int) -> float:
    r"""a* of the best ReLU layer on standard normal inputs and tasks, whose Q is diag(-a I, 0).

    .. math:: a^* = \frac{2n}{n - 1 + 2 (d + 2)}

    Args:
      dim: d.
      context_length: n >= 1.

    Source: arXiv 2306.00297, Theorem 5.
    """
    return 2 * context_length / (context_length - 1 + 2 * (dim + 2))


def relu_risk(step: float, dim: int, context_length: int) -> float:
    r"""Risk of the ReLU layer of `relu_step` at any step a >= 0.

    .. math:: d \left(1 - a + \frac{a^2}{4} \cdot \frac{n - 1 + 2 (d + 2)}{n}\right)

    Its minimum is d (2d + 3) / (n + 2d + 3).

    Args:
      step: a.
      dim: d.
      context_length: n >= 1.

    Source: E relu(t)^2 = 1/2 and the fourth moments of a Gaussian; derived for the lab.
    """
    return dim * (1 - step + step**2 / 4 * (context_length - 1 + 2 * (dim + 2)) / context_length)


def distance_to_identity(matrix: Float[Array, "d d"]) -> float:
    r"""Relative distance of a matrix to the nearest multiple of the identity.

    .. math:: \operatorname{Dist}(M, I) = \min_c \|M - c I\|_F / \|M\|_F, \qquad c = \operatorname{tr} M / d

    Args:
      matrix: (d, d), not zero.

    Source: arXiv 2306.00297, Section 5, measure of the experiments.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    centre = np.trace(matrix) / len(matrix)
    return float(np.linalg.norm(matrix - centre * np.eye(len(matrix))) / np.linalg.norm(matrix))
