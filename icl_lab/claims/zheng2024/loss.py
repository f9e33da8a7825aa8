"""Claims of Zheng et al. 2024 (arXiv 2405.16845): the population loss and which entries move."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import objectives, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, choice, integer, number
from icl_lab.claims.registry import claim
from icl_lab.claims.simulation import mean_with_error
from icl_lab.claims.zheng2024.flow import (
    EXACT_TOLERANCE,
    INACTIVE_TOLERANCE,
    LONGEST_FULL,
    MODEL,
    MOST_FEATURES,
    PAPER,
    SCALE,
    SIZES,
    STARTS,
    blocks,
    scale_of,
    scaled_identities,
)
from icl_lab.core import compiled, prng
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array, Key
from icl_lab.models import LSAWeights, PairedWeights
from icl_lab.tasks import DiagonalUnitary, LinearDynamics
from icl_lab.tasks.distributions.starts import IndependentStart
from icl_lab.theory.dynamics.zheng2024 import DISTRIBUTIONS

GRADIENT_TOLERANCE = 1e-12
# Sequences times positions of a brute-force average that takes a few seconds; above it the average is sampled.
MOST_POSITIONS = 12_000_000
BATCH = 2**15
"""Random sequences that are held in memory at once."""
ORBITS = 2
"""Random sequences of each distribution whose common phase is turned."""


class SkewStart(IndependentStart):
    """x_1 with independent coordinates 2 scale with probability 1/3, else -scale: mean zero, third moment 2 scale^3."""

    sign_symmetric: bool = eqx.field(static=True, default=False, init=False)

    def sample(self, key: Key, dim: int) -> Array:
        """One x_1."""
        high = jax.random.bernoulli(key, 1 / 3, (dim,))
        return jnp.asarray(self.scale, float) * jnp.where(high, 2.0, -1.0)

    def coordinate_moment(self, u: int, v: int) -> Array | float:
        """(2^n + 2 (-1)^n) scale^n / 3, n = u + v."""
        n = u + v
        return (2.0**n + 2 * (-1.0) ** n) / 3 * self.scale**n


ALL_STARTS = STARTS | {"skew": SkewStart}
REAL_DISTRIBUTIONS = tuple(distribution for distribution in DISTRIBUTIONS if distribution != "complex_gaussian")
WEIGHTS = {"a": number(0.31, meaning="K = a I"), "b": number(0.47, meaning="P = b I")}
SEED = {"seed": integer(0, 0, "of the random weights and sequences")}
SAMPLES = {"samples": integer(30_000, 1_000, "sequences, where their number is too large for an exact average")}


def distribution_parameter(distributions: Sequence[str]) -> dict:
    return {"distribution": choice("all", ("all", *distributions), "of x_1")}


def distributions_of(distribution: str, distributions: Sequence[str]) -> Sequence[str]:
    return distributions if distribution == "all" else (distribution,)


def loss_of(d: int, T: int, distribution: str, scale: float, active: bool = True) -> objectives.MomentLoss:
    task = LinearDynamics(d, T - 2, DiagonalUnitary(), ALL_STARTS[distribution](scale))
    return objectives.phase_loss(task, MODEL, active=active)


def gaussian_pair(key: Key, d: int, scale: float) -> PairedWeights:
    """Random complex P and K whose predictions are of the size of the targets."""
    value, key_query = np.asarray(jax.random.normal(key, (2, d, d), complex)) / (np.sqrt(d) * scale)
    return PairedWeights(value, key_query)


def gaussian_layer(key: Key, d: int, scale: float) -> LSAWeights:
    """Random complex matrices on tokens (x_t, x_{t-1}), padded to the tokens with an empty first block."""
    w_pv, w_kq = np.asarray(jax.random.normal(key, (2, 2 * d, 2 * d), complex)) / (2 * np.sqrt(d) * scale)
    return LSAWeights(np.pad(w_pv[:d], ((0, 2 * d), (d, 0))), np.pad(w_kq, ((d, 0), (d, 0))))


def random_sequences(distribution: str, d: int, T: int, scale: float, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Batches of sequences (B, T, d) with random phases, x_1 having the moments of the distribution up to order 6."""
    generator = np.random.default_rng(seed)
    for first in range(0, samples, BATCH):
        size = min(BATCH, samples - first)
        if distribution == "sparse":
            start = scale * np.eye(d)[generator.integers(d, size=size)]
        else:
            nodes, shares = theory.phases.coordinate_nodes(distribution)
            start = scale * generator.choice(nodes, size=(size, d), p=shares)
        phases = generator.uniform(0, 2 * np.pi, (size, 1, d))
        yield start[:, None, :] * np.exp(1j * phases * np.arange(T)[None, :, None])


