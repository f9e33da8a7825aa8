r"""AR(p) series: moments by several routes, the uniform distribution of coefficients, in-context least squares, Bayes.

x_t = rho_1 x_{t-1} + .. + rho_p x_{t-p} + eps_t, eps_t ~ N(0, sigma^2), `coefficients` = (rho_1, .., rho_p).
"""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg
from jaxtyping import Float

from icl_lab.core.errors import UnsupportedProblemError
from icl_lab.core.typing import Array


def lyapunov_covariance(coefficients: Float[Array, "p"], noise_variance: float) -> Float[Array, "p p"]:
    r"""The covariance of p successive values, Gamma = A Gamma A^T + sigma^2 e_1 e_1^T with the companion matrix A.

    Args:
      coefficients: (p,), stationary.
      noise_variance: sigma^2.

    Returns:
      (p, p), a Toeplitz matrix.
    """
    companion = np.eye(len(coefficients), k=-1)
    companion[0] = coefficients
    drive = np.zeros_like(companion)
    drive[0, 0] = noise_variance
    return scipy.linalg.solve_discrete_lyapunov(companion, drive)


def variance_from_impulse_response(coefficients: Float[Array, "p"], noise_variance: float) -> float:
    r"""gamma_0 = sigma^2 sum_k psi_k^2, psi the response of the recursion to a unit impulse.

    Args:
      coefficients: (p,), stationary.
      noise_variance: sigma^2.
    """
    recursion = np.append(1.0, -np.asarray(coefficients))
    radius = float(np.max(np.abs(np.roots(recursion)), initial=0.0))
    # psi_k^2 decays like radius^(2k) up to powers of k; it starts within the first p + 1 terms.
    length = len(recursion) + math.ceil(60 / -math.log(max(radius, 1e-3)))
    impulse = np.append(1.0, np.zeros(length))
    import scipy.signal  # takes a second, and few runs need it

    response = np.asarray(scipy.signal.lfilter([1.0], recursion, impulse))
    return float(noise_variance * np.sum(response**2))


def variance_from_partial_autocorrelations(coefficients: Float[Array, "p"], noise_variance: float) -> float:
    r"""gamma_0 = sigma^2 / prod_k (1 - r_k^2), r_k the partial autocorrelations (backward Durbin-Levinson).

    Args:
      coefficients: (p,), stationary.
      noise_variance: sigma^2.
    """
    filters, product = np.array(coefficients, dtype=np.float64), 1.0
    while len(filters):
        last = filters[-1]
        product *= 1 - last**2
        filters = (filters[:-1] + last * filters[-2::-1]) / (1 - last**2) if len(filters) > 1 else filters[:0]
    return float(noise_variance / product)


def uniform_second_moments(order: int, bound: float = 1.0) -> Float[Array, "p p"]:
    r"""E[rho rho^T] for rho_j = bound^j phi_j, phi uniform on the region of stationary coefficients.

    The partial autocorrelations are independent with (r_k + 1)/2 ~ Beta(floor((k+1)/2), floor(k/2) + 1), and
    phi^(k) = (phi^(k-1) - r_k J phi^(k-1), r_k) is linear in r_k, J the reversal.

    Args:
      order: p >= 1.
      bound: in (0, 1].

    Returns:
      (p, p); at bound 1 the diagonal is 1/3 (p = 1); 2/3, 1/3 (p = 2).
    """
    mean, second = np.zeros(0), np.zeros((0, 0))
    for k in range(1, order + 1):
        first, other = (k + 1) // 2, k // 2 + 1
        share = first / (first + other)
        r = 2 * share - 1
        square = r**2 + 4 * share * (1 - share) / (first + other + 1)
        flipped = second[::-1]
        head = second - r * (flipped + flipped.T) + square * flipped[:, ::-1]
        edge = r * mean - square * mean[::-1]
        second = np.block([[head, edge[:, None]], [edge[None, :], np.full((1, 1), square)]])
        mean = np.append(mean - r * mean[::-1], r)
    powers = float(bound) ** np.arange(1, order + 1)
    return second * np.outer(powers, powers)


def stationary_volume(order: int) -> float:
    r"""Volume of the region of stationary coefficients, prod_k 2^k B(floor((k+1)/2), floor(k/2) + 1): 2, 4, 16/3, ...

    Args:
      order: p >= 1.
    """

    def beta(a: int, b: int) -> float:
        return math.gamma(a) * math.gamma(b) / math.gamma(a + b)

    return math.prod(2**k * beta((k + 1) // 2, k // 2 + 1) for k in range(1, order + 1))


def least_squares_excess(order: int, length: int, noise_variance: float) -> float:
    """Leading term p sigma^2 / N of the excess of in-context least squares, and of Yule-Walker, on N lag windows.

    Args:
      order: p.
      length: N.
      noise_variance: sigma^2.
    """
    return order * noise_variance / length


def conditioned_mean(
    inputs: Float[Array, "N d"], labels: Float[Array, "N k"], noise_variance: float, prior_variance: float
) -> Float[Array, "k d"]:
    r"""E[W | data] by conditioning a joint Gaussian distribution, entries of W i.i.d. N(0, tau^2), y = W x + N(0, sigma^2 I).

    Given the inputs the labels have covariance K = tau^2 X X^T + sigma^2 I and covariance tau^2 X with W's rows. That the
    inputs are past labels does not matter: the likelihood is the same function of W.

    Args:
      inputs: (N, d).
      labels: (N, k).
      noise_variance: sigma^2.
      prior_variance: tau^2.

    Returns:
      (k, d).
    """
    kernel = prior_variance * inputs @ inputs.T + noise_variance * np.eye(len(inputs))
    return labels.T @ np.linalg.solve(kernel, prior_variance * inputs)


def integrated_mean(
    inputs: Float[Array, "N d"], labels: Float[Array, "N k"], noise_variance: float, prior_variance: float
) -> Float[Array, "k d"]:
    r"""E[W | data] by Bayes' rule on a grid: the density of the whole sequence given each W, times the prior; d <= 2.

    The trapezoid rule on an interval of 12 prior standard deviations converges faster than any power.

    Args:
      inputs: (N, d).
      labels: (N, k).
      noise_variance: sigma^2.
      prior_variance: tau^2.

    Returns:
      (k, d).

    Raises:
      UnsupportedProblemError: d > 2.
    """
    dim = inputs.shape[1]
    if dim > 2:
        raise UnsupportedProblemError(f"a grid over the rows of W is for d <= 2; got d = {dim}.")
    # Fine enough for the narrowest direction of the posterior.
    precision = np.linalg.norm(inputs, ord=2) ** 2 / noise_variance + 1 / prior_variance
    half = 12 * np.sqrt(prior_variance)
    axis = np.linspace(-half, half, 2 * math.ceil(half * math.sqrt(precision) / 0.5) + 1)
    rows = np.stack([grid.ravel() for grid in np.meshgrid(*[axis] * dim, indexing="ij")], axis=1)
    prior = -0.5 * np.sum(rows**2, axis=1) / prior_variance
    # Millions of nodes: the residuals of all of them at once would take a gigabyte.
    parts = np.array_split(rows, math.ceil(len(rows) / 2**16))
    means = []
    for label in np.asarray(labels).T:
        squares = np.concatenate([np.sum((part @ inputs.T - label[None, :]) ** 2, axis=1) for part in parts])
        log_density = prior - 0.5 * squares / noise_variance
        density = np.exp(log_density - np.max(log_density))
        means.append(density @ rows / np.sum(density))
    return np.stack(means)
