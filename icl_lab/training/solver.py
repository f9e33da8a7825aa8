"""The ODE solver of a gradient flow: its choice, its tolerance, and what it can be asked for."""

from __future__ import annotations

import jax
import numpy as np

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Weights
from icl_lab.objectives.curvature import DENSE_LIMIT
from icl_lab.objectives.objective import Loss
from icl_lab.tasks.prompt import check_count
from icl_lab.training import exponential

SOLVERS = ("auto", "tsit5", "dopri8", "kvaerno5", "exponential")
EXPLICIT_SPREAD = 1e3
"""Largest ratio of relaxation rates for explicit integration: cond(Lambda) of about 10, since rates go like lambda^3."""
CHEAP_SOLVE = 100
"""Unknowns up to which a dense linear solve costs no more than the explicit steps that it saves at `EXPLICIT_SPREAD`."""


def check_flow(solver: str, weight_tolerance: float, max_steps: int, prefix: str = "") -> None:
    """Raise `InvalidValueError` unless a flow can be integrated and judged so; the message has `prefix` before a name."""
    if solver not in SOLVERS:
        raise InvalidValueError(f"`{prefix}solver` must be one of {', '.join(SOLVERS)}; got {solver!r}.")
    if not 0 < weight_tolerance < 1:
        raise InvalidValueError(
            f"`{prefix}weight_tolerance` must be a number between 0 and 1, the relative error of the weights at which the flow "
            f"has converged; got {weight_tolerance!r}."
        )
    check_count(max_steps, f"{prefix}max_steps", 1, "A flow takes at least one step.")


def chosen_solver(solver: str, objective: Loss, state: Weights, limit: bool = True) -> str:
    """The solver of a flow: `solver` itself, or by the spread of rates if it is "auto".

    That is explicit for moderate spreads; for wide ones exponential where it applies, else implicit where a linear solve is
    affordable.

    Args:
      solver: one of `SOLVERS`.
      objective, state: the problem in its coordinates.
      limit: whether only the limit is asked for; the exponential method stops at no given time.

    Raises:
      InvalidValueError: "exponential" was asked for where it does not apply.
    """
    closed = limit and exponential.applies(objective, state)
    if solver == "exponential" and not closed:
        raise InvalidValueError(
            '`solver` "exponential" is for flows to the limit, without `times`, of one head on Gaussian regression from '
            "weights with p1 = k2 = 0 and |u| >= ||U||_F; use auto, tsit5, dopri8 or kvaerno5."
        )
    if solver != "auto":
        return solver
    if objective.relaxation is not None:
        return "tsit5" if objective.rate_spread <= EXPLICIT_SPREAD else "exponential" if closed else "kvaerno5"
    unknowns = sum(np.size(w) for w in jax.tree.leaves(state))
    # An implicit step costs the unknowns cubed, an explicit one their square or less; the explicit steps grow with the spread.
    worthwhile = objective.rate_spread > EXPLICIT_SPREAD * max(1.0, (unknowns / CHEAP_SOLVE) ** 2)
    return "kvaerno5" if unknowns <= DENSE_LIMIT and worthwhile else "dopri8"


def step_tolerance(rtol: float | None, solver: str, weight_tolerance: float, objective: Loss) -> float:
    """Tolerance of the step controller.

    At its stability limit an explicit solver leaves errors of the size of its tolerance in the fastest mode, whose gradient
    hides that of the slowest one until it is below by the spread of the rates. An implicit solver has no such floor. The
    exponential one ends at the limit whatever its steps; its tolerance is that of the method it extrapolates, along the path.
    """
    if rtol is not None:
        return rtol
    if solver == "exponential":
        return 1e-7
    if solver == "kvaerno5":
        return float(np.clip(0.1 * weight_tolerance, 1e-12, 1e-8))
    return float(np.clip(0.03 * weight_tolerance / objective.rate_spread, 1e-13, 1e-9))


def first_step_size(weight_norm: float, gradient_norm: float) -> float:
    """A first step that changes the weights by a thousandth; the controller takes over from there."""
    return 1e-3 * max(weight_norm, 1e-3) / max(gradient_norm, 1e-300)