def brute_force(
    name: str, measured: float, weights: LSAWeights, distribution: str, T: int, scale: float, samples, seed
) -> Check:
    """The check of a loss against the average over sequences of the literal attention formula."""
    d = len(weights.w_pv) // 3
    w_pv, w_kq = np.asarray(weights.w_pv)[:d, d:], np.asarray(weights.w_kq)[d:, d:]
    if T * theory.phases.sequence_count(distribution, d, T) <= MOST_POSITIONS:
        return check.exact(name, measured, theory.phases.loss(w_pv, w_kq, distribution, T, scale), EXACT_TOLERANCE)
    batches = random_sequences(distribution, d, T, scale, samples, seed)
    drawn = np.concatenate([theory.phases.half_squared_errors(w_pv, w_kq, states) for states in batches])
    return check.sampled(name, measured, *mean_with_error(drawn))


@claim(
    "zheng2024.loss-diag",
    statement="At K = diag(a_j), P = diag(b_j) the loss of any start distribution is a closed form in its even moments; at a "
    "I, b I it "
    "is (d/2)(T-2)(m2 - 2 s kappa1 + s^2 kbar), s = ab.",
    source=Source(PAPER, "icl_lab; the loss of arXiv 2405.16845, Section 3", "extended"),
    parameters=SIZES | {"distribution": choice("gaussian", DISTRIBUTIONS, "of x_1")} | SCALE | WEIGHTS | SEED,
    extra_settings=({"distribution": "constant"},),
)
def loss_at_diagonal_weights(d, T, distribution, sigma, c, a, b, seed) -> list[Check]:
    scale = scale_of(sigma, c)
    constants = theory.zheng2024.constants(distribution, d, scale)
    objective = loss_of(d, T, distribution, scale)
    curvature = theory.zheng2024.curvature(constants, T)
    polynomial = d / 2 * (T - 2) * (constants.m2 - 2 * a * b * constants.kappa1 + (a * b) ** 2 * curvature)
    a_j, b_j = np.asarray(jax.random.normal(jax.random.key(seed), (2, d), complex)) / scale
    ones = np.ones(d)
    uniform = objective.risk(scaled_identities(d, a, b)) / 2
    return [
        check.exact("loss", uniform, theory.diagonal_loss.exchangeable(constants, a * ones, b * ones, T), EXACT_TOLERANCE),
        check.exact("loss_as_a_polynomial_in_ab", uniform, polynomial, EXACT_TOLERANCE),
        check.exact(
            "loss_at_complex_diagonals",
            objective.risk(PairedWeights(np.diag(b_j), np.diag(a_j))) / 2,
            theory.diagonal_loss.exchangeable(constants, a_j, b_j, T),
            EXACT_TOLERANCE,
        ),
    ]


@claim(
    "zheng2024.cubature",
    statement="The loss of all blocks is an exact average over finitely many sequences: equally spaced phases, four nodes for "
    "a Gaussian coordinate; more of them change nothing.",
    source=Source(PAPER, "icl_lab", "extended"),
    parameters=SIZES | {"distribution": choice("gaussian", DISTRIBUTIONS, "of x_1")} | SCALE | SAMPLES | SEED,
)
def finite_average(d, T, distribution, sigma, c, samples, seed) -> list[Check]:
    scale = scale_of(sigma, c)
    weights = gaussian_layer(jax.random.key(seed), d, scale)
    measured = loss_of(d, T, distribution, scale, active=False).risk(weights) / 2
    checks = [brute_force("loss", measured, weights, distribution, T, scale, samples, seed)]
    doubled = T * 2**d * theory.phases.sequence_count(distribution, d, T)
    if doubled > MOST_POSITIONS:
        return checks
    w_pv, w_kq = np.asarray(weights.w_pv)[:d, d:], np.asarray(weights.w_kq)[d:, d:]
    expected = theory.phases.loss(w_pv, w_kq, distribution, T, scale, angles=2 * theory.phases.angle_count(T))
    errors = functools.partial(_squared_errors, weights)
    layer = sum(float(share @ errors(states)) for states, share in theory.phases.sequences(distribution, d, T, scale))
    return [
        *checks,
        check.exact("layer_on_the_sequences", layer / 2, expected, EXACT_TOLERANCE),
        check.exact("loss_with_the_angles_doubled", measured, expected, EXACT_TOLERANCE),
    ]


