"""Claims of Zheng et al. 2024 (arXiv 2405.16845): what the trained layer can do."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import estimators, objectives, theory
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, choice, integer
from icl_lab.claims.registry import claim
from icl_lab.claims.simulation import simulate
from icl_lab.claims.zheng2024.flow import (
    DISTRIBUTION,
    EXACT_TOLERANCE,
    LIMIT_TOLERANCE,
    MODEL,
    PAPER,
    SCALE,
    STARTS,
    TO_THE_LIMIT,
    number_or_null,
    scale_of,
    scaled_identities,
    task_of,
    validate,
)
from icl_lab.core import prng
from icl_lab.core.typing import Array
from icl_lab.models import PairedWeights
from icl_lab.tasks import DiagonalUnitary, LinearDynamics
from icl_lab.theory.dynamics.zheng2024 import SYMMETRIC_DISTRIBUTIONS

FORWARD_TOLERANCE = 1e-12
SEQUENCES = 3
"""Random sequences on which the layer is compared with a gradient step."""
# Squared error of float64 rounding, relative to the states' size.
ROUNDING_TOLERANCE = 1e-20

LARGE = {
    "d": integer(5, 1, "dimension of the states"),
    "T": integer(100, 3, "length of the training sequences, x_1 .. x_T"),
}
TEST = {
    "t": integer(30, 2, "position at which x_{t+1} is predicted from x_1 .. x_t"),
    "samples": integer(60_000, 1_000, "test sequences"),
    "seed": integer(0, 0, "of the test sequences"),
}


def trained(d: int, T: int, distribution: str, scale: float) -> PairedWeights:
    """The limit of gradient flow from (0.5, 1.5), real."""
    objective = objectives.phase_loss(task_of(d, T, distribution, scale), MODEL, active=True)
    start = PairedWeights(1.5 * np.eye(d), 0.5 * np.eye(d))
    return convergence.to_limit(objective, start, **TO_THE_LIMIT).limit


def task_at(d: int, t: int, distribution: str, scale: float) -> LinearDynamics:
    """Sequences whose x_{t+1} is the target."""
    return LinearDynamics(d, t - 1, DiagonalUnitary(), STARTS[distribution](scale))


def risk_at(d: int, t: int, distribution: str, scale: float) -> Callable[[PairedWeights], float]:
    """The exact squared error at position t alone, as a function of the weights."""
    return objectives.phase_loss(task_at(d, t, distribution, scale), MODEL, lengths=[t - 1], active=True).risk


@claim(
    "zheng2024.mesa-gd",
    statement="The trained layer predicts W x_t with W one gradient step from zero, of size ab/(t-1), on half the sum of "
    "squares of the sequence seen so far.",
    source=Source(
        PAPER, "the consequence of Theorem 4.1 that the trained layer takes one step of gradient descent in its context"
    ),
    parameters={
        "d": integer(3, 1, "dimension of the states"),
        "T": integer(12, 3, "length of the training sequences"),
        "t": integer(9, 2, "position at which the layer predicts"),
    }
    | DISTRIBUTION
    | SCALE
    | {"seed": integer(0, 0, "of the sequences")},
    validate=validate,
)
def layer_is_one_gradient_step(d, T, t, distribution, sigma, c, seed) -> list[Check]:
    scale = scale_of(sigma, c)
    weights = trained(d, T, distribution, scale)
    product = float(np.trace(weights.value @ weights.key_query)) / d
    prompts = task_at(d, t, distribution, scale).sample_batch(jax.random.key(seed), SEQUENCES)
    states = np.concatenate([np.asarray(prompts.inputs), np.asarray(prompts.query)[:, None]], axis=1)
    steps = np.array([theory.recovery.gradient_step(sequence, product / (t - 1)) for sequence in states])
    answers = {
        "layer": jax.vmap(lambda prompt: MODEL(weights, prompt))(prompts),
        # The estimator's step size multiplies the mean gradient.
        "estimator": jax.vmap(lambda prompt: estimators.gradient_descent(prompt, product))(prompts),
        "autodiff": jax.vmap(lambda sequence: _inner_step(sequence, product / (t - 1)))(states),
    }
    expected = theory.zheng2024.limit_product(theory.zheng2024.constants(distribution, d, scale), T)
    return [
        check.exact("ab", product, expected, LIMIT_TOLERANCE),
        *(check.exact(name, _parts(answer), _parts(steps), FORWARD_TOLERANCE) for name, answer in answers.items()),
    ]


def _inner_step(states: Array, step_size: float) -> Array:
    """The prediction after a step on half the sum of squares, by autodiff; JAX's gradient is the conjugate of the ascent."""

    def loss(matrix):
        return 0.5 * jnp.sum(jnp.abs(states[1:] - states[:-1] @ matrix.T) ** 2)

    dim = states.shape[1]
    return -step_size * jnp.conj(jax.grad(loss)(jnp.zeros((dim, dim), complex))) @ states[-1]


