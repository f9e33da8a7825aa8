r"""Von Oswald et al. 2022 (arXiv 2212.07677): one step of gradient descent inside one layer, and its best step size.

Conventions: gradient descent on (1/2N) sum_i |W x_i - y_i|^2, so that the step size eta multiplies the *mean* over the context
(their line search prints eta / N). Losses here are *half* mean squared errors (1/2) E(yhat - w.x_q)^2, as in their code.
Inputs have independent symmetric coordinates of variance sig2 and kurtosis kap = E x^4 / sig2^2 (3 Gaussian, 9/5 uniform).
Their text says inputs are uniform on (-1, 1); their published numbers belong to (-1/2, 1/2), that is sig2 = 1/12.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from icl_lab.typing import Array


def gradient_step(
    initial: Float[Array, "k d"], inputs: Float[Array, "N d"], labels: Float[Array, "N k"], step_size: float
) -> Float[Array, "k d"]:
    r"""The weights W_0 + Delta W after one explicit step, Delta W = -(eta/N) sum_i (W_0 x_i - y_i) x_i^T.

    Args:
      initial: (k, d), W_0; k outputs.
      inputs: (N, d), x_i in rows.
      labels: (N, k), y_i in rows; need not be realisable by any W.
      step_size: eta of the mean gradient.

    Returns:
      (k, d).

    Source: von Oswald et al. (arXiv 2212.07677), the step that Proposition 1 implements.
    """
    update = np.zeros_like(initial)
    for x, y in zip(inputs, labels, strict=True):
        update = update - step_size / len(inputs) * np.outer(initial @ x - y, x)
    return initial + update


def one_step_loss(
    step_size: float,
    dim: int,
    context_length: int,
    variance: float,
    kurtosis: float,
    noise_variance: float = 0.0,
    task_variance: float = 1.0,
) -> float:
    r"""Half excess risk of one gradient step from zero.

    .. math:: \tfrac12 \sigma^2 d \left[\omega^2\left(1 - 2\eta\sigma^2
              + \eta^2\sigma^4\,\tfrac{N+d+\kappa-2}{N}\right) + \tfrac{\eta^2\sigma^2\tau^2}{N}\right]

    Args:
      step_size: eta of the mean gradient.
      dim: d.
      context_length: N >= 1.
      variance: sig2 of one input coordinate.
      kurtosis: kap = E x^4 / sig2^2 >= 1 of one input coordinate.
      noise_variance: of the context labels.
      task_variance: of one coordinate of w.

    Returns:
      (1/2) E(yhat - w.x_q)^2; half the noise variance more against a noisy query label.

    Source: the exact expectation behind the line search of von Oswald et al. (arXiv 2212.07677), derived for the lab.
    """
    second = (context_length + dim + kurtosis - 2) / context_length
    signal = task_variance * (1 - 2 * step_size * variance + step_size**2 * variance**2 * second)
    return variance * dim / 2 * (signal + step_size**2 * variance * noise_variance / context_length)


def optimal_step_size(
    dim: int,
    context_length: int,
    variance: float,
    kurtosis: float,
    noise_variance: float = 0.0,
    task_variance: float = 1.0,
) -> float:
    r"""The step size that minimises `one_step_loss`, with its arguments.

    .. math:: \eta^* = N / \left(\sigma^2 \left(N + d + \kappa - 2 + \tau^2 / (\omega^2\sigma^2)\right)\right)

    Source: as `one_step_loss`.
    """
    noise = noise_variance / (task_variance * variance)
    return context_length / (variance * (context_length + dim + kurtosis - 2 + noise))
