r"""Variants of gradient descent that layers implement: GD++, on features, with centred inputs, weight decay or momentum.

Conventions of `vonoswald2022`: a step size eta multiplies the *mean* gradient over the N examples, a curvature gamma the
*unnormalised* Gram matrix W = sum_i x_i x_i^T.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from icl_lab.core.typing import Array
from icl_lab.theory.descent.vonoswald2022 import gradient_step


def gdpp_tokens(
    initial: Float[Array, "k d"],
    inputs: Float[Array, "N d"],
    labels: Float[Array, "N k"],
    query: Float[Array, "d"],
    step_sizes: Float[Array, "K"],
    curvatures: Float[Array, "K"],
) -> tuple[Float[Array, "N+1 d"], Float[Array, "N+1 k"]]:
    r"""Inputs and labels of all tokens after K layers of GD++; a layer reads the values before it only.

    .. math:: x_j \leftarrow x_j - \gamma \textstyle\sum_i x_i (x_i^\top x_j), \qquad y_j \leftarrow y_j - \Delta W x_j

    Args:
      initial: (k, d), W_0, the same in every layer.
      inputs, labels: (N, d) and (N, k), examples in rows.
      query: (d,), whose label slot starts at -W_0 x_q.
      step_sizes: (K,), eta of each layer, for the mean gradient.
      curvatures: (K,), gamma of each layer, for the unnormalised Gram matrix.

    Returns:
      (N+1, d) and (N+1, k), the query's last.

    Source: von Oswald et al. (arXiv 2212.07677), GD++.
    """
    x, y = np.vstack([inputs, query[None]]), np.vstack([labels, -(initial @ query)[None]])
    for eta, gamma in zip(step_sizes, curvatures, strict=True):
        delta = gradient_step(initial, x[:-1], y[:-1], float(eta)) - initial
        moved = [point - gamma * sum(one * (one @ point) for one in x[:-1]) for point in x]
        x, y = np.stack(moved), y - x @ delta.T
    return x, y


def gdpp_polynomials(
    eigenvalues: Float[Array, "*m"], step_sizes: Float[Array, "K"], curvatures: Float[Array, "K"], context_length: int
) -> tuple[Float[Array, "*m"], Float[Array, "*m"]]:
    r"""The polynomials p_K and rho_K of GD++ from W_0 = 0 on eigenvalues s of the initial Gram matrix sum_i x_i x_i^T.

    .. math:: \rho_{k+1} = \rho_k (1 - \tfrac{\eta_k}{N} s p_k^2), \quad p_{k+1} = p_k (1 - \gamma_k s p_k^2),
              \quad p_0 = \rho_0 = 1

    An input becomes p_K(W) x_j, a label w^T rho_K(W) x_j, and the prediction is w^T (I - rho_K(W)) x_q.

    Args:
      eigenvalues: s, of any shape.
      step_sizes: (K,), eta of each layer.
      curvatures: (K,), gamma of each layer.
      context_length: N.

    Returns:
      p_K and rho_K, each of the shape of the eigenvalues.

    Source: von Oswald et al. (arXiv 2212.07677), GD++, diagonalised for the lab.
    """
    s = np.asarray(eigenvalues, dtype=np.float64)
    p, rho = np.ones_like(s), np.ones_like(s)
    for eta, gamma in zip(step_sizes, curvatures, strict=True):
        current = s * p**2
        rho, p = rho * (1 - eta / context_length * current), p * (1 - gamma * current)
    return p, rho


def gdpp_degree(layers: int) -> int:
    """Degree of rho_K in the Gram matrix, (3^K - 1)/2; see `gdpp_polynomials`."""
    return (3**layers - 1) // 2


def gdpp_eigenvalue(eigenvalue: Float[Array, "*shape"], curvature: float) -> Float[Array, "*shape"]:
    r"""Eigenvalue of the Gram matrix after one layer of GD++, :math:`f(s) = s (1 - \gamma s)^2`.

    Its roots are 0 and 1/gamma, which is double; see `gdpp_peak` for its local maximum.

    Source: von Oswald et al. (arXiv 2212.07677), the spectrum of H++.
    """
    return eigenvalue - 2 * curvature * eigenvalue**2 + curvature**2 * eigenvalue**3


def gdpp_peak(curvature: float) -> tuple[float, float]:
    r"""Place and height of the local maximum of `gdpp_eigenvalue`, :math:`1/(3\gamma)` and :math:`4/(27\gamma)`."""
    return 1 / (3 * curvature), 4 / (27 * curvature)


def gdpp_balanced_curvature(smallest: float, largest: float) -> float:
    r"""The curvature that gives both ends m < M of a spectrum the same new eigenvalue, :math:`1/(M + \sqrt{Mm} + m)`.

    It minimises the ratio of the largest value of `gdpp_eigenvalue` on (m, M) to the smallest.

    Source: the max/min rule of von Oswald et al. (arXiv 2212.07677) for gamma, solved for the lab.
    """
    return 1 / (largest + np.sqrt(largest * smallest) + smallest)


def kernel_descent(
    kernel: Float[Array, "N N"],
    query_kernel: Float[Array, "N"],
    labels: Float[Array, "N k"],
    step_size: float,
    steps: int | float,
) -> Float[Array, "k"]:
    r"""The prediction of gradient descent from zero on features with a given kernel matrix.

    .. math:: \hat y = k_q^\top K^{-1} \left(I - (I - \tfrac{\eta}{N} K)^{n}\right) y

    One step is the kernel smoother (eta/N) sum_i y_i k(x_i, x_q); infinitely many give kernel interpolation (of least norm
    if K is singular).

    Args:
      kernel: (N, N), K of the examples.
      query_kernel: (N,), k(x_i, x_q).
      labels: (N, k).
      step_size: eta; below 2 N / ||K|| for infinitely many steps.
      steps: n >= 1, or infinity.

    Returns:
      (k,).

    Source: von Oswald et al. (arXiv 2212.07677), Proposition 2; their display leaves out eta/N.
    """
    values, vectors = np.linalg.eigh(kernel)
    rates = step_size / len(kernel) * values
    # Directions outside the span of the features do not reach the prediction, but their quotients would overflow.
    active = values > 1e-12 * values[-1]
    values, vectors, rates = values[active], vectors[:, active], rates[active]
    if np.isinf(steps):
        left = np.zeros_like(rates)
        fitted = 1 - left
    else:
        # 1 - (1 - r)^n without cancellation for small r.
        small = np.where(rates < 0.5, rates, 0.0)
        fitted = np.where(rates < 0.5, -np.expm1(steps * np.log1p(-small)), 1 - (1 - rates) ** int(steps))
    return (query_kernel @ vectors * fitted / values) @ vectors.T @ labels


def centred_step(
    inputs: Float[Array, "N d"], labels: Float[Array, "N k"], query: Float[Array, "d"], step_size: float
) -> Float[Array, "k"]:
    r"""The prediction of one step from zero with centred context inputs, (eta/N) sum_i y_i (x_i - xbar).x_q.

    Args:
      inputs, labels: (N, d) and (N, k), examples in rows.
      query: (d,), which is not centred.
      step_size: eta.

    Returns:
      (k,).

    Source: the limit of two softmax heads of von Oswald et al. (arXiv 2212.07677), which keeps the normaliser they drop.
    """
    return step_size / len(inputs) * labels.T @ ((inputs - np.mean(inputs, axis=0, keepdims=True)) @ query)


def ridge_descent(
    inputs: Float[Array, "N d"], labels: Float[Array, "N k"], step_size: float, decay: float, steps: int
) -> Float[Array, "k d"]:
    r"""Gradient descent from zero with weight decay, W <- W - eta (grad R(W) + lambda W), R the mean half squared error.

    Args:
      inputs, labels: (N, d) and (N, k), examples in rows.
      step_size: eta.
      decay: lambda.
      steps: number of steps.

    Returns:
      (k, d).

    Source: standard; von Oswald et al. (arXiv 2212.07677) leave regularisation to future work.
    """
    weights = np.zeros((labels.shape[1], inputs.shape[1]))
    for _ in range(steps):
        weights = gradient_step(weights, inputs, labels, step_size) - step_size * decay * weights
    return weights


def heavy_ball(
    inputs: Float[Array, "N d"], labels: Float[Array, "N k"], step_size: float, momentum: float, steps: int
) -> Float[Array, "k d"]:
    r"""Gradient descent from zero with momentum, W_{t+1} = W_t - eta grad R(W_t) + mu (W_t - W_{t-1}).

    Args:
      inputs, labels: (N, d) and (N, k), examples in rows.
      step_size: eta.
      momentum: mu.
      steps: number of steps.

    Returns:
      (k, d).

    Source: Polyak's heavy ball; von Oswald et al. (arXiv 2212.07677) leave momentum to future work.
    """
    weights = before = np.zeros((labels.shape[1], inputs.shape[1]))
    for _ in range(steps):
        weights, before = gradient_step(weights, inputs, labels, step_size) + momentum * (weights - before), weights
    return weights
