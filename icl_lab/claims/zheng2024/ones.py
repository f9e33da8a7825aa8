"""Claims of Zheng et al. 2024 (arXiv 2405.16845) outside Assumption 4.1: all-ones starts, with the mask and without."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab import theory
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, choice, integer
from icl_lab.claims.registry import claim
from icl_lab.claims.zheng2024.flow import (
    LIMIT_TOLERANCE,
    PAPER,
    SCALE,
    START,
    TO_THE_LIMIT,
    blocks,
    scale_of,
    starts_of,
    validate_start,
)
from icl_lab.claims.zheng2024.loss import loss_of
from icl_lab.core.typing import Array
from icl_lab.models import LSAWeights, PairedWeights
from icl_lab.theory.dynamics.zheng2024 import DISTRIBUTIONS

ENTRY_TOLERANCE = 1e-6

LARGE = {
    "d": integer(5, 1, "dimension of the states"),
    "T": integer(100, 3, "length of the training sequences, x_1 .. x_T"),
}


class DiagonalWeights(eqx.Module):
    """P and K with their non-diagonal entries masked: only the diagonals, (d,) each, are weights."""

    value: Float[Array, "d"]
    key_query: Float[Array, "d"]

    def merged(self) -> LSAWeights:
        """The full matrices."""
        xp = np if isinstance(self.value, np.ndarray) else jnp
        return PairedWeights(xp.diag(self.value), xp.diag(self.key_query)).merged()


@claim(
    "zheng2024.masked",
    statement="If only the diagonals of P and K are trained, the limit is that of Theorem 4.1 for every start distribution, "
    "whether "
    "Assumption 4.1 holds or not.",
    source=Source(PAPER, "the training with masked off-diagonal gradients beyond Assumption 4.1"),
    parameters=LARGE | {"distribution": choice("constant", DISTRIBUTIONS, "of x_1")} | SCALE | START,
    validate=validate_start,
)
def diagonal_mask(d, T, distribution, sigma, c, a0, b0) -> list[Check]:
    scale, inits = scale_of(sigma, c), starts_of(a0, b0)
    constants = theory.zheng2024.constants(distribution, d, scale)
    product, minimum = theory.zheng2024.limit_product(constants, T), theory.zheng2024.minimum_loss(constants, d, T)
    objective = loss_of(d, T, distribution, scale)
    checks = []
    for first, second in inits:
        start = DiagonalWeights(np.full(d, second), np.full(d, first))
        flow = convergence.to_limit(objective, start, **TO_THE_LIMIT)
        a, b = theory.zheng2024.limit(constants, T, first, second)
        where = f"a0={first:g},b0={second:g}"
        checks += [
            check.at_most(f"{where}_estimated_weight_error_abs", flow.estimated_weight_error, LIMIT_TOLERANCE),
            check.exact(f"{where}_ab", flow.limit.value * flow.limit.key_query, np.full(d, product), LIMIT_TOLERANCE),
            check.exact(f"{where}_a", flow.limit.key_query, np.full(d, a), LIMIT_TOLERANCE),
            check.exact(f"{where}_b", flow.limit.value, np.full(d, b), LIMIT_TOLERANCE),
            # Relative to the loss of predicting zero, since that of a sparse start vanishes.
            check.exact(
                f"{where}_loss_abs",
                objective.risk(flow.limit) / 2,
                minimum,
                LIMIT_TOLERANCE * d / 2 * (T - 2) * constants.m2,
            ),
        ]
    return checks


@claim(
    "zheng2024.full-ones",
    statement="For all-ones x_1 without the mask the flow from K = a0 I, P = b0 I ends at K = a' J + (a - a') I and "
    "P = b' J + (b - b') I, a', b' != 0: a two-sided preconditioned gradient step, better than the masked one.",
    source=Source(
        PAPER,
        "the result that without Assumption 4.1 the layer does not take plain gradient steps; the solution: icl_lab",
        "extended",
    ),
    parameters=LARGE | {"d": integer(5, 2, "dimension of the states")} | SCALE | START,
    validate=validate_start,
)
def all_ones_without_the_mask(d, T, sigma, c, a0, b0) -> list[Check]:
    scale, inits = scale_of(sigma, c), starts_of(a0, b0)
    form = theory.all_ones.quadratic(d, T, scale)
    objective = loss_of(d, T, "constant", scale)
    masked = theory.zheng2024.minimum_loss(theory.zheng2024.constants("constant", d, scale), d, T)
    off = ~np.eye(d, dtype=bool)
    checks = []
    for first, second in inits:
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
            check.at_most(f"{where}_loss_below_masked", loss, masked),
        ]
    return checks