def _parts(values: Array) -> np.ndarray:
    """Real and imaginary parts, since checks compare real numbers."""
    return np.array([np.real(values), np.imag(values)])


@claim(
    "zheng2024.test-error",
    statement="At any product s = ab the squared error at position t is d [m2 - 2 s kappa1 + s^2 (kappa2 + kappa3/(t-1))].",
    source=Source(PAPER, "icl_lab", "extended"),
    parameters=LARGE
    | {
        "t": integer(30, 2, "position at which x_{t+1} is predicted"),
        "distribution": choice("all", ("all", *STARTS), "of x_1"),
    }
    | SCALE
    | {"s": number_or_null("the product ab; null: that of training on sequences of length T")},
)
def error_at_a_position(d, T, t, distribution, sigma, c, s) -> list[Check]:
    scale, checks = scale_of(sigma, c), []
    for name in STARTS if distribution == "all" else (distribution,):
        constants = theory.zheng2024.constants(name, d, scale)
        product = theory.zheng2024.limit_product(constants, T) if s is None else s
        expected = theory.recovery.squared_error(constants, d, product, t)
        measured = risk_at(d, t, name, scale)(scaled_identities(d, 1.0, product))
        # Relative to the error of predicting zero, since that of a sparse start vanishes.
        checks.append(check.exact(f"{name}_abs", measured, expected, EXACT_TOLERANCE * d * constants.m2))
    return checks


def _simulated(weights: PairedWeights, d, t, distribution, scale, samples, seed) -> np.ndarray:
    """Real parts of the mean ratio yhat/x over the coordinates that are not zero, and squared errors: (samples, 2)."""
    task = task_at(d, t, distribution, scale)
    layer = jax.tree.map(jnp.asarray, weights)

    def statistics(key):
        prompt = task.sample(key)
        answer = MODEL(layer, prompt)
        occupied = prompt.target != 0
        ratios = jnp.where(occupied, answer / jnp.where(occupied, prompt.target, 1.0), 0.0)
        return jnp.stack(
            [jnp.sum(ratios.real) / jnp.sum(occupied.astype(float)), jnp.sum(jnp.abs(answer - prompt.target) ** 2)]
        )

    return simulate(statistics, prng.stream(jax.random.key(seed), "sequences"), samples)


def _long_limits(d: int, t: int, distribution: str, scale: float) -> tuple[float, float]:
    """The limit of ab for long training, and the relative error there for long tests, from the exact losses at t and 2 t - 1.

    The loss at one context length n is m2 - 2 s kappa1 + s^2 (kappa2 + kappa3/n): the inverse of its best s, and its value at
    any s, are affine in 1/n, so that two lengths give the limit. The unit of u is s scale^2.
    """
    inverses, losses = [], []
    for position in (t, 2 * t - 1):
        risk = risk_at(d, position, distribution, scale)
        at_zero, at_one, at_two = (risk(scaled_identities(d, 1.0, u / scale**2)) for u in (0.0, 1.0, 2.0))
        square = (at_two - 2 * at_one + at_zero) / 2
        linear = at_one - at_zero - square
        inverses.append(-2 * square / linear)
        losses.append((at_zero, linear, square))
    u = 1 / (2 * inverses[1] - inverses[0])
    short, long = (zero + linear * u + square * u**2 for zero, linear, square in losses)
    return u / scale**2, (2 * long - short) / losses[0][0]


