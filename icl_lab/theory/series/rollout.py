r"""Several layers and rollouts on AR(p) series (around Zhou et al. 2025, arXiv 2510.09776), in closed form.

x_t = rho_1 x_{t-1} + .. + rho_p x_{t-p} + eps_t, eps_t ~ N(0, sigma^2); A is the companion matrix, psi_k = (A^k)_{11} the
impulse response, w.h_k the best predictor of value k, V = gamma_0 - sigma^2 its variance. Rollouts append their own
predictions; horizon k = 1 is the next value. A context has N complete windows, so N innovations.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from icl_lab.core.typing import Array
from icl_lab.tasks.series.autoregressive import companion
from icl_lab.theory.series.autoregressive import lyapunov_covariance
from icl_lab.theory.series.bartlett import impulse_response, memory


def bayes_second_moment(coefficients: Float[Array, "p"], noise_std: float, steps: int) -> Float[Array, "steps"]:
    r"""Second moments of the best rollout at k = 1 .. steps.

    .. math:: E\hat x_{n+k}^2 = \gamma_0 - \sigma^2\sum_{j<k}\psi_j^2

    Args:
      coefficients: (p,), rho_1 .. rho_p.
      noise_std: sigma > 0.
      steps: number of horizons.

    Source: rollouts of arXiv 2510.09776; the law of total variance.
    """
    return lyapunov_covariance(coefficients, noise_std**2)[0, 0] - bayes_mse(coefficients, noise_std, steps)


def bayes_mse(coefficients: Float[Array, "p"], noise_std: float, steps: int) -> Float[Array, "steps"]:
    r"""Mean squared errors :math:`\sigma^2\sum_{j<k}\psi_j^2` of the best rollout at k = 1 .. steps, increasing to gamma_0.

    Args:
      coefficients: (p,), rho_1 .. rho_p.
      noise_std: sigma > 0.
      steps: number of horizons.
    """
    return noise_std**2 * np.cumsum(impulse_response(coefficients, np.zeros(0), steps) ** 2)


def plugin_mse(coefficients: Float[Array, "p"], used: Float[Array, "p"], noise_std: float, steps: int) -> Float[Array, "steps"]:
    r"""Mean squared errors of a rollout with other coefficients than the true ones.

    .. math:: \gamma_0 + a^\top\Gamma_p a - 2a^\top\Gamma_p b, \qquad a = (B^k)_{1\cdot},\ b = (A^k)_{1\cdot}

    Args:
      coefficients: (p,), of the series; A is their companion matrix.
      used: (p,), of the rollout; B is their companion matrix, which need not be stable.
      noise_std: sigma > 0.
      steps: number of horizons.
    """
    covariance = lyapunov_covariance(coefficients, noise_std**2)
    errors = []
    for k in range(1, steps + 1):
        a = np.linalg.matrix_power(companion(used), k)[0]
        b = np.linalg.matrix_power(companion(coefficients), k)[0]
        errors.append(covariance[0, 0] + a @ covariance @ a - 2 * a @ covariance @ b)
    return np.array(errors)


def innovations(
    series: Float[Array, "*B n"], coefficients: Float[Array, "p"]
) -> tuple[Float[Array, "*B n-p"], Float[Array, "*B n-p+1"]]:
    """Innovations of the N = n - p values that have p predecessors, and the best predictions of those and of the next value."""
    order = len(coefficients)
    windows = np.lib.stride_tricks.sliding_window_view(series, order, axis=-1)
    predictions = windows @ np.asarray(coefficients)[::-1]
    return series[..., order:] - predictions[..., :-1], predictions


def lsa_rollout(
    series: Float[Array, "B n"], coefficients: Float[Array, "p"], noise_std: float, shrinkage: float, steps: int
) -> Float[Array, "B steps"]:
    r"""Rollout of the layer pi = shrinkage r / sigma^2, Q = r w^T, whose context grows by its own predictions.

    .. math:: y_k = \alpha\,\frac{S_{k-1}}{N+k-1}\,w\cdot h_k, \qquad
              S_k = S_{k-1} + (y_k - w\cdot h_k)^2/\sigma^2, \qquad S_0 = \sum_{i\le N}\epsilon_i^2/\sigma^2

    Args:
      series: (B, n), the observed values.
      coefficients: (p,), rho_1 .. rho_p, p < n.
      noise_std: sigma > 0.
      shrinkage: alpha, N/(N+4) for the best layer.
      steps: number of values appended.

    Returns:
      (B, steps).
    """
    oldest_first = np.asarray(coefficients)[::-1]
    observed, _ = innovations(series, coefficients)
    total, count = np.sum(observed**2, axis=1) / noise_std**2, observed.shape[1]
    window = series[:, -len(oldest_first) :]
    appended = []
    # The feedback of large values makes rare rollouts overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(steps):
            best = window @ oldest_first
            answer = shrinkage * total / (count + k) * best
            total = total + (answer - best) ** 2 / noise_std**2
            window = np.concatenate([window[:, 1:], answer[:, None]], axis=1)
            appended.append(answer)
    return np.stack(appended, axis=1)


def stationary_series(
    coefficients: Float[Array, "p"], noise_std: float, start: Float[Array, "B p"], noise: Float[Array, "B m"]
) -> Float[Array, "B p+m"]:
    """Stationary series made of independent standard normal numbers, without any other draw.

    Args:
      coefficients: (p,), rho_1 .. rho_p, nearest lag first.
      noise_std: sigma.
      start: (B, p), standard normal, from which the first p values get their covariance Gamma_p.
      noise: (B, m), standard normal, the innovations of the values after these in units of sigma.

    Returns:
      (B, p + m).
    """
    order = len(coefficients)
    first = start @ np.linalg.cholesky(lyapunov_covariance(coefficients, noise_std**2)).T
    values = np.concatenate([first, noise_std * noise], axis=1)
    for t in range(order, values.shape[1]):
        values[:, t] += values[:, t - order : t] @ np.asarray(coefficients)[::-1]
    return values


def collapse_ratio(
    coefficients: Float[Array, "p"], noise_std: float, series: Float[Array, "B n"], step: int
) -> tuple[float, float]:
    """Median modulus of the best layer's rollout at one step, over that of the best rollout.

    Args:
      coefficients: (p,), rho_1 .. rho_p, nearest lag first.
      noise_std: sigma > 0.
      series: (B, N + p), observed values, for instance from `stationary_series`.
      step: k >= 1, the step at which the rollouts are compared; see `lsa_rollout`.

    Returns:
      The ratio and its standard error, from the spread over parts of the sample.
    """
    order = len(coefficients)
    context_length = series.shape[1] - order
    layer = lsa_rollout(series, coefficients, noise_std, context_length / (context_length + 4), step)[:, -1]
    best = series[:, : -order - 1 : -1] @ np.linalg.matrix_power(companion(coefficients), step)[0]
    return ratio_of_medians(layer, best)


def ratio_of_medians(first: Float[Array, "B"], second: Float[Array, "B"], groups: int = 20) -> tuple[float, float]:
    """The ratio median|first| / median|second| of two samples; what has overflowed counts as infinite.

    Args:
      first: (B,).
      second: (B,).
      groups: parts that the sample is divided into.

    Returns:
      The ratio, and its standard error from the spread of the parts' ratios.
    """
    first, second = (np.nan_to_num(np.abs(x), nan=np.inf, posinf=np.inf) for x in (first, second))
    parts = [
        np.median(a) / np.median(b) for a, b in zip(np.array_split(first, groups), np.array_split(second, groups), strict=True)
    ]
    ratio = np.median(first) / np.median(second)
    return float(ratio), float(np.std(parts, ddof=1) / np.sqrt(groups))


def one_layer_gap(coefficients: Float[Array, "p"], context_length: int) -> float:
    r"""Excess over sigma^2 of the layer pi = alpha r / sigma^2, Q = r w^T with alpha = N/(N+4), exactly at every N.

    .. math:: v\Big[1 - 2\alpha\Big(1+\frac{2q}{N}\Big) + \alpha^2\Big(1+\frac{4q+2}{N}+\frac{8q}{N^2}\Big)\Big], \qquad
              v\,q = \sum_{k=1}^N\psi_k^2, \quad v = V/\sigma^2

    It is 2 v / (N+4) if q = 1, where the context remembers nothing from before it. Independent of sigma.

    Args:
      coefficients: (p,), rho_1 .. rho_p.
      context_length: N.
    """
    v = float(lyapunov_covariance(coefficients, 1.0)[0, 0]) - 1
    remembered = float(np.sum(impulse_response(coefficients, np.zeros(0), context_length + 1)[1:] ** 2))
    n, alpha = context_length, context_length / (context_length + 4)
    mean = v + 2 * remembered / n
    square = v * (1 + 2 / n) + 4 * remembered / n + 8 * remembered / n**2
    return v - 2 * alpha * mean + alpha**2 * square


def one_layer_size(coefficients: Float[Array, "p"], noise_std: float, context_length: int) -> float:
    r"""|pi| |Q| of the layer of `one_layer_gap`, :math:`\frac{N}{N+4}\,|r|^2\,|w|/\sigma^2`.

    Training on a small series has to grow to that.

    Args:
      coefficients: (p,), rho_1 .. rho_p.
      noise_std: sigma > 0.
      context_length: N.
    """
    square = float(np.sum(np.asarray(coefficients) ** 2))
    return context_length / (context_length + 4) * (1 + square) * np.sqrt(square) / noise_std**2


def two_layer_prediction(
    series: Float[Array, "B n"], coefficients: Float[Array, "p"], noise_std: float
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    r"""What the two-layer construction answers, and the best prediction.

    .. math:: w\cdot h\,[1-(1-s)(1-s')], \qquad s = \frac{1}{N\sigma^2}\sum_i\epsilon_i^2, \qquad
              s' = \frac{1}{N\sigma^2}\sum_i(\epsilon_i-(1-s)\,w\cdot h_i)^2

    Args:
      series: (B, n), the observed values.
      coefficients: (p,), rho_1 .. rho_p, p < n.
      noise_std: sigma > 0.

    Returns:
      Two (B,) arrays.
    """
    observed, best = innovations(series, coefficients)
    first = np.mean(observed**2, axis=1) / noise_std**2
    second = np.mean((observed - (1 - first)[:, None] * best[:, :-1]) ** 2, axis=1) / noise_std**2
    return best[:, -1] * (1 - (1 - first) * (1 - second)), best[:, -1]


def equal_estimates_gap(coefficients: Float[Array, "p"], context_length: int) -> float:
    r"""N^2 / V times E[(w.h)^2 (1-s)^4], the gap of the two layers if s' were s; exactly at every N.

    .. math:: 12 + \frac{48}{N} + q\Big(\frac{160}{N} + \frac{384}{N^2}\Big), \qquad q = \sigma^2\sum_{k=1}^N\psi_k^2 / V

    Args:
      coefficients: (p,), rho_1 .. rho_p, not all zero.
      context_length: N.
    """
    psi = impulse_response(coefficients, np.zeros(0), context_length + 1)[1:]
    remembered = float(psi @ psi) / (float(lyapunov_covariance(coefficients, 1.0)[0, 0]) - 1)
    return 12 + 48 / context_length + remembered * (160 / context_length + 384 / context_length**2)


def two_layer_gap(coefficients: Float[Array, "p"], context_length: int) -> float:
    r"""N^2 / V times the excess of the two-layer construction, to relative order 1/N.

    .. math:: 12 + \frac1N\Big[208 + 848\,v + 120\,v^2 + \frac{96}{V}\sum_{k\ge1}\psi_k a_k\Big], \qquad
              v = V/\sigma^2,\quad a_k = \sigma^2\sum_{m\ge1}\psi_m\psi_{m+k}

    The leading term is N^2 E(s-1)^4; the correction collects the cumulants of s - 1, of the cross term and mean square that
    make s' differ from s, and of (w.h)^2. It does not depend on sigma.

    Args:
      coefficients: (p,), rho_1 .. rho_p.
      context_length: N.
    """
    return 12 + two_layer_correction(coefficients) / context_length


def two_layer_correction(coefficients: Float[Array, "p"]) -> float:
    """The bracket of `two_layer_gap`."""
    psi = impulse_response(coefficients, np.zeros(0), memory(coefficients))[1:]
    v = float(psi @ psi)
    if v == 0:
        return 208.0
    lagged = np.correlate(psi, psi, mode="full")[len(psi) :]
    return 208 + 848 * v + 120 * v**2 + 96 * float(psi[: len(lagged)] @ lagged) / v