@compiled.jit
def _squared_errors(weights: LSAWeights, states: Array) -> Array:
    """The layer's squared errors on whole sequences (B, T, d), summed over t = 2 .. T - 1: (B,)."""

    def one(sequence):
        previous = jnp.pad(sequence[:-1], ((1, 0), (0, 0)))
        tokens = jnp.concatenate([jnp.zeros_like(sequence), sequence, previous], axis=1)[:-1]
        layer = jax.tree.map(lambda w: jnp.asarray(w, tokens.dtype), weights.with_head_axis())
        answers = MODEL.updates(layer, tokens)[1:, : sequence.shape[1]]
        return jnp.sum(jnp.abs(answers - sequence[2:]) ** 2)

    return jax.vmap(one)(jnp.asarray(states, complex))


@claim(
    "zheng2024.pattern-gram",
    statement="For arbitrary complex P and K the loss is a quadratic form in P x K whose Gram counts index patterns with "
    "cancelling phases, times moments of x_1.",
    source=Source(PAPER, "icl_lab", "extended"),
    parameters=SIZES | distribution_parameter(DISTRIBUTIONS) | SCALE | SAMPLES | SEED,
)
def gram_of_the_active_blocks(d, T, distribution, sigma, c, samples, seed) -> list[Check]:
    scale = scale_of(sigma, c)
    checks = []
    for name in distributions_of(distribution, DISTRIBUTIONS):
        weights = gaussian_pair(prng.stream(jax.random.key(seed), name), d, scale)
        measured = loss_of(d, T, name, scale).risk(weights) / 2
        checks.append(brute_force(name, measured, weights.merged(), name, T, scale, samples, seed))
    return checks


@claim(
    "zheng2024.full-gram",
    statement="The same holds with all blocks: (2d)^3 features, whose Gram contains that of the active blocks.",
    source=Source(PAPER, "icl_lab", "extended"),
    parameters=SIZES | distribution_parameter(DISTRIBUTIONS) | SCALE | SAMPLES | SEED,
)
def gram_of_all_blocks(d, T, distribution, sigma, c, samples, seed) -> list[Check]:
    scale = scale_of(sigma, c)
    checks = []
    for name in distributions_of(distribution, DISTRIBUTIONS):
        key = prng.stream(jax.random.key(seed), name)
        weights, pair = gaussian_layer(key, d, scale), gaussian_pair(key, d, scale)
        objective = loss_of(d, T, name, scale, active=False)
        checks += [
            brute_force(name, objective.risk(weights) / 2, weights, name, T, scale, samples, seed),
            check.exact(f"{name}_live_blocks", objective.risk(pair), loss_of(d, T, name, scale).risk(pair), EXACT_TOLERANCE),
        ]
    return checks


@claim(
    "zheng2024.dead-blocks",
    statement="For every distribution of a real x_1 no block but P and K has a gradient when only these are non-zero, and at "
    "real P and "
    "K theirs is real: the features of the blocks carry different powers of a common phase of W.",
    source=Source(PAPER, "icl_lab, extending the proof of Theorem 4.1", "extended"),
    parameters=SIZES | distribution_parameter(REAL_DISTRIBUTIONS) | SCALE | SEED,
)
def blocks_that_never_move(d, T, distribution, sigma, c, seed) -> list[Check]:
    scale, checks = scale_of(sigma, c), []
    for name in distributions_of(distribution, REAL_DISTRIBUTIONS):
        key = prng.stream(jax.random.key(seed), name)
        pair = gaussian_pair(prng.stream(key, "weights"), d, scale)
        real = PairedWeights(np.real(pair.value) + 0j, np.real(pair.key_query) + 0j)
        states = _orbits(prng.stream(key, "sequences"), d, T, ALL_STARTS[name](scale))
        gradients = {"orbit": [_orbit_gradient(weights.merged(), states) for weights in (pair, real)]}
        if 8 * d**3 <= MOST_FEATURES and T <= LONGEST_FULL:
            objective = loss_of(d, T, name, scale, active=False)
            gradients["loss"] = [jax.grad(objective)(weights.merged()) for weights in (pair, real)]
        for kind, (at_complex, at_real) in gradients.items():
            key_query, value, others = blocks(at_complex)
            size = max(np.max(np.abs(key_query)), np.max(np.abs(value)))
            turned = max(np.max(np.abs(np.imag(block))) for block in blocks(at_real)[:2])
            checks += [
                check.exact(f"{name}_{kind}_other_blocks_abs", others / size, 0.0, INACTIVE_TOLERANCE / 10),
                check.exact(f"{name}_{kind}_imaginary_part_abs", turned / size, 0.0, INACTIVE_TOLERANCE / 10),
            ]
    return checks


