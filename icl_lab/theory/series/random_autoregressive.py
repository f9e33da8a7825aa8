r"""One attention layer, and ridge, on AR(p) series whose coefficients are drawn once per prompt.

x_t = rho_1 x_{t-1} + .. + rho_p x_{t-p} + eps_t, eps_t ~ N(0, sigma^2). A layer that reads N lag windows
h_i = (x_i, .., x_{i+p}) predicts theta . phi with the features phi_{jk,l} = Ghat_jk x_{n-p+l}, j <= k <= p, l < p,
Ghat = (1/N) sum_i h_i h_i^T, n = N + p; they are ordered by (j, k), l fastest. `excess` is a risk above sigma^2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.core.typing import Array
from icl_lab.theory.series import zhou2025

NODES = 40
"""Fewest quadrature nodes an axis."""


class FeatureMoments(NamedTuple):
    """Moments of the features of one layer: gram (.., F, F), cross (.., F), variance (..) = E y^2."""

    gram: Float[Array, "*z F F"]
    cross: Float[Array, "*z F"]
    variance: Float[Array, "*z"]


def feature_moments(autocovariances: Float[Array, "z lags"], order: int) -> FeatureMoments:
    r"""Moments of the features of Gaussian series, by Isserlis' theorem: the fifteen pairings of each product of six values.

    Args:
      autocovariances: (z, n + 1), gamma_0 .. gamma_n of z series, n = N + p.
      order: p.

    Returns:
      Moments with a leading axis z.
    """
    gamma = np.asarray(autocovariances, dtype=np.float64)
    length = gamma.shape[1] - 1 - order
    first, second = np.triu_indices(order + 1)
    windows, lags = np.arange(length), np.arange(order + 1)

    def cov(time, other):
        return gamma[:, np.abs(np.asarray(time) - np.asarray(other))]

    # Covariance of x_{i+k} with the query's x_{N+l}, (z, k, l, i), and with the target x_{N+p}, (z, k, i).
    query = length + np.arange(order)
    reach = cov(windows[None, None, :] + lags[:, None, None], query[None, :, None])
    ahead = cov(windows[None, :] + lags[:, None], length + order)
    # Means over i, or over i and i', of products of covariances.
    twice = np.einsum("zjli,zkmi->zjklm", reach, reach) / length
    within = cov(lags[:, None], lags[None, :])
    shifts = np.arange(-order, order + 1)
    toeplitz = cov(windows[None, :, None] + shifts[:, None, None], windows[None, None, :])
    chains = np.einsum("zkli,zsin,zqmn->zklsqm", reach, toeplitz, reach, optimize=True) / length**2
    gap = np.arange(1 - length, length)
    both = cov(gap[None, :] + shifts[:, None], 0)
    squares = np.einsum("d,zsd,zrd->zsr", (length - np.abs(gap)) / length**2, both, both)

    pair = within[:, first, second]  # (z, a), a = (j, k)
    seen = twice[:, first, second] + np.swapaxes(twice[:, first, second], -1, -2)  # (z, a, l, m)
    last = cov(query[:, None], query[None, :])
    gram = np.einsum("za,zb,zlm->zalbm", pair, pair, last)
    gram += np.einsum("za,zblm->zalbm", pair, seen) + np.einsum("zb,zalm->zalbm", pair, seen)
    j, k, q, r = first[:, None], second[:, None], first[None, :], second[None, :]
    crossed = squares[:, j - q + order, k - r + order] + squares[:, j - r + order, k - q + order]
    gram += np.einsum("zab,zlm->zalbm", crossed, last)
    for end, middle in ((j, k), (k, j)):
        for near, far in ((q, r), (r, q)):
            # x_{i+end} with one query value, x_{i+middle} with x_{i'+near}, x_{i'+far} with the other query value.
            linked = np.moveaxis(chains[:, end, :, middle - near + order, far, :], 2, 0)  # advanced axes lead: (a, b, z, l, m)
            gram += np.einsum("zablm->zalbm", linked) + np.einsum("zabml->zalbm", linked)
    cross = np.einsum("za,zl->zal", pair, cov(query, length + order))
    for one, other in ((first, second), (second, first)):
        cross += np.einsum("zali,zai->zal", reach[:, one], ahead[:, other]) / length
    count = len(first) * order
    return FeatureMoments(gram.reshape(-1, count, count), cross.reshape(-1, count), gamma[:, 0])


def coefficient_rule(order: int, bound: float, nodes: int | None = None) -> tuple[Float[Array, "z p"], Float[Array, "z"]]:
    r"""A Gauss-Legendre rule for rho_j = bound^j phi_j, phi uniform on the region of stationary coefficients, p <= 2.

    For p = 2 the triangle |phi_2| < 1, |phi_1| < 1 - phi_2 is a square in (phi_1 / (1 - phi_2), phi_2).

    Args:
      order: 1 or 2.
      bound: in (0, 1), which keeps the variance integrable.
      nodes: an axis; None for so many that the error is rounding. At bound 0.9 and p = 2 that takes more than a hundred along
        the first axis, since the series near the corner phi = (2, -1) are close to a unit root of order two; 14 nodes an axis
        leave an error of one percent in the mean variance.

    Raises:
      UnsupportedProblemError: p > 2.
      InvalidValueError: `bound` outside (0, 1).
    """
    if order > 2:
        raise UnsupportedProblemError(f"the quadrature over coefficients is for p <= 2; got p = {order}.")
    if not 0 < bound < 1:
        raise InvalidValueError(f"`bound` must be in (0, 1); got {bound!r}. At 1 the mean variance is infinite.")

    def legendre(pole: float):
        # The integrand is analytic up to a unit root at `pole`, in units of the half width of the axis.
        return np.polynomial.legendre.leggauss(max(NODES, math.ceil(16 / math.acosh(pole))) if nodes is None else nodes)

    if order == 1:
        points, weights = legendre(1 / bound)
        return bound * points[:, None], weights / 2
    (across, share), (up, rest) = legendre((1 + bound**2) / (2 * bound)), legendre(1 / bound)
    across, up = (grid.ravel() for grid in np.meshgrid(across, up, indexing="ij"))
    density = np.outer(share, rest).ravel() * (1 - up) / 4
    return np.stack([bound * across * (1 - up), bound**2 * up], axis=1), density


def random_feature_moments(
    order: int, length: int, bound: float, noise_variance: float = 1.0, nodes: int | None = None
) -> FeatureMoments:
    """`feature_moments` averaged over the uniform distribution of coefficients.

    Args:
      order: p, 1 or 2.
      length: N.
      bound: in (0, 1), the largest modulus of an eigenvalue of the companion matrix.
      noise_variance: sigma^2.
      nodes: of the quadrature, an axis; None for so many that the error is rounding.

    Returns:
      Moments without leading axis.
    """
    coefficients, weights = coefficient_rule(order, bound, nodes)
    count = zhou2025.feature_count(order)
    gram, cross, variance = np.zeros((count, count)), np.zeros(count), 0.0
    for start in range(0, len(weights), 128):
        some, share = coefficients[start : start + 128], weights[start : start + 128]
        moments = feature_moments(_autocovariances(some, noise_variance, length + order + 1), order)
        gram += np.tensordot(share, moments.gram, 1)
        cross += share @ moments.cross
        variance += float(share @ moments.variance)
    return FeatureMoments(gram, cross, np.asarray(variance))


def _autocovariances(coefficients: Float[Array, "z p"], noise_variance: float, count: int) -> Float[Array, "z count"]:
    """gamma_0 .. of AR(1) or AR(2) series in closed form: gamma_0 from the partial autocorrelations, then the recursion."""
    order = coefficients.shape[1]
    last = coefficients[:, -1]
    first = coefficients[:, 0] / (1 - last) if order == 2 else last
    gamma = np.zeros((len(coefficients), count))
    gamma[:, 0] = noise_variance / (1 - first**2) / (1 - last**2 if order == 2 else 1.0)
    gamma[:, 1] = first * gamma[:, 0]
    for k in range(2, count):
        gamma[:, k] = sum(coefficients[:, j] * gamma[:, k - 1 - j] for j in range(order))
    return gamma


def span_minimum(moments: FeatureMoments, basis: Float[Array, "F q"]) -> tuple[Float[Array, "q"], float]:
    """Best coefficients of a layer restricted to theta = basis @ z, and their risk v - 2 c.theta + theta^T M theta.

    Args:
      moments: without leading axis.
      basis: (F, q), of full column rank; the identity for unrestricted (lifted) coefficients.
    """
    linear = basis.T @ moments.cross
    best = np.linalg.solve(basis.T @ moments.gram @ basis, linear)
    return best, float(moments.variance - linear @ best)


def step_basis(order: int, preconditioned: bool) -> Float[Array, "F q"]:
    r"""The coefficients of one gradient step from zero, h^T A (1/N) sum_i h_i y_i: A = eta I, or any p x p matrix A.

    Args:
      order: p.
      preconditioned: whether A is free (q = p^2, row by row) instead of a multiple of the identity (q = 1).

    Returns:
      (F, q).
    """
    pairs = [(j, k) for j in range(order + 1) for k in range(j, order + 1)]
    basis = np.zeros((len(pairs) * order, order, order))
    for label in range(order):
        for query in range(order):
            basis[pairs.index((label, order)) * order + query, query, label] = 1.0
    flat = basis.reshape(len(basis), -1)
    return flat if preconditioned else flat @ np.eye(order).reshape(-1, 1)


def infinite_context_step(bound: float, noise_variance: float = 1.0) -> tuple[float, float]:
    r"""Step size and excess of the best layer at infinite context on AR(1) series with rho ~ U(-R, R).

    .. math:: \eta = \frac{E[r^2/(1-r^2)^2]}{E[r^2/(1-r^2)^3]}, \qquad
              E\Big[\frac{r^2}{1-r^2}\Big] - \frac{E[r^2/(1-r^2)^2]^2}{E[r^2/(1-r^2)^3]}

    for sigma = 1; the means are atanh(R)/R - 1, (R/(1-R^2) - atanh R)/(2R) and (R(1+R^2)/(1-R^2)^2 - atanh R)/(8R).

    Args:
      bound: R in (0, 1).
      noise_variance: sigma^2, which divides the step size and multiplies the excess.
    """
    arc, rest = math.atanh(bound), 1 - bound**2
    zero = arc / bound - 1
    linear = (bound / rest - arc) / (2 * bound)
    square = (bound * (1 + bound**2) / rest**2 - arc) / (8 * bound)
    return linear / square / noise_variance, noise_variance * (zero - linear**2 / square)
