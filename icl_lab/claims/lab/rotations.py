"""Claims of the lab about x_{t+1} = W x_t + noise with a random orthogonal W."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import estimators, models, objectives, theory, training
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Parameter, Source, choice, integer, number
from icl_lab.claims.registry import claim
from icl_lab.claims.simulation import mean_with_error, simulate, simulated_risk
from icl_lab.core import compiled, prng
from icl_lab.models import PairedWeights
from icl_lab.tasks.dynamics.linear import GaussianStart, HaarOrthogonal, LinearDynamics, RotationBlocks
from icl_lab.tasks.prompt import Prompt

PAPER = "icl_lab, on the sequences of arXiv 2309.05858"
MODEL = models.LinearSelfAttention(causal=True, embedding="paired")
# Sums of some ten thousand products.
EXACT_TOLERANCE = 1e-10
# The flow stops at a relative weight error of 1e-8.
TRAINED_TOLERANCE = 1e-6
# Squares of predictions of least squares on a nearly singular context, whose rounding is amplified.
INTERPOLATION_TOLERANCE = 1e-6
# T times the excess of least squares is off its limit by about 6/T of it, for sigma = 1.
REMAINDER = 8.0
EARLY = 3
"""Positions, in units of d, at which ridge is compared with a gradient step."""
DOUBLINGS = 20
"""Infinite sequences stand for those of 2^20 states, whose time averages are off by some 1e-6."""

SEED = integer(0, 0, "of the sequences")


def _even(default: int) -> Parameter:
    even = integer(default, 2)

    def convert(value):
        dimension = even.convert(value)
        if dimension % 2:
            raise ValueError
        return dimension

    return Parameter(default, "an even integer >= 2", convert, "dimension, two for each rotation angle")


def _layer(dim: int, product: float) -> PairedWeights:
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


@claim(
    "lab.rotation-gd1",
    statement="On rotations by random angles, with or without noise, the best product of a layer that is one gradient step, "
    "and its loss, are ratios of sums over pairings of traces of powers of W.",
    source=Source(PAPER, "Isserlis' theorem given W, then the mean over angles", "extended"),
    parameters={
        "d": _even(4),
        "T": integer(20, 3, "states of a sequence; the loss sums positions 2 .. T - 1"),
        "sigma": number(0.0, 0.0, "standard deviation of the noise"),
        "samples": integer(100_000, 0, "simulated sequences; 0: no simulation"),
        "seed": SEED,
    },
    extra_settings=({"sigma": 0.1, "samples": 0}, {"sigma": 0.5, "samples": 0}, {"d": 10, "sigma": 0.1, "samples": 0}),
)
def one_step_on_rotations(d, T, sigma, samples, seed) -> list[Check]:
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
    mean, error = simulated_risk(partial(MODEL, _layer(d, step)), task, jax.random.key(seed), samples)
    target, c, M = closed[-1]
    expected = target - 2 * step * c / (T - 2) + step**2 * M / (T - 2) ** 2
    return [*checks, check.sampled("risk_at_the_last_position", mean, expected, error)]


@claim(
    "lab.haar-gd1-limit",
    statement="In the noise-free limit of long sequences E x^T S x / t and E||S x||^2 / t^2 are 2d + 1 and 6d + 9 for Haar W "
    "on O(d), and 2d and 6d on SO(d) with d even, where no eigenvalue has to be +-1; the best step follows.",
    source=Source(PAPER, "time averages in the eigenbasis of W", "extended"),
    parameters={
        "d": integer(4, 1, "dimension"),
        "group": choice("O", ("O", "SO"), "of W"),
        "samples": integer(30_000, 1_000, "draws of W and x_1"),
        "seed": SEED,
    },
    extra_settings=({"group": "SO"}, {"d": 3, "group": "SO"}),
)
def one_step_on_haar(d, group, samples, seed) -> list[Check]:
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

    drawn = simulate(time_averages, jax.random.key(seed), samples)
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
    statement="On noise-free sequences with Haar W on O(d), minimum-norm least squares at position t has the risk "
    "max(d - t + 1, 0) of Bayes for x_1 ~ N(0, I).",
    source=Source(PAPER, "what W does to the complement of the seen states is Haar on it", "extended"),
    parameters={
        "d": integer(5, 1, "dimension"),
        "samples": integer(40_000, 1_000, "sequences"),
        "seed": SEED,
    },
)
def minimum_norm(d, samples, seed) -> list[Check]:
    task = LinearDynamics(d, d, HaarOrthogonal())

    longest = compiled.jit(lambda key: task.sample_batch(key, samples))(jax.random.key(seed))
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


@claim(
    "lab.noisy-rotation-ols",
    statement="On noisy rotations the states grow like a random walk, and once t sigma^2 >> 1 in-context least squares has the "
    "excess 2 d^2 sigma^2 / t, twice that of a stationary series; ridge beats any single gradient step long before.",
    source=Source(PAPER, "planar Brownian motion: E[|B_1|^2 / int |B|^2] = 2 and its companion 4", "extended"),
    parameters={
        "d": _even(2),
        "T": integer(800, 20, "position t, so that T - 1 pairs are seen"),
        "sigma": number(1.0, positive=True, meaning="standard deviation of the noise; T sigma^2 should exceed 100"),
        "samples": integer(20_000, 1_000, "sequences"),
        "seed": SEED,
    },
    extra_settings=({"d": 4},),
)
def noisy_least_squares(d, T, sigma, samples, seed) -> list[Check]:
    task = LinearDynamics(d, T - 1, RotationBlocks(), noise_std=sigma)

    def excess(key):
        prompt = task.sample(key)
        return jnp.sum((estimators.ols(prompt) - prompt.latent @ prompt.query) ** 2)

    mean, error = mean_with_error(T * simulate(excess, prng.stream(jax.random.key(seed), "long"), samples))
    expected = T * theory.rotations.unit_root_excess(d, T, sigma**2)
    remainder = REMAINDER * max(1.0, 1 / sigma**2) / T
    checks = [check.exact("T_times_excess", mean, expected, remainder + check.SIGMAS * error / expected)]
    # Long before that regime: ridge with the penalty of Bayes for entries of variance 1/d, after a few states.
    early = LinearDynamics(d, EARLY * d - 1, RotationBlocks(), noise_std=0.1)

    def early_excess(key):
        prompt = early.sample(key)
        return jnp.sum((estimators.ridge(prompt, 0.01 * d) - prompt.latent @ prompt.query) ** 2)

    mean, error = mean_with_error(simulate(early_excess, prng.stream(jax.random.key(seed), "early"), samples))
    step = theory.rotations.best_step_excess(d, EARLY * d, 0.01)
    return [*checks, check.at_most("early_ridge_below_best_step", mean + check.SIGMAS * error, step, standard_error=error)]


@claim(
    "lab.complex-vs-real",
    statement="A real layer trained on planar rotations does not stay on the two blocks of the complex theorem: it also moves "
    "the block that scores x_i against x_{t-1}, and ends lower by the recurrence x_{t+1} = 2 cos(theta) x_t - x_{t-1}.",
    source=Source(
        PAPER + "; the real counterpart of arXiv 2405.16845",
        "exact moments of the real layer; conservation of p^2 - k^2 - q^2",
        "extended",
    ),
    parameters={
        "T": integer(5, 3, "states of a sequence; the loss sums positions 2 .. T - 1"),
        "a0": number(0.3, positive=True, meaning="initial K_32 = a0 I"),
        "b0": number(0.6, positive=True, meaning="initial P_12 = b0 I"),
        "sigma": number(1.0, positive=True, meaning="standard deviation of a coordinate of x_1"),
    },
)
def complex_and_real_differ(T, a0, b0, sigma) -> list[Check]:
    identity = np.eye(2)
    objective = objectives.rotation_cubature(LinearDynamics(2, T - 2, RotationBlocks(), start=GaussianStart(sigma)), MODEL)
    start = PairedWeights(b0 * identity, a0 * identity).merged()
    slope = jax.tree.map(np.asarray, compiled.jit(jax.grad(objective))(start))
    # On the two blocks alone the loss is a parabola in the product.
    low, rest, high = (objective.risk(_layer(2, product).merged()) / 2 for product in (-1.0, 0.0, 1.0))
    curvature = high + low - 2 * rest
    product, diagonal_loss = theory.rotations.planar_diagonal(T, sigma)
    flow = convergence.to_limit(objective, start)
    limit = theory.rotations.planar_limit(T, a0, b0, sigma)
    expected = PairedWeights(limit.value * identity, limit.key_query * identity).merged()
    expected.w_kq[2:4, 4:] = limit.reverse * identity
    reverse = theory.rotations.planar_reverse_gradient(T, a0, b0, sigma)
    end = flow.limit
    inactive = np.array(slope.w_kq), np.array(slope.w_pv)
    inactive[0][2:4, 4:] = inactive[0][4:, 2:4] = inactive[1][:2, 2:4] = 0.0
    moved = np.array(end.w_kq), np.array(end.w_pv)
    moved[0][2:4, 4:] = moved[0][4:, 2:4] = moved[1][:2, 2:4] = 0.0
    size = float(np.linalg.norm(slope.w_kq))
    return [
        check.exact("best_product_of_two_blocks", (low - high) / (2 * curvature), product, EXACT_TOLERANCE),
        check.exact("loss_of_two_blocks", rest - (high - low) ** 2 / (8 * curvature), diagonal_loss, EXACT_TOLERANCE),
        check.exact("initial_gradient_of_KQ_23", slope.w_kq[2:4, 4:], reverse * identity, EXACT_TOLERANCE),
        check.exact("initial_gradient_elsewhere_abs", np.concatenate(inactive), np.zeros((12, 6)), EXACT_TOLERANCE * size),
        check.holds("flow_converged_abs", flow.verdict == training.Verdict.CONVERGED),
        check.exact("P", end.w_pv[:2, 2:4], expected.w_pv[:2, 2:4], TRAINED_TOLERANCE),
        check.exact("K", end.w_kq[4:, 2:4], expected.w_kq[4:, 2:4], TRAINED_TOLERANCE),
        check.exact("KQ_23", end.w_kq[2:4, 4:], expected.w_kq[2:4, 4:], TRAINED_TOLERANCE),
        check.exact("other_entries_abs", np.concatenate(moved), np.zeros((12, 6)), TRAINED_TOLERANCE),
        check.exact("half_loss", objective.risk(end) / 2, limit.loss, EXACT_TOLERANCE),
        check.at_most("half_loss_below_two_blocks", objective.risk(end) / 2, diagonal_loss),
    ]
