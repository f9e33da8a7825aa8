"""One stretch of gradient flow by an adaptive ODE solver, with an event that ends it at rest."""

from __future__ import annotations

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.core.typing import Array, Weights
from icl_lab.objectives.curvature import loss_and_norm
from icl_lab.objectives.objective import Loss
from icl_lab.training import exponential
from icl_lab.training.implicit import ArrowSolver


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
    objective: Loss,
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

    if solver == "exponential":
        # It ends by itself once every entry has relaxed; rest is no event there.
        assert objective.relaxation is not None
        out = exponential.advance(*objective.relaxation, state, start, step_size, rtol, segment_steps, keep_path)
        loss, gradient_norm = loss_and_norm(objective, out.state)
        return Segment(**out._asdict(), loss=loss, gradient_norm=gradient_norm)

    def velocity(t, y, args):
        return jax.tree.map(jnp.negative, jax.grad(objective)(y))

    def ended(t, y, args, **kwargs):
        loss, gradient_norm = loss_and_norm(objective, y)
        quiet = (gradient_norm <= stop.gradient_tolerance) & (t >= stop.not_before) & (loss <= stop.loss_ceiling)
        return quiet | ~jnp.isfinite(loss)

    sol = dfx.diffeqsolve(
        dfx.ODETerm(velocity),
        _solver(solver, arrow=objective.relaxation is not None),
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


def _solver(name: str, arrow: bool) -> dfx.AbstractSolver:
    if name == "kvaerno5":
        if not arrow:
            return dfx.Kvaerno5()  # a dense linear solve
        return dfx.Kvaerno5(root_finder=dfx.with_stepsize_controller_tols(dfx.VeryChord)(linear_solver=ArrowSolver()))
    return {"tsit5": dfx.Tsit5, "dopri8": dfx.Dopri8}[name]()
