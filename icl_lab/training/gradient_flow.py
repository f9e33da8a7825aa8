"""Gradient flow dW/dt = -grad L(W), integrated adaptively to its limit, with a verdict.

The flow runs in segments of at most a few thousand solver steps, all by one compiled function. A segment ends early when the
gradient falls below a tolerance; then the Newton step says how far the weights still are from a stationary point, and the
smallest eigenvalue of the Hessian whether that is a minimum. If the weights are not yet good enough, the gradient tolerance
is tightened and the flow goes on; at a saddle it goes on for the time an escape takes. (A steady-state test on the gradient
alone calls the saddle at a small initialisation converged.)

The clock is that of half the mean squared error, L = 1/2 E(yhat - y)^2, without any factor.
"""

from __future__ import annotations

import contextlib
import time as clock
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from icl_lab.core import compiled, precision
from icl_lab.core.errors import InvalidValueError, NonFiniteError
from icl_lab.core.typing import Array, Weights
from icl_lab.objectives.curvature import curvature, loss_and_norm, norm
from icl_lab.objectives.objective import Objective
from icl_lab.training import checkpoints
from icl_lab.training.coordinates import as_double, check_flow, coordinates
from icl_lab.training.progress import Report, progress_reporter
from icl_lab.training.segment import (
    END,
    Segment,
    Stop,
    chosen_solver,
    first_step_size,
    first_stop,
    integrate,
    next_stop,
    step_tolerance,
    why_spent,
)
from icl_lab.training.stopping import Evidence, Verdict, given_up, judge, why_hopeless
from icl_lab.training.trajectory import Recorder, TrainingResult

SEGMENT_BYTES = 2**27
"""Memory for the solver steps of one segment."""
POLISH_ROUNDS = 20


def gradient_flow(
    objective: Objective,
    weights: Weights,
    *,
    times: Sequence[float] | Float[Array, "S"] | None = None,
    stop_at_last_time: bool = False,
    weight_tolerance: float = 1e-8,
    solver: str = "auto",
    rtol: float | None = None,
    max_steps: int = 200_000,
    polish: bool = False,
    progress: bool = False,
    checkpoint: Path | str | None = None,
) -> TrainingResult:
    """The path of gradient flow from `weights` and the point where it ends.

    On the invariant subspace p1 = k2 = 0 of an exact regression loss the flow runs in the eigenbases of the problem, where it
    is elementwise; the result is handed out as full weights all the same.

    Args:
      objective: any objective; it is called without a key, so streamed prompts stay one fixed set.
      weights: initial weights, a pytree of real or complex arrays.
      times: increasing times >= 0 at which the trajectory is saved; a few hundred solver steps otherwise.
      stop_at_last_time: end at the last of `times` instead of integrating to the limit.
      weight_tolerance: relative weight error, estimated by a Newton step, at which the flow has converged.
      solver: "tsit5", "dopri8" (explicit; they keep conserved quantities best), "kvaerno5" (implicit, for stiff flows), or
        "exponential" (structured regression only: each entry in closed form over a step, at any spread of rates), or "auto" by
        the spread of the objective's relaxation rates.
      rtol: relative tolerance of the step controller (the absolute one is 100 times smaller); by default well below
        `weight_tolerance`, and for explicit solvers also below what their stability limit leaves of the slowest mode.
      max_steps: budget of solver steps, rounded up to whole segments.
      polish: also follow Newton steps from the limit to the stationary point (a second, separate result).
      progress: show on stderr how far it is, once it takes more than a few seconds.
      checkpoint: .npz file to which the state is written after every segment and from which an interrupted flow goes on
        (its trajectory then starts at the interruption); deleted once the flow has ended.

    Returns:
      The result, in numpy arrays of float64.

    Raises:
      InvalidValueError: a solver, tolerance or number of steps that is none, or times that do not increase from 0 on.
      NonFiniteError: initial weights, or a loss at them, that are NaN or infinite.
    """
    check_flow(solver, weight_tolerance, max_steps)
    times = _checked_times(times)
    if stop_at_last_time and times is None:
        raise InvalidValueError("`stop_at_last_time` needs `times`; got none.")
    started = clock.perf_counter()
    with precision.float64(), contextlib.ExitStack() as stack:
        report = stack.enter_context(progress_reporter(progress))
        weights = jax.tree.map(as_double, weights)
        loss, state, embed = coordinates(objective, weights)
        method = chosen_solver(solver, loss, state, limit=times is None)
        flow = _Flow(loss, state, method, step_tolerance(rtol, method, weight_tolerance, loss), max_steps, report, checkpoint)
        resumed = flow.resume()
        if times is not None:
            flow.visit(times)
        if stop_at_last_time:
            evidence = flow.evidence()
            verdict, reason = judge(evidence, weight_tolerance, f"the last of the asked times, {flow.time:g}, was reached")
        else:
            verdict, reason, evidence = flow.run_to_limit(weight_tolerance)
        polished = embed(_polish(loss, flow.state)) if polish and verdict is Verdict.CONVERGED else None
        result = TrainingResult(
            limit=embed(flow.state),
            trajectory=flow.recorder.trajectory(loss, embed),
            verdict=verdict,
            reason=reason,
            time=flow.time,
            steps=flow.steps,
            evidence=evidence,
            polished=polished,
            method=method,
            seconds=clock.perf_counter() - started,
            resumed=resumed,
        )
        result = precision.to_numpy(result)
    if checkpoint is not None:
        Path(checkpoint).unlink(missing_ok=True)
    return result


