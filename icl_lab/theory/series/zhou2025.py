r"""Closed forms of Zhou et al. 2025 (arXiv 2510.09776) for one layer of linear attention on AR(p) series.

The layer sees x_1 .. x_n through N = n - p complete windows h_i = (x_i, .., x_{i+p}) and the query h = (x_{n-p+1}, .., x_n).
It predicts pi . Ghat Q h, where Ghat = (1/N) sum_{i<=N} h_i h_i^T, pi (p+1,) is the last row of P and Q (p+1, p) the first p
columns of its matrix. Time runs upwards in a window, so that the Bayes weights are w = (rho_p, .., rho_1), their prediction is
w . h and its variance V = gamma_0 - sigma^2. The gap of a predictor is E(prediction - w . h)^2: no factor 1/2.

The closed weights are those of the innovation filter r = (-rho_p, .., -rho_1, 1), r . h_i = e_{i+p}: the layer multiplies w . h
by an estimate of the number 1, the mean squared innovation over sigma^2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import AssumptionError
from icl_lab.core.typing import Array
from icl_lab.theory.series import bartlett, isserlis

GLOBAL_MINIMUM = "global minimum"
# Relative distance of coefficients below which a layer is a known one, up to what closed forms neglect; others are far away.
SAME_LAYER = 0.05
TIME_REVERSED = "time-reversed filter"
OTHER = "other stationary point"

LONGEST_MEMORY = 0.1
"""Largest squared spectral radius to the power N at which the closed weights still say something of the trained ones."""


def layer(series: Float[Array, "n"], w_p: Float[Array, "D D"], w_q: Float[Array, "D D"]) -> float:
    r"""The prediction of one layer: the bottom right entry of H + (1/N) P H M (H^T Q H), M = diag(1, .., 1, 0).

    Args:
      series: (n,), oldest value first.
      w_p, w_q: (p+1, p+1), P and Q.

    Source: arXiv 2510.09776, the definition of linear self-attention on a Hankel matrix.
    """
    size = len(w_p)
    values = np.append(series, 0.0)
    hankel = np.stack([values[i : len(values) - size + 1 + i] for i in range(size)])
    mask = np.diag(np.append(np.ones(hankel.shape[1] - 1), 0.0))
    return float((hankel + w_p @ hankel @ mask @ (hankel.T @ w_q @ hankel) / (hankel.shape[1] - 1))[-1, -1])


def feature_count(order: int) -> int:
    """Number of features, p (p+1) (p+2) / 2."""
    return order * (order + 1) * (order + 2) // 2


def features(series: Float[Array, "n"], order: int) -> Float[Array, "F"]:
    r"""phi_{jk,l} = Ghat_jk h_l for j <= k <= p, l < p, in the order of nested loops over j, k, l.

    Args:
      series: (n,), oldest value first.
      order: p.
    """
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(series), order + 1)
    gram = windows.T @ windows / len(windows)
    return np.array([gram[j, k] * x for j in range(order + 1) for k in range(j, order + 1) for x in series[-order:]])


def coefficients(pi: Float[Array, "p1"], query: Float[Array, "p1 p"]) -> Float[Array, "F"]:
    r"""What multiplies each feature: theta_{jk,l} = pi_j Q_kl + pi_k Q_jl for j < k, and pi_j Q_jl for j = k.

    Args:
      pi: (p+1,), the last row of P.
      query: (p+1, p), the first p columns of Q.

    Source: arXiv 2510.09776, the expansion of one layer.
    """
    size, order = np.shape(query)
    return np.array(
        [
            pi[j] * query[k][lag] + (pi[k] * query[j][lag] if j < k else 0.0)
            for j in range(size)
            for k in range(j, size)
            for lag in range(order)
        ]
    )


def bayes_weights(rho: Sequence[float] | Float[Array, "p"]) -> Float[Array, "p"]:
    """w = (rho_p, .., rho_1), the weights of the next value's conditional mean on a window."""
    return np.asarray(rho, dtype=np.float64)[::-1]


def signal_variance(rho: Sequence[float] | Float[Array, "p"], noise_std: float) -> float:
    """V = Var(w . h) = gamma_0 - sigma^2."""
    return float(bartlett.autocovariances(np.asarray(rho), np.zeros(0), noise_std, 1)[0]) - noise_std**2


@dataclasses.dataclass(frozen=True)
class LayerWeights:
    """One layer in closed form.

    Attributes:
      pi: (p+1,), the last row of P; all other rows are zero.
      query: (p+1, p), the first p columns of Q; the last one is zero.
    """

    pi: Float[Array, "p1"]
    query: Float[Array, "p1 p"]

    @property
    def coefficients(self) -> Float[Array, "F"]:
        """theta, in which the gauge pi -> z pi, Q -> Q / z drops out."""
        return coefficients(self.pi, self.query)

    def matrices(self) -> tuple[Float[Array, "D D"], Float[Array, "D D"]]:
        """The full P and Q, (p+1, p+1) each."""
        size = len(self.pi)
        w_p = np.zeros((size, size))
        w_p[-1] = self.pi
        return w_p, np.pad(self.query, ((0, 0), (0, 1)))


