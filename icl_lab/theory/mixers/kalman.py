r"""The Kalman filter of a drifting task: the risk that no mixer goes below, and the steps of a delta rule that follows it.

The task of the next example is a w + sqrt(1 - a^2) times N(0, I). Given the keys, the posterior covariance P of the task is
known before any value is read,

.. math:: P \leftarrow a\,\Big(P - \frac{P k k^\top P}{s_2 + k^\top P k}\Big)\, a + I - a^2, \qquad P_1 = I,

and its trace is the risk. In one dimension the filter is a gated delta rule of decay a and step p / (s_2 + p k^2); in more of
them a delta rule may follow it with one number p for the whole of P.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

from icl_lab.core.typing import Array


def risks(
    contexts: Iterable[Float[Array, "B n d"]], noise_variance: float, correlation: float | Float[Array, "d"]
) -> tuple[float, float]:
    """The mean of tr P_{n+1}, the risk of the Bayes predictor of the query's task, over given keys, and its standard error.

    Args:
      contexts: batches (B, n, d) of keys.
      noise_variance: s2 > 0, of a value.
      correlation: a, of a coordinate of the task with that before: a number, or (d,).

    Returns:
      The risk and its standard error.

    Source: Kalman (1960).
    """
    traces = np.concatenate([np.trace(_covariances(keys, noise_variance, correlation), axis1=1, axis2=2) for keys in contexts])
    return float(np.mean(traces)), float(np.std(traces, ddof=1) / np.sqrt(len(traces)))


def _covariances(
    keys: Float[Array, "B n d"], noise_variance: float, correlation: float | Float[Array, "d"]
) -> Float[Array, "B d d"]:
    """P_{n+1} of each row of keys."""
    identity = np.eye(keys.shape[2])
    left = np.broadcast_to(correlation, keys.shape[2])
    fresh = np.diag(1 - left**2)[None, :, :]
    covariances = np.broadcast_to(identity, (len(keys), *identity.shape))
    for k in keys.swapaxes(0, 1):
        direction = np.einsum("bij,bj->bi", covariances, k)
        gain = direction / (noise_variance + np.sum(k * direction, axis=1))[:, None]
        seen = covariances - gain[:, :, None] * direction[:, None, :]
        covariances = left[None, :, None] * seen * left[None, None, :] + fresh
    return covariances


def scalar_steps(squares: Float[Array, "n *B"], dim: int, noise_variance: float, correlation: float) -> Float[Array, "n *B"]:
    """The steps of a gated delta rule that keeps one variance p for its d coordinates.

    .. math:: \\beta = \\frac{p}{s_2 + p\\, |k|^2}, \\qquad p \\leftarrow a^2\\, p\\, (1 - \\beta\\, |k|^2 / d) + 1 - a^2

    In one dimension they make the delta rule of decay a the Kalman filter. They are the implicit steps of error weight p / s2.

    Args:
      squares: |k|^2 (n,), in order, or (n, B) for as many contexts.
      dim: d >= 1.
      noise_variance: s2 > 0, of a value.
      correlation: a in [-1, 1], of a task with the one before.

    Source: derived for the lab.
    """
    variance, steps = 1.0, np.empty_like(squares)
    for i, square in enumerate(squares):
        steps[i] = variance / (noise_variance + variance * square)
        variance = correlation**2 * variance * (1 - steps[i] * square / dim) + 1 - correlation**2
    return steps
