"""One stretch of gradient flow by an adaptive ODE solver, with an event that ends it at rest.

The pieces that a flow (`training.gradient_flow`) and a batch of flows (`training.gradient_flows`) share: the compiled
integration of one stretch, the choice of solver and of its tolerance.
"""

from __future__ import annotations

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array, Weights
from icl_lab.objectives.curvature import DENSE_LIMIT, loss_and_norm
from icl_lab.objectives.exact.regression import StructuredLoss
from icl_lab.objectives.objective import Objective
from icl_lab.training import exponential
from icl_lab.training.implicit import ArrowSolver
from icl_lab.training.stopping import FALLEN_SHARE, Evidence

SOLVERS = ("auto", "tsit5", "dopri8", "kvaerno5", "exponential")
END = 1e15
"""Flow time at which a flow that still rests at its start is given up."""
EXPLICIT_SPREAD = 1e3
"""Largest ratio of relaxation rates for explicit integration: cond(Lambda) of about 10, since rates go like lambda^3."""
CHEAP_SOLVE = 100
"""Unknowns up to which a dense linear solve costs no more than the explicit steps that it saves at `EXPLICIT_SPREAD`."""


class Stop(eqx.Module):
    """Arguments of the stopping event, as arrays so that changing them does not recompile."""

    gradient_tolerance: Float[Array, ""] = eqx.field(converter=np.asarray)
    not_before: Float[Array, ""] = eqx.field(converter=np.asarray)
    loss_ceiling: Float[Array, ""] = eqx.field(converter=np.asarray)


class Segment(eqx.Module):
    """What one stretch returns; `path` and `times` hold `accepted` points, and are empty if not kept."""

    times: Float[Array, "S"]
    path: Weights
    accepted: Array
    steps: Array
    time: Array
    state: Weights
    loss: Array
    gradient_norm: Array
    reached: Array


def integrate(
    objective: Objective,
    state: Weights,
    start: Float[Array, ""],
    end: Float[Array, ""],
    step_size: Float[Array, ""],
    stop: Stop,
    rtol: Float[Array, ""],
    solver: str,
    segment_steps: int,
    keep_path: bool,
) -> Segment:
    """The flow from time `start` towards `end`, for at most `segment_steps` solver steps; traceable.

    It also ends when the event of `stop` occurs: the gradient is below its tolerance at a late enough time and a low enough
    loss, or the loss is no longer finite.
    """

    if isinstance(objective, StructuredLoss) and solver == "exponential":
        return _exponential(objective, state, start, step_size, rtol, segment_steps, keep_path)

    def velocity(t, y, args):
        return jax.tree.map(jnp.negative, jax.grad(objective)(y))

    def ended(t, y, args, **kwargs):
        loss, gradient_norm = loss_and_norm(objective, y)
        quiet = (gradient_norm <= stop.gradient_tolerance) & (t >= stop.not_before) & (loss <= stop.loss_ceiling)
        return quiet | ~jnp.isfinite(loss)

    sol = dfx.diffeqsolve(
        dfx.ODETerm(velocity),
        _solver(solver, structured=isinstance(objective, StructuredLoss)),
        start,
        end,
        jnp.minimum(step_size, end - start),
        state,
        stepsize_controller=dfx.PIDController(rtol=rtol, atol=1e-2 * rtol),
        saveat=dfx.SaveAt(subs=[dfx.SubSaveAt(t1=True), *([dfx.SubSaveAt(steps=True)] if keep_path else [])]),
        max_steps=segment_steps,
        event=dfx.Event(ended),
        throw=False,
    )
    assert sol.ts is not None
    assert sol.ys is not None
    last = jax.tree.map(lambda y: y[0], sol.ys[0])
    loss, gradient_norm = loss_and_norm(objective, last)
    return Segment(
        times=sol.ts[1] if keep_path else sol.ts[0][:0],
        path=sol.ys[1] if keep_path else jax.tree.map(lambda y: y[:0], sol.ys[0]),
        accepted=sol.stats["num_accepted_steps"],
        steps=sol.stats["num_steps"],
        time=sol.ts[0][0],
        state=last,
        loss=loss,
        gradient_norm=gradient_norm,
        reached=sol.result != dfx.RESULTS.max_steps_reached,
    )


