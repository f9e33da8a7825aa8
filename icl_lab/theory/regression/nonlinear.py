r"""One layer of linear attention on nonlinear responses: the best step size, and the risk of any step on any labels.

Setting of Mahankali, Hashimoto, Ma (arXiv 2307.03576), Theorem 3: x ~ N(0, I_d), y_i = f(x_i) + noise of variance s2, f
drawn from a family whose distribution is invariant under rotations of x and under f -> -f. Writing m_f = E_x[x f(x)],

    eta = E|m_f|^2 / ( E f^2 |x|^2 + s2 d + (n - 1) E|m_f|^2 )

is the step of the *sum* over the context, yhat = eta sum_i y_i x_i.x_q. Targets are noiseless, f(x_q).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from icl_lab.core.typing import Array
from icl_lab.tasks.regression.nonlinear import ResponseMoments


def step_size(moments: ResponseMoments, dim: int, context_length: int, noise_variance: float) -> float:
    """eta = E[u.b] / E|b|^2 in closed form, b = sum_i y_i x_i and u the best linear predictor given the prompt.

    Args:
      moments: E f^2, E f^2 |x|^2 and E |m_f|^2 of the family.
      dim: d.
      context_length: n.
      noise_variance: s2.

    Source: Mahankali, Hashimoto, Ma (arXiv 2307.03576), Theorem 3, whose ratio of expectations is evaluated here.
    """
    signal = moments.correlation
    return signal / (moments.second_times_norm + noise_variance * dim + (context_length - 1) * signal)


def minimum_risk(moments: ResponseMoments, dim: int, context_length: int, noise_variance: float) -> float:
    """Smallest E (yhat - f(x_q))^2 of the layer, E f^2 - n eta E|m_f|^2.

    Args:
      moments: E f^2, E f^2 |x|^2 and E |m_f|^2 of the family.
      dim: d.
      context_length: n.
      noise_variance: s2.
    """
    eta = step_size(moments, dim, context_length, noise_variance)
    return moments.second - context_length * eta * moments.correlation


def network_step_size(dim: int, context_length: int, noise_variance: float, width: int) -> float:
    """The step size eta for labels of a random ReLU network of K = `width` units, 1 / (n + 2 d + 3 + 4 s2 / K)."""
    return 1 / (context_length + 2 * dim + 3 + 4 * noise_variance / width)


def bilinear_risk(
    preconditioner: Float[Array, "d d"],
    covariance: Float[Array, "d d"],
    best: Float[Array, "d"],
    spread: Float[Array, "d d"],
    minimum_error: float,
    length: int | float,
) -> float:
    r"""Risk of yhat = x_q^T B (1/M) sum_i y_i x_i, where examples and query are independent draws of any (x, y).

    .. math:: \min_w E(w \cdot x - y)^2 + (Bm - a)^\top \Lambda (Bm - a) + \tfrac1M \operatorname{tr}(\Lambda B \Sigma B^\top)

    Args:
      preconditioner: (d, d), B.
      covariance: (d, d), Lambda = E[x x^T].
      best: (d,), a = Lambda^{-1} m, the best linear predictor without intercept; m = E[x y].
      spread: (d, d), Sigma = Cov(x y), not the second moment.
      minimum_error: E(a.x_q - target)^2.
      length: M >= 1, `math.inf` allowed.
    """
    miss = preconditioner @ covariance @ best - best
    variance = np.trace(covariance @ preconditioner @ spread @ preconditioner.T) / length
    return float(minimum_error + miss @ covariance @ miss + variance)


def rectified_distribution(
    covariance: Float[Array, "d d"], direction: Float[Array, "d"], noise_variance: float
) -> tuple[Float[Array, "d"], Float[Array, "d d"], float]:
    """What `bilinear_risk` needs to know of y = max(w.x, 0) + noise and the target max(w.x_q, 0), x ~ N(0, Lambda).

    Args:
      covariance: (d, d), Lambda.
      direction: (d,), w.
      noise_variance: s2.

    Returns:
      a = w/2; Sigma = (s/2 + s2) Lambda + (3/4) Lambda w w^T Lambda with s = w^T Lambda w; the error s/4 of a.
    """
    image = covariance @ direction
    power = direction @ image
    spread = (power / 2 + noise_variance) * covariance + 0.75 * np.outer(image, image)
    return direction / 2, spread, float(power / 4)
