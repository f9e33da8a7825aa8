"""Gradient flow dW/dt = -grad L(W), integrated adaptively to its limit, with a verdict: from one start, many, or many problems.

The clock is that of half the mean squared error, L = 1/2 E(yhat - y)^2, without any factor.
"""

from __future__ import annotations

import dataclasses
import functools
import time as clock
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from icl_lab.core import precision
from icl_lab.core.errors import InvalidValueError, NonFiniteError
from icl_lab.core.typing import Array, Weights
from icl_lab.objectives.curvature import curvature, norm
from icl_lab.objectives.objective import Loss, Objective, unchanged
from icl_lab.training.driver import SHORT_SEGMENT, Flows, Judgement, part
from icl_lab.training.progress import progress_reporter
from icl_lab.training.result import Ensemble, TrainingResult, Trajectory, check_starts
from icl_lab.training.solver import check_flow, chosen_solver, step_tolerance
from icl_lab.training.stopping import judge

POLISH_ROUNDS = 20
STACK_BYTES = 2**28
"""Memory for the arrays of the problems that are solved together."""
STACK_COUNT = 256


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

    The flow runs in the coordinates of the objective (those of an exact regression loss are, on the invariant subspace
    p1 = k2 = 0, the eigenbases of the problem, where the flow is elementwise); the result is in full weights all the same.

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

    Examples:
      >>> from icl_lab import models, objectives, tasks, training
      >>> task = tasks.LinearRegression(dim=2, context_length=8)
      >>> loss = objectives.population(task, models.LinearSelfAttention())
      >>> path = training.gradient_flow(loss, models.initializers.zhang(dim=2, scale=0.1))
      >>> print(path.verdict, path.limit.w_kq.shape)
      Verdict.CONVERGED (3, 3)
    """
    check_flow(solver, weight_tolerance, max_steps)
    times = _checked_times(times)
    if stop_at_last_time and times is None:
        raise InvalidValueError("`stop_at_last_time` needs `times`; got none.")
    started = clock.perf_counter()
    with precision.float64(), progress_reporter(progress) as report:
        one = _Prepared.of(objective, weights, solver, rtol, weight_tolerance, limit=times is None)
        flow = Flows(
            one.loss,
            _stacked([one.start]),
            one.method,
            np.array([one.rtol]),
            max_steps,
            report,
            graded=one.graded,
            checkpoint=checkpoint,
        )
        if (error := flow.error(0)) is not None:
            raise error
        resumed = flow.resume()
        if times is not None:
            flow.visit(times)
        if stop_at_last_time:
            (evidence,) = flow.evidence()
            why = f"the last of the asked times, {flow.time[0]:g}, was reached"
            judgement = (*judge(evidence, weight_tolerance, why), evidence)
        else:
            judgement = flow.run_to_limit(weight_tolerance)[0]
        result = _result(one, flow, 0, judgement, 0.0)
        polished = None
        if polish and result.converged:
            polished = precision.to_numpy(one.embed(_polish(one, part(flow.state, 0))))
        result = dataclasses.replace(result, polished=polished, resumed=resumed, seconds=clock.perf_counter() - started)
    if checkpoint is not None:
        Path(checkpoint).unlink(missing_ok=True)
    return result


def gradient_flows(
    objective: Objective,
    starts: Weights,
    *,
    weight_tolerance: float = 1e-8,
    solver: str = "auto",
    rtol: float | None = None,
    max_steps: int = 50_000,
    progress: bool = False,
) -> Ensemble:
    """Gradient flow of one objective from S starts, in one vectorised solve in which each has its own step size and end.

    Args:
      objective: any objective; it is called without a key, and integrated in the weights themselves.
      starts: real weights with a leading axis S.
      weight_tolerance: relative weight error, estimated by a Newton step, at which a start has converged.
      solver: "tsit5", "dopri8" (explicit), "kvaerno5" (implicit), or "auto" by the spread of the objective's relaxation rates.
      rtol: relative tolerance of the step controller; by default well below `weight_tolerance`.
      max_steps: budget of solver steps of each start.
      progress: show on stderr how far it is, once it takes more than a few seconds.

    Returns:
      The results; the points between start and end are not kept.

    Raises:
      InvalidValueError: a solver, tolerance or number of steps that is none, complex weights, or starts that disagree on S.
      NonFiniteError: a start, or the loss at it, is NaN or infinite.
    """
    check_flow(solver, weight_tolerance, max_steps)
    if any(np.iscomplexobj(leaf) for leaf in jax.tree.leaves(starts)):
        raise InvalidValueError("`starts` must be real; use `training.gradient_flow` for each complex start.")
    count = check_starts(starts)
    started = clock.perf_counter()
    with precision.float64(), progress_reporter(progress, "gradient flows") as report:
        state, loss, graded = precision.to_double(starts), objective.bare, objective.graded
        method = chosen_solver(solver, loss, part(state, 0))
        tolerance = step_tolerance(rtol, method, weight_tolerance, loss)
        rtols = np.full(count, tolerance)
        flows = Flows(loss, state, method, rtols, max_steps, report, graded=graded, keep_path=False)
        for start in range(count):
            if (error := flows.error(start)) is not None:
                raise NonFiniteError(f"start {start}: {error}")
        judgements = flows.run_to_limit(weight_tolerance)
        share = (clock.perf_counter() - started) / count
        problems = [_Prepared(objective, loss, part(state, i), unchanged, method, tolerance, graded) for i in range(count)]
        results = [_result(one, flows, i, judgements[i], share) for i, one in enumerate(problems)]
    return Ensemble(tuple(results))


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
      problems: pairs of objective and initial weights. Those that can share a program do (objectives of one type, weights of
        one shape, one solver), a bounded number at a time.
      weight_tolerance: relative weight error, estimated by a Newton step, at which a problem has converged.
      solver: "tsit5", "dopri8", "kvaerno5" or "exponential" for every problem, or "auto" by the spread of each one's rates.
      max_steps: budget of solver steps of each problem.
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
        prepared = [_Prepared.of(*problem, solver, None, weight_tolerance) for problem in problems]
    groups: dict[Hashable, list[int]] = {}
    for index, one in enumerate(prepared):
        groups.setdefault(one.signature, []).append(index)
    for indices in groups.values():
        size = prepared[indices[0]].bytes
        count = int(np.clip(STACK_BYTES // max(size, 1), 1, STACK_COUNT))
        for first in range(0, len(indices), count):
            chosen = indices[first : first + count]
            if not all(index in known for index in chosen):
                yield from zip(chosen, _together([prepared[i] for i in chosen], weight_tolerance, max_steps), strict=True)


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """A problem in the coordinates in which it is integrated; `embed` is the way back to weights."""

    objective: Objective
    loss: Loss
    start: Weights
    embed: Callable[[Weights], Weights]
    method: str
    rtol: float
    graded: bool

    @staticmethod
    def of(
        objective: Objective, weights: Weights, solver: str, rtol: float | None, weight_tolerance: float, limit: bool = True
    ) -> _Prepared:
        loss, start, embed = objective.coordinates(precision.to_double(weights))
        method = chosen_solver(solver, loss, start, limit)
        # With a relaxation every rate stands by itself.
        graded = loss.relaxation is None and objective.graded
        return _Prepared(objective, loss, start, embed, method, step_tolerance(rtol, method, weight_tolerance, loss), graded)

    @functools.cached_property
    def signature(self) -> Hashable:
        """Equal for problems that one program can solve together."""
        arrays, rest = eqx.partition((self.loss, self.start), eqx.is_array)
        shapes = tuple((np.shape(leaf), np.result_type(leaf)) for leaf in jax.tree.leaves(arrays))
        return self.method, self.graded, jax.tree.structure(arrays), shapes, tuple(jax.tree.leaves(rest))

    @property
    def bytes(self) -> int:
        """Memory of the problem in a stack: its arrays, and its path several times over."""
        path = 4 * SHORT_SEGMENT * sum(np.size(leaf) for leaf in jax.tree.leaves(self.start))
        return 8 * (path + sum(np.size(leaf) for leaf in jax.tree.leaves(eqx.filter(self.loss, eqx.is_array))))


def _together(group: Sequence[_Prepared], weight_tolerance: float, max_steps: int) -> list[TrainingResult | NonFiniteError]:
    """The flows of problems of one signature, in one program."""
    started = clock.perf_counter()
    # The number of problems in a program is a power of two, so that a few programs serve groups of every size.
    padded = [*group, *[group[-1]] * ((1 << (len(group) - 1).bit_length()) - len(group))]
    same = all(one.objective is group[0].objective for one in group)
    with precision.float64(), progress_reporter(False, "gradient flows") as report:
        flows = Flows(
            group[0].loss if same else _stacked([one.loss for one in padded]),
            _stacked([one.start for one in padded]),
            group[0].method,
            np.array([one.rtol for one in padded]),
            max_steps,
            report,
            stacked=not same,
            graded=group[0].graded,
        )
        judgements = flows.run_to_limit(weight_tolerance)
        share = (clock.perf_counter() - started) / len(group)
        return [flows.error(i) or _result(one, flows, i, judgements[i], share) for i, one in enumerate(group)]


def _result(one: _Prepared, flows: Flows, index: int, judgement: Judgement, seconds: float) -> TrainingResult:
    verdict, reason, evidence = judgement
    time = float(flows.time[index])
    if flows.keep_path:
        trajectory = flows.recorders[index].trajectory(one.loss, one.embed)
    else:
        slopes = float(flows.initial_norms[index]), evidence.gradient_norm
        end = one.embed(part(flows.state, index))
        trajectory = Trajectory.between(one.embed(one.start), end, time, (evidence.initial_loss, evidence.loss), slopes)
    return precision.to_numpy(
        TrainingResult(
            # The last recorded point is the end.
            limit=trajectory.at(-1),
            trajectory=trajectory,
            verdict=verdict,
            reason=reason,
            time=time,
            steps=int(flows.steps[index]),
            evidence=evidence,
            polished=None,
            method=one.method,
            seconds=seconds,
        )
    )


def _polish(one: _Prepared, state: Weights) -> Weights:
    """Newton steps, least-norm along the gauge, as long as they shrink."""
    last = np.inf
    for _ in range(POLISH_ROUNDS):
        step = precision.to_numpy(curvature(one.loss, state, one.graded).newton_step)
        size = norm(step)
        if not size < 0.5 * last:
            break
        state, last = jax.tree.map(np.add, state, step), size
    return state


def _stacked(trees: Sequence[Any]) -> Any:
    """Trees that differ in their arrays alone as one, every array with a leading axis."""
    arrays = [eqx.partition(tree, eqx.is_array)[0] for tree in trees]
    rest = eqx.partition(trees[0], eqx.is_array)[1]
    return eqx.combine(jax.tree.map(lambda *leaves: np.stack(leaves), *arrays), rest)


def _checked_times(times: Sequence[float] | Float[Array, "S"] | None) -> Float[np.ndarray, "S"] | None:
    if times is None:
        return None
    array = np.atleast_1d(np.asarray(times, np.float64))
    if array.ndim != 1 or not array.size or array[0] < 0 or np.any(np.diff(array) <= 0) or not np.all(np.isfinite(array)):
        raise InvalidValueError(f"`times` must be finite and increase from 0 or later; got {times!r}.")
    return array
