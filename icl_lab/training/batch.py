"""Gradient flow of many problems at once: one vectorised solve, with each its own path, tolerance, stopping rule and verdict.

Problems of one structure (objectives of one type, weights of one shape, one solver) are stacked on a leading axis and advanced
together by one compiled program, so that many cost little more than the slowest. A problem that diverges disturbs no other.
"""

from __future__ import annotations

import dataclasses
import functools
import time as clock
from collections.abc import Collection, Hashable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.core import compiled, precision
from icl_lab.core.errors import NonFiniteError
from icl_lab.core.typing import Weights
from icl_lab.objectives.curvature import curvature, loss_and_norm
from icl_lab.objectives.objective import Objective
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

LONG_SEGMENT = 1024
SHORT_SEGMENT = 64
"""Steps of a segment whose path is kept: the vectorised loop copies the path at every step."""
JUDGED_EVERY = 2048
"""Steps after which a problem is judged without having come to rest, as in a flow alone."""
STACK_BYTES = 2**28
"""Memory for the arrays of the problems that are solved together."""
STACK_COUNT = 256


@dataclasses.dataclass(frozen=True)
class Ends:
    """Where each of S problems ended: weights with a leading axis, (S,) times and solver steps, and why."""

    state: Weights
    times: Float[np.ndarray, "S"]
    steps: np.ndarray
    judgements: list[tuple[Verdict, str, Evidence]]


