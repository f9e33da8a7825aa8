r"""Exact loss of one linear attention layer on a stationary Gaussian series, at finite length, without sampling.

Through Hankel tokens h_i = (x_i, .., x_{i+p}) the layer sees n = N + p values and predicts x_{n+1} from the features
:math:`\hat G_{jk}\,x_{n-p+l}`, with :math:`\hat G_{jk} = \tfrac1N\sum_i x_{i+j}x_{i+k} = x^\top B_a x` quadratic in the series.
By Isserlis' theorem, S being the covariance of (x_1 .. x_n) and s that of the series with the target,

.. math::
    E\,\phi_{al}\phi_{bm} &= (t_a t_b + 2\operatorname{tr}B_aSB_bS)\,S_{lm} + 2t_a(SB_bS)_{lm} + 2t_b(SB_aS)_{lm}
                             + 4(SB_aSB_bS + SB_bSB_aS)_{lm} \\
    E\,\phi_{al}\,y &= t_a s_l + 2(SB_as)_l, \qquad t_a = \operatorname{tr}B_aS = \gamma_{|j-k|}

B_a has 2N entries and the traces are sums over lags, so no two matrices of the series' size are multiplied: O(F p n^2 / p)
with F = p(p+1)(p+2)/2 features. Random coefficients average these moments over a Gauss quadrature of their distribution.

Source: the setting of Zhou et al. (arXiv 2510.09776).
"""

from __future__ import annotations

import itertools
import math

import equinox as eqx
import jax
import numpy as np
import scipy.special
from jaxtyping import Float

from icl_lab.core import precision
from icl_lab.core.errors import UnsupportedProblemError
from icl_lab.models.linear_attention import LinearSelfAttention
from icl_lab.objectives.exact.moments import Features, MomentLoss, Moments
from icl_lab.objectives.objective import Objective
from icl_lab.tasks.prompt import Task
from icl_lab.tasks.series.autoregressive import Autoregressive, RandomAutoregressive, autocovariances, coefficients_from_partial
from icl_lab.tasks.series.gaussian import GaussianSeries

LARGEST_QUADRATURE = 20_000
"""Nodes of a quadrature over coefficients beyond which sampling the prompts is the better way."""
QUADRATURE_CHUNK = 128


def _supports(task: object, model: object) -> bool:
    """Whether `series_loss` exists for a task and a model."""
    known = isinstance(task, Autoregressive | GaussianSeries)
    if isinstance(task, RandomAutoregressive):
        known = task.dim <= 2 and float(task.bound) < 1 and math.prod(quadrature_sizes(task)) <= LARGEST_QUADRATURE
    if not (known and isinstance(model, LinearSelfAttention)):
        return False
    return model.is_single_pass and model.embedding == "hankel" and not model.query_in_sum


def try_build(task: Task, model: eqx.Module) -> Objective | None:
    """`series_loss`, or None for a task or model whose loss is not known."""
    return series_loss(task, model) if _supports(task, model) else None  # pyright: ignore[reportArgumentType]


def series_loss(
    task: Autoregressive | GaussianSeries | RandomAutoregressive,
    model: LinearSelfAttention,
    nodes: tuple[int, ...] | None = None,
) -> MomentLoss:
    """The exact half loss of one layer on Hankel tokens.

    Args:
      task: a Gaussian series; with random coefficients, of order 1 or 2.
      model: one layer on "hankel" tokens whose query stays out of the sum.
      nodes: nodes on each axis of the quadrature over random coefficients; by default so many that its error is rounding.

    Raises:
      UnsupportedProblemError: another task or model, or a quadrature that would be too large.
    """
    if not _supports(task, model):
        raise UnsupportedProblemError(
            "the exact series loss needs an AR or Gaussian series (random coefficients: order 1 or 2, `bound` well below 1) "
            'and one linear attention layer on "hankel" tokens with the query out of the sum; got '
            f"{type(task).__name__} and {model}. Use `objectives.SampledLoss`."
        )
    length, order = task.context_length, task.dim
    count = length + order + 1
    if isinstance(task, RandomAutoregressive):
        moments = _averaged(task, count, quadrature_sizes(task) if nodes is None else nodes)
    elif isinstance(task, Autoregressive):
        moments = series_moments(task.autocovariances(count), order)
    else:
        moments = series_moments(np.asarray(task.autocovariance), order)
    scale = length / model.normaliser_at(length + 1)
    return MomentLoss(
        task=task,
        model=model,
        features=hankel_features(order),
        moments=Moments(gram=scale**2 * moments.gram, cross=scale * moments.cross, variance=moments.variance),
    )


def hankel_features(order: int) -> Features:
    """The features of one layer on the tokens (x_i, .., x_{i+p}), in the order of `series_moments`."""
    rows, columns = np.triu_indices(order + 1)
    return Features(tuple(rows.tolist()), tuple(columns.tolist()), tuple(range(order)), (order,), symmetric=True)


