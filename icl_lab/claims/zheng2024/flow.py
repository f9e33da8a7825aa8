"""Claims of Zheng et al. 2024 (arXiv 2405.16845): the flow and its limit."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from icl_lab import models, objectives, theory, training
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Parameter, Source, choice, integer, number, vector
from icl_lab.claims.registry import claim
from icl_lab.core import prng
from icl_lab.models import LSAWeights, PairedWeights
from icl_lab.tasks import (
    ComplexGaussianStart,
    ConstantStart,
    DiagonalUnitary,
    GaussianStart,
    LinearDynamics,
    RademacherStart,
    SparseStart,
)
from icl_lab.theory.dynamics.zheng2024 import SYMMETRIC_DISTRIBUTIONS

PAPER = "Zheng et al. 2024, arXiv 2405.16845"
MODEL = models.LinearSelfAttention(causal=True, embedding="paired")
STARTS = {
    "gaussian": GaussianStart,
    "sparse": SparseStart,
    "rademacher": RademacherStart,
    "complex_gaussian": ComplexGaussianStart,
    "constant": ConstantStart,
}
INITS = ((0.1, 0.1), (0.5, 1.5), (2.0, 2.0))
"""The starts (a0, b0) of the paper's experiments."""

EXACT_TOLERANCE = 1e-10
FLOW_TOLERANCE = 1e-8
# The flow stops at an estimated weight error of a tenth of this, or after this many steps: a start close to the minimum leaves
# the loss too little to fall for the verdict.
LIMIT_TOLERANCE = 1e-7
MOST_STEPS = 10_000
# A sparse distribution's Gram is singular, which says nothing about stiffness.
TO_THE_LIMIT: Any = {"weight_tolerance": 1e-8, "solver": "tsit5", "rtol": 1e-11, "max_steps": MOST_STEPS}
RATE_TOLERANCE = 1e-4
# Blocks that the theorem says stay at zero, and zero gradients.
INACTIVE_TOLERANCE = 1e-10
# With more features, or pairs of positions to count, all blocks take minutes; the active ones take a second.
MOST_FEATURES, LONGEST_FULL = 216, 40


def positive_or_null(meaning: str) -> Parameter:
    """A number > 0, or null."""
    convert = number(1.0, positive=True).convert
    return Parameter(None, "null or a number > 0", lambda value: None if value is None else convert(value), meaning)


def number_or_null(meaning: str) -> Parameter:
    """A finite number, or null."""
    convert = number(1.0).convert
    return Parameter(None, "null or a finite number", lambda value: None if value is None else convert(value), meaning)


SIZES = {
    "d": integer(2, 1, "dimension of the states"),
    "T": integer(5, 3, "length of the training sequences, x_1 .. x_T"),
}
SCALE = {
    "sigma": number(1.0, positive=True, meaning="scale of the start distribution"),
    "c": positive_or_null("the same, under the name it has for the sparse and the constant distribution; null: sigma"),
}
DISTRIBUTION = {"distribution": choice("gaussian", SYMMETRIC_DISTRIBUTIONS, "of x_1; the distributions of Assumption 4.1")}
START = {
    "a0": number_or_null("start K = a0 I; null: 0.5 if b0 is given, else the paper's three starts"),
    "b0": number_or_null("start P = b0 I; null: 1.5 if a0 is given"),
}


def scale_of(sigma: float, c: float | None) -> float:
    return sigma if c is None else c


def starts_of(a0: float | None, b0: float | None) -> tuple[tuple[float, float], ...]:
    """The starts (a0, b0) of a claim."""
    if a0 is None and b0 is None:
        return INITS
    return ((0.5 if a0 is None else a0, 1.5 if b0 is None else b0),)


def validate(distribution: str = "gaussian", a0: float | None = None, b0: float | None = None, **_) -> None:
    """Theorem 4.1 needs its distribution and a start off the saddle's stable set."""
    theory.zheng2024.check_distribution(distribution)
    validate_start(a0, b0)


def validate_start(a0: float | None = None, b0: float | None = None, **_) -> None:
    for start in starts_of(a0, b0):
        theory.zheng2024.check_start(*start)


def task_of(d: int, T: int, distribution: str, scale: float) -> LinearDynamics:
    """Sequences x_1 .. x_T."""
    return LinearDynamics(d, T - 2, DiagonalUnitary(), STARTS[distribution](scale))


def scaled_identities(d: int, a: float, b: float) -> PairedWeights:
    """K = a I and P = b I, complex, so that the flow moves real and imaginary parts."""
    return PairedWeights(b * np.eye(d) + 0j, a * np.eye(d) + 0j)


def objective_and_starts(d, T, distribution, scale, inits) -> tuple[objectives.MomentLoss, list]:
    """The loss of all blocks with full weights where affordable, else that of the two active blocks."""
    task = task_of(d, T, distribution, scale)
    starts = [scaled_identities(d, a0, b0) for a0, b0 in inits]
    if 8 * d**3 > MOST_FEATURES or T > LONGEST_FULL:
        return objectives.phase_loss(task, MODEL, active=True), starts
    return objectives.phase_loss(task, MODEL), [start.merged() for start in starts]