def gradient_flow_each(
    problems: Sequence[tuple[Objective, Weights]],
    *,
    weight_tolerance: float = 1e-8,
    solver: str = "auto",
    max_steps: int = 200_000,
    known: Collection[int] = (),
) -> Iterator[tuple[int, TrainingResult | NonFiniteError]]:
    """The flow of each problem to its limit, as `training.gradient_flow` gives it, to the digits asked.

    Args:
      problems: pairs of objective and initial weights. Those that can share a program do, a bounded number at a time.
      weight_tolerance, solver, max_steps: as in `training.gradient_flow`, for every problem.
      known: indices of problems whose results are not needed. Those that are solved together with others are solved all the
        same, so that the bits of a result do not depend on which others are known.

    Yields:
      The index of a problem and its result, in the order in which they end; its seconds are an equal share of the time of all
      that were solved together. The error in place of a result if the loss at the initial weights is not finite.

    Raises:
      InvalidValueError: a solver, tolerance or number of steps that is none.
    """
    check_flow(solver, weight_tolerance, max_steps)
    with precision.float64():
        prepared = [_Prepared.of(*problem, solver, weight_tolerance) for problem in problems]
    groups: dict[Hashable, list[int]] = {}
    for index, one in enumerate(prepared):
        groups.setdefault(one.signature, []).append(index)
    for indices in groups.values():
        size = prepared[indices[0]].bytes
        count = int(np.clip(STACK_BYTES // max(size, 1), 1, STACK_COUNT))
        for first in range(0, len(indices), count):
            chosen = indices[first : first + count]
            if all(index in known for index in chosen):
                continue
            with precision.float64(), progress_reporter(False, "gradient flows") as report:
                results = _solve([prepared[i] for i in chosen], weight_tolerance, max_steps, report)
            yield from zip(chosen, results, strict=True)


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """A problem in the coordinates in which it is integrated."""

    objective: Objective
    start: Weights
    embed: Any
    method: str
    rtol: float
    graded: bool

    @staticmethod
    def of(objective: Objective, weights: Weights, solver: str, weight_tolerance: float) -> _Prepared:
        loss, start, embed = coordinates(objective, jax.tree.map(as_double, weights))
        method = chosen_solver(solver, loss, start)
        return _Prepared(loss, start, embed, method, step_tolerance(None, method, weight_tolerance, loss), loss.graded)

    @functools.cached_property
    def signature(self) -> Hashable:
        """Equal for problems that one program can solve together."""
        arrays, rest = eqx.partition((self.objective, self.start), eqx.is_array)
        shapes = tuple((np.shape(leaf), np.result_type(leaf)) for leaf in jax.tree.leaves(arrays))
        return self.method, self.graded, jax.tree.structure(arrays), shapes, tuple(jax.tree.leaves(rest))

    @property
    def bytes(self) -> int:
        """Memory of the problem in a stack: its arrays, and its path several times over."""
        path = 4 * SHORT_SEGMENT * sum(np.size(leaf) for leaf in jax.tree.leaves(self.start))
        return 8 * (path + sum(np.size(leaf) for leaf in jax.tree.leaves(eqx.filter(self.objective, eqx.is_array))))


def _solve(
    group: Sequence[_Prepared], weight_tolerance: float, max_steps: int, report: Report
) -> list[TrainingResult | NonFiniteError]:
    started = clock.perf_counter()
    # The number of problems in a program is a power of two, so that a few programs serve groups of every size.
    padded = [*group, *[group[-1]] * ((1 << (len(group) - 1).bit_length()) - len(group))]
    objective, axis = _stacked([one.objective for one in padded])
    starts, _ = _stacked([one.start for one in padded], always=True)
    recorders = [Recorder() for _ in padded]
    ends = flow_together(
        objective,
        axis,
        starts,
        np.array([one.rtol for one in padded]),
        group[0].method,
        weight_tolerance,
        max_steps,
        report,
        recorders,
        graded=group[0].graded,
    )
    share = (clock.perf_counter() - started) / len(group)
    return [_result(one, ends, i, recorders[i], share) for i, one in enumerate(group)]


def _result(one: _Prepared, ends: Ends, index: int, recorder: Recorder, seconds: float) -> TrainingResult | NonFiniteError:
    verdict, reason, evidence = ends.judgements[index]
    if not np.isfinite(evidence.initial_loss):
        return NonFiniteError(f"the loss at the initial weights is {evidence.initial_loss}; it must be finite.")
    trajectory = recorder.trajectory(one.objective, one.embed)
    return precision.to_numpy(
        TrainingResult(
            # The last recorded point is the limit.
            limit=trajectory.at(-1),
            trajectory=trajectory,
            verdict=verdict,
            reason=reason,
            time=float(ends.times[index]),
            steps=int(ends.steps[index]),
            evidence=evidence,
            polished=None,
            method=one.method,
            seconds=seconds,
        )
    )


def flow_together(
    objective: Objective,
    axis: int | None,
    starts: Weights,
    rtols: Float[np.ndarray, "S"],
    solver: str,
    weight_tolerance: float,
    max_steps: int,
    report: Report,
    recorders: Sequence[Recorder] | None = None,
    graded: bool = False,
) -> Ends:
    """Integrate S problems until each has its verdict. Call it inside `precision.float64()`.

    A problem whose loss is not finite at its start ends there, DIVERGED.

    Args:
      objective: one for all (`axis` None), or a stack of them (`axis` 0).
      starts: real weights with a leading axis S.
      rtols: tolerance of the step controller of each.
      recorders: one for each problem, to take its path; None keeps no paths.
      graded: see `Objective.graded`, the same for all.
    """
    segment = min(LONG_SEGMENT if recorders is None else SHORT_SEGMENT, max_steps)
    mapped = eqx.if_array(0) if axis == 0 else None
    state = starts
    initial, gradients = (np.asarray(x) for x in _losses_and_norms(objective, state, mapped))
    finite = np.isfinite(initial) & np.isfinite(gradients)
    going = finite.copy()
    (tolerance, ceiling), not_before = first_stop(np.where(finite, initial, 1.0)), np.zeros_like(initial)
    step_size = np.array([first_step_size(*pair) for pair in zip(norms(state), gradients, strict=True)])
    step_size = np.where(finite, step_size, 1.0)
    time, steps, judged = np.zeros_like(initial), np.zeros(len(initial), int), np.zeros(len(initial), int)
    pace, earlier_pace, doubts = np.zeros_like(initial), np.zeros_like(initial), [0] * len(initial)
    judgements = [(*judge(fact, weight_tolerance, ""), fact) for fact in _evidence(objective, state, initial, mapped, graded)]
    for i, recorder in enumerate(recorders or ()):
        recorder.add_always(0.0, jax.tree.map(lambda w, i=i: w[i], state))
    while going.any():
        stop = Stop(np.where(going, tolerance, np.inf), np.where(going, not_before, 0.0), np.where(going, ceiling, np.inf))
        out = precision.to_numpy(
            _integrate_all(objective, state, time, step_size, stop, rtols, solver, segment, recorders is not None, mapped)
        )
        # A problem that has ended stays where it was: its end must not depend on how long the others take.
        state = jax.tree.map(lambda new, old, keep=going: np.where(_along(keep, new), new, old), out.state, state)
        if recorders is None:
            step_size = np.where(out.accepted > 0, (out.time - time) / np.maximum(out.accepted, 1), step_size)
        else:
            for i in map(int, np.flatnonzero(going)):
                times = out.times[i, : out.accepted[i]]
                recorders[i].add(times, jax.tree.map(lambda w, i=i: w[i], out.path))
                if len(times) > 1:
                    step_size[i] = times[-1] - times[-2]
        steps += np.where(going, out.steps, 0)
        before, time = time, np.where(going, out.time, time)
        over = (out.accepted == 0) & ~out.reached | (steps >= max_steps)
        if solver != "exponential":  # whose steps grow with the time that is left
            over = over | (time >= END)
            pace = np.where(going, (out.time - before) / np.maximum(out.steps, 1), pace)
        due = going & (out.reached | over | (steps - judged >= JUDGED_EVERY))
        facts = _evidence(objective, state, initial, mapped, graded) if due.any() else []
        for i in map(int, np.flatnonzero(due)):
            done, left = int(steps[i]), max_steps - int(steps[i])
            doubt = why_hopeless(facts[i], weight_tolerance, done, left, float(pace[i]), float(earlier_pace[i]))
            doubts[i], hopeless = given_up(doubt, facts[i], doubts[i])
            why = hopeless or why_spent(done, max_steps, stalled=bool(out.accepted[i] == 0 and not out.reached[i]))
            judged[i], verdict_and_reason = steps[i], judge(facts[i], weight_tolerance, why)
            earlier_pace[i] = pace[i]
            judgements[i] = (*verdict_and_reason, facts[i])
            going[i] = judgements[i][0] not in (Verdict.CONVERGED, Verdict.DIVERGED) and not over[i] and not hopeless
            if going[i] and out.reached[i]:
                tolerance[i], not_before[i] = next_stop(facts[i], time[i], tolerance[i], not_before[i], weight_tolerance)
            if not going[i] and recorders is not None:
                recorders[i].add_always(float(time[i]), jax.tree.map(lambda w, i=i: w[i], state))
        report(float(time.max()), int(steps.max()), float(np.max(out.loss)), float(np.max(out.gradient_norm)))
    return Ends(state, time, steps, judgements)


def _stacked(trees: Sequence[Any], always: bool = False) -> tuple[Any, int | None]:
    """The trees stacked on a leading axis of every array and 0, or the first and None if all are one object."""
    if not always and all(tree is trees[0] for tree in trees):
        return trees[0], None
    arrays = [eqx.partition(tree, eqx.is_array)[0] for tree in trees]
    rest = eqx.partition(trees[0], eqx.is_array)[1]
    return eqx.combine(jax.tree.map(lambda *leaves: np.stack(leaves), *arrays), rest), 0


def _evidence(
    objective: Objective, state: Weights, initial: Float[np.ndarray, "S"], mapped: Any, graded: bool
) -> list[Evidence]:
    """Second-order facts at the current point of each problem."""
    losses, gradients = (np.asarray(x) for x in _losses_and_norms(objective, state, mapped))
    second = precision.to_numpy(_curvatures(objective, state, mapped, graded))
    errors, sizes = norms(second.newton_step), norms(state)
    rounding = np.broadcast_to(objective.input_rounding, len(losses))
    return [
        Evidence(
            loss=float(losses[i]),
            initial_loss=float(initial[i]),
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


@compiled.jit
def _integrate_all(
    objective, state, time, step_size, stop, rtols, solver: str, segment: int, keep_path: bool, mapped: Any
) -> Segment:
    """One stretch of every flow; compiled once per type of objective, shapes and solver."""

    def one(objective, state, time, step_size, stop, rtol):
        return integrate(objective, state, time, jnp.asarray(END), step_size, stop, rtol, solver, segment, keep_path=keep_path)

    return eqx.filter_vmap(one, in_axes=(mapped, 0, 0, 0, 0, 0))(objective, state, time, step_size, stop, rtols)


@compiled.jit
def _losses_and_norms(objective, state, mapped: Any):
    return eqx.filter_vmap(loss_and_norm, in_axes=(mapped, 0))(objective, state)


@compiled.jit
def _curvatures(objective, state, mapped: Any, graded: bool):
    return eqx.filter_vmap(functools.partial(curvature, graded=graded), in_axes=(mapped, 0))(objective, state)


def norms(state: Weights) -> Float[np.ndarray, "S"]:
    """Euclidean norm of each problem's weights."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    return np.sqrt(sum(np.sum(leaf.reshape(len(leaf), -1) ** 2, axis=1) for leaf in leaves))


def _along(flags: np.ndarray, like: np.ndarray) -> np.ndarray:
    """(S,) flags shaped to select along the first axis of `like`."""
    return flags.reshape(-1, *(1,) * (like.ndim - 1))
