r"""Minima of the exact loss of one layer of linear self-attention that are not global.

Setting: x ~ N(0, Lambda), w ~ N(0, Omega), label noise of variance s2, N examples, attention divided by N, half losses
L = 1/2 E(yhat - w.x_q)^2. With p = (p1, p2) the label row of W_PV and K1 over k2 the first d columns of W_KQ, the effective
preconditioner is B = p2 K1^T + k2 p1^T. The global minimum has p1 = k2 = 0 (`theory.lsa`). On the other branch, p2 = 0 and
K1 = 0, the layer has no even part and B = k2 p1^T of rank one; its best point is stationary for all weights, and for short
contexts in d >= 2 dimensions a minimum. With one dimension, or a task covariance of rank one, it is a second global minimum.

Functions of a variance sig2 and a kurtosis kap are about inputs with independent symmetric coordinates, w ~ N(0, I) and no
label noise, with b = (b_x, b_y) for (p1, p2) and A_x, A_y for (K1, k2). Their global minimum is that of
`vonoswald2022.one_step_loss`.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.theory.regression import exact_loss, lsa
from icl_lab.theory.regression.problem import Problem

HESSIAN_STEP = 1e-3
LARGEST_ROUNDING = 1e-9
"""Share of the largest curvature below which a negative one is rounding."""
BRANCH_EXIT = 0.05


def rank_one_branch(problem: Problem) -> tuple[Float[Array, "D D"], Float[Array, "D D"], float]:
    r"""The best weights with p2 = 0 and K1 = 0, a stationary point of the whole loss.

    .. math:: k_2 p_1^\top = \Lambda^{-1/2} s_1 u v^\top C_N^{-1/2}, \quad L = \tfrac12(\operatorname{tr}\Lambda\Omega - s_1^2)

    with s_1, u, v the leading singular triple of Lambda^{1/2} B* C_N^{1/2}: the best approximation of rank one to B* in the
    norm of the loss.

    Args:
      problem: the regression problem.

    Returns:
      W_PV and W_KQ, with |p1| = |k2|, of a layer that divides by N, and the half loss.

    Source: the lab's own.
    """
    # Cholesky factors in place of symmetric roots: the singular values are the same.
    left, right = np.linalg.cholesky(problem.covariance), np.linalg.cholesky(lsa.response_moment(problem))
    u, s, vt = np.linalg.svd(left.T @ lsa.optimal_preconditioner(problem) @ right)
    k2 = np.linalg.solve(left.T, s[0] * u[:, 0])
    p1 = np.linalg.solve(right.T, vt[0])
    scale = np.sqrt(np.linalg.norm(p1) / np.linalg.norm(k2))
    dim = problem.dim
    w_pv, w_kq = np.zeros((dim + 1, dim + 1)), np.zeros((dim + 1, dim + 1))
    w_pv[-1, :dim], w_kq[-1, :dim] = p1 / scale, k2 * scale
    return w_pv, w_kq, float(np.trace(problem.covariance @ problem.task_covariance) - s[0] ** 2) / 2


def branch_curvature(dim: int, context_length: int, noise_variance: float, query_in_sum: bool) -> Float[Array, "3 3"]:
    """Hessian of the half loss at the branch p1 = e, k2 = beta e of Lambda = Omega = I, in the directions that matter.

    These are K1 = kappa (I - e e^T) + mu e e^T and p2; |e| = 1 and beta = N / (N + d + 1 + s2).

    Args:
      dim: d >= 2.
      context_length: N.
      noise_variance: s2 >= 0.
      query_in_sum: whether the query token is among the attended ones.

    Returns:
      (3, 3), in the order kappa, mu, p2.

    Raises:
      InvalidValueError: dim below 2, where the branch is a global minimum.

    Source: the lab's own.
    """
    if dim < 2:
        raise InvalidValueError(f"`dim` must be >= 2; got {dim}. In one dimension the branch is a global minimum.")
    d, n, q, tau = dim, context_length, float(query_in_sum), dim + noise_variance
    beta = n / (n + d + 1 + noise_variance)
    kappa_kappa = (n * (d - 1) + q * (d - 1) * (d + 1)) / n**2
    mu_mu = (n * (n + 2) + q * (6 * n + 15)) / n**2
    p_p = beta**2 * n * (n + 2) * (tau**2 + 2 * d) / n**2
    kappa_mu = q * (d - 1) * (n + 3) / n**2
    kappa_p = q * beta * n * tau * (d - 1) / n**2 - (d - 1)
    mu_p = beta * (n**2 * tau + 2 * n + 3 * q * n * tau) / n**2
    return np.array([[kappa_kappa, kappa_mu, kappa_p], [kappa_mu, mu_mu, mu_p], [kappa_p, mu_p, p_p]])


def branch_is_minimum(dim: int, context_length: int, noise_variance: float, query_in_sum: bool) -> bool:
    """Whether the branch of Lambda = Omega = I is a local minimum, strict up to scaling and rotations; else it is a saddle.

    Exactly if `branch_curvature` is positive definite. Its half loss (d - beta)/2 is above the global d (1 - beta)/2.

    Source: the lab's own.
    """
    return bool(np.linalg.eigvalsh(branch_curvature(dim, context_length, noise_variance, query_in_sum))[0] > 0)


def half_loss_below_branch(
    spectrum: Float[Array, "d"], noise_variance: float, context_length: int, query_in_sum: bool
) -> float:
    """The half loss at which gradient flow ends that starts beside the branch, for diagonal Lambda and Omega = I.

    If the branch is a minimum that is the branch itself. Else the flow leaves along its negative direction into the weights
    that reflections of the other axes leave alone: p1 and k2 on the leading axis, p2, and a diagonal K1. These d + 3 numbers
    are minimised over here, from the branch on; the end need not be global.

    Args:
      spectrum: (d,), diagonal of Lambda.
      noise_variance: s2.
      context_length: N.
      query_in_sum: whether the query token is among the attended ones.

    Source: the lab's own.
    """
    dim = len(spectrum)
    problem = Problem(np.diag(spectrum), np.eye(dim), noise_variance, context_length)
    w_pv, w_kq, branch_loss = rank_one_branch(problem)
    axis = int(np.argmax(np.abs(w_pv[-1, :dim])))

    def half_loss(x):
        value, key = np.zeros((dim + 1, dim + 1)), np.zeros((dim + 1, dim + 1))
        value[-1, axis], value[-1, -1], key[-1, axis] = x[:3]
        key[np.arange(dim), np.arange(dim)] = x[3:]
        return exact_loss.risk(problem, value, key, query_in_sum=query_in_sum) / 2

    units = np.eye(dim + 3)

    def gradient(x):
        # Quadratic in every single entry: central differences of unit step are exact.
        return np.array([half_loss(x + unit) - half_loss(x - unit) for unit in units]) / 2

    branch = np.concatenate([[w_pv[-1, axis], 0.0, w_kq[-1, axis]], np.zeros(dim)])
    hessian = np.array([gradient(branch + HESSIAN_STEP * unit) - gradient(branch - HESSIAN_STEP * unit) for unit in units])
    values, vectors = np.linalg.eigh((hessian + hessian.T) / (4 * HESSIAN_STEP))
    if values[0] > -LARGEST_ROUNDING * values[-1]:
        return branch_loss
    found = minimize(half_loss, branch + BRANCH_EXIT * vectors[:, 0], jac=gradient, method="BFGS", options={"gtol": 1e-9})
    return float(found.fun)


def saddle_curvatures(dim: int, variance: float) -> Float[Array, "K"]:
    r"""The eigenvalues of the Hessian at zero weights that do not vanish, K = 2d + 2 of them, increasing.

    :math:`\pm\sigma^4 \sqrt d` (b_y against tr A_x) once and :math:`\pm\sigma^4` (b_x against A_y) d times.

    Args:
      dim: d.
      variance: sig2.

    Source: the plateau of von Oswald et al. (arXiv 2212.07677), worked out for the lab.
    """
    step, branch = variance**2 * np.sqrt(dim), np.full(dim, variance**2)
    return np.concatenate([[-step], -branch, branch, [step]])


def escape_rate(dim: int, variance: float) -> float:
    r"""Rate sig2^2 sqrt(d) at which gradient flow leaves zero weights, along b_y and the multiple of the identity in A_x.

    Args:
      dim: d.
      variance: sig2.

    Source: the plateau of von Oswald et al. (arXiv 2212.07677), worked out for the lab.
    """
    return float(variance**2 * np.sqrt(dim))


def rank_one_branch_loss(dim: int, context_length: int, variance: float, kurtosis: float) -> float:
    r"""Half loss of `rank_one_branch` for isotropic inputs without noise, whatever their kurtosis; the same on every axis.

    .. math:: \tfrac{\sigma^2}{2}\left(d - \frac{N}{N + d + \kappa - 2}\right)

    Args:
      dim: d.
      context_length: N.
      variance: sig2 of an input coordinate.
      kurtosis: kap of an input coordinate.

    Source: the plateau of von Oswald et al. (arXiv 2212.07677), worked out for the lab.
    """
    return variance / 2 * (dim - context_length / (context_length + dim + kurtosis - 2))


def axial_loss(weights: Float[Array, "5"], dim: int, context_length: int, kurtosis: float) -> float:
    r"""Half loss, sig2 = 1, of b = (beta u, b_y), A_y = alpha u, A_x = p u u^T + q (I - u u^T), which single out an axis u.

    Args:
      weights: (beta, b_y, alpha, p, q).
      dim: d.
      context_length: N.
      kurtosis: kap; u is a coordinate axis unless kap = 3.

    Source: worked out for the lab, from the moments of S_uu, g_u = (S w)_u and h = w^T S w.
    """
    beta, label, alpha, p, q = weights
    n, d = context_length, dim
    step = (n + d + kurtosis - 2) / n  # E g_u^2
    square = 1 + (kurtosis - 1) / n  # E S_uu^2
    mixed = d + (kurtosis - 1) / n  # E S_uu h
    fourth = 3 * d * (kurtosis + d - 1) / n + (1 - 1 / n) * d * (d + 2)  # E h^2
    along = beta * alpha + label * p
    even = (beta * p) ** 2 * square + 2 * beta * p * label * alpha * mixed + (label * alpha) ** 2 * fourth
    across = q**2 * (beta**2 / n + label**2 * step) - 2 * q * label + 1
    return float((even + along**2 * step - 2 * along + 1 + (d - 1) * across) / 2)


def false_minimum(dim: int, context_length: int, variance: float = 1.0) -> float:
    """Half loss of the local minimum beside the rank-one branch for normal inputs, a minimum of `axial_loss`.

    Args:
      dim: d >= 2.
      context_length: N.
      variance: sig2.

    Source: the plateau of von Oswald et al. (arXiv 2212.07677), worked out for the lab.
    """
    # The branch itself is a saddle of the axial loss; a push to either side leads down to the minimum.
    size = np.sqrt(context_length / (context_length + dim + 1))
    ends = [
        minimize(
            axial_loss,
            [size, push, size, sign * push, push],
            args=(dim, context_length, 3.0),
            method="BFGS",
            options={"gtol": 1e-9},
        )
        for push in (0.05, 0.2)
        for sign in (1, -1)
    ]
    return float(variance * max(end.fun for end in ends))


def rank_one_branch_size(dim: int, context_length: int, variance: float, kurtosis: float) -> float:
    r"""The product c = |b_x| |A_y| of the rank-one branch at its least loss, N / (sig2 (N + d + kap - 2)).

    Args:
      dim: d.
      context_length: N.
      variance: sig2 of an input coordinate.
      kurtosis: kap of an input coordinate.

    Source: the plateau of von Oswald et al. (arXiv 2212.07677), worked out for the lab; it is the best step size.
    """
    return context_length / (variance * (context_length + dim + kurtosis - 2))