def _orbits(key: Key, d: int, T: int, start) -> Array:
    """Random sequences (B, T, d), each with all turns of a common phase of W and with the conjugates of these.

    Five turns average every power of the common phase between -4 and 4 to zero; those of the features differ by at most 3.
    """
    angles = 2 * np.pi * np.asarray(jax.random.uniform(prng.stream(key, "phases"), (ORBITS, 1, d)))
    first = np.stack([np.asarray(start.sample(one, d)) for one in jax.random.split(prng.stream(key, "start"), ORBITS)])
    turned = angles + 2 * np.pi / 5 * np.arange(5)[None, :, None]
    powers = turned[:, :, None, :] * np.arange(T)[None, None, :, None]
    states = (first[:, None, None, :] * np.exp(1j * powers)).reshape(-1, T, d)
    return np.concatenate([states, states.conj()])


@compiled.jit
def _orbit_gradient(weights: LSAWeights, states: Array) -> LSAWeights:
    return jax.grad(lambda w: jnp.mean(_squared_errors(w, states)))(jax.tree.map(jnp.asarray, weights))


def _validate_pairs(d, **_) -> None:
    if d < 2:
        raise InvalidValueError(
            f"zheng2024.offdiag: `d` must be at least 2; got {d}. One coordinate has nothing off the diagonal."
        )


@claim(
    "zheng2024.offdiag",
    statement="At a I, b I the off-diagonal gradient of P and K vanishes under Assumption 4.1; for other distributions it is "
    "a closed "
    "form in odd moments, and a mean of zero is not enough.",
    source=Source(PAPER, "proof of Theorem 4.1 for sufficiency; the closed form: icl_lab"),
    parameters=SIZES | distribution_parameter(DISTRIBUTIONS) | SCALE | WEIGHTS,
    validate=_validate_pairs,
)
def off_diagonal_gradient(d, T, distribution, sigma, c, a, b) -> list[Check]:
    scale, checks = scale_of(sigma, c), []
    off = ~np.eye(d, dtype=bool)
    for name in distributions_of(distribution, DISTRIBUTIONS):
        gradient = jax.grad(loss_of(d, T, name, scale))
        odd = theory.diagonal_loss.odd_moments(name, d, scale)
        measured = gradient(PairedWeights(b * np.eye(d), a * np.eye(d)))
        # At a = 0 only the target's term is left, linear in b.
        target = np.asarray(gradient(PairedWeights(np.eye(d), np.zeros((d, d)))).key_query)[off]
        in_key, in_value = theory.diagonal_loss.off_diagonal_gradient(odd, T, a, b)
        slope, _ = theory.diagonal_loss.off_diagonal_gradient(odd, T, 0.0, 1.0)
        pairs = {
            "key_query": (np.asarray(measured.key_query)[off], in_key),
            "value": (np.asarray(measured.value)[off], in_value),
            "target_term": (target, slope),
        }
        # The size of the diagonal's terms, for what vanishes.
        size = theory.zheng2024.constants(name, d, scale).kappa1 * (T - 2)
        for what, (entries, expected) in pairs.items():
            if expected == 0:
                checks.append(check.exact(f"{name}_{what}_abs", np.max(np.abs(entries)), 0.0, GRADIENT_TOLERANCE * size))
            else:
                checks.append(check.exact(f"{name}_{what}", entries, np.full(off.sum(), expected), EXACT_TOLERANCE))
    return checks
