r"""Regression of sine waves y = a sin(x + rho), x ~ U(-h, h): reference losses around one step of gradient descent.

A wave is linear in the features phi(x) = (sin x, cos x), y = w.phi(x) with w = a (cos rho, sin rho), so that two moments of w
and two of phi decide every loss below. Losses are *half* mean squared errors, as in `theory.vonoswald2022`.
Source of the task: von Oswald et al. (arXiv 2212.07677), Section 4; the closed forms are worked out for the lab.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from icl_lab.core.typing import Array

# Gauss-Legendre nodes for amplitude and phase, whose moments oscillate no faster than cos(2 rho).
NODES = 200


class Step(NamedTuple):
    """The best of a family of gradient steps.

    Attributes:
      step_size: eta of the mean gradient.
      loss: half mean squared error.
    """

    step_size: float
    loss: float


def feature_moments(half_width: float) -> tuple[Float[np.ndarray, "2 2"], Float[np.ndarray, "2 2 2 2"]]:
    r"""Second and fourth moments of (sin x, cos x) for x ~ U(-h, h).

    .. math:: \Sigma_\phi = \mathrm{diag}\left(\tfrac{1 - c_2}2, \tfrac{1 + c_2}2\right), \quad
              E \sin^4 = \tfrac{3 - 4 c_2 + c_4}8, \; E \cos^4 = \tfrac{3 + 4 c_2 + c_4}8, \; E \sin^2\cos^2 = \tfrac{1 - c_4}8,
              \quad c_k = \sin(kh)/(kh)

    Args:
      half_width: h > 0.

    Returns:
      E phi_i phi_j (2, 2) and E phi_i phi_j phi_k phi_l (2, 2, 2, 2).
    """
    second, fourth = (np.sin(k * half_width) / (k * half_width) for k in (2, 4))
    by_sines = ((3 + 4 * second + fourth) / 8, (1 - fourth) / 8, (3 - 4 * second + fourth) / 8)
    moments = np.zeros((2, 2, 2, 2))
    for index in np.ndindex(2, 2, 2, 2):
        sines = index.count(0)
        if sines % 2 == 0:  # the others are odd in x
            moments[index] = by_sines[sines // 2]
    return np.diag([(1 - second) / 2, (1 + second) / 2]), moments


def coefficient_moments(
    amplitude: Sequence[float], phase: Sequence[float], shared: bool
) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2 2"]]:
    r"""Mean and second moment of w = a (cos rho, sin rho), by quadrature over amplitude and phase.

    Args:
      amplitude: ends of the interval that a is uniform on.
      phase: ends of the interval that rho is uniform on.
      shared: whether a and rho are the same uniform number, scaled to their intervals; else they are independent.

    Returns:
      E w (2,) and E w w^T (2, 2).
    """
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    uniform, weights = (nodes + 1) / 2, weights / 2
    a, rho = (low + (high - low) * uniform for low, high in (amplitude, phase))
    waves = np.stack([np.cos(rho), np.sin(rho)])
    if shared:
        return (waves * a) @ weights, (waves * a**2 * weights) @ waves.T
    return (a @ weights) * (waves @ weights), (a**2 @ weights) * (waves * weights) @ waves.T


def zero_loss(half_width: float, moment: Float[Array, "2 2"]) -> float:
    r"""Half loss of predicting 0, (1/2) tr(M Sigma_phi).

    Args:
      half_width: h.
      moment: (2, 2), M = E w w^T; the covariance of w gives the loss of the best fixed function E[w].phi(x).
    """
    return float(np.trace(moment @ feature_moments(half_width)[0])) / 2


def step_loss(step_size: float, context_length: int, half_width: float, moment: Float[Array, "2 2"]) -> float:
    r"""Half loss of one step of gradient descent on the features.

    .. math:: \tfrac12 \operatorname{tr} M \left[\Sigma - 2\eta \Sigma^2
              + \eta^2 \left(\tfrac1N E[\phi\phi^\top \Sigma\, \phi\phi^\top] + \tfrac{N-1}N \Sigma^3\right)\right]

    Args:
      step_size: eta of the mean gradient.
      context_length: N.
      half_width: h.
      moment: (2, 2), M = E v v^T of v = w - w_0, where the step starts at w_0.
    """
    sigma, linear, curved = _coefficients(context_length, half_width, moment)
    return (sigma - 2 * step_size * linear + step_size**2 * curved) / 2


def best_step(context_length: int, half_width: float, moment: Float[Array, "2 2"]) -> Step:
    """The step size that minimises `step_loss`, and its loss.

    Args:
      context_length: N.
      half_width: h.
      moment: (2, 2), M = E v v^T of v = w - w_0, where the step starts at w_0.
    """
    constant, linear, curved = _coefficients(context_length, half_width, moment)
    return Step(linear / curved, (constant - linear**2 / curved) / 2)


def _coefficients(context_length: int, half_width: float, moment: Array) -> tuple[float, float, float]:
    """Of 1, -2 eta and eta^2 in twice the loss."""
    sigma, fourth = feature_moments(half_width)
    single = np.einsum("ijkl,jk->il", fourth, sigma)
    curvature = single / context_length + (1 - 1 / context_length) * sigma @ sigma @ sigma
    constant, linear, curved = (float(np.trace(moment @ matrix)) for matrix in (sigma, sigma @ sigma, curvature))
    return constant, linear, curved
