"""Claims of Zheng et al. 2024 (arXiv 2405.16845): what the trained layer can do."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import estimators, theory
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import choice, integer, number, optional
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.claims.simulation import simulate
from icl_lab.claims.zheng2024.settings import (
    EXACT_TOLERANCE,
    LIMIT_TOLERANCE,
    MODEL,
    PAPER,
    TO_THE_LIMIT,
    EveryStart,
    PhaseSetting,
    StartSetting,
    each,
)
from icl_lab.core.typing import Array
from icl_lab.models import PairedWeights
from icl_lab.theory.dynamics.zheng2024 import SYMMETRIC_DISTRIBUTIONS

FORWARD_TOLERANCE = 1e-12
SEQUENCES = 3
"""Random sequences on which the layer is compared with a gradient step."""
# Squared error of float64 rounding, relative to the states' size.
ROUNDING_TOLERANCE = 1e-20


class OneStep(Seeded, StartSetting):
    """Short sequences, and a position of test sequences."""

    d = 3
    T = 12
    t: int = integer(9, 2, "position", "at which the layer predicts")


def trained(setting: PhaseSetting) -> PairedWeights:
    """The limit of gradient flow from (0.5, 1.5), real."""
    start = PairedWeights(1.5 * np.eye(setting.d), 0.5 * np.eye(setting.d))
    return convergence.to_limit(setting.loss(), start, **TO_THE_LIMIT).limit


@claim(
    "zheng2024.mesa-gd",
    OneStep,
    Source(PAPER, "the consequence of Theorem 4.1 that the trained layer takes one step of gradient descent in its context"),
)
def layer_is_one_gradient_step(setting: OneStep) -> list[Check]:
    """The trained layer predicts W x_t with W one gradient step from zero, of size ab/(t-1), on half the sum of squares of the
    sequence seen so far.

    The gradient flow of the exact loss in P and K runs to rest from the start (0.5, 1.5) of the theorem; on three random
    sequences the trained layer, the estimator and a step by differentiation are compared with the written step. A step on the
    mean of the squares, a missing conjugate, or the product of infinite sequences would make it fail.
    """
    weights, t = trained(setting), setting.t
    product = float(np.trace(weights.value @ weights.key_query)) / setting.d
    prompts = setting.task_at(t).sample_batch(setting.key, SEQUENCES)
    states = np.concatenate([np.asarray(prompts.inputs), np.asarray(prompts.query)[:, None]], axis=1)
    steps = np.array([theory.recovery.gradient_step(sequence, product / (t - 1)) for sequence in states])
    answers = {
        "layer": jax.vmap(lambda prompt: MODEL(weights, prompt))(prompts),
        # The estimator's step size multiplies the mean gradient.
        "estimator": jax.vmap(lambda prompt: estimators.gradient_descent(prompt, product))(prompts),
        "autodiff": jax.vmap(lambda sequence: _inner_step(sequence, product / (t - 1)))(states),
    }
    return [
        check.exact("ab", product, setting.limit_product, LIMIT_TOLERANCE),
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


class ErrorSetting(EveryStart):
    """Each distribution of x_1 with a name in the tasks, a position, and a product that training need not have reached."""

    d = 5
    T = 100
    distributions: ClassVar[tuple[str, ...]] = (*SYMMETRIC_DISTRIBUTIONS, "constant")
    distribution: str = choice("all", ("all", *distributions), "distribution of x_1")
    t: int = integer(30, 2, "position", "at which x_{t+1} is predicted")
    s: float | None = optional(number(1.0, meaning="product ab", detail="; null: that of training on sequences of length T"))


@claim("zheng2024.test-error", ErrorSetting, Source(PAPER, "icl_lab", "extended"))
def error_at_a_position(setting: ErrorSetting) -> list[Check]:
    """At any product s = ab the squared error at position t is d [m2 - 2 s kappa1 + s^2 (kappa2 + kappa3/(t-1))].

    The exact squared error at position t, a quadratic form in P x K, is evaluated at K = I, P = s I; nothing is trained. A
    wrong moment of x_1, such as kappa3 with one coordinate too many, or t in place of t - 1 would make it fail.
    """
    checks, d, t = [], setting.d, setting.t
    for one in each(setting):
        product = one.limit_product if one.s is None else one.s
        expected = theory.recovery.squared_error(one.constants, d, product, t)
        measured = one.error_at(t).risk(one.identities(1.0, product))
        # Relative to the error of predicting zero, since that of a sparse start vanishes.
        checks.append(check.exact(f"{one.distribution}_abs", measured, expected, EXACT_TOLERANCE * d * one.constants.m2))
    return checks


class SimulatedSetting(Seeded, PhaseSetting):
    """The paper's size, and simulated test sequences."""

    d = 5
    T = 100
    t: int = integer(30, 2, "position", "at which x_{t+1} is predicted from x_1 .. x_t")
    samples: int = integer(60_000, 1_000, "number of draws", "of test sequences")

    def simulated(self, weights: PairedWeights) -> np.ndarray:
        """Real parts of the mean ratio yhat/x over the coordinates that are not zero, and squared errors: (samples, 2)."""
        task = self.task_at(self.t)
        layer = jax.tree.map(jnp.asarray, weights)

        def statistics(key):
            prompt = task.sample(key)
            answer = MODEL(layer, prompt)
            occupied = prompt.target != 0
            ratios = jnp.where(occupied, answer / jnp.where(occupied, prompt.target, 1.0), 0.0)
            return jnp.stack(
                [jnp.sum(ratios.real) / jnp.sum(occupied.astype(float)), jnp.sum(jnp.abs(answer - prompt.target) ** 2)]
            )

        return simulate(statistics, self.stream("sequences"), self.samples)