def innovation_weights(rho: Sequence[float] | Float[Array, "p"], noise_std: float, scale: float = 1.0) -> LayerWeights:
    r"""The layer that predicts (scale / N) sum_i e_{i+p}^2 / sigma^2 times w . h: pi = scale r / sigma^2, Q = r w^T.

    With scale 1 the estimate of the number 1 is unbiased. On innovations of constant size, +-sigma, it is exact, and so is the
    prediction at any length.

    Args:
      rho: (p,) coefficients, nearest lag first.
      noise_std: sigma.
      scale: N / (N + 4) for the trained layer.
    """
    filter_ = np.append(-bayes_weights(rho), 1.0)
    return LayerWeights(scale * filter_ / noise_std**2, np.outer(filter_, bayes_weights(rho)))


def trained_weights(rho: Sequence[float] | Float[Array, "p"], noise_std: float, context_length: int) -> LayerWeights:
    r"""The global minimum of the population loss up to the square of the impulse response at lag N.

    .. math:: \pi = \frac{N}{N+4}\,\frac{r}{\sigma^2}, \qquad Q = r\,w^\top

    Args:
      rho: (p,) coefficients, nearest lag first.
      noise_std: sigma.
      context_length: N.

    Raises:
      AssumptionError: the series remembers more than N steps, see `check_memory`.
    """
    check_memory(rho, context_length)
    return innovation_weights(rho, noise_std, context_length / (context_length + 4))


def reversed_weights(rho: Sequence[float] | Float[Array, "p"], noise_std: float, context_length: int) -> LayerWeights:
    r"""A local minimum: the layer of the backward innovations, the filter (1, -rho_1, .., -rho_p) in place of r.

    They are independent of the query window, so that N / (N + 2) is the best scale, and nothing is neglected.

    Args:
      rho: (p,) coefficients, nearest lag first.
      noise_std: sigma.
      context_length: N.
    """
    filter_ = np.append(1.0, -np.asarray(rho, dtype=np.float64))
    scale = context_length / (context_length + 2)
    return LayerWeights(scale * filter_ / noise_std**2, np.outer(filter_, bayes_weights(rho)))


def neglected(rho: Sequence[float] | Float[Array, "p"], context_length: int) -> float:
    r"""The relative size 4 (1 - q) / N of what `trained_gap` neglects, q being the `context_share`.

    The gap of the scaled innovation filter rises by that as q falls below 1, to first order; the trained layer stays below it.
    """
    return 4 * (1 - context_share(rho, context_length)) / context_length


def check_memory(rho: Sequence[float] | Float[Array, "p"], context_length: int) -> None:
    """Raise `AssumptionError` if the squared spectral radius to the power N is above `LONGEST_MEMORY`."""
    remembered = bartlett.spectral_radius(np.asarray(rho)) ** (2 * context_length)
    if not remembered <= LONGEST_MEMORY:
        raise AssumptionError(
            f"`rho` = {np.asarray(rho).tolist()} has rho(A)^(2N) = {remembered:.3g} at N = {context_length}; the closed form "
            f"of the trained weights needs at most {LONGEST_MEMORY:g}, since it neglects what the series remembers from before "
            "the context. Take a longer context."
        )


def filter_gaps(rho: Sequence[float] | Float[Array, "p"], context_length: int) -> tuple[float, float]:
    """The gaps over sigma^2 of the best layer near the innovation filter, and of the best of all.

    For some series of order 2 and more (rho = (-0.214, 0.428) at N = 23) they differ, however fast the series forgets: a filter
    with only some roots reflected has a gap that is smaller by a share of order 1/N^2.
    """
    order = len(np.asarray(rho))
    gamma = bartlett.autocovariances(np.asarray(rho), np.zeros(0), 1.0, context_length + order + 1)
    moments = isserlis.feature_moments(gamma, order)
    filters = bartlett.reflected_filters(np.asarray(rho))
    own = isserlis.best_layer(moments, moments.order, filters[:1], starts=0).risk - 1
    return own, isserlis.best_layer(moments, moments.order, filters).risk - 1


def innovation_filter_is_best(rho: Sequence[float] | Float[Array, "p"], context_length: int) -> bool:
    """Whether the two `filter_gaps` are equal, so that the closed weights are, up to what they neglect, those of least risk."""
    own, best = filter_gaps(rho, context_length)
    return best >= own * (1 - 1e-8)


