"""The one driver of gradient flows: S problems of one structure, each with its own time, step size, tolerance and verdict.

The flows run in segments of a bounded number of solver steps, all by one compiled function. A segment ends early when the
gradient falls below a tolerance; then the Newton step says how far the weights still are from a stationary point, and the
smallest eigenvalue of the Hessian whether that is a minimum. If the weights are not yet good enough, the gradient tolerance
is tightened and the flow goes on; at a saddle it goes on for the time an escape takes. (A steady-state test on the gradient
alone calls the saddle at a small initialisation converged.)

Problems are stacked on a leading axis, so that many cost little more than the slowest, and one that diverges disturbs no
other. One by itself is compiled without that axis: a vectorised loop copies the kept path at every step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Bool, Float

from icl_lab.core import compiled, precision
from icl_lab.core.errors import NonFiniteError
from icl_lab.core.typing import Weights
from icl_lab.objectives.curvature import curvature, loss_and_norm
from icl_lab.objectives.objective import Loss
from icl_lab.training import checkpoints
from icl_lab.training.progress import Report
from icl_lab.training.recorder import Recorder
from icl_lab.training.segment import Segment, Stop, integrate
from icl_lab.training.solver import first_step_size
from icl_lab.training.stopping import END, Evidence, Verdict, first_stop, given_up, judge, next_stop, why_hopeless, why_spent

SEGMENT_BYTES = 2**27
"""Memory for the solver steps of one segment of a flow by itself."""
LONG_SEGMENT = 1024
SHORT_SEGMENT = 64
"""Steps of a segment of many flows, without and with their paths."""
JUDGED_EVERY = 2048
"""Steps after which a flow is judged without having come to rest."""
KEPT = ("state", "time", "steps", "step_size", "initial_losses")
"""What a checkpoint holds of the flows."""

Judgement = tuple[Verdict, str, Evidence]


class Flows:
    """S gradient flows between compiled segments. Make and use it inside `precision.float64()`.

    Attributes:
      state: weights with a leading axis S.
      time, steps: (S,) flow times and solver steps so far.
      initial_losses, initial_norms: (S,) half losses and gradient norms at the starts.
      recorders: for each flow the points of its path.
    """

    def __init__(
        self,
        objective: Loss,
        starts: Weights,
        solver: str,
        rtols: Float[np.ndarray, "S"],
        max_steps: int,
        report: Report,
        *,
        stacked: bool = False,
        graded: bool = False,
        keep_path: bool = True,
        checkpoint: Path | str | None = None,
    ):
        """
        Args:
          objective: one for all, or S of them stacked on a leading axis of every array.
          starts: real weights with a leading axis S.
          solver: a method that `training.solver` chooses.
          rtols: tolerance of the step controller of each.
          max_steps: budget of solver steps of each.
          report: called after every segment.
          stacked: whether there are S objectives.
          graded: see `Objective.graded`, the same for all.
          keep_path: whether the recorders are given the solver steps.
          checkpoint: .npz file that takes the state after every segment.
        """
        self.objective, self.stacked, self.graded, self.state = objective, stacked, graded, starts
        self.solver, self.rtols, self.max_steps = solver, rtols, max_steps
        self.report, self.keep_path, self.checkpoint = report, keep_path, checkpoint
        count = len(rtols)
        if count == 1:
            size = sum(np.size(leaf) for leaf in jax.tree.leaves(starts))
            self.segment_steps = min(int(np.clip(SEGMENT_BYTES // (8 * size), 64, 2048)), max_steps)
        else:
            self.segment_steps = min(SHORT_SEGMENT if keep_path else LONG_SEGMENT, max_steps)
        self.initial_losses, self.initial_norms = self._measured()
        self.finite = np.isfinite(self.initial_losses) & np.isfinite(self.initial_norms)
        sizes = [first_step_size(*pair) for pair in zip(norms(starts), self.initial_norms, strict=True)]
        self.step_size = np.where(self.finite, sizes, 1.0)
        self.time, self.steps, self.pace = np.zeros(count), np.zeros(count, int), np.zeros(count)
        self.stalled = np.zeros(count, bool)
        self._start_recording()

    def error(self, index: int) -> NonFiniteError | None:
        """What is wrong with one start, whose flow is not integrated."""
        if self.finite[index]:
            return None
        return NonFiniteError(
            f"the loss at the initial weights is {self.initial_losses[index]} and the norm of its gradient "
            f"{self.initial_norms[index]}; both must be finite. Check the initial weights and the task's prompts for NaN."
        )

    def resume(self) -> bool:
        """Take up the state of interrupted flows, if there is one."""
        if self.checkpoint is None or not Path(self.checkpoint).exists():
            return False
        kept, _ = checkpoints.load(self.checkpoint, {name: getattr(self, name) for name in KEPT})
        for name, value in kept.items():
            setattr(self, name, value)
        self._start_recording()
        return True

    def visit(self, times: Float[np.ndarray, "T"]) -> None:
        """Integrate to each time in turn and record the weights exactly there."""
        never = Stop(*(np.full(self.time.shape, value) for value in (-1.0, np.inf, -np.inf)))
        if times[0] > 0:
            self.recorders = [Recorder() for _ in self.recorders]
        for time in times:
            going = self.finite & (self.time < time)
            if not going.any():
                continue
            while (going := going & ~self.exhausted).any():
                going = going & ~self._advance(going, time, never, record=False)
            self._record_ends(range(len(self.time)))

    def run_to_limit(self, weight_tolerance: float) -> dict[int, Judgement]:
        """The judgement of each flow that has no `error`: CONVERGED, DIVERGED, or what it is when its budget is spent."""
        record = self.keep_path and all(len(recorder.points) < 2 for recorder in self.recorders)
        (tolerance, ceiling), not_before = first_stop(np.where(self.finite, self.initial_losses, 1.0)), np.zeros_like(self.time)
        judged, doubts, earlier_pace = self.steps.copy(), [0] * len(self.time), np.zeros_like(self.time)
        judgements: dict[int, Judgement] = {}
        going = self.finite.copy()
        while going.any():
            # A flow that has ended stops at once.
            stop = Stop(np.where(going, tolerance, np.inf), np.where(going, not_before, 0.0), np.where(going, ceiling, np.inf))
            active = going & ~self.exhausted
            reached = self._advance(active, END, stop, record) if active.any() else active
            due = np.flatnonzero(going & (reached | self.exhausted | (self.steps - judged >= JUDGED_EVERY)))
            facts = self.evidence() if due.size else []
            for i in map(int, due):
                done, pace = int(self.steps[i]), float(self.pace[i])
                doubt = why_hopeless(facts[i], weight_tolerance, done, self.max_steps - done, pace, float(earlier_pace[i]))
                doubts[i], hopeless = given_up(doubt, facts[i], doubts[i])
                why = hopeless or why_spent(done, self.max_steps, bool(self.stalled[i]))
                verdict, reason = judge(facts[i], weight_tolerance, why)
                judgements[i], judged[i], earlier_pace[i] = (verdict, reason, facts[i]), done, pace
                going[i] = verdict not in (Verdict.CONVERGED, Verdict.DIVERGED) and not self.exhausted[i] and not hopeless
                if going[i] and reached[i]:
                    tolerance[i], not_before[i] = next_stop(
                        facts[i], float(self.time[i]), tolerance[i], not_before[i], weight_tolerance
                    )
            self._record_ends(np.flatnonzero(~going))
        return judgements

    def evidence(self) -> list[Evidence]:
        """Second-order facts at the current point of each flow."""
        losses, gradients = self._measured()
        second = self._of_each(_curvatures, self.state, self.graded)
        errors, sizes = norms(second.newton_step), norms(self.state)
        rounding = np.broadcast_to(self.objective.input_rounding, losses.shape)
        return [
            Evidence(
                loss=float(losses[i]),
                initial_loss=float(self.initial_losses[i]),
                gradient_norm=float(gradients[i]),
                weight_norm=float(sizes[i]),
                estimated_weight_error=float(errors[i] / max(sizes[i], 1e-300)),
                smallest_curvature=float(second.smallest[i]),
                largest_curvature=float(second.largest[i]),
                relaxation_rate=float(second.rate[i]),
                unresolved=int(second.unresolved[i]),
                input_rounding=float(rounding[i]),
            )
            for i in range(len(losses))
        ]

    @property
    def exhausted(self) -> Bool[np.ndarray, "S"]:
        """Whether each flow can go no further."""
        # The steps of the exponential method grow with the time that is left.
        late = (self.time >= END) & (self.solver != "exponential")
        return self.stalled | (self.steps >= self.max_steps) | late

    def _advance(self, going: Bool[np.ndarray, "S"], end: float, stop: Stop, record: bool) -> Bool[np.ndarray, "S"]:
        """Integrate the flows of `going` towards time `end` for one segment; which of them reached it or the stopping event."""
        sizes = (self.solver, self.segment_steps, self.keep_path)
        ends = np.full(self.time.shape, end)
        out: Segment = self._of_each(_segments, self.state, self.time, ends, self.step_size, stop, self.rtols, *sizes)
        # A flow that has ended stays where it was: its end must not depend on how long the others take.
        self.state = jax.tree.map(lambda new, old: np.where(_along(going, new), new, old), out.state, self.state)
        reached = going & out.reached
        self.stalled = np.where(going, (out.accepted == 0) & ~out.reached, self.stalled)
        if self.keep_path:
            for i in map(int, np.flatnonzero(going)):
                times = out.times[i, : out.accepted[i]]
                if record:
                    self.recorders[i].add(times, part(out.path, i))
                if len(times) > 1:
                    self.step_size[i] = times[-1] - times[-2]
        else:
            mean = (out.time - self.time) / np.maximum(out.accepted, 1)
            self.step_size = np.where(going & (out.accepted > 0), mean, self.step_size)
        if self.solver != "exponential":
            self.pace = np.where(going, (out.time - self.time) / np.maximum(out.steps, 1), self.pace)
        self.time = np.where(going, out.time, self.time)
        self.steps = self.steps + np.where(going, out.steps, 0)
        self.report(float(self.time.max()), int(self.steps.max()), float(np.max(out.loss)), float(np.max(out.gradient_norm)))
        if self.checkpoint is not None:
            checkpoints.save(self.checkpoint, {name: getattr(self, name) for name in KEPT})
        return reached

    def _start_recording(self) -> None:
        self.recorders = [Recorder() for _ in self.time]
        self._record_ends(range(len(self.time)))

    def _record_ends(self, indices: Sequence[int] | np.ndarray) -> None:
        for i in map(int, indices):
            self.recorders[i].add_always(float(self.time[i]), part(self.state, i))

    def _measured(self) -> tuple[np.ndarray, np.ndarray]:
        """Loss and gradient norm of each flow at its point."""
        return self._of_each(_losses_and_norms, self.state)

    def _of_each(self, program: Callable[..., Any], *arguments: Any) -> Any:
        """What a compiled function of problems says of each, as numpy with a leading axis S."""
        if len(self.rtols) > 1:
            return precision.to_numpy(program(eqx.if_array(0) if self.stacked else None, self.objective, *arguments))
        alone = part(self.objective, 0) if self.stacked else self.objective
        out = program(ALONE, alone, *(part(argument, 0) for argument in arguments))
        return jax.tree.map(lambda x: np.asarray(x)[None], out)


ALONE = "alone"


def _each(function: Callable[..., Any], axis: Any) -> Callable[..., Any]:
    """`function` of an objective and arrays, over the leading axis of the arrays and by `axis` of the objective's."""
    if axis == ALONE:
        return function
    return lambda objective, *arrays: eqx.filter_vmap(function, in_axes=(axis, *[0] * len(arrays)))(objective, *arrays)


