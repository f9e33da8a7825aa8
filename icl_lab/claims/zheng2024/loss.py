"""Claims of Zheng et al. 2024 (arXiv 2405.16845): the population loss and which entries move."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import Setting, choice, integer, number
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.claims.simulation import mean_with_error
from icl_lab.claims.zheng2024.flow import blocks
from icl_lab.claims.zheng2024.settings import EXACT_TOLERANCE, INACTIVE_TOLERANCE, MODEL, PAPER, AnyStart, EveryStart, each
from icl_lab.core import compiled, prng
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array, Key
from icl_lab.models import LSAWeights, PairedWeights
from icl_lab.tasks import StartDistribution
from icl_lab.theory.dynamics.zheng2024 import DISTRIBUTIONS

GRADIENT_TOLERANCE = 1e-12
# Sequences times positions of a brute-force average that takes a few seconds; above it the average is sampled.
MOST_POSITIONS = 12_000_000
BATCH = 2**15
"""Random sequences that are held in memory at once."""
ORBITS = 2
"""Random sequences of each distribution whose common phase is turned."""


class Multiples(Setting):
    """Multiples of the identity."""

    a: float = number(0.31, meaning="multiple of the identity in K", detail=", K = a I")
    b: float = number(0.47, meaning="multiple of the identity in P", detail=", P = b I")


class Sampled(Seeded, AnyStart):
    """Random weights, and sequences where there are too many for an exact average."""

    samples: int = integer(30_000, 1_000, "number of draws", "of sequences, where they are too many for an exact average")


class SampledEach(EveryStart, Sampled):
    """The same for each distribution of x_1."""


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


def brute_force(name: str, measured: float, weights: LSAWeights, setting: Sampled) -> Check:
    """The check of a loss against the average over sequences of the literal attention formula."""
    d, T = setting.d, setting.T
    w_pv, w_kq = _without_first_block(weights)
    if T * theory.phases.sequence_count(setting.distribution, d, T) <= MOST_POSITIONS:
        return check.exact(
            name, measured, theory.phases.loss(w_pv, w_kq, setting.distribution, T, setting.scale), EXACT_TOLERANCE
        )
    batches = random_sequences(setting.distribution, d, T, setting.scale, setting.samples, setting.seed)
    drawn = np.concatenate([theory.phases.half_squared_errors(w_pv, w_kq, states) for states in batches])
    return check.sampled(name, measured, *mean_with_error(drawn))


def _without_first_block(weights: LSAWeights) -> tuple[np.ndarray, np.ndarray]:
    """The matrices of a layer on tokens (x_t, x_{t-1})."""
    d = len(weights.w_pv) // 3
    return np.asarray(weights.w_pv)[:d, d:], np.asarray(weights.w_kq)[d:, d:]


class DiagonalWeights(Seeded, Multiples, AnyStart):
    """Weights a I and b I, and random complex diagonals."""


@claim(
    "zheng2024.loss-diag",
    DiagonalWeights,
    Source(PAPER, "icl_lab; the loss of arXiv 2405.16845, Section 3", "extended"),
    extra_settings=({"distribution": "constant"},),
)
def loss_at_diagonal_weights(setting: DiagonalWeights) -> list[Check]:
    """At K = diag(a_j), P = diag(b_j) the loss of any start distribution is a closed form in its even moments; at a I, b I it
    is (d/2)(T-2)(m2 - 2 s kappa1 + s^2 kbar), s = ab.

    The exact loss of P and K, a quadratic form in P x K, is evaluated at a I, b I and at random complex diagonals; nothing is
    trained. A wrong moment of x_1, such as kappa3 with one coordinate too many, or positions counted from t would make it fail.
    """
    d, T, a, b, constants = setting.d, setting.T, setting.a, setting.b, setting.constants
    objective = setting.loss()
    curvature = theory.zheng2024.curvature(constants, T)
    polynomial = d / 2 * (T - 2) * (constants.m2 - 2 * a * b * constants.kappa1 + (a * b) ** 2 * curvature)
    a_j, b_j = np.asarray(jax.random.normal(setting.key, (2, d), complex)) / setting.scale
    ones = np.ones(d)
    uniform = objective.risk(setting.identities(a, b)) / 2
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


@claim("zheng2024.cubature", Sampled, Source(PAPER, "icl_lab", "extended"))
def finite_average(setting: Sampled) -> list[Check]:
    """The loss of all blocks is an exact average over finitely many sequences: equally spaced phases, four nodes for a Gaussian
    coordinate; more of them change nothing.

    The exact loss at random complex weights of all blocks is compared with the literal attention formula on all sequences of
    the average, with twice as many phases, and the layer is run on these sequences too; nothing is trained. An angle too few,
    or a Gaussian node too few, would make it fail.
    """
    d, T, name = setting.d, setting.T, setting.distribution
    weights = gaussian_layer(setting.key, d, setting.scale)
    measured = setting.loss(active=False).risk(weights) / 2
    checks = [brute_force("loss", measured, weights, setting)]
    if T * 2**d * theory.phases.sequence_count(name, d, T) > MOST_POSITIONS:
        return checks
    expected = theory.phases.loss(
        *_without_first_block(weights), name, T, setting.scale, angles=2 * theory.phases.angle_count(T)
    )
    errors = functools.partial(_squared_errors, weights)
    layer = sum(float(share @ errors(states)) for states, share in theory.phases.sequences(name, d, T, setting.scale))
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


@claim("zheng2024.pattern-gram", SampledEach, Source(PAPER, "icl_lab", "extended"))
def gram_of_the_active_blocks(setting: SampledEach) -> list[Check]:
    """For arbitrary complex P and K the loss is a quadratic form in P x K whose Gram counts index patterns with cancelling
    phases, times moments of x_1.

    The loss by this Gram at random complex P and K is compared with the average of the literal attention formula over all
    sequences of the finite average, or over random ones where these are too many; nothing is trained. A pattern that is left
    out, a wrong moment, or a missing conjugate would make it fail.
    """
    checks = []
    for one in each(setting):
        weights = gaussian_pair(one.stream(one.distribution), one.d, one.scale)
        checks.append(brute_force(one.distribution, one.loss().risk(weights) / 2, weights.merged(), one))
    return checks


@claim("zheng2024.full-gram", SampledEach, Source(PAPER, "icl_lab", "extended"))
def gram_of_all_blocks(setting: SampledEach) -> list[Check]:
    """The same holds with all blocks: (2d)^3 features, whose Gram contains that of the active blocks.

    The loss by the large Gram at random complex weights of all blocks is compared with the average of the literal attention
    formula, as for P and K alone, and at random P and K with the loss by the small Gram; nothing is trained. A phase or a
    moment counted wrongly in any block, or a missing conjugate, would make it fail.
    """
    checks = []
    for one in each(setting):
        key, name = one.stream(one.distribution), one.distribution
        weights, pair = gaussian_layer(key, one.d, one.scale), gaussian_pair(key, one.d, one.scale)
        objective = one.loss(active=False)
        checks += [
            brute_force(name, objective.risk(weights) / 2, weights, one),
            check.exact(f"{name}_live_blocks", objective.risk(pair), one.loss().risk(pair), EXACT_TOLERANCE),
        ]
    return checks


class RealStarts(Seeded, EveryStart):
    """Each distribution of a real x_1."""

    distributions: ClassVar[tuple[str, ...]] = tuple(name for name in DISTRIBUTIONS if name != "complex_gaussian")
    distribution: str = choice("all", ("all", *distributions), "distribution of x_1")


@claim("zheng2024.dead-blocks", RealStarts, Source(PAPER, "icl_lab, extending the proof of Theorem 4.1", "extended"))
def blocks_that_never_move(setting: RealStarts) -> list[Check]:
    """For every distribution of a real x_1 no block but P and K has a gradient when only these are non-zero, and at real P and
    K theirs is real: the features of the blocks carry different powers of a common phase of W.

    At random P and K the gradient of all blocks is taken by differentiation, of the exact loss where it is affordable, and of
    the layer's own errors on random sequences turned by five common phases; nothing is trained. A feature with a wrong power of
    the phase, or sequences without all five turns, would make it fail.
    """
    checks = []
    for one in each(setting):
        name, key = one.distribution, one.stream(one.distribution)
        pair = gaussian_pair(prng.stream(key, "weights"), one.d, one.scale)
        real = PairedWeights(np.real(pair.value) + 0j, np.real(pair.key_query) + 0j)
        states = _orbits(prng.stream(key, "sequences"), one.d, one.T, one.start)
        gradients = {"orbit": [_orbit_gradient(weights.merged(), states) for weights in (pair, real)]}
        if one.affords_all_blocks:
            objective = one.loss(active=False)
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


def _orbits(key: Key, d: int, T: int, start: StartDistribution) -> Array:
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


class OffDiagonal(Multiples, EveryStart):
    """Two coordinates at least."""

    def validate(self) -> None:
        super().validate()
        if self.d < 2:
            raise InvalidValueError(f"`d` must be at least 2; got {self.d}. One coordinate has nothing off the diagonal.")


@claim("zheng2024.offdiag", OffDiagonal, Source(PAPER, "proof of Theorem 4.1 for sufficiency; the closed form: icl_lab"))
def off_diagonal_gradient(setting: OffDiagonal) -> list[Check]:
    """At a I, b I the off-diagonal gradient of P and K vanishes under Assumption 4.1; for other distributions it is a closed
    form in odd moments, and a mean of zero is not enough.

    The gradient of the exact loss of P and K is taken by differentiation at a I, b I, and with a = 0, which leaves the target's
    term; nothing is trained. An odd moment that is left out, or a mean of zero taken for symmetry (skew starts), would make it
    fail.
    """
    checks, a, b = [], setting.a, setting.b
    off = ~np.eye(setting.d, dtype=bool)
    for one in each(setting):
        d, T, name = one.d, one.T, one.distribution
        gradient = jax.grad(one.loss())
        odd = theory.diagonal_loss.odd_moments(name, d, one.scale)
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
        size = one.constants.kappa1 * (T - 2)
        for what, (entries, expected) in pairs.items():
            if expected == 0:
                checks.append(check.exact(f"{name}_{what}_abs", np.max(np.abs(entries)), 0.0, GRADIENT_TOLERANCE * size))
            else:
                checks.append(check.exact(f"{name}_{what}", entries, np.full(off.sum(), expected), EXACT_TOLERANCE))
    return checks
