r"""One softmax head on Hankel columns h_i = (x_i, .., x_{i+p}) of an AR(p) series with Gaussian innovations, for long contexts.

The head returns pi^T sum_i a_i h_i with a = softmax_i(h_i . q), its weights adding up to one; q is linear in the query h.
With N columns it differs from its limit by a random error of variance of order 1/N.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import scipy.linalg
import scipy.special
from jaxtyping import Float

from icl_lab.core.errors import AssumptionError
from icl_lab.core.typing import Array
from icl_lab.tasks.series.autoregressive import companion
from icl_lab.theory.series.autoregressive import lyapunov_covariance


def column_covariance(coefficients: Float[Array, "p"], noise_std: float) -> Float[Array, "p+1 p+1"]:
    """Gamma_{p+1} = [gamma_|i-j|], the covariance of a column, from that of the state and one step of the companion matrix."""
    covariance = lyapunov_covariance(coefficients, noise_std**2)
    return scipy.linalg.toeplitz(np.append(covariance[0], (companion(coefficients) @ covariance)[0, -1]))


def readout_limit(coefficients: Float[Array, "p"], noise_std: float, query: Float[Array, "p+1"]) -> Float[Array, "p+1"]:
    r"""The limit of sum_i softmax_i(h_i . q) h_i as N grows, Gamma_{p+1} q: linear in q, though softmax is not.

    It is E[h e^{h.q}] / E[e^{h.q}], the mean of the exponentially tilted Gaussian.

    Args:
      coefficients: (p,) rho_1 .. rho_p, nearest lag first, stationary.
      noise_std: sigma > 0.
      query: (p+1,), q.
    """
    return column_covariance(coefficients, noise_std) @ query


def scaled_gap(coefficients: Float[Array, "p"], noise_std: float, scale: float) -> float:
    r"""The limit of N times the excess risk of the head pi = C r, q = r (w.h) / (sigma^2 C), r = (-rho_p, .., -rho_1, 1).

    .. math:: \sigma^2\left[C^2(1-2v/C^2)^{-1/2} + v\,(1-2v/C^2)^{-3/2}\right], \qquad v = (\gamma_0-\sigma^2)/\sigma^2

    Args:
      coefficients: (p,) rho_1 .. rho_p.
      noise_std: sigma > 0.
      scale: C, with C^2 > 2 v.

    Raises:
      AssumptionError: C^2 <= 2 v, where the variance of the weights is infinite.
    """
    v = float(lyapunov_covariance(coefficients, noise_std**2)[0, 0]) / noise_std**2 - 1
    check_scale(scale, v)
    share = 1 - 2 * v / scale**2
    return float(noise_std**2 * (scale**2 * share**-0.5 + v * share**-1.5))


def finite_gap(
    coefficients: Float[Array, "p"],
    noise_std: float,
    scale: float,
    noise: Iterable[Float[Array, "B N"]],
    nodes: int = 24,
) -> tuple[float, float]:
    r"""N times the excess risk of the head of `scaled_gap` at finite N, innovations taken as independent of the query.

    .. math:: N\,E_m E_\epsilon\Big[C\,\frac{\sum_i e^{\lambda\epsilon_i}\epsilon_i}{\sum_i e^{\lambda\epsilon_i}} - m\Big]^2,
              \qquad m = w\cdot h \sim N(0, V),\ \lambda = m/(\sigma^2 C)

    The mean over m is a Gauss-Hermite sum, that over the innovations an average of given ones. What it leaves out, that the
    last few innovations made the query, is of relative order 1/N. A softmax of very different scores rests on its largest one,
    so the approach to `scaled_gap` is slow where that has large weights, C^2 close to 2 v.

    Args:
      coefficients: (p,), rho_1 .. rho_p, nearest lag first.
      noise_std: sigma > 0.
      scale: C > 0.
      noise: batches (B, N) of independent standard normal numbers, the innovations of N columns in units of sigma.
      nodes: of the sum over m, even.

    Returns:
      The mean and its standard error.
    """
    explained = float(lyapunov_covariance(coefficients, noise_std**2)[0, 0]) - noise_std**2
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    # m -> -m with the innovations reversed is the same average.
    half = points > 0
    points, weights = np.sqrt(explained) * points[half], 2 * weights[half] / np.sqrt(2 * np.pi)
    drawn = []
    for innovations in (noise_std * batch for batch in noise):
        squares = np.zeros(len(innovations))
        for m, weight in zip(points, weights, strict=True):
            attention = scipy.special.softmax(m / (noise_std**2 * scale) * innovations, axis=1)
            squares += weight * (scale * np.sum(attention * innovations, axis=1) - m) ** 2
        drawn.append(innovations.shape[1] * squares)
    values = np.concatenate(drawn)
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))


def saturation(scale: float, explained: float) -> float:
    r"""The logarithm of the context length beyond which `scaled_gap` is the gap: 16 a / (1 - 2a), a = v / C^2.

    The weights of a query z standard deviations from 0 have a mean square that is e^{a z^2} times their squared mean. So in the
    average over queries z counts as if it were Gaussian of precision 1 - 2a, and N columns must resolve z up to four standard
    deviations of that.

    Args:
      scale: C.
      explained: v = V / sigma^2.
    """
    share = explained / scale**2
    return 16 * share / (1 - 2 * share) if 2 * share < 1 else np.inf


def check_scale(scale: float, explained: float) -> None:
    """Raise `AssumptionError` unless C^2 > 2 v."""
    if not scale**2 > 2 * explained:
        raise AssumptionError(
            f"`C` = {scale:g} is too small: the 1/N rule of the softmax head needs C^2 > 2 V/sigma^2 = {2 * explained:.6g}, "
            "because its weights have infinite variance otherwise. Take a larger C."
        )