def blocks(weights: LSAWeights | PairedWeights) -> tuple[np.ndarray, np.ndarray, float]:
    """K, P and the largest entry of all other blocks, for one set of weights or a path of them."""
    if isinstance(weights, PairedWeights):
        return np.asarray(weights.key_query), np.asarray(weights.value), 0.0
    d = weights.w_pv.shape[-1] // 3
    w_pv, w_kq = np.array(weights.w_pv), np.array(weights.w_kq)
    value, key_query = w_pv[..., :d, d : 2 * d].copy(), w_kq[..., 2 * d :, d : 2 * d].copy()
    w_pv[..., :d, d : 2 * d], w_kq[..., 2 * d :, d : 2 * d] = 0.0, 0.0
    return key_query, value, float(max(np.max(np.abs(w_pv)), np.max(np.abs(w_kq))))


@claim(
    "zheng2024.ode",
    statement="From K = a0 I, P = b0 I the flow of all entries is da/dt = -b g, db/dt = -a g, which conserves a^2 - b^2 and "
    "separates in ab.",
    source=Source(PAPER, "proof of Theorem 4.1; the time course and the final rate: icl_lab"),
    parameters=SIZES
    | DISTRIBUTION
    | SCALE
    | {
        "a0": number(0.5, meaning="start K = a0 I"),
        "b0": number(1.5, meaning="start P = b0 I"),
        "t": number(0.05, positive=True, meaning="time at which a and b are compared"),
    },
    validate=validate,
    extra_settings=({"a0": 0.1, "b0": 0.1}, {"a0": 2.0, "b0": 2.0}, {"d": 5, "T": 100}),
)
def reduced_dynamics(d, T, distribution, sigma, c, a0, b0, t) -> list[Check]:
    scale = scale_of(sigma, c)
    constants = theory.zheng2024.constants(distribution, d, scale)
    limit, rate = theory.zheng2024.limit_product(constants, T), theory.zheng2024.final_rate(constants, T, a0, b0)
    # Products on the way, and three late times at equal distances for the rate.
    targets = limit + (a0 * b0 - limit) * np.array([0.9, 0.7, 0.5, 0.3, 0.1, 1e-2, 1e-3])
    passed = [theory.zheng2024.time_to_reach(constants, T, a0, b0, target) for target in targets]
    late = passed[-1] + np.array([7.0, 9.0, 11.0]) / rate
    times = np.unique(np.concatenate([[t], passed, late]))
    objective, (start,) = objective_and_starts(d, T, distribution, scale, [(a0, b0)])
    flow = training.gradient_flow(objective, start, times=times, stop_at_last_time=True, solver="tsit5", rtol=1e-12)
    key_query, value, others = blocks(flow.trajectory.weights)
    a, b = (np.einsum("tjj->t", matrix).real / d for matrix in (key_query, value))
    identity = np.eye(d)[None]
    off = max(np.max(np.abs(key_query - a[:, None, None] * identity)), np.max(np.abs(value - b[:, None, None] * identity)))
    at = np.searchsorted(times, t)
    expected_a, expected_b = theory.zheng2024.flow(constants, T, a0, b0, np.array([t]))
    gaps = np.diff(a[np.searchsorted(times, late)] * b[np.searchsorted(times, late)])
    return [
        check.exact("a", a[at], expected_a[0], FLOW_TOLERANCE),
        check.exact("b", b[at], expected_b[0], FLOW_TOLERANCE),
        check.exact("ab", a[at] * b[at], expected_a[0] * expected_b[0], FLOW_TOLERANCE),
        check.exact("ab_by_the_scalar_equation", (a * b)[np.searchsorted(times, passed)], targets, FLOW_TOLERANCE),
        check.exact("conserved_abs", a**2 - b**2, np.full(len(times), a0**2 - b0**2), FLOW_TOLERANCE),
        check.exact("final_rate", np.log(gaps[0] / gaps[1]) / (late[1] - late[0]), rate, RATE_TOLERANCE),
        check.exact("largest_other_entry_abs", max(off, others), 0.0, INACTIVE_TOLERANCE),
    ]


