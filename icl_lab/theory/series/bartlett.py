r"""Stationary linear series and the fluctuations of their sample autocovariances.

    x_t = rho_1 x_{t-1} + .. + rho_p x_{t-p} + e_t + theta_1 e_{t-1} + .. + theta_q e_{t-q},   e_t i.i.d., variance sigma^2

Autocovariances are gamma_k = E x_t x_{t+k}. Everything rests on the impulse response psi, x_t = sum_k psi_k e_{t-k}, summed
until it has decayed below rounding.
"""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError, MemoryBudgetError
from icl_lab.core.typing import Array

NEGLIGIBLE = 1e-17
"""Size of the impulse response at which its tail is dropped."""
LONGEST_SERIES = 2**22
"""Values of a series that exact moments are summed over, in seconds."""


def memory(coefficients: Float[Array, "p"]) -> int:
    """How many lags the powers of the spectral radius take to become negligible.

    Args:
      coefficients: (p,) rho, nearest lag first.

    Raises:
      InvalidValueError: the spectral radius is not below 1.
    """
    radius = spectral_radius(coefficients)
    if not radius < 1:
        raise InvalidValueError(
            f"`coefficients` must be stationary, with a spectral radius below 1; got {radius:.6g}. "
            "The series has no autocovariances otherwise."
        )
    return len(coefficients) if radius == 0 else len(coefficients) + int(np.ceil(np.log(NEGLIGIBLE) / np.log(radius)))


def spectral_radius(coefficients: Float[Array, "p"]) -> float:
    """The largest modulus of the roots of z^p - rho_1 z^{p-1} - .. - rho_p, 0 without coefficients."""
    roots = np.roots(np.concatenate([[1.0], -np.asarray(coefficients, dtype=np.float64)]))
    return float(np.max(np.abs(roots), initial=0.0))


def impulse_response(coefficients: Float[Array, "p"], moving: Float[Array, "q"], count: int) -> Float[Array, "count"]:
    """psi_0 = 1, psi_1, .., psi_{count-1}.

    Args:
      coefficients: (p,) rho, nearest lag first; empty for a moving average.
      moving: (q,) theta; empty for an autoregression.
      count: how many, >= 1.
    """
    numerator = np.concatenate([[1.0], np.asarray(moving, dtype=np.float64)])
    denominator = np.concatenate([[1.0], -np.asarray(coefficients, dtype=np.float64)])
    import scipy.signal  # takes a second, and few runs need it

    return np.asarray(scipy.signal.lfilter(numerator, denominator, np.eye(1, count)[0]))


def autocovariances(
    coefficients: Float[Array, "p"], moving: Float[Array, "q"], noise_std: float, count: int
) -> Float[Array, "count"]:
    r"""gamma_k = sigma^2 sum_j psi_j psi_{j+k} for k = 0 .. count - 1.

    Args:
      coefficients: (p,) rho, nearest lag first; empty for a moving average.
      moving: (q,) theta; empty for an autoregression.
      noise_std: sigma.
      count: how many lags, >= 1.

    Raises:
      InvalidValueError: coefficients that are not stationary.
      MemoryBudgetError: lags and memory of the series together exceed `LONGEST_SERIES` values.
    """
    terms = memory(coefficients) + len(moving) + 1
    if terms + count > LONGEST_SERIES:
        raise MemoryBudgetError(
            f"exact moments take {terms + count} values of the series, {count} for the prompt and {terms} until it has "
            f"forgotten, more than the {LONGEST_SERIES} allowed. Take a shorter context, or coefficients further from the "
            "unit circle."
        )
    psi = impulse_response(coefficients, moving, terms + count)
    return noise_std**2 * np.array([psi[:terms] @ psi[k : k + terms] for k in range(count)])


def reflected_filters(coefficients: Float[Array, "p"]) -> Float[Array, "k p1"]:
    r"""The filters that whiten an autoregression, oldest value first.

    They are the innovation filter r = (-rho_p, .., -rho_1, 1) and r with any set of its roots replaced by their reciprocals; r
    is the first, the time-reversed (1, -rho_1, .., -rho_p) the last.

    Complex roots are reflected in pairs, which keeps a filter real. Zero roots, which have no reciprocals, lose their factor
    instead, which moves the filter to earlier values.

    Args:
      coefficients: (p,) rho, nearest lag first.

    Returns:
      (k, p+1).
    """
    roots = np.roots(np.append(1.0, -np.asarray(coefficients, dtype=np.float64)))
    groups = [[root] for root in roots if root.imag == 0] + [[root, root.conj()] for root in roots if root.imag > 0]
    groups += [[0.0]] * (len(coefficients) - sum(map(len, groups)))
    filters = []
    for flips in itertools.product((False, True), repeat=len(groups)):
        product = np.ones(1)
        for group, flipped in zip(groups, flips, strict=True):
            for root in group:
                product = np.convolve(product, [-root, 1.0] if not flipped else [1.0, -root])
        filters.append(np.real(product))
    return np.array(filters)