@compiled.jit
def _segments(
    axis, objective, state, time, end, step_size, stop, rtol, solver: str, segment_steps: int, keep_path: bool
) -> Segment:
    """One segment of every flow; compiled once per type of objective, shapes and solver."""
    settings = {"solver": solver, "segment_steps": segment_steps, "keep_path": keep_path}
    return _each(functools.partial(integrate, **settings), axis)(objective, state, time, end, step_size, stop, rtol)


@compiled.jit
def _losses_and_norms(axis, objective, state):
    return _each(loss_and_norm, axis)(objective, state)


@compiled.jit
def _curvatures(axis, objective, state, graded: bool):
    return _each(functools.partial(curvature, graded=graded), axis)(objective, state)


def norms(state: Weights) -> Float[np.ndarray, "S"]:
    """Euclidean norm of each problem's weights."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    return np.sqrt(sum(np.sum(leaf.reshape(len(leaf), -1) ** 2, axis=1) for leaf in leaves))


def part(tree: Any, index: int) -> Any:
    """One entry of the leading axis of every array; other leaves are left alone."""
    return jax.tree.map(lambda x: x[index] if eqx.is_array(x) else x, tree)


def _along(flags: Bool[np.ndarray, "S"], like: np.ndarray) -> np.ndarray:
    """(S,) flags shaped to select along the first axis of `like`."""
    return flags.reshape(-1, *(1,) * (like.ndim - 1))