def _long_limits(setting: SimulatedSetting) -> tuple[float, float]:
    """The limit of ab for long training, and the relative error there for long tests, from the exact losses at t and 2 t - 1.

    The loss at one context length n is m2 - 2 s kappa1 + s^2 (kappa2 + kappa3/n): the inverse of its best s, and its value at
    any s, are affine in 1/n, so that two lengths give the limit. The unit of u is s scale^2.
    """
    inverses, losses, scale = [], [], setting.scale
    for position in (setting.t, 2 * setting.t - 1):
        risk = setting.error_at(position).risk
        at_zero, at_one, at_two = (risk(setting.identities(1.0, u / scale**2)) for u in (0.0, 1.0, 2.0))
        square = (at_two - 2 * at_one + at_zero) / 2
        linear = at_one - at_zero - square
        inverses.append(-2 * square / linear)
        losses.append((at_zero, linear, square))
    u = 1 / (2 * inverses[1] - inverses[0])
    short, long = (zero + linear * u + square * u**2 for zero, linear, square in losses)
    return u / scale**2, (2 * long - short) / losses[0][0]


class GaussianSetting(SimulatedSetting):
    """Real or complex Gaussian x_1."""

    distribution: str = choice("gaussian", ("gaussian", "complex_gaussian"), "distribution of x_1")

    @property
    def start_name(self) -> str:
        return self.distribution


@claim("zheng2024.prop4.1", GaussianSetting, Source(PAPER, "Proposition 4.1; finite lengths and complex x_1: icl_lab"))
def gaussian_is_not_recovered(setting: GaussianSetting) -> list[Check]:
    """Gaussian x_1 are not recovered: the mean of yhat/x is s* sigma^2 at every length, 1/5 for long training, where the
    relative error tends to 2/5; for complex Gaussian x_1 both are 1/3.

    The gradient flow of the exact loss in P and K runs to rest from the start (0.5, 1.5) of the theorem, and the trained layer
    is run on simulated test sequences; limits for long sequences are extrapolated from exact losses at two positions. A ratio
    that forgets the finite length, or a wrong sixth moment, would make it fail.
    """
    sigma, t, constants, product = setting.sigma, setting.t, setting.constants, setting.limit_product
    weights = trained(setting)
    drawn = setting.simulated(weights)
    mean, error = np.mean(drawn, axis=0), np.std(drawn, axis=0, ddof=1) / np.sqrt(setting.samples)
    expected = theory.recovery.squared_error(constants, setting.d, product, t)
    long_product, relative = _long_limits(setting)
    return [
        check.sampled("mean_ratio", mean[0], theory.recovery.mean_ratio(setting.distribution, product, sigma), error[0]),
        check.sampled("squared_error", mean[1], expected, error[1]),
        check.exact("exact_squared_error", setting.error_at(t).risk(weights), expected, LIMIT_TOLERANCE),
        check.exact(
            "mean_ratio_after_long_training",
            long_product * sigma**2,
            theory.recovery.mean_ratio(setting.distribution, theory.recovery.long_training_product(constants), sigma),
            EXACT_TOLERANCE,
        ),
        check.exact(
            "relative_error_in_the_limit", relative, theory.recovery.limiting_relative_error(constants), EXACT_TOLERANCE
        ),
    ]


class RecoverySetting(SimulatedSetting, StartSetting):
    """Any distribution of Assumption 4.1, sparse by default."""

    distribution = "sparse"


@claim(
    "zheng2024.thm4.2",
    RecoverySetting,
    Source(PAPER, "Theorem 4.2; the relative error and finite lengths: icl_lab"),
    extra_settings=({"distribution": "rademacher"},),
)
def which_distributions_are_recovered(setting: RecoverySetting) -> list[Check]:
    """In the limit of long training and test sequences the distributions with x_{1,j}^2 in {0, kappa2/kappa1} are recovered,
    and the other distributions tried here are not; the sparse distribution is at every finite length.

    The layer has the closed weights of Theorem 4.1 at T, without training, and is run on simulated test sequences; limits for
    long sequences are extrapolated from exact losses at two positions, and the condition is tried on random x_1. A ratio that
    forgets the finite length, or a condition that takes another set of sizes, would make it fail.
    """
    distribution, scale, t, constants = setting.distribution, setting.scale, setting.t, setting.constants
    weights = setting.identities(*theory.zheng2024.limit(constants, setting.T, 0.5, 1.5))
    drawn = setting.simulated(weights)
    mean, error = np.mean(drawn, axis=0), np.std(drawn, axis=0, ddof=1) / np.sqrt(setting.samples)
    ratio = theory.recovery.mean_ratio(distribution, setting.limit_product, scale)
    expected = theory.recovery.squared_error(constants, setting.d, setting.limit_product, t)
    starts = jax.vmap(lambda key: setting.start.sample(key, setting.d))(jax.random.split(setting.key, 1000))
    long_product, relative = _long_limits(setting)
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
            "exact_squared_error_abs", setting.error_at(t).risk(weights), expected, EXACT_TOLERANCE * setting.d * constants.m2
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