def _exponential(objective: StructuredLoss, state, start, step_size, rtol, segment_steps: int, keep_path: bool) -> Segment:
    """A stretch by `training.exponential`, which ends by itself once every entry has relaxed; rest is no event there."""
    out = exponential.advance(objective, state, start, step_size, rtol, segment_steps, keep_path)
    loss, gradient_norm = loss_and_norm(objective, out.state)
    return Segment(**out._asdict(), loss=loss, gradient_norm=gradient_norm)


def _solver(name: str, structured: bool) -> dfx.AbstractSolver:
    if name == "kvaerno5":
        if not structured:
            return dfx.Kvaerno5()  # a dense linear solve
        return dfx.Kvaerno5(root_finder=dfx.with_stepsize_controller_tols(dfx.VeryChord)(linear_solver=ArrowSolver()))
    return {"tsit5": dfx.Tsit5, "dopri8": dfx.Dopri8}[name]()


def chosen_solver(solver: str, objective: Objective, state: Weights, limit: bool = True) -> str:
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
    structured = isinstance(objective, StructuredLoss)
    closed = limit and structured and exponential.applies(objective, state)  # pyright: ignore[reportArgumentType]
    if solver == "exponential" and not closed:
        raise InvalidValueError(
            '`solver` "exponential" is for flows to the limit, without `times`, of one head on Gaussian regression from '
            "weights with p1 = k2 = 0 and |u| >= ||U||_F; use auto, tsit5, dopri8 or kvaerno5."
        )
    if solver != "auto":
        return solver
    if structured:
        return "tsit5" if objective.rate_spread <= EXPLICIT_SPREAD else "exponential" if closed else "kvaerno5"
    unknowns = sum(np.size(w) for w in jax.tree.leaves(state))
    # An implicit step costs the unknowns cubed, an explicit one their square or less; the explicit steps grow with the spread.
    worthwhile = objective.rate_spread > EXPLICIT_SPREAD * max(1.0, (unknowns / CHEAP_SOLVE) ** 2)
    return "kvaerno5" if unknowns <= DENSE_LIMIT and worthwhile else "tsit5"


def why_spent(steps: int, max_steps: int, stalled: bool) -> str:
    """The clause that says what ended a flow that has not arrived."""
    if stalled:
        return "the solver cannot make a step"
    return f"the budget of {max_steps} steps is spent" if steps >= max_steps else f"the flow time {END:g} was reached"


def step_tolerance(rtol: float | None, solver: str, weight_tolerance: float, objective: Objective) -> float:
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


def next_stop(
    evidence: Evidence, time: float, tolerance: float, not_before: float, weight_tolerance: float
) -> tuple[float, float]:
    """Gradient tolerance and earliest time of the next stop, after a rest that was not good enough."""
    if evidence.negative_curvature:
        # Growing from rounding to order one along the escaping direction takes ln(1e16) / |curvature|.
        return tolerance, time + 40.0 / abs(evidence.smallest_curvature)
    share = weight_tolerance / max(evidence.estimated_weight_error, 1e-300)
    # Gauge directions inflate the first estimates; one big cut would ask for less than the solver's gradient floor.
    return min(tolerance, evidence.gradient_norm) * min(0.3, max(0.3 * share, 1e-2)), not_before


def first_stop(initial_loss: Any) -> tuple[Any, Any]:
    """Gradient tolerance of the first stop and the loss above which no stop counts; for one loss or an array of them."""
    return 1e-4 * abs(initial_loss), initial_loss - FALLEN_SHARE * abs(initial_loss)


def first_step_size(weight_norm: float, gradient_norm: float) -> float:
    """A first step that changes the weights by a thousandth; the controller takes over from there."""
    return 1e-3 * max(weight_norm, 1e-3) / max(gradient_norm, 1e-300)
