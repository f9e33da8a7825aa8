"""Claims of Zheng et al. 2024 (arXiv 2405.16845) outside Assumption 4.1: all-ones starts, with the mask and without."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab import theory
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer
from icl_lab.claims.zheng2024.flow import blocks
from icl_lab.claims.zheng2024.settings import (
    LIMIT_TOLERANCE,
    PAPER,
    TO_THE_LIMIT,
    AnyStart,
    InitialScales,
    ScaledSetting,
)
from icl_lab.core.typing import Array
from icl_lab.models import LSAWeights, PairedWeights

ENTRY_TOLERANCE = 1e-6


class DiagonalWeights(eqx.Module):
    """P and K with their non-diagonal entries masked: only the diagonals, (d,) each, are weights."""

    value: Float[Array, "d"]
    key_query: Float[Array, "d"]

    def merged(self) -> LSAWeights:
        """The full matrices."""
        xp = np if isinstance(self.value, np.ndarray) else jnp
        return PairedWeights(xp.diag(self.value), xp.diag(self.key_query)).merged()


class MaskedSetting(InitialScales, AnyStart):
    """x_1 of any distribution, all ones by default."""

    d = 5
    T = 100
    distribution = "constant"


@claim(
    "zheng2024.masked", MaskedSetting, Source(PAPER, "the training with masked off-diagonal gradients beyond Assumption 4.1")
)
def diagonal_mask(setting: MaskedSetting) -> list[Check]:
    """If only the diagonals of P and K are trained, the limit is that of Theorem 4.1 for every start distribution, whether
    Assumption 4.1 holds or not.

    The gradient flow of the exact loss in the two diagonals alone runs to rest from each start (a0, b0) of the theorem: the
    paper's three, or the one given. The product of infinite sequences, or a limit that depends on odd moments of x_1, would
    make it fail.
    """
    d, constants, objective = setting.d, setting.constants, setting.loss()
    checks = []
    for first, second in setting.inits:
        start = DiagonalWeights(np.full(d, second), np.full(d, first))
        flow = convergence.to_limit(objective, start, **TO_THE_LIMIT)
        a, b = theory.zheng2024.limit(constants, setting.T, first, second)
        where = f"a0={first:g},b0={second:g}"
        checks += [
            check.at_most(f"{where}_estimated_weight_error_abs", flow.estimated_weight_error, LIMIT_TOLERANCE),
            check.exact(
                f"{where}_ab", flow.limit.value * flow.limit.key_query, np.full(d, setting.limit_product), LIMIT_TOLERANCE
            ),
            check.exact(f"{where}_a", flow.limit.key_query, np.full(d, a), LIMIT_TOLERANCE),
            check.exact(f"{where}_b", flow.limit.value, np.full(d, b), LIMIT_TOLERANCE),
            # Relative to the loss of predicting zero, since that of a sparse start vanishes.
            check.exact(
                f"{where}_loss_abs", objective.risk(flow.limit) / 2, setting.minimum_loss, LIMIT_TOLERANCE * setting.zero_loss
            ),
        ]
    return checks


class AllOnes(InitialScales, ScaledSetting):
    """All-ones x_1 in two dimensions or more."""

    d: int = integer(5, 2, "dimension", "of the states")
    T = 100

    @property
    def start_name(self) -> str:
        return "constant"


@claim(
    "zheng2024.full-ones",
    AllOnes,
    Source(
        PAPER,
        "the result that without Assumption 4.1 the layer does not take plain gradient steps; the solution: icl_lab",
        "extended",
    ),
)
def all_ones_without_the_mask(setting: AllOnes) -> list[Check]:
    """For all-ones x_1 without the mask the flow from K = a0 I, P = b0 I ends at K = a' J + (a - a') I and P = b' J + (b - b')
    I, a', b' != 0: a two-sided preconditioned gradient step, better than the masked one.

    The gradient flow of the exact loss in all entries of P and K runs to rest from each start (a0, b0): the paper's three, or
    the one given. Expected are the products at the minimum of a quadratic form in four of them, and the difference of squares
    that the flow conserves. Coordinates counted twice in it, entries off the diagonal that stay zero, or a loss above the
    masked one would make it fail.
    """
    d, objective = setting.d, setting.loss()
    form = theory.all_ones.quadratic(d, setting.T, setting.scale)
    off = ~np.eye(d, dtype=bool)
    checks = []
    for first, second in setting.inits:
        start = PairedWeights(second * np.eye(d), first * np.eye(d))
        flow = convergence.to_limit(objective, start, **TO_THE_LIMIT)
        key_query, value, _ = blocks(flow.limit)
        expected = theory.all_ones.limit(form, d, first, second)
        a, b = np.mean(np.diag(key_query)), np.mean(np.diag(value))
        a_off, b_off = np.mean(key_query[off]), np.mean(value[off])
        where = f"a0={first:g},b0={second:g}"
        loss = objective.risk(flow.limit) / 2
        checks += [
            check.at_most(f"{where}_estimated_weight_error_abs", flow.estimated_weight_error, LIMIT_TOLERANCE),
            check.exact(f"{where}_ab", a * b, expected.a * expected.b, ENTRY_TOLERANCE),
            check.exact(f"{where}_ab'", a * b_off, expected.a * expected.b_off, ENTRY_TOLERANCE),
            check.exact(f"{where}_a'b", a_off * b, expected.a_off * expected.b, ENTRY_TOLERANCE),
            check.exact(
                f"{where}_a,b",
                np.concatenate([np.diag(key_query), np.diag(value)]),
                np.repeat([expected.a, expected.b], d),
                ENTRY_TOLERANCE,
            ),
            check.exact(
                f"{where}_a',b'",
                np.array([key_query[off], value[off]]),
                np.array([np.full(off.sum(), expected.a_off), np.full(off.sum(), expected.b_off)]),
                ENTRY_TOLERANCE,
            ),
            check.exact(f"{where}_loss", loss, form.loss(*expected), LIMIT_TOLERANCE),
            check.at_most(f"{where}_loss_below_masked", loss, setting.minimum_loss),
        ]
    return checks
