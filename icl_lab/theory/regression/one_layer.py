r"""The landscape of one linear attention layer on linear regression: its saddle at zero, a wrong mode, a false minimum.

With G the Gram of the examples (x_i, y_i) divided by N, b the label row of W_PV and A the first d columns of W_KQ, the answer
is b^T G A x_q. Inputs have independent symmetric coordinates of variance sig2 and kurtosis kap, tasks are standard normal,
labels have no noise, and losses are half mean squared errors. The global minimum is one step of gradient descent, see
`vonoswald2022.one_step_loss`.
"""

from __future__ import annotations

import numpy as np
import scipy.optimize
from jaxtyping import Float


def saddle_curvatures(dim: int, variance: float) -> Float[np.ndarray, "K"]:
    r"""The eigenvalues of the Hessian at zero weights that do not vanish, K = 2d + 2 of them, increasing.

    :math:`\pm\sigma^4 \sqrt d` (b_y against tr A_x) once and :math:`\pm\sigma^4` (b_x against A_y) d times.

    Args:
      dim: d.
      variance: sig2.

    Source: the plateau of von Oswald et al. (arXiv 2212.07677), worked out for the lab.
    """
    right, wrong = variance**2 * np.sqrt(dim), np.full(dim, variance**2)
    return np.concatenate([[-right], -wrong, wrong, [right]])


def escape_rate(dim: int, variance: float) -> float:
    r"""Rate sig2^2 sqrt(d) at which gradient flow leaves zero weights, along b_y and the multiple of the identity in A_x.

    Args:
      dim: d.
      variance: sig2.

    Source: as `saddle_curvatures`.
    """
    return float(variance**2 * np.sqrt(dim))


def wrong_mode_loss(dim: int, context_length: int, variance: float, kurtosis: float) -> float:
    r"""Least half loss of b_y = 0, A_x = 0 and b_x, A_y parallel, the answer c (u.S w)(u.x_q); the same for every u.

    .. math:: \tfrac{\sigma^2}{2}\left(d - \frac{N}{N + d + \kappa - 2}\right)

    Args:
      dim: d.
      context_length: N.
      variance, kurtosis: sig2 and kap.

    Source: the plateau of von Oswald et al. (arXiv 2212.07677), worked out for the lab.
    """
    return variance / 2 * (dim - context_length / (context_length + dim + kurtosis - 2))


def axial_loss(weights: Float[np.ndarray, "5"], dim: int, context_length: int, kurtosis: float) -> float:
    r"""Half loss, sig2 = 1, of b = (beta u, b_y), A_y = alpha u, A_x = p u u^T + q (I - u u^T), which single out an axis u.

    Args:
      weights: (beta, b_y, alpha, p, q).
      dim: d.
      context_length: N.
      kurtosis: kap; u is a coordinate axis unless kap = 3.

    Source: as `saddle_curvatures`; moments of S_uu, g_u = (S w)_u and h = w^T S w.
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
    """Half loss of the local minimum beside the wrong rank-one mode for normal inputs, a minimum of `axial_loss`.

    Args:
      dim: d >= 2.
      context_length: N.
      variance: sig2.

    Source: as `saddle_curvatures`.
    """
    # The wrong mode itself is a saddle of the axial loss; a push to either side leads down to the minimum.
    size = np.sqrt(context_length / (context_length + dim + 1))
    ends = [
        scipy.optimize.minimize(
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


def wrong_mode_size(dim: int, context_length: int, variance: float, kurtosis: float) -> float:
    r"""The product c = |b_x| |A_y| of the wrong mode at its least loss, N / (sig2 (N + d + kap - 2)).

    Args:
      dim: d.
      context_length: N.
      variance, kurtosis: sig2 and kap.

    Source: as `wrong_mode_loss`; it is the best step size.
    """
    return context_length / (variance * (context_length + dim + kurtosis - 2))
