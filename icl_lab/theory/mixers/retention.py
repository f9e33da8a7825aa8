r"""Retention, S = sum_i x_i k_i v_i with weights by age: the best ones on a task that drifts are those of a Kalman filter.

The task of example i is w_i, and that of the query w_{n+1}; coordinates are stationary with E w_i w_j = a^{|i - j|}. What an
example says, k_i v_i / c, is w_i plus an error of the same variance for all coordinates and examples,

.. math:: s = (m + s_2 c - c^2) / c^2, \qquad d + 1 + s_2 \text{ for Gaussian keys,}

where c and m are the moments of keys. The best weights are the regression of the query's task on n such readings of a
drifting number, the solution of (R + s I) x = r with R_ij = a^{|i - j|} and r_i = a^{n + 1 - i}, over c. A filter finds it one
reading after the other: with P the variance of what is not known before a reading,

.. math:: P \leftarrow a^2 P\, \frac{s}{P + s} + 1 - a^2, \qquad P_1 = 1,

the risk is d P_{n+1}, and once P has settled the weights are geometric: a retention head of decay a s / (P + s).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.theory.mixers.key_moments import KeyMoments


class Retention(NamedTuple):
    """A retention head on an endless context.

    Attributes:
      decay: lambda.
      scale: eta, the weight of the newest example.
      risk: E |S - w|^2.
    """

    decay: float
    scale: float
    risk: float


def reading_variance(keys: KeyMoments, noise_variance: float) -> float:
    """s, the variance that the reading k_i v_i / c of one coordinate of the task adds to it; d + 1 + s2 for Gaussian keys.

    Args:
      keys: moments of the keys.
      noise_variance: s2 >= 0, of a value.
    """
    return (keys.fourth + noise_variance * keys.second) / keys.second**2 - 1


def best_weights(
    keys: KeyMoments, context_length: int, noise_variance: float, correlation: float
) -> tuple[Float[Array, "n"], float]:
    """The best weights of n examples, by the filter, and their risk d P_{n+1}.

    Args:
      keys: moments of the keys.
      context_length: n >= 1.
      noise_variance: s2 >= 0, of a value.
      correlation: a in (0, 1], of a task with the one before.

    Returns:
      x (n,), oldest first, and the risk.

    Source: for Gaussian keys the best weighting of arXiv 2504.04308 by linear equations; the filter is derived for the lab.
    """
    _check_correlation(correlation)
    noise, unknown = reading_variance(keys, noise_variance), 1.0
    gains = np.empty(context_length)
    for i in range(context_length):
        gains[i] = unknown / (unknown + noise)
        unknown = correlation**2 * unknown * (1 - gains[i]) + 1 - correlation**2
    # What the later examples leave of each, one step of the drift after the last.
    left = np.cumprod(np.append(1.0, correlation * (1 - gains[:0:-1])))[::-1]
    return correlation * gains * left / keys.second, keys.dim * unknown


def best_head(keys: KeyMoments, noise_variance: float, correlation: float) -> Retention:
    """The retention head that no weighting beats on an endless context: lambda = a (1 - g), eta = a g / c, g = P / (P + s).

    P is the positive root of P^2 + (1 - a^2)(s - 1) P = (1 - a^2) s.

    Args:
      keys: moments of the keys.
      noise_variance: s2 >= 0, of a value.
      correlation: a in (0, 1), of a task with the one before. At 1 the best decay is none, and the scale falls with n.

    Source: the steady state of the filter of `best_weights`; derived for the lab.
    """
    _check_correlation(correlation)
    noise, fresh = reading_variance(keys, noise_variance), 1 - correlation**2
    half = fresh * (noise - 1) / 2
    # The root of the quadratic without cancellation, whatever the sign of `half`.
    root = math.hypot(half, math.sqrt(fresh * noise))
    unknown = fresh * noise / (root + half) if half > 0 else root - half
    gain = unknown / (unknown + noise)
    return Retention(correlation * (1 - gain), correlation * gain / keys.second, keys.dim * unknown)


def head_risk(
    keys: KeyMoments, context_length: int | float, noise_variance: float, correlation: float, decay: float, scale: float
) -> float:
    """E |S - w_{n+1}|^2 of any retention head, x_i = scale decay^(n - i).

    Args:
      keys: moments of the keys.
      context_length: n >= 1; `math.inf` if decay < 1.
      noise_variance: s2 >= 0, of a value.
      correlation: a in (0, 1], of a task with the one before.
      decay: lambda in [0, 1].
      scale: eta.

    Source: the quadratic of `best_weights` at geometric weights; derived for the lab.
    """
    _check_correlation(correlation)
    unit, a, n = scale * keys.second, correlation, context_length
    squares, ratio = _geometric_sum(decay**2, n), a * decay
    # sum_{i<j} of lambda^i lambda^j a^(j-i) over ages: for each younger one, the geometric sum of what is older.
    if math.isinf(n):
        pairs = ratio / (1 - ratio) * squares
    else:
        ages = np.arange(int(n))
        pairs = np.sum(decay ** (2.0 * ages) * (_geometric_sum(ratio, n - ages) - 1))
    variance = (1 + reading_variance(keys, noise_variance)) * squares + 2 * pairs
    return float(keys.dim * (1 - 2 * unit * a * _geometric_sum(ratio, n) + unit**2 * variance))


def window_risks(
    keys: KeyMoments, longest: int, noise_variance: float, correlation: float
) -> tuple[Float[Array, "longest"], Float[Array, "longest"]]:
    """The best scale of equal weights on the last w examples, and the risk, for w = 1 .. longest; the last is no decay.

    Args:
      keys: moments of the keys.
      longest: n >= 1.
      noise_variance: s2 >= 0, of a value.
      correlation: a in (0, 1], of a task with the one before.

    Returns:
      Scales and risks (longest,).

    Source: derived for the lab.
    """
    _check_correlation(correlation)
    widths, powers = np.arange(1, longest + 1), correlation ** np.arange(1, longest + 1)
    signal = np.cumsum(powers)
    # sum_ij a^|i-j| of a window grows by 1 + 2 (a + .. + a^(w-1)) with its width w.
    square = np.cumsum(1 + 2 * (signal - powers)) + reading_variance(keys, noise_variance) * widths
    return signal / square / keys.second, keys.dim * (1 - signal**2 / square)


def fixed_step_weights(context_length: int) -> Float[Array, "n"]:
    """The weights of a selective state space of constant step ln 2 / n before a query: (1 - al) al^(n+1-i), al = 2^(-1/n).

    The state halves over the context; the query is one token more, of value zero.

    Args:
      context_length: n >= 1.

    Source: derived for the lab, in the setting of arXiv 2510.00399.
    """
    left = 0.5 ** (1 / context_length)
    return (1 - left) * left ** np.arange(context_length, 0, -1.0)


def fixed_step_risk(keys: KeyMoments, context_length: int, noise_variance: float) -> float:
    """The risk of `fixed_step_weights` at their best scale, on a task that does not drift: d s / (n_e + s).

    They are worth n_e = (sum x)^2 / sum x^2 = (1 + al) / (3 (1 - al)) equal examples, which is n / (1.5 ln 2) for large n.

    Args:
      keys: moments of the keys.
      context_length: n >= 1.
      noise_variance: s2 >= 0, of a value.

    Source: derived for the lab, in the setting of arXiv 2510.00399.
    """
    left, noise = 0.5 ** (1 / context_length), reading_variance(keys, noise_variance)
    return keys.dim * noise / ((1 + left) / (3 * (1 - left)) + noise)


def _geometric_sum(base: float, count: int | float | Array) -> Any:
    """1 + base + .. + base^(count - 1), for each count of an array."""
    return 1.0 * count if base == 1 else (1 - base**count) / (1 - base)


def _check_correlation(correlation: float) -> None:
    if not 0 < correlation <= 1:
        raise InvalidValueError(f"`correlation` must be in (0, 1], 1 being a task that does not drift; got {correlation!r}.")