@claim(
    "zheng2024.prop4.1",
    statement="Gaussian x_1 are not recovered: the mean of yhat/x is s* sigma^2 at every length, 1/5 for long training, where "
    "the relative error tends to 2/5; for complex Gaussian x_1 both are 1/3.",
    source=Source(PAPER, "Proposition 4.1; finite lengths and complex x_1: icl_lab"),
    parameters=LARGE
    | {"distribution": choice("gaussian", ("gaussian", "complex_gaussian"), "of x_1"), "sigma": SCALE["sigma"]}
    | TEST,
)
def gaussian_is_not_recovered(d, T, distribution, sigma, t, samples, seed) -> list[Check]:
    constants = theory.zheng2024.constants(distribution, d, sigma)
    product = theory.zheng2024.limit_product(constants, T)
    weights = trained(d, T, distribution, sigma)
    drawn = _simulated(weights, d, t, distribution, sigma, samples, seed)
    mean, error = np.mean(drawn, axis=0), np.std(drawn, axis=0, ddof=1) / np.sqrt(samples)
    expected = theory.recovery.squared_error(constants, d, product, t)
    long_product, relative = _long_limits(d, t, distribution, sigma)
    return [
        check.sampled("mean_ratio", mean[0], theory.recovery.mean_ratio(distribution, product, sigma), error[0]),
        check.sampled("squared_error", mean[1], expected, error[1]),
        check.exact("exact_squared_error", risk_at(d, t, distribution, sigma)(weights), expected, LIMIT_TOLERANCE),
        check.exact(
            "mean_ratio_after_long_training",
            long_product * sigma**2,
            theory.recovery.mean_ratio(distribution, theory.recovery.long_training_product(constants), sigma),
            EXACT_TOLERANCE,
        ),
        check.exact(
            "relative_error_in_the_limit", relative, theory.recovery.limiting_relative_error(constants), EXACT_TOLERANCE
        ),
    ]


@claim(
    "zheng2024.thm4.2",
    statement="In the limit of long training and test sequences the distributions with x_{1,j}^2 in {0, kappa2/kappa1} are "
    "recovered, and the other distributions tried here are not; the sparse distribution is at every finite length.",
    source=Source(PAPER, "Theorem 4.2; the relative error and finite lengths: icl_lab"),
    parameters=LARGE | {"distribution": choice("sparse", SYMMETRIC_DISTRIBUTIONS, "of x_1")} | SCALE | TEST,
    validate=validate,
    extra_settings=({"distribution": "rademacher"},),
)
def which_distributions_are_recovered(d, T, distribution, sigma, c, t, samples, seed) -> list[Check]:
    scale = scale_of(sigma, c)
    constants = theory.zheng2024.constants(distribution, d, scale)
    product = theory.zheng2024.limit_product(constants, T)
    weights = scaled_identities(d, *theory.zheng2024.limit(constants, T, 0.5, 1.5))
    drawn = _simulated(weights, d, t, distribution, scale, samples, seed)
    mean, error = np.mean(drawn, axis=0), np.std(drawn, axis=0, ddof=1) / np.sqrt(samples)
    ratio = theory.recovery.mean_ratio(distribution, product, scale)
    expected = theory.recovery.squared_error(constants, d, product, t)
    starts = jax.vmap(lambda key: STARTS[distribution](scale).sample(key, d))(jax.random.split(jax.random.key(seed), 1000))
    long_product, relative = _long_limits(d, t, distribution, scale)
    if distribution == "sparse":
        simulated = [
            check.exact("mean_ratio", mean[0], ratio, EXACT_TOLERANCE),
            check.exact("largest_squared_error_abs", np.max(drawn[:, 1]), 0.0, ROUNDING_TOLERANCE * scale**2),
        ]
    else:
        simulated = [
            check.sampled("mean_ratio", mean[0], ratio, error[0]),
            check.sampled("squared_error", mean[1], expected, error[1]),
        ]
    return [
        *simulated,
        check.exact(
            "exact_squared_error_abs", risk_at(d, t, distribution, scale)(weights), expected, EXACT_TOLERANCE * d * constants.m2
        ),
        check.exact("ab_after_long_training", long_product, theory.recovery.long_training_product(constants), EXACT_TOLERANCE),
        check.exact(
            "relative_error_in_the_limit_abs", relative, theory.recovery.limiting_relative_error(constants), EXACT_TOLERANCE
        ),
        check.exact(
            "recovered_in_the_limit_abs",
            float(relative < EXACT_TOLERANCE),
            float(theory.recovery.is_recovered(np.asarray(starts), constants)),
            0.0,
        ),
    ]
