"""Claims of Zhou et al. 2025 (arXiv 2510.09776): rollouts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
import scipy.linalg

from icl_lab import analysis, models, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, integer, number, vector
from icl_lab.claims.registry import claim
from icl_lab.core import compiled, prng
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.models import constructions
from icl_lab.tasks.series.autoregressive import Autoregressive, check_stationary

PAPER = "Zhou, Wang, Goel, Zhang 2025, arXiv 2510.09776"
LSA = models.LinearSelfAttention(embedding="hankel", query_in_sum=False)

# Powers of a companion matrix against products of small matrices.
EXACT_TOLERANCE = 1e-10
# Roots of multiple multiplicity are that inaccurate.
ROOT_TOLERANCE = 1e-6
LAYER_TOLERANCE = 1e-9
# Rollouts above it have begun to explode, and amplify rounding errors.
LARGEST = 1e3

COEFFICIENTS = {
    "rho": vector((0.5, -0.3, 0.2), "coefficients of the series, nearest lag first"),
    "sigma": number(math.sqrt(0.7), positive=True, meaning="standard deviation of the innovations"),
}
SAMPLING = {
    "samples": integer(50_000, 1_000, "series of a Monte Carlo mean"),
    "seed": integer(0, 0, "of the series"),
}


def validate(rho, **_) -> None:
    if rho is None:
        raise InvalidValueError("`rho` must be a list of coefficients; got null.")
    check_stationary(np.asarray(rho))


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

    def __init__(self, used: Array, rho: Sequence[float], sigma: float, steps: int, samples: int, seed: int):
        observed = len(rho) + 1
        task = Autoregressive(rho, steps + 1, sigma)
        drawn = compiled.jit(lambda key: task.sample_batch(key, samples))(prng.stream(jax.random.key(seed), "series"))
        paths = np.concatenate([np.asarray(drawn.inputs)[:, 0], np.asarray(drawn.labels)[..., 0]], axis=1)
        # A rollout is linear in the series, so unit series show its coefficients.
        starts = np.concatenate([np.eye(observed), paths[:, :observed]])
        rolled = analysis.rollout(linear_forecaster, used[::-1].copy(), starts, len(rho), steps)
        units, values = rolled[:observed].T, rolled[observed:]

        covariance = scipy.linalg.toeplitz(task.autocovariances(observed + steps))
        difference = np.concatenate([-units, np.eye(steps)], axis=1)
        self.moments = np.einsum("ka,ab,kb->k", units, covariance[:observed, :observed], units)
        self.errors = np.einsum("ka,ab,kb->k", difference, covariance, difference)
        self.sampled = [
            (np.mean(squares, axis=0), np.std(squares, axis=0, ddof=1) / np.sqrt(samples))
            for squares in (values**2, (values - paths[:, observed:]) ** 2)
        ]
        self.transition = np.concatenate([np.eye(len(rho), k=1)[:-1], units[:1, 1:]])


@claim(
    "zhou2025.cot-bayes",
    statement="The rollout of the best p-lag predictor shrinks to zero: E xhat_k^2 = gamma_0 - sigma^2 sum_{j<k} psi_j^2, with "
    "errors sigma^2 sum_{j<k} psi_j^2 that grow to gamma_0.",
    source=Source(PAPER, "rollouts; conditional expectations k steps ahead"),
    parameters=COEFFICIENTS | {"K": integer(12, 1, "number of steps")} | SAMPLING,
    validate=validate,
)
def rollout_of_the_best_predictor(rho, sigma, K, samples, seed) -> list[Check]:
    rolled = _LinearRollout(np.asarray(rho), rho, sigma, K, samples, seed)
    moments = theory.rollout.bayes_second_moment(np.asarray(rho), sigma, K)
    errors = theory.rollout.bayes_mse(np.asarray(rho), sigma, K)
    variance = Autoregressive(rho, 1, sigma).autocovariances(1)[0]
    radius = np.max(np.abs(np.linalg.eigvals(rolled.transition)))
    return [
        # Late moments are differences of numbers of the size of gamma_0.
        check.exact("second_moments", rolled.moments, moments, EXACT_TOLERANCE),
        check.exact("errors", rolled.errors, errors, EXACT_TOLERANCE),
        check.sampled("sampled_second_moments", rolled.sampled[0][0], moments, rolled.sampled[0][1]),
        check.sampled("sampled_errors", rolled.sampled[1][0], errors, rolled.sampled[1][1]),
        check.exact("they_add_up_to_the_variance", rolled.moments + rolled.errors, np.full(K, variance), EXACT_TOLERANCE),
        check.at_least("errors_grow_abs", np.diff(rolled.errors), np.zeros(K - 1), EXACT_TOLERANCE * variance),
        check.exact("decay_rate", radius, theory.bartlett.spectral_radius(np.asarray(rho)), ROOT_TOLERANCE),
    ]


@claim(
    "zhou2025.cot-plugin",
    statement="A rollout with other coefficients than the true ones has errors gamma_0 + a^T Gam a - 2 a^T Gam b, a and b the "
    "first rows of the k-th powers of the two companion matrices; never less than the best.",
    source=Source(
        PAPER, "a rollout with estimated coefficients, which the paper's rollouts are compared with; icl_lab", "extended"
    ),
    parameters=COEFFICIENTS
    | {
        "factor": number(0.9, meaning="coefficients of the rollout over the true ones"),
        "k": integer(4, 1, "number of steps"),
    }
    | SAMPLING,
    validate=validate,
)
def rollout_of_other_coefficients(rho, sigma, factor, k, samples, seed) -> list[Check]:
    used = factor * np.asarray(rho)
    rolled = _LinearRollout(used, rho, sigma, k, samples, seed)
    errors = theory.rollout.plugin_mse(np.asarray(rho), used, sigma, k)
    return [
        check.exact("error", rolled.errors[-1], errors[-1], EXACT_TOLERANCE),
        check.exact("errors", rolled.errors, errors, EXACT_TOLERANCE),
        check.sampled("sampled_errors", rolled.sampled[1][0], errors, rolled.sampled[1][1]),
        check.at_least("best_errors", rolled.errors, theory.rollout.bayes_mse(np.asarray(rho), sigma, k), EXACT_TOLERANCE),
    ]


@claim(
    "zhou2025.cot-lsa",
    statement="The rollout of the trained layer obeys y_k = alpha S_{k-1}/(N+k-1) w.h_k, "
    "S_k = S_{k-1} + (y_k - w.h_k)^2/sigma^2, and collapses faster than that of the best predictor.",
    source=Source(PAPER, "rollouts; the recursion is icl_lab's", "extended"),
    parameters=COEFFICIENTS
    | {
        "rho": vector((0.5,), "coefficients of the series, nearest lag first"),
        "sigma": number(1.0, positive=True, meaning="standard deviation of the innovations"),
        "N": integer(50, 1, "windows of the context that is observed"),
        "K": integer(20, 1, "steps compared with the recursion"),
        "k": integer(8, 1, "step at which medians are compared, at most K"),
        "samples": integer(6_000, 1_000, "series of the medians"),
        "seed": integer(0, 0, "of the series"),
    },
    validate=lambda rho, K, k, **_: _validate_steps(rho, K, k),
)
def rollout_of_the_layer(rho, sigma, N, K, k, samples, seed) -> list[Check]:
    order, coefficients = len(rho), np.asarray(rho)
    task = Autoregressive(rho, N, sigma)
    drawn = compiled.jit(lambda key: task.sample_batch(key, samples))(prng.stream(jax.random.key(seed), "series"))
    series = np.concatenate([np.asarray(drawn.inputs)[:, 0], np.asarray(drawn.labels)[..., 0]], axis=1)
    weights = constructions.series.one_layer(coefficients, sigma, N)
    layer = analysis.rollout(LSA, weights, series, order, K)
    recursion = theory.rollout.lsa_rollout(series, coefficients, sigma, N / (N + 4), K)
    tame = np.all(np.abs(np.nan_to_num(layer, nan=np.inf)) < LARGEST * sigma, axis=1)
    distance = np.linalg.norm(layer[tame] - recursion[tame], axis=1) / np.linalg.norm(recursion[tame], axis=1)

    best = analysis.rollout(linear_forecaster, coefficients[::-1].copy(), series[:, -order - 1 :], order, k)
    ratio, error = theory.rollout.ratio_of_medians(layer[:, k - 1], best[:, -1])
    generator = np.random.default_rng(seed + 1)
    start, noise = (generator.standard_normal((10 * samples, length)) for length in (order, N))
    others = theory.rollout.stationary_series(coefficients, sigma, start, noise)
    expected, uncertainty = theory.rollout.collapse_ratio(coefficients, sigma, others, k)
    return [
        check.exact("one_path", layer[tame][0], recursion[tame][0], LAYER_TOLERANCE),
        check.exact("largest_distance_from_the_recursion_abs", np.max(distance), 0.0, LAYER_TOLERANCE),
        check.sampled("ratio_of_medians", ratio, expected, math.hypot(error, uncertainty)),
        check.at_most("faster_than_the_best_predictor", ratio, 1.0, check.SIGMAS * error, error),
    ]


def _validate_steps(rho, K, k) -> None:
    validate(rho)
    if k > K:
        raise InvalidValueError(f"`k` must be at most K = {K}, the length of the rollout; got {k}.")
