"""Claims of Zheng et al. 2024 (arXiv 2405.16845): the flow and its limit."""

from __future__ import annotations

import jax
import numpy as np

from icl_lab import objectives, theory, training
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import number, vector
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.claims.zheng2024.settings import (
    INACTIVE_TOLERANCE,
    LIMIT_TOLERANCE,
    MOST_STEPS,
    PAPER,
    TO_THE_LIMIT,
    InitialScales,
    PhaseSetting,
    StartSetting,
)
from icl_lab.models import LSAWeights, PairedWeights

FLOW_TOLERANCE = 1e-8
RATE_TOLERANCE = 1e-4


class FlowSetting(InitialScales, StartSetting):
    """The flow from K = a0 I, P = b0 I under Assumption 4.1."""

    def objective_and_starts(self) -> tuple[objectives.MomentLoss, list]:
        """The loss of all blocks with full weights where affordable, else that of the two active blocks."""
        starts = [self.identities(*init) for init in self.inits]
        if self.affords_all_blocks:
            return self.loss(active=False), [start.merged() for start in starts]
        return self.loss(), starts


def blocks(weights: LSAWeights | PairedWeights) -> tuple[np.ndarray, np.ndarray, float]:
    """K, P and the largest entry of all other blocks, for one set of weights or a path of them."""
    if isinstance(weights, PairedWeights):
        return np.asarray(weights.key_query), np.asarray(weights.value), 0.0
    d = weights.w_pv.shape[-1] // 3
    w_pv, w_kq = np.array(weights.w_pv), np.array(weights.w_kq)
    value, key_query = w_pv[..., :d, d : 2 * d].copy(), w_kq[..., 2 * d :, d : 2 * d].copy()
    w_pv[..., :d, d : 2 * d], w_kq[..., 2 * d :, d : 2 * d] = 0.0, 0.0
    return key_query, value, float(max(np.max(np.abs(w_pv)), np.max(np.abs(w_kq))))


class PathSetting(FlowSetting):
    """One start, and a time on the way."""

    a0: float = number(0.5, meaning="initial scale of K", detail=", K = a0 I")
    b0: float = number(1.5, meaning="initial scale of P", detail=", P = b0 I")
    time: float = number(0.05, positive=True, meaning="time at which a and b are compared")