@claim(
    "zheng2024.thm4.1",
    statement="Under Assumption 4.1 gradient flow of all entries from K = a0 I, P = b0 I converges to K = a I, P = b I with "
    "ab = kappa1 / (kappa2 + kappa3 h_T), all other blocks zero.",
    source=Source(PAPER, "Theorem 4.1; the factors and a0 + b0 != 0 in place of a0, b0 > 0: icl_lab"),
    parameters=SIZES | DISTRIBUTION | SCALE | START,
    validate=validate,
    extra_settings=({"d": 5, "T": 100}, {"distribution": "sparse", "c": 1.3}),
)
def flow_limit(d, T, distribution, sigma, c, a0, b0) -> list[Check]:
    scale, inits = scale_of(sigma, c), starts_of(a0, b0)
    constants = theory.zheng2024.constants(distribution, d, scale)
    objective, starts = objective_and_starts(d, T, distribution, scale, inits)
    product, minimum = theory.zheng2024.limit_product(constants, T), theory.zheng2024.minimum_loss(constants, d, T)
    zero_loss = d / 2 * (T - 2) * constants.m2
    checks = []
    for (first, second), start in zip(inits, starts, strict=True):
        flow = convergence.to_limit(objective, start, **TO_THE_LIMIT)
        key_query, value, others = blocks(flow.limit)
        a, b = theory.zheng2024.limit(constants, T, first, second)
        where = f"a0={first:g},b0={second:g}"
        imbalance = (np.sum(np.abs(key_query) ** 2) - np.sum(np.abs(value) ** 2)) / d
        off = max(np.max(np.abs(matrix - np.diag(np.diag(matrix)))) for matrix in (key_query, value))
        turned = max(np.max(np.abs(np.imag(matrix))) for matrix in (key_query, value))
        checks += [
            check.at_most(f"{where}_estimated_weight_error_abs", flow.estimated_weight_error, LIMIT_TOLERANCE),
            check.exact(f"{where}_ab", np.real(np.diag(value @ key_query)), np.full(d, product), LIMIT_TOLERANCE),
            check.exact(f"{where}_a", np.real(np.diag(key_query)), a * np.ones(d), LIMIT_TOLERANCE),
            check.exact(f"{where}_b", np.real(np.diag(value)), b * np.ones(d), LIMIT_TOLERANCE),
            check.exact(
                f"{where}_conserved_abs", imbalance, first**2 - second**2, LIMIT_TOLERANCE * max(1.0, first**2 + second**2)
            ),
            check.exact(f"{where}_largest_other_entry_abs", max(off, turned, others), 0.0, INACTIVE_TOLERANCE),
            check.exact(f"{where}_loss_abs", objective.risk(flow.limit) / 2, minimum, LIMIT_TOLERANCE * zero_loss),
        ]
    return checks


@claim(
    "zheng2024.random-init",
    statement="From complex Gaussian starts of P and K, all other blocks zero, the flow for Gaussian x_1 ends in the global "
    "minimum, P K = s* I with P and K diagonal of equal moduli.",
    source=Source(PAPER, "experiment in Section 5; the exact statement: icl_lab", "extended"),
    parameters={
        "d": integer(5, 1, "dimension of the states"),
        "T": integer(100, 3, "length of the training sequences"),
        "sigma": number(1.0, positive=True, meaning="standard deviation of a coordinate of x_1"),
        "std": vector([0.01, 0.1, 0.5], "standard deviations of the entries of P and K at the start"),
        "seed": integer(0, 0, "of the starts"),
    },
)
def random_starts(d, T, sigma, std, seed) -> list[Check]:
    constants = theory.zheng2024.constants("gaussian", d, sigma)
    product, minimum = theory.zheng2024.limit_product(constants, T), theory.zheng2024.minimum_loss(constants, d, T)
    objective = objectives.phase_loss(task_of(d, T, "gaussian", sigma), MODEL, active=True)
    checks = []
    for size in std or [0.1]:
        key = prng.stream(jax.random.key(seed), f"start {size}")
        value, key_query = size * np.asarray(jax.random.normal(key, (2, d, d), complex))
        flow = convergence.to_limit(
            objective, PairedWeights(value, key_query), weight_tolerance=LIMIT_TOLERANCE, max_steps=MOST_STEPS
        )
        key_end, value_end, _ = blocks(flow.limit)
        conserved = np.sum(np.abs(value) ** 2) - np.sum(np.abs(key_query) ** 2)
        off = max(np.max(np.abs(matrix - np.diag(np.diag(matrix)))) for matrix in (key_end, value_end))
        # Equal moduli together with a b given and the conserved difference of norms fix both moduli.
        large = np.hypot(conserved / d, 2 * product)
        expected = [np.full(d, np.sqrt((large - conserved / d) / 2)), np.full(d, np.sqrt((large + conserved / d) / 2))]
        checks += [
            check.at_most(f"std={size:g}_estimated_weight_error_abs", flow.estimated_weight_error, LIMIT_TOLERANCE),
            check.exact(
                f"std={size:g}_largest_of_PK_minus_sI_abs",
                np.max(np.abs(value_end @ key_end - product * np.eye(d))),
                0.0,
                1e-6 * product,
            ),
            check.exact(f"std={size:g}_loss", objective.risk(flow.limit) / 2, minimum, 1e-9),
            check.exact(f"std={size:g}_largest_off_diagonal_abs", off, 0.0, 1e-6 * np.sqrt(product)),
            check.exact(f"std={size:g}_moduli", np.abs([np.diag(key_end), np.diag(value_end)]), expected, 1e-6),
        ]
    return checks