def check_innovation_filter_is_best(rho: Sequence[float] | Float[Array, "p"], context_length: int) -> None:
    """Raise `AssumptionError` unless `innovation_filter_is_best`, and the series forgets within the context."""
    check_memory(rho, context_length)
    if not innovation_filter_is_best(rho, context_length):
        own, best = filter_gaps(rho, context_length)
        raise AssumptionError(
            f"At `rho` = {np.asarray(rho).tolist()}, N = {context_length} and sigma = 1, a filter with some roots reflected "
            f"has the gap {best:.9g}, below the {own:.9g} of the innovation filter: the closed form is only a local minimum "
            "there. Take a longer context, or other coefficients."
        )


def trained_gap(rho: Sequence[float] | Float[Array, "p"], noise_std: float, context_length: int) -> float:
    r"""The gap of the trained layer, 2V / (N + 4), up to the square of the impulse response at lag N.

    Args:
      rho: (p,) coefficients, nearest lag first.
      noise_std: sigma.
      context_length: N.

    Raises:
      AssumptionError: the series remembers more than N steps, see `check_memory`.
    """
    check_memory(rho, context_length)
    return 2 * signal_variance(rho, noise_std) / (context_length + 4)


def reversed_gap(rho: Sequence[float] | Float[Array, "p"], noise_std: float, context_length: int) -> float:
    """The gap of the backward innovations at their best scale, 2V / (N + 2), exactly at every N."""
    return 2 * signal_variance(rho, noise_std) / (context_length + 2)


def context_share(rho: Sequence[float] | Float[Array, "p"], context_length: int) -> float:
    r"""q, the share of V that is due to the N innovations of the context: sigma^2 sum_{k=1}^N psi_k^2 / V, 1 if V = 0."""
    psi = bartlett.impulse_response(np.asarray(rho), np.zeros(0), context_length + 1)
    variance = signal_variance(rho, 1.0)
    return float(psi[1:] @ psi[1:] / variance) if variance > 0 else 1.0


def innovation_moments(distribution: str) -> tuple[float, float]:
    """m_4 and m_6 of a symmetric distribution of variance one.

    Args:
      distribution: "gaussian", "uniform", "laplace" or "rademacher".
    """
    return {"gaussian": (3.0, 15.0), "uniform": (9 / 5, 27 / 7), "laplace": (6.0, 90.0), "rademacher": (1.0, 1.0)}[distribution]


def innovation_gap(
    rho: Sequence[float] | Float[Array, "p"],
    noise_std: float,
    context_length: int,
    fourth: float = 3.0,
    sixth: float = 15.0,
) -> float:
    r"""The gap of the unscaled `innovation_weights`, exactly, for innovations of any symmetric distribution.

    .. math:: V\left[\frac{m_4 - 1}{N} + q\,\frac{m_6 - 3m_4 + 2}{N^2}\right]

    V (2/N + 8q/N^2) for Gaussian innovations, zero for +-sigma.

    Args:
      rho: (p,) coefficients, nearest lag first.
      noise_std: sigma.
      context_length: N.
      fourth, sixth: moments m_4, m_6 of the innovations over sigma^4, sigma^6; 3 and 15 if Gaussian.
    """
    correlated = context_share(rho, context_length) * (sixth - 3 * fourth + 2) / context_length**2
    return signal_variance(rho, noise_std) * ((fourth - 1) / context_length + correlated)


def scaled_innovation_gap(rho: Sequence[float] | Float[Array, "p"], noise_std: float, context_length: int) -> float:
    r"""The gap of the innovation filter at its best scale, exactly, for Gaussian innovations: at least that of training.

    .. math:: V\left[1 - \frac{(1 + 2q/N)^2}{1 + (4q+2)/N + 8q/N^2}\right]

    Args:
      rho: (p,) coefficients, nearest lag first.
      noise_std: sigma.
      context_length: N.
    """
    q, n = context_share(rho, context_length), context_length
    return signal_variance(rho, noise_std) * (1 - (1 + 2 * q / n) ** 2 / (1 + (4 * q + 2) / n + 8 * q / n**2))


def name_limit(
    theta: Float[Array, "F"], rho: Sequence[float] | Float[Array, "p"], noise_std: float, context_length: int
) -> str:
    """Which stationary point a trained layer ended in, by the coefficients of its features, which know no gauge.

    A gap alone would not tell: stationary points with other filters can lie within a share of 1e-4 of a named one's gap.

    Args:
      theta: (F,), of the trained layer.
      rho: (p,) coefficients, nearest lag first.
      noise_std: sigma.
      context_length: N.

    Returns:
      `GLOBAL_MINIMUM`, `TIME_REVERSED` or `OTHER`.
    """
    for name, layer in ((TIME_REVERSED, reversed_weights), (GLOBAL_MINIMUM, trained_weights)):
        known = layer(rho, noise_std, context_length).coefficients
        if np.linalg.norm(theta - known) <= SAME_LAYER * np.linalg.norm(known):
            return name
    return OTHER
