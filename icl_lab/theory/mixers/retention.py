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
from icl_lab.theory.mixers.problem import MixerProblem


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


def reading_variance(problem: MixerProblem) -> float:
    """s, the variance that the reading k_i v_i / c of one coordinate of the task adds to it; d + 1 + s2 for Gaussian keys.

    Args:
      problem: keys and noise; its length plays no part.
    """
    keys = problem.keys
    return (keys.fourth + problem.noise_variance * keys.second) / keys.second**2 - 1


def best_weights(problem: MixerProblem, correlation: float) -> tuple[Float[Array, "n"], float]:
    """The best weights of n examples, by the filter, and their risk d P_{n+1}.

    Args:
      problem: keys, length n >= 1 and noise.
      correlation: a in (0, 1], of a task with the one before.

    Returns:
      x (n,), oldest first, and the risk.

    Source: for Gaussian keys the best weighting of arXiv 2504.04308 by linear equations; the filter is derived for the lab.
    """
    _check_correlation(correlation)
    keys, noise, unknown = problem.keys, reading_variance(problem), 1.0
    gains = np.empty(int(problem.context_length))
    for i in range(len(gains)):
        gains[i] = unknown / (unknown + noise)
        unknown = correlation**2 * unknown * (1 - gains[i]) + 1 - correlation**2
    # What the later examples leave of each, one step of the drift after the last.
    left = np.cumprod(np.append(1.0, correlation * (1 - gains[:0:-1])))[::-1]
    return correlation * gains * left / keys.second, keys.dim * unknown


def best_head(problem: MixerProblem, correlation: float) -> Retention:
    """The retention head that no weighting beats on an endless context: lambda = a (1 - g), eta = a g / c, g = P / (P + s).

    P is the positive root of P^2 + (1 - a^2)(s - 1) P = (1 - a^2) s.

    Args:
      problem: keys and noise; its length plays no part.
      correlation: a in (0, 1), of a task with the one before. At 1 the best decay is none, and the scale falls with n.

    Source: the steady state of the filter of `best_weights`; derived for the lab.
    """
    _check_correlation(correlation)
    noise, fresh = reading_variance(problem), 1 - correlation**2
    half = fresh * (noise - 1) / 2
    # The root of the quadratic without cancellation, whatever the sign of `half`.
    root = math.hypot(half, math.sqrt(fresh * noise))
    unknown = fresh * noise / (root + half) if half > 0 else root - half
    gain = unknown / (unknown + noise)
    return Retention(correlation * (1 - gain), correlation * gain / problem.keys.second, problem.keys.dim * unknown)


def head_risk(problem: MixerProblem, correlation: float, decay: float, scale: float) -> float:
    """E |S - w_{n+1}|^2 of any retention head, x_i = scale decay^(n - i).

    Args:
      problem: keys, length n >= 1, `math.inf` if decay < 1, and noise.
      correlation: a in (0, 1], of a task with the one before.
      decay: lambda in [0, 1].
      scale: eta.

    Source: the quadratic of `best_weights` at geometric weights; derived for the lab.
    """
    _check_correlation(correlation)
    keys, a, n = problem.keys, correlation, problem.context_length
    unit = scale * keys.second
    squares, ratio = _geometric_sum(decay**2, n), a * decay
    # sum_{i<j} of lambda^i lambda^j a^(j-i) over ages: for each younger one, the geometric sum of what is older.
    if math.isinf(n):
        pairs = ratio / (1 - ratio) * squares
    else:
        ages = np.arange(int(n))
        pairs = np.sum(decay ** (2.0 * ages) * (_geometric_sum(ratio, n - ages) - 1))
    variance = (1 + reading_variance(problem)) * squares + 2 * pairs
    return float(keys.dim * (1 - 2 * unit * a * _geometric_sum(ratio, n) + unit**2 * variance))


def window_risks(problem: MixerProblem, correlation: float) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """The best scale of equal weights on the last w examples, and the risk, for w = 1 .. n; the last is no decay.

    Args:
      problem: keys, length n >= 1 and noise.
      correlation: a in (0, 1], of a task with the one before.

    Returns:
      Scales and risks (n,).

    Source: derived for the lab.
    """
    _check_correlation(correlation)
    keys, widths = problem.keys, np.arange(1, problem.context_length + 1)
    powers = correlation**widths
    signal = np.cumsum(powers)
    # sum_ij a^|i-j| of a window grows by 1 + 2 (a + .. + a^(w-1)) with its width w.
    square = np.cumsum(1 + 2 * (signal - powers)) + reading_variance(problem) * widths
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


def fixed_step_risk(problem: MixerProblem) -> float:
    """The risk of `fixed_step_weights` at their best scale, on a task that does not drift: d s / (n_e + s).

    They are worth n_e = (sum x)^2 / sum x^2 = (1 + al) / (3 (1 - al)) equal examples, which is n / (1.5 ln 2) for large n.

    Args:
      problem: keys, length n >= 1 and noise.

    Source: derived for the lab, in the setting of arXiv 2510.00399.
    """
    left, noise = 0.5 ** (1 / problem.context_length), reading_variance(problem)
    return problem.keys.dim * noise / ((1 + left) / (3 * (1 - left)) + noise)


def _geometric_sum(base: float, count: int | float | Array) -> Any:
    """1 + base + .. + base^(count - 1), for each count of an array."""
    return 1.0 * count if base == 1 else (1 - base**count) / (1 - base)


def _check_correlation(correlation: float) -> None:
    if not 0 < correlation <= 1:
        raise InvalidValueError(f"`correlation` must be in (0, 1], 1 being a task that does not drift; got {correlation!r}.")
