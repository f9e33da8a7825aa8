"""Claims of Zhou et al. 2025 (arXiv 2510.09776): rollouts."""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg

from icl_lab import analysis, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.claims.settings.series import SeriesSetting
from icl_lab.claims.zhou2025.settings import LSA, PAPER
from icl_lab.core import compiled
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.models import constructions

# Powers of a companion matrix against products of small matrices.
EXACT_TOLERANCE = 1e-10
# Roots of multiple multiplicity are that inaccurate.
ROOT_TOLERANCE = 1e-6
LAYER_TOLERANCE = 1e-9
# Rollouts above it have begun to explode, and amplify rounding errors.
LARGEST = 1e3


class RolloutSetting(Seeded, SeriesSetting):
    """Simulated series, continued step by step from their last values."""

    rho = (0.5, -0.3, 0.2)
    sigma = math.sqrt(0.7)
    samples: int = integer(50_000, 1_000, "number of draws", "of series")

    def drawn(self, length: int) -> np.ndarray:
        """Simulated series of `length` windows, (samples, length + p)."""
        task = self.task(length)
        drawn = compiled.jit(lambda key: task.sample_batch(key, self.samples))(self.stream("series"))
        return np.concatenate([np.asarray(drawn.inputs)[:, 0], np.asarray(drawn.labels)[..., 0]], axis=1)


def linear_forecaster(weights: Array, prompt) -> Array:
    """w.h of the last p values."""
    return (weights @ prompt.query)[None]


class _LinearRollout:
    """The rollout of fixed coefficients on a series with others: exact second moments, and those of a sample.

    Attributes:
      moments, errors: (K,), E xhat_k^2 and E (xhat_k - x_{n+k})^2.
      sampled: the same two as pairs of mean and standard error.
      transition: (p, p), the map of the last p values, oldest first, to the last p values after one step.
    """

    def __init__(self, used: Array, setting: RolloutSetting, steps: int):
        order, observed = setting.order, setting.order + 1
        paths = setting.drawn(steps + 1)
        # A rollout is linear in the series, so unit series show its coefficients.
        starts = np.concatenate([np.eye(observed), paths[:, :observed]])
        rolled = analysis.rollout(linear_forecaster, used[::-1].copy(), starts, order, steps)
        units, values = rolled[:observed].T, rolled[observed:]

        covariance = scipy.linalg.toeplitz(setting.task(1).autocovariances(observed + steps))
        difference = np.concatenate([-units, np.eye(steps)], axis=1)
        self.moments = np.einsum("ka,ab,kb->k", units, covariance[:observed, :observed], units)
        self.errors = np.einsum("ka,ab,kb->k", difference, covariance, difference)
        self.sampled = [
            (np.mean(squares, axis=0), np.std(squares, axis=0, ddof=1) / np.sqrt(setting.samples))
            for squares in (values**2, (values - paths[:, observed:]) ** 2)
        ]
        self.transition = np.concatenate([np.eye(order, k=1)[:-1], units[:1, 1:]])


class BestRollout(RolloutSetting):
    """A rollout of several steps."""

    K: int = integer(12, 1, "number of steps", "of the rollout")


@claim("zhou2025.cot-bayes", BestRollout, Source(PAPER, "rollouts; conditional expectations k steps ahead"))
def rollout_of_the_best_predictor(setting: BestRollout) -> list[Check]:
    """The rollout of the best p-lag predictor shrinks to zero: E xhat_k^2 = gamma_0 - sigma^2 sum_{j<k} psi_j^2, with errors
    sigma^2 sum_{j<k} psi_j^2 that grow to gamma_0.

    The predictor, which is not trained, is rolled out on unit series, which give its exact second moments, and on simulated
    ones. Errors of a step too few or too many, or a stationary variance without the noise, would make it fail.
    """
    K, sigma, coefficients = setting.K, setting.sigma, setting.coefficients
    rolled = _LinearRollout(coefficients, setting, K)
    moments = theory.rollout.bayes_second_moment(coefficients, sigma, K)
    errors = theory.rollout.bayes_mse(coefficients, sigma, K)
    variance = setting.task(1).autocovariances(1)[0]
    radius = np.max(np.abs(np.linalg.eigvals(rolled.transition)))
    return [
        # Late moments are differences of numbers of the size of gamma_0.
        check.exact("second_moments", rolled.moments, moments, EXACT_TOLERANCE),
        check.exact("errors", rolled.errors, errors, EXACT_TOLERANCE),
        check.sampled("sampled_second_moments", rolled.sampled[0][0], moments, rolled.sampled[0][1]),
        check.sampled("sampled_errors", rolled.sampled[1][0], errors, rolled.sampled[1][1]),
        check.exact("they_add_up_to_the_variance", rolled.moments + rolled.errors, np.full(K, variance), EXACT_TOLERANCE),
        check.at_least("errors_grow_abs", np.diff(rolled.errors), np.zeros(K - 1), EXACT_TOLERANCE * variance),
        check.exact("decay_rate", radius, theory.bartlett.spectral_radius(coefficients), ROOT_TOLERANCE),
    ]


