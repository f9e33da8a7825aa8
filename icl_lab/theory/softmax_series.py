r"""One softmax head on Hankel columns h_i = (x_i, .., x_{i+p}) of an AR(p) series with Gaussian innovations, for long contexts.

The head returns pi^T sum_i a_i h_i with a = softmax_i(h_i . q), its weights adding up to one; q is linear in the query h.
With N columns it differs from its limit by a random error of variance of order 1/N.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from jaxtyping import Float

from icl_lab.errors import AssumptionError
from icl_lab.tasks.autoregressive import companion
from icl_lab.theory.autoregressive import lyapunov_covariance
from icl_lab.typing import Array


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


def check_scale(scale: float, explained: float) -> None:
    """Raise `AssumptionError` unless C^2 > 2 v."""
    if not scale**2 > 2 * explained:
        raise AssumptionError(
            f"`C` = {scale:g} is too small: the 1/N law of the softmax head needs C^2 > 2 V/sigma^2 = {2 * explained:.6g}, "
            "because its weights have infinite variance otherwise. Take a larger C."
        )