class _Flow:
    """The state of one integration between compiled segments."""

    def __init__(
        self,
        objective: Objective,
        state: Weights,
        solver: str,
        rtol: float,
        max_steps: int,
        report: Report,
        checkpoint: Path | str | None,
    ):
        self.objective, self.state, self.solver, self.rtol = objective, state, solver, rtol
        self.max_steps, self.report, self.checkpoint = max_steps, report, checkpoint
        size = sum(np.size(leaf) for leaf in jax.tree.leaves(state))
        self.segment_steps = min(int(np.clip(SEGMENT_BYTES // (8 * size), 64, 2048)), max_steps)
        loss, gradient_norm = map(float, loss_and_norm(objective, state))
        if not (np.isfinite(loss) and np.isfinite(gradient_norm)):
            raise NonFiniteError(
                f"the loss at the initial weights is {loss} and the norm of its gradient {gradient_norm}; both must be finite. "
                "Check the initial weights and the task's prompts for NaN."
            )
        self.initial_loss, self.graded = loss, objective.graded
        self.time, self.steps = 0.0, 0
        self.pace, self.earlier_pace = 0.0, 0.0
        self.step_size = first_step_size(norm(state), gradient_norm)
        self.stalled = False
        self.recorder = Recorder()
        self.recorder.add_always(0.0, state)

    def resume(self) -> bool:
        """Take up the state of an interrupted flow, if there is one."""
        if self.checkpoint is None or not Path(self.checkpoint).exists():
            return False
        self.state, header = checkpoints.load(self.checkpoint, self.state)
        self.time, self.steps = header["time"], header["steps"]
        self.step_size, self.initial_loss = header["step_size"], header["initial_loss"]
        self.recorder = Recorder()
        self.recorder.add_always(self.time, self.state)
        return True

    def segment(self, end: float, stop: Stop, record: bool) -> bool:
        """Integrate towards time `end` for at most one segment; whether `end` or the stopping event was reached."""
        out = precision.to_numpy(
            _integrate(
                self.objective,
                self.state,
                np.float64(self.time),
                np.float64(end),
                np.float64(self.step_size),
                stop,
                np.float64(self.rtol),
                self.solver,
                self.segment_steps,
            )
        )
        accepted = int(out.accepted)
        self.stalled = accepted == 0 and not bool(out.reached)
        if record:
            self.recorder.add(out.times[:accepted], jax.tree.map(lambda w: w[:accepted], out.path))
        self._clock(np.asarray(out.times)[:accepted], int(out.steps))
        self.time, self.state = float(out.time), out.state
        self.steps += int(out.steps)
        if accepted > 1:
            self.step_size = float(out.times[accepted - 1] - out.times[accepted - 2])
        self.report(self.time, self.steps, float(out.loss), float(out.gradient_norm))
        if self.checkpoint is not None:
            names = ("time", "steps", "step_size", "initial_loss")
            checkpoints.save(self.checkpoint, self.state, {name: getattr(self, name) for name in names})
        return bool(out.reached)

    def _clock(self, times: Float[np.ndarray, "S"], steps: int) -> None:
        """Take down the flow time of a step in either half of a segment."""
        half = len(times) // 2
        # The steps of the exponential method grow with the time that is left.
        if half and self.solver != "exponential":
            tries = steps / len(times)
            self.earlier_pace = float(times[half - 1] - self.time) / half / tries
            self.pace = float(times[-1] - times[half - 1]) / (len(times) - half) / tries

    @property
    def exhausted(self) -> bool:
        return self.stalled or self.steps >= self.max_steps or (self.time >= END and self.solver != "exponential")

    def visit(self, times: Float[np.ndarray, "S"]) -> None:
        """Integrate to each time in turn and record the weights exactly there."""
        never = Stop(-1.0, np.inf, -np.inf)
        if times[0] > 0:
            self.recorder = Recorder()
        for time in times[times > self.time]:
            while not self.exhausted and not self.segment(float(time), never, record=False):
                pass
            self.recorder.add_always(self.time, self.state)

    def evidence(self) -> Evidence:
        """Second-order facts at the current point."""
        loss, gradient_norm = map(float, loss_and_norm(self.objective, self.state))
        second = curvature(self.objective, self.state, self.graded)
        weight_norm = norm(self.state)
        return Evidence(
            loss=loss,
            initial_loss=self.initial_loss,
            gradient_norm=gradient_norm,
            weight_norm=weight_norm,
            estimated_weight_error=norm(second.newton_step) / max(weight_norm, 1e-300),
            smallest_curvature=float(second.smallest),
            largest_curvature=float(second.largest),
            relaxation_rate=float(second.rate),
            unresolved=int(second.unresolved),
            input_rounding=float(np.asarray(self.objective.input_rounding)),
        )

    def run_to_limit(self, weight_tolerance: float) -> tuple[Verdict, str, Evidence]:
        """Integrate until the verdict is CONVERGED or the budget is spent."""
        record = len(self.recorder.points) < 2
        (tolerance, ceiling), not_before, doubts = first_stop(self.initial_loss), 0.0, 0
        while True:
            stopped = not self.exhausted and self.segment(END, Stop(tolerance, not_before, ceiling), record)
            evidence = self.evidence()
            doubt = why_hopeless(
                evidence, weight_tolerance, self.steps, self.max_steps - self.steps, self.pace, self.earlier_pace
            )
            doubts, hopeless = given_up(doubt, evidence, doubts)
            why = hopeless or why_spent(self.steps, self.max_steps, self.stalled)
            verdict, reason = judge(evidence, weight_tolerance, why)
            if verdict in (Verdict.CONVERGED, Verdict.DIVERGED) or self.exhausted or hopeless:
                self.recorder.add_always(self.time, self.state)
                return verdict, reason, evidence
            if not stopped:
                continue  # a full segment without rest
            tolerance, not_before = next_stop(evidence, self.time, tolerance, not_before, weight_tolerance)


@compiled.jit
def _integrate(*args) -> Segment:
    """`integrate` with its path, compiled once per type of objective, shapes and solver."""
    return integrate(*args, keep_path=True)


def _polish(objective: Objective, state: Weights) -> Weights:
    """Newton steps, least-norm along the gauge, as long as they shrink."""
    last = np.inf
    for _ in range(POLISH_ROUNDS):
        step = precision.to_numpy(curvature(objective, state, objective.graded).newton_step)
        size = norm(step)
        if not size < 0.5 * last:
            break
        state, last = jax.tree.map(np.add, state, step), size
    return state


def _checked_times(times: Sequence[float] | Float[Array, "S"] | None) -> Float[np.ndarray, "S"] | None:
    if times is None:
        return None
    array = np.atleast_1d(np.asarray(times, np.float64))
    if array.ndim != 1 or not array.size or array[0] < 0 or np.any(np.diff(array) <= 0) or not np.all(np.isfinite(array)):
        raise InvalidValueError(f"`times` must be finite and increase from 0 or later; got {times!r}.")
    return array
