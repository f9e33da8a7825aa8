"""Claims of the lab about x_{t+1} = W x_t + noise with a random orthogonal W: one gradient step, and least squares."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import estimators, models, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import choice, integer, number, restricted
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.claims.simulation import mean_with_error, simulate, simulated_risk
from icl_lab.core import compiled, prng
from icl_lab.models import PairedWeights
from icl_lab.tasks.dynamics.linear import HaarOrthogonal, LinearDynamics, RotationBlocks
from icl_lab.tasks.prompt import Prompt

PAPER = "icl_lab, on the sequences of arXiv 2309.05858"
MODEL = models.LinearSelfAttention(causal=True, embedding="paired")
# Sums of some ten thousand products.
EXACT_TOLERANCE = 1e-10
# Squares of predictions of least squares on a nearly singular context, whose rounding is amplified.
INTERPOLATION_TOLERANCE = 1e-6
# T times the excess of least squares is off its limit by about 6/T of it, for sigma = 1.
REMAINDER = 8.0
EARLY = 3
"""Positions, in units of d, at which ridge is compared with a gradient step."""
DOUBLINGS = 20
"""Infinite sequences stand for those of 2^20 states, whose time averages are off by some 1e-6."""


def one_step_layer(dim: int, product: float) -> PairedWeights:
    """The layer of one gradient step, value and key-query blocks of equal size."""
    root = math.sqrt(abs(product))
    return PairedWeights(math.copysign(root, product) * np.eye(dim), root * np.eye(dim))


def _circular_moments(blocks: int, T: int, variance: float) -> np.ndarray:
    """E||x_{t+1}||^2, E x_{t+1}.F_t and E||F_t||^2 at t = 2 .. T - 1, (T - 2, 3), block by block.

    A block of two coordinates is one complex number z, which given its angle is circular Gaussian, and x_a.x_b is
    Re z_a conj(z_b): moments are permanents of the covariances, which here come from running the recursion. The mean over the
    angle is one over equally spaced ones.
    """
    angles = 2 * np.pi * np.arange(3 * T + 1) / (3 * T + 1)
    turn = np.exp(1j * angles)
    cov = np.zeros((T, T, len(angles)), complex)
    cov[0, 0] = 2.0
    for t in range(1, T):
        cov[t, :t] = turn[None] * cov[t - 1, :t]
        cov[:t, t] = np.conj(cov[t, :t])
        cov[t, t] = cov[t - 1, t - 1] + 2 * variance
    rows = []
    for t in range(1, T - 1):  # zero-based: the query is x[t]
        seen = np.arange(t)
        i, j, here = seen[:, None], seen[None, :], np.full((1, 1), t)

        def mean(*pairs):
            """Given the angle, E prod Re(z_a conj z_b) over the (a, b) of `pairs`."""
            first, *others = pairs
            total = 0.0
            for flips in range(2 ** len(others)):
                turned = [pair[::-1] if flips >> k & 1 else pair for k, pair in enumerate(others)]
                left, right = zip(first, *turned, strict=True)
                total = total + _permanent(cov, left, right) / 2 ** len(others)
            return np.real(total)

        target, near, far = (i + 1, j + 1), (i, here), (j, here)
        alone = [np.mean(mean(pair), axis=-1) for pair in (target, near, far)]
        two = [np.mean(mean(a, b), axis=-1) for a, b in ((near, far), (target, far), (target, near))]
        three = np.mean(mean(target, near, far), axis=-1)
        m = blocks
        square = m * three + m * (m - 1) * sum(a * b for a, b in zip(alone, two, strict=True))
        square = square + m * (m - 1) * (m - 2) * alone[0] * alone[1] * alone[2]
        ahead, back = (here + 1, i + 1), (i, here)
        cross = m * np.mean(mean(ahead, back), axis=-1)
        cross = cross + m * (m - 1) * np.mean(mean(ahead), axis=-1) * np.mean(mean(back), axis=-1)
        rows.append((m * np.real(np.mean(cov[t + 1, t + 1])), np.sum(cross), np.sum(square)))
    return np.array(rows)


def _permanent(cov: np.ndarray, left, right):
    """E prod z_left conj(z_right) of up to three factors each."""
    if len(left) == 1:
        return cov[left[0], right[0]]
    return sum(cov[left[0], right[k]] * _permanent(cov, left[1:], right[:k] + right[k + 1 :]) for k in range(len(right)))


class RotationSetting(Seeded):
    """Sequences of block rotations by random angles."""

    d: int = restricted(
        integer(4, 2, "dimension", "of the states, two for each rotation angle"),
        "an even integer >= 2",
        lambda value: value % 2 == 0,
    )
    T: int = integer(20, 3, "states of a sequence", "; the loss sums positions 2 .. T - 1")
    sigma: float = number(0.0, 0.0, "standard deviation of the noise")
    samples: int = integer(100_000, 0, "number of draws", "of sequences; 0: no simulation")


@claim(
    "lab.rotation-gd1",
    RotationSetting,
    Source(PAPER, "Isserlis' theorem given W, then the mean over angles", "extended"),
    extra_settings=({"sigma": 0.1, "samples": 0}, {"sigma": 0.5, "samples": 0}, {"d": 10, "sigma": 0.1, "samples": 0}),
)
def one_step_on_rotations(setting: RotationSetting) -> list[Check]:
    """On rotations by random angles, with or without noise, the best product of a layer that is one gradient step, and its
    loss, are ratios of sums over pairings of traces of powers of W.

    Nothing is trained: blocks of the rotation are complex numbers, whose covariances come from running the recursion and whose
    moments are permanents, averaged over equally spaced angles; the layer with the best product is also run on simulated
    sequences. A trace averaged as if all blocks had one angle, or noise left out, would make it fail.
    """
    d, T, sigma, samples = setting.d, setting.T, setting.sigma, setting.samples
    variance = sigma**2
    moments = _circular_moments(d // 2, T, variance)
    length = np.arange(1, T - 1)  # t - 1
    cross, square = np.sum(moments[:, 1] / length), np.sum(moments[:, 2] / length**2)
    step, loss = theory.rotations.best_step(d, T, variance)
    closed = np.array([theory.rotations.step_moments(d, t, variance) for t in range(2, T)])
    checks = [
        check.exact("c_t", moments[:, 1], closed[:, 1], EXACT_TOLERANCE),
        check.exact("M_t", moments[:, 2], closed[:, 2], EXACT_TOLERANCE),
        check.exact("s", cross / square, step, EXACT_TOLERANCE),
        check.exact("half_loss", (np.sum(moments[:, 0]) - cross**2 / square) / 2, loss, EXACT_TOLERANCE),
    ]
    if not samples:
        return checks
    task = LinearDynamics(d, T - 2, RotationBlocks(haar_basis=True), noise_std=sigma)
    mean, error = simulated_risk(partial(MODEL, one_step_layer(d, step)), task, setting.key, samples)
    target, c, M = closed[-1]
    expected = target - 2 * step * c / (T - 2) + step**2 * M / (T - 2) ** 2
    return [*checks, check.sampled("risk_at_the_last_position", mean, expected, error)]


class HaarSequences(Seeded):
    """Noise-free sequences of a Haar-random W."""

    d: int = integer(5, 1, "dimension", "of the states")
    samples: int = integer(40_000, 1_000, "number of draws", "of sequences")


class HaarAverages(HaarSequences):
    """Time averages of infinite sequences."""

    d = 4
    group: str = choice("O", ("O", "SO"), "group of W")
    samples = 30_000


@claim(
    "lab.haar-gd1-limit",
    HaarAverages,
    Source(PAPER, "time averages in the eigenbasis of W", "extended"),
    extra_settings=({"group": "SO"}, {"d": 3, "group": "SO"}),
)
def one_step_on_haar(setting: HaarAverages) -> list[Check]:
    """In the noise-free limit of long sequences E x^T S x / t and E||S x||^2 / t^2 are 2d + 1 and 6d + 9 for Haar W on O(d),
    and 2d and 6d on SO(d) with d even, where no eigenvalue has to be +-1; the best step follows.

    Nothing is trained: sequences of 2^20 states, summed by doubling, stand for infinite ones, and both moments, the step and
    its relative error are means over draws of W and x_1. The limits of the other group would make it fail.
    """
    d, group = setting.d, setting.group
    distribution = HaarOrthogonal()

    def time_averages(key):
        transition = jnp.asarray(distribution.sample(prng.stream(key, "task"), d))
        if group == "SO":
            flipped = transition.at[:, 0].multiply(-1.0)
            transition = jnp.where(jnp.linalg.det(transition) < 0, flipped, transition)
        start = jax.random.normal(prng.stream(key, "start"), (d,))

        def double(_, state):
            total, power = state
            return total + power @ total @ power.T, power @ power

        total, power = jax.lax.fori_loop(0, DOUBLINGS, double, (jnp.outer(start, start), transition))
        gram, query = total / 2**DOUBLINGS, power @ start
        return jnp.stack([query @ gram @ query, jnp.sum((gram @ query) ** 2)])

    drawn = simulate(time_averages, setting.key, setting.samples)
    (cross, cross_error), (square, square_error) = mean_with_error(drawn[:, 0]), mean_with_error(drawn[:, 1])
    c, M = theory.rotations.haar_step_limits(d, group == "SO")
    # First-order changes of the ratios c/M and c^2/M.
    _, step_error = mean_with_error(drawn[:, 0] / square - cross * drawn[:, 1] / square**2)
    _, gain_error = mean_with_error(2 * cross * drawn[:, 0] / square - cross**2 * drawn[:, 1] / square**2)
    return [
        check.sampled("c", cross, c, cross_error),
        check.sampled("M", square, M, square_error),
        check.sampled("s", cross / square, c / M, step_error),
        check.sampled("relative_error_abs", 1 - cross**2 / square / d, 1 - c**2 / M / d, gain_error / d),
    ]


@claim(
    "lab.haar-minnorm",
    HaarSequences,
    Source(PAPER, "what W does to the complement of the seen states is Haar on it", "extended"),
)
def minimum_norm(setting: HaarSequences) -> list[Check]:
    """On noise-free sequences with Haar W on O(d), minimum-norm least squares at position t has the risk max(d - t + 1, 0) of
    Bayes for x_1 ~ N(0, I).

    Nothing is trained. Least squares is run at every position of simulated sequences, up to the first at which all directions
    have been seen and the error must vanish. A risk that falls by more or less than one with each state would make it fail.
    """
    d = setting.d
    task = LinearDynamics(d, d, HaarOrthogonal())
    longest = compiled.jit(lambda key: task.sample_batch(key, setting.samples))(setting.key)
    states = np.concatenate([longest.inputs, longest.query[:, None], longest.target[:, None]], axis=1)
    # Nothing is seen at t = 1, and the prediction is zero.
    errors = [np.sum(states[:, 1] ** 2, axis=1)]
    for n in range(1, d + 1):
        # One program a length: several batches of factorisations in one can wait for each other's threads.
        seen = jax.vmap(Prompt)(states[:, :n], states[:, 1 : n + 1], states[:, n], states[:, n + 1])
        errors.append(np.sum((np.asarray(compiled.jit(jax.vmap(estimators.ols))(seen)) - states[:, n + 1]) ** 2, axis=1))
    checks = []
    for t in range(1, d + 1):
        mean, error = mean_with_error(errors[t - 1])
        checks.append(check.sampled(f"risk_at_t_{t}", mean, theory.rotations.minimum_norm_risk(d, t), error))
    expected = theory.rotations.minimum_norm_risk(d, d + 1)
    return [*checks, check.exact(f"risk_at_t_{d + 1}_abs", np.mean(errors[d]), expected, INTERPOLATION_TOLERANCE)]


class LongRotations(RotationSetting):
    """Noisy rotations, seen for long."""

    d = 2
    T: int = integer(800, 20, "states of a sequence", ", all seen, so T - 1 pairs; the next is predicted")
    sigma: float = number(1.0, positive=True, meaning="standard deviation of the noise", detail="; T sigma^2 should exceed 100")
    samples: int = integer(20_000, 1_000, "number of draws", "of sequences")


@claim(
    "lab.noisy-rotation-ols",
    LongRotations,
    Source(PAPER, "planar Brownian motion: E[|B_1|^2 / int |B|^2] = 2 and its companion 4", "extended"),
    extra_settings=({"d": 4},),
)
def noisy_least_squares(setting: LongRotations) -> list[Check]:
    """On noisy rotations the states grow like a random walk, and once t sigma^2 >> 1 in-context least squares has the excess
    2 d^2 sigma^2 / t, twice that of a stationary series; ridge beats any single gradient step long before.

    Nothing is trained. Least squares is run on simulated sequences of T states, and ridge on short ones of noise 0.1 at
    position 3d, where it must lie below the closed form of the best step. The excess of a stationary series, half as large,
    would make it fail.
    """
    d, T, sigma = setting.d, setting.T, setting.sigma

    def excess(name: str, task: LinearDynamics, estimator) -> tuple[float, float]:
        def squared_distance(key):
            prompt = task.sample(key)
            return jnp.sum((estimator(prompt) - prompt.latent @ prompt.query) ** 2)

        return mean_with_error(simulate(squared_distance, setting.stream(name), setting.samples))

    mean, error = excess("long", LinearDynamics(d, T - 1, RotationBlocks(), noise_std=sigma), estimators.ols)
    expected = theory.rotations.unit_root_excess(d, T, sigma**2)
    remainder = REMAINDER * max(1.0, 1 / sigma**2) / T
    checks = [check.exact("T_times_excess", T * mean, T * expected, remainder + check.SIGMAS * error / expected)]
    # Long before that regime: ridge with the penalty of Bayes for entries of variance 1/d, after a few states.
    early = LinearDynamics(d, EARLY * d - 1, RotationBlocks(), noise_std=0.1)
    mean, error = excess("early", early, lambda prompt: estimators.ridge(prompt, 0.01 * d))
    step = theory.rotations.best_step_excess(d, EARLY * d, 0.01)
    return [*checks, check.at_most("early_ridge_below_best_step", mean + check.SIGMAS * error, step, standard_error=error)]
