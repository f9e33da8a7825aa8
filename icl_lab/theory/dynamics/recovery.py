r"""What the layer of arXiv 2405.16845 does on fresh sequences: its errors, its ratios, and which starts it recovers.

The layer is yhat_t = (s / (t-1)) sum_{i<t} x_{i+1} x_i^* x_t, s = a b: one gradient step on the sequence seen so far. Errors
are expected squared errors E||yhat_t - x_{t+1}||^2 without a half. Distributions of x_1 are named, and constants made, as in
`theory.zheng2024`.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Inexact

from icl_lab.core.typing import Array
from icl_lab.theory.dynamics.zheng2024 import Constants, constants


def squared_error(moments: Constants, dim: int, product: float, position: int | float) -> float:
    r"""The error at one position, d [m2 - 2 s kappa1 + s^2 (kappa2 + kappa3 / (t - 1))].

    Args:
      moments: constants of x_1 at test time.
      dim: d.
      product: s = a b, of whatever training.
      position: t >= 2, `math.inf` allowed.

    Source: icl_lab; the loss of arXiv 2405.16845 at its Theorem 4.1.
    """
    square = moments.kappa2 + moments.kappa3 / (position - 1)
    return float(dim * (moments.m2 - 2 * product * moments.kappa1 + product**2 * square))


def mean_ratio(distribution: str, product: float, scale: float) -> float:
    """E[yhat_{t,j} / x_{t+1,j} | x_{1,j} != 0] = s E[|x_{1,j}|^2 | x_{1,j} != 0], at every position t.

    The terms of other coordinates carry their phases to a power t - i != 0 and average out.

    Args:
      distribution: of x_1, one of `zheng2024.DISTRIBUTIONS`.
      product: s.
      scale: standard deviation of a coordinate of x_1, or the size of a non-zero one.

    Source: icl_lab; arXiv 2405.16845, Proposition 4.1 in the limit of long sequences.
    """
    # A sparse vector has one coordinate that is not zero, of size scale.
    return float(product * constants(distribution, 1, scale).m2)


def long_training_product(moments: Constants) -> float:
    """The limit of a b for training sequences of infinite length, kappa1 / kappa2."""
    return moments.kappa1 / moments.kappa2


def limiting_relative_error(moments: Constants) -> float:
    """Error over E||x||^2 for infinitely long training and test sequences, 1 - kappa1^2 / (m2 kappa2).

    It is zero exactly in the case of equality of Cauchy-Schwarz, x_{1,j}^2 in {0, kappa2 / kappa1}: the distributions that
    the trained layer recovers.

    Source: icl_lab; arXiv 2405.16845, Theorem 4.2.
    """
    return 1 - moments.kappa1**2 / (moments.m2 * moments.kappa2)


def is_recovered(starts: Inexact[Array, "B d"], moments: Constants) -> bool:
    """Whether every coordinate of the start vectors satisfies |x_{1,j}|^2 in {0, kappa2 / kappa1}.

    Args:
      starts: (B, d), draws of x_1.
      moments: constants of the distribution they were drawn from.

    Source: arXiv 2405.16845, Theorem 4.2.
    """
    squares = np.abs(starts) ** 2 * moments.kappa1 / moments.kappa2
    return bool(np.all(np.minimum(squares, np.abs(squares - 1)) < 1e-9))


def gradient_step(states: Inexact[Array, "t d"], step_size: float) -> Inexact[Array, "d"]:
    r"""The prediction W x_t after one gradient step from W = 0 on :math:`\tfrac12\sum_{i<t}\|x_{i+1} - W x_i\|^2`.

    Args:
      states: (t, d), x_1 .. x_t.
      step_size: multiplies the gradient of the *sum*; a b / (t - 1) for the trained layer.

    Source: arXiv 2405.16845, corollary of Theorem 4.1.
    """
    inputs, labels = states[:-1], states[1:]
    return step_size * (np.einsum("io,ij->oj", labels, inputs.conj()) @ states[-1])