def series_moments(autocovariance: Float[np.ndarray, "*z lags"], order: int) -> Moments:
    """Moments of the features Ghat_jk x_{n-p+l}, j <= k <= p, l < p, and of the next value.

    Args:
      autocovariance: γ_0 .. γ_n, n = N + p, of one series or of several along a leading axis.
      order: p.

    Returns:
      Moments with F = p(p+1)(p+2)/2 features, pairs (j, k) row by row, lags l fastest, oldest first; with the same leading
      axis.
    """
    gamma = np.atleast_2d(np.asarray(autocovariance, np.float64))
    n = gamma.shape[1] - 1
    windows = n - order
    j, k = np.triu_indices(order + 1)
    positions = np.arange(n)
    covariance = gamma[:, np.abs(positions[:, None] - positions[None, :])]
    with_target = gamma[:, n - positions]
    last = covariance[:, windows:]  # rows of S for the query's values
    # Rows l of S B_a, B_a = (1/2N) sum_i (e_{i+j} e_{i+k}^T + e_{i+k} e_{i+j}^T).
    rows = np.zeros((len(gamma), len(j), order, n))
    for a, (first, second) in enumerate(zip(j, k, strict=True)):
        rows[:, a, :, second : second + windows] += last[:, :, first : first + windows] / (2 * windows)
        rows[:, a, :, first : first + windows] += last[:, :, second : second + windows] / (2 * windows)
    traces = gamma[:, k - j]
    once = rows @ last.swapaxes(1, 2)[:, None]  # S B_a S
    flat = rows.reshape(len(gamma), -1, n)
    count = len(j) * order
    # (S B_a S B_b S)_lm at [a, l, b, m]
    twice = (flat @ covariance @ flat.swapaxes(1, 2)).reshape(-1, len(j), order, len(j), order)
    lags = np.arange(1 - windows, windows)
    pairs = (windows - np.abs(lags)) / windows**2  # share of the pairs of windows at this lag

    def lagged(u, v):
        return gamma[:, np.abs(lags[:, None, None] + u[:, None] - v[None, :])]

    products = 0.5 * np.einsum("m,zmab->zab", pairs, lagged(j, j) * lagged(k, k) + lagged(j, k) * lagged(k, j))
    within = traces[:, :, None] * traces[:, None, :] + 2 * products  # products = tr B_a S B_b S
    gram = np.einsum("zab,zlm->zalbm", within, covariance[:, windows:, windows:])
    gram += 2 * np.einsum("za,zblm->zalbm", traces, once) + 2 * np.einsum("zb,zalm->zalbm", traces, once)
    gram += 4 * (twice + twice.transpose(0, 3, 2, 1, 4))
    cross = traces[:, :, None] * with_target[:, None, windows:] + 2 * (rows @ with_target[:, None, :, None])[..., 0]
    lead = np.shape(autocovariance)[:-1]
    return Moments(
        gram=gram.reshape(*lead, count, count), cross=cross.reshape(*lead, count, 1), variance=gamma[:, 0].reshape(lead)
    )


def quadrature_sizes(task: RandomAutoregressive) -> tuple[int, ...]:
    """Nodes on each axis of partial autocorrelations, order 1 or 2, at which the quadrature's error is rounding.

    The moments are analytic up to unit roots. Those lie 1/R away on the last axis, R the bound, and (1 + R^2)/(2R) away on
    the first of two, at r_2 = -1, where the roots are a complex pair of modulus R. The error of n Gauss nodes falls like the
    -2n-th power of the sum of the half axes of the ellipse through the nearest one.
    """
    bound = float(task.bound)
    reaches = {1: (1 / bound,), 2: ((1 + bound**2) / (2 * bound), 1 / bound)}[task.dim]
    return tuple(math.ceil(18.0 / math.log(reach + math.sqrt(reach**2 - 1))) for reach in reaches)


def coefficient_quadrature(
    task: RandomAutoregressive, nodes: tuple[int, ...]
) -> tuple[Float[np.ndarray, "K p"], Float[np.ndarray, "K"]]:
    """Coefficients ρ and weights of a product rule for the distribution of `RandomAutoregressive` of order 1 or 2.

    The partial autocorrelations are independent, r_1 uniform on (-1, 1) and r_2 of density (1 - r_2)/2; each axis has a
    Gauss-Legendre rule.
    """
    rules = [scipy.special.roots_legendre(count) for count in nodes]
    densities = (np.full(nodes[0], 0.5), *(0.5 * (1 - points) for points, _ in rules[1:]))
    partial = np.array(list(itertools.product(*(points for points, _ in rules))))
    quadrature_weights = [weights * density for (_, weights), density in zip(rules, densities, strict=True)]
    with precision.float64():
        coefficients = np.asarray(jax.vmap(coefficients_from_partial)(partial))
    scaled = coefficients * float(task.bound) ** np.arange(1, task.dim + 1)[None, :]
    return scaled, np.prod(np.array(list(itertools.product(*quadrature_weights))), axis=1)


def _averaged(task: RandomAutoregressive, count: int, nodes: tuple[int, ...]) -> Moments:
    """Moments averaged over the distribution of the coefficients."""
    coefficients, weights = coefficient_quadrature(task, nodes)
    gamma = np.zeros((len(coefficients), count))
    for row, some in zip(gamma, coefficients, strict=True):
        row[: task.dim + 1] = autocovariances(some, task.noise_std, task.dim + 1)
    for lag in range(task.dim + 1, count):
        gamma[:, lag] = np.sum(coefficients * gamma[:, lag - task.dim : lag][:, ::-1], axis=1)
    gram, cross, variance = 0.0, 0.0, 0.0
    for first in range(0, len(weights), QUADRATURE_CHUNK):
        share = weights[first : first + QUADRATURE_CHUNK]
        moments = series_moments(gamma[first : first + QUADRATURE_CHUNK], task.dim)
        gram, cross = gram + np.tensordot(share, moments.gram, 1), cross + np.tensordot(share, moments.cross, 1)
        variance += float(share @ moments.variance)
    return Moments(gram=np.asarray(gram), cross=np.asarray(cross), variance=np.asarray(variance))