class OtherRollout(RolloutSetting):
    """A rollout with multiples of the coefficients."""

    factor: float = number(0.9, meaning="coefficients of the rollout over the true ones")
    k: int = integer(4, 1, "step of the rollout", ", the last that is compared")


@claim(
    "zhou2025.cot-plugin",
    OtherRollout,
    Source(PAPER, "a rollout with estimated coefficients, which the paper's rollouts are compared with; icl_lab", "extended"),
)
def rollout_of_other_coefficients(setting: OtherRollout) -> list[Check]:
    """A rollout with other coefficients than the true ones has errors gamma_0 + a^T Gam a - 2 a^T Gam b, a and b the first rows
    of the k-th powers of the two companion matrices; never less than the best.

    The predictor with multiples of the coefficients, which is not trained, is rolled out on unit series, which give its exact
    errors, and on simulated ones. The two companion matrices exchanged, or a stationary variance without the noise, would make
    it fail.
    """
    k, sigma, coefficients = setting.k, setting.sigma, setting.coefficients
    used = setting.factor * coefficients
    rolled = _LinearRollout(used, setting, k)
    errors = theory.rollout.plugin_mse(coefficients, used, sigma, k)
    return [
        check.exact("error", rolled.errors[-1], errors[-1], EXACT_TOLERANCE),
        check.exact("errors", rolled.errors, errors, EXACT_TOLERANCE),
        check.sampled("sampled_errors", rolled.sampled[1][0], errors, rolled.sampled[1][1]),
        check.at_least("best_errors", rolled.errors, theory.rollout.bayes_mse(coefficients, sigma, k), EXACT_TOLERANCE),
    ]


class LayerRollout(RolloutSetting):
    """A rollout of the trained layer."""

    rho = (0.5,)
    sigma = 1.0
    N: int = integer(50, 1, "context length", ", in windows, of what is observed")
    K: int = integer(20, 1, "number of steps", "of the rollout, all compared with the recursion")
    k: int = integer(8, 1, "step of the rollout", ", at most K, at which medians are compared")
    samples = 6_000

    def validate(self) -> None:
        super().validate()
        if self.k > self.K:
            raise InvalidValueError(f"`k` must be at most K = {self.K}, the length of the rollout; got {self.k}.")


@claim("zhou2025.cot-lsa", LayerRollout, Source(PAPER, "rollouts; the recursion is icl_lab's", "extended"))
def rollout_of_the_layer(setting: LayerRollout) -> list[Check]:
    """The rollout of the trained layer obeys y_k = alpha S_{k-1}/(N+k-1) w.h_k, S_k = S_{k-1} + (y_k - w.h_k)^2/sigma^2, and
    collapses faster than that of the best predictor.

    The layer has the closed weights of training, without training, and is rolled out on simulated series beside the recursion;
    medians are compared with those of the recursion on other series. An estimate that is not refreshed at every step would make
    it fail.
    """
    order, coefficients, sigma, N, K, k = setting.order, setting.coefficients, setting.sigma, setting.N, setting.K, setting.k
    series = setting.drawn(N)
    weights = constructions.series.one_layer(coefficients, sigma, N)
    layer = analysis.rollout(LSA, weights, series, order, K)
    recursion = theory.rollout.lsa_rollout(series, coefficients, sigma, N / (N + 4), K)
    tame = np.all(np.abs(np.nan_to_num(layer, nan=np.inf)) < LARGEST * sigma, axis=1)
    distance = np.linalg.norm(layer[tame] - recursion[tame], axis=1) / np.linalg.norm(recursion[tame], axis=1)

    best = analysis.rollout(linear_forecaster, setting.best_weights, series[:, -order - 1 :], order, k)
    ratio, error = theory.rollout.ratio_of_medians(layer[:, k - 1], best[:, -1])
    generator = np.random.default_rng(setting.seed + 1)
    start, noise = (generator.standard_normal((10 * setting.samples, length)) for length in (order, N))
    others = theory.rollout.stationary_series(coefficients, sigma, start, noise)
    expected, uncertainty = theory.rollout.collapse_ratio(coefficients, sigma, others, k)
    return [
        check.exact("one_path", layer[tame][0], recursion[tame][0], LAYER_TOLERANCE),
        check.exact("largest_distance_from_the_recursion_abs", np.max(distance), 0.0, LAYER_TOLERANCE),
        check.sampled("ratio_of_medians", ratio, expected, math.hypot(error, uncertainty)),
        check.at_most("faster_than_the_best_predictor", ratio, 1.0, check.SIGMAS * error, error),
    ]