@claim(
    "zheng2024.ode",
    PathSetting,
    Source(PAPER, "proof of Theorem 4.1; the time course and the final rate: icl_lab"),
    extra_settings=({"a0": 0.1, "b0": 0.1}, {"a0": 2.0, "b0": 2.0}, {"d": 5, "T": 100}),
)
def reduced_dynamics(setting: PathSetting) -> list[Check]:
    """From K = a0 I, P = b0 I the flow of all entries is da/dt = -b g, db/dt = -a g, which conserves a^2 - b^2 and separates in
    ab.

    The gradient flow of the exact loss, of all blocks where they are affordable, is integrated from K = a0 I, P = b0 I; a and b
    are its mean diagonals at the time asked, where ab should pass given values, and late. A wrong g (t in place of t - 1, one
    coordinate too many), an entry that moves besides, or a rate without its factor T - 2 would make it fail.
    """
    d, T, a0, b0, constants = setting.d, setting.T, setting.a0, setting.b0, setting.constants
    limit, rate = setting.limit_product, theory.zheng2024.final_rate(constants, T, a0, b0)
    # Products on the way, and three late times at equal distances for the rate.
    targets = limit + (a0 * b0 - limit) * np.array([0.9, 0.7, 0.5, 0.3, 0.1, 1e-2, 1e-3])
    passed = [theory.zheng2024.time_to_reach(constants, T, a0, b0, target) for target in targets]
    late = passed[-1] + np.array([7.0, 9.0, 11.0]) / rate
    times = np.unique(np.concatenate([[setting.time], passed, late]))
    objective, (start,) = setting.objective_and_starts()
    flow = training.gradient_flow(objective, start, times=times, stop_at_last_time=True, solver="tsit5", rtol=1e-12)
    key_query, value, others = blocks(flow.trajectory.weights)
    a, b = (np.einsum("tjj->t", matrix).real / d for matrix in (key_query, value))
    identity = np.eye(d)[None]
    off = max(np.max(np.abs(key_query - a[:, None, None] * identity)), np.max(np.abs(value - b[:, None, None] * identity)))
    at = np.searchsorted(times, setting.time)
    expected_a, expected_b = theory.zheng2024.flow(constants, T, a0, b0, np.array([setting.time]))
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
    FlowSetting,
    Source(PAPER, "Theorem 4.1; the factors and a0 + b0 != 0 in place of a0, b0 > 0: icl_lab"),
    extra_settings=({"d": 5, "T": 100}, {"distribution": "sparse", "c": 1.3}),
)
def flow_limit(setting: FlowSetting) -> list[Check]:
    """Under Assumption 4.1 gradient flow of all entries from K = a0 I, P = b0 I converges to K = a I, P = b I with ab = kappa1
    / (kappa2 + kappa3 h_T), all other blocks zero.

    The gradient flow of the exact loss, of all blocks where they are affordable, runs to rest from each start (a0, b0) of the
    theorem: the paper's three, or the one given. A wrong product (that of infinite sequences), exchanged factors a and b, or a
    block that leaves zero would make it fail.
    """
    d, constants = setting.d, setting.constants
    objective, starts = setting.objective_and_starts()
    checks = []
    for (first, second), start in zip(setting.inits, starts, strict=True):
        flow = convergence.to_limit(objective, start, **TO_THE_LIMIT)
        key_query, value, others = blocks(flow.limit)
        a, b = theory.zheng2024.limit(constants, setting.T, first, second)
        where = f"a0={first:g},b0={second:g}"
        imbalance = (np.sum(np.abs(key_query) ** 2) - np.sum(np.abs(value) ** 2)) / d
        off = max(np.max(np.abs(matrix - np.diag(np.diag(matrix)))) for matrix in (key_query, value))
        turned = max(np.max(np.abs(np.imag(matrix))) for matrix in (key_query, value))
        checks += [
            check.at_most(f"{where}_estimated_weight_error_abs", flow.estimated_weight_error, LIMIT_TOLERANCE),
            check.exact(f"{where}_ab", np.real(np.diag(value @ key_query)), np.full(d, setting.limit_product), LIMIT_TOLERANCE),
            check.exact(f"{where}_a", np.real(np.diag(key_query)), a * np.ones(d), LIMIT_TOLERANCE),
            check.exact(f"{where}_b", np.real(np.diag(value)), b * np.ones(d), LIMIT_TOLERANCE),
            check.exact(
                f"{where}_conserved_abs", imbalance, first**2 - second**2, LIMIT_TOLERANCE * max(1.0, first**2 + second**2)
            ),
            check.exact(f"{where}_largest_other_entry_abs", max(off, turned, others), 0.0, INACTIVE_TOLERANCE),
            check.exact(
                f"{where}_loss_abs", objective.risk(flow.limit) / 2, setting.minimum_loss, LIMIT_TOLERANCE * setting.zero_loss
            ),
        ]
    return checks


class RandomStarts(Seeded, PhaseSetting):
    """Random P and K, Gaussian x_1."""

    d = 5
    T = 100
    std: list[float] | None = vector([0.01, 0.1, 0.5], "standard deviations of a weight at the start", ", of P and K")


@claim(
    "zheng2024.random-init", RandomStarts, Source(PAPER, "experiment in Section 5; the exact statement: icl_lab", "extended")
)
def random_starts(setting: RandomStarts) -> list[Check]:
    """From complex Gaussian starts of P and K, all other blocks zero, the flow for Gaussian x_1 ends in the global minimum, P K
    = s* I with P and K diagonal of equal moduli.

    The gradient flow of the exact loss in P and K runs to rest from one random complex start of each scale in std; its end is
    compared with s* I, the minimum, and the moduli that the conserved ||P||^2 - ||K||^2 of the start leaves. An end in the
    saddle or off the diagonal, or the product of infinite sequences, would make it fail.
    """
    d, product, objective = setting.d, setting.limit_product, setting.loss()
    checks = []
    for size in setting.std or [0.1]:
        key = setting.stream(f"start {size}")
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
            check.exact(f"std={size:g}_loss", objective.risk(flow.limit) / 2, setting.minimum_loss, 1e-9),
            check.exact(f"std={size:g}_largest_off_diagonal_abs", off, 0.0, 1e-6 * np.sqrt(product)),
            check.exact(f"std={size:g}_moduli", np.abs([np.diag(key_end), np.diag(value_end)]), expected, 1e-6),
        ]
    return checks