def covariance(gamma: Float[Array, "L"], order: int) -> Float[Array, "p1 p1"]:
    r"""Bartlett's limit of N Cov(c_k, c_l), c_k = (1/N) sum_i x_i x_{i+k} the sample autocovariances of a Gaussian series.

    .. math:: \Sigma_{kl} = \sum_{m \in \mathbb Z} (\gamma_m \gamma_{m+k-l} + \gamma_{m+k} \gamma_{m-l}), \quad k, l = 0..p

    Args:
      gamma: (L,) autocovariances of lags 0 .. L - 1, those beyond being negligible.
      order: p.

    Returns:
      (p+1, p+1).

    Source: Bartlett (1946).
    """
    long = np.pad(np.asarray(gamma, dtype=np.float64), (0, 2 * order + 1))
    lags = np.arange(-len(gamma), len(gamma) + 1)

    def at(lag: np.ndarray) -> np.ndarray:
        return long[np.minimum(np.abs(lag), len(long) - 1)]

    first, second, m = np.arange(order + 1)[:, None, None], np.arange(order + 1)[None, :, None], lags[None, None, :]
    return np.sum(at(m) * at(m + first - second) + at(m + first) * at(m - second), axis=2)


def spectral_covariance(
    coefficients: Float[Array, "p"], moving: Float[Array, "q"], noise_std: float, order: int, points: int = 2**16
) -> Float[Array, "p1 p1"]:
    r"""`covariance` from the spectral density f instead of the autocovariances.

    .. math:: \Sigma_{kl} = \frac{1}{2\pi} \int_{-\pi}^{\pi} 2 f(\omega)^2 \cos k\omega \cos l\omega \, d\omega, \qquad
              f = \sigma^2 \left|\frac{1 + \sum_j \theta_j e^{-ij\omega}}{1 - \sum_j \rho_j e^{-ij\omega}}\right|^2

    Args:
      coefficients: (p,) rho, nearest lag first; empty for a moving average.
      moving: (q,) theta; empty for an autoregression.
      noise_std: sigma.
      order: p.
      points: of the trapezoidal rule, whose error falls geometrically.

    Returns:
      (p+1, p+1).

    Source: Parseval's identity on Bartlett's sum.
    """
    angles = 2 * np.pi * np.arange(points) / points
    turn = np.exp(-1j * angles)
    top = np.polyval(np.append(np.asarray(moving, dtype=np.float64)[::-1], 1.0), turn)
    bottom = np.polyval(np.append(-np.asarray(coefficients, dtype=np.float64)[::-1], 1.0), turn)
    density = noise_std**2 * np.abs(top / bottom) ** 2
    waves = np.cos(np.arange(order + 1)[:, None] * angles[None, :])
    return 2 * (waves * density[None, :] ** 2) @ waves.T / points


def scale_weights(gamma: Float[Array, "L"], order: int) -> Float[Array, "p1"]:
    r"""The unbiased estimate beta . c of the number 1, linear in the sample autocovariances, whose variance is smallest.

    .. math:: \beta = \Sigma^{-1} g / u, \qquad u = g^\top \Sigma^{-1} g, \qquad g = (\gamma_0, \dots, \gamma_p)

    Args:
      gamma: (L,) autocovariances of lags 0 .. L - 1, those beyond being negligible.
      order: p.

    Returns:
      (p+1,) beta, the weight of each c_k.

    Source: generalised least squares with Bartlett's covariance.
    """
    target = np.asarray(gamma, dtype=np.float64)[: order + 1]
    solved = np.linalg.solve(covariance(gamma, order), target)
    return solved / (target @ solved)


def scale_variance(gamma: Float[Array, "L"], order: int, excess_kurtosis: float = 0.0) -> float:
    r"""The limit of N times the smallest variance of such an estimate, 1/u + k4.

    It is 2 + k4 for an autoregression of order at most p, whose sample innovation variance is such an estimate, and larger
    for every other series. The excess kurtosis k4 of the innovations adds k4 g g^T to Bartlett's covariance, which moves no
    weight.

    Args:
      gamma: (L,) autocovariances of lags 0 .. L - 1, those beyond being negligible.
      order: p.
      excess_kurtosis: k4 >= -2 of the innovations, 0 if they are Gaussian.
    """
    weights = scale_weights(gamma, order)
    return float(weights @ covariance(gamma, order) @ weights) + excess_kurtosis
