"""Gradient flow from many starts at once: one vectorised solve, a verdict for each start, and how many end where.

Every start keeps its own step size, time and stopping rule, those of `training.gradient_flow`; the solver advances all of them
together, so that many starts cost little more than the slowest. The paths in between are not kept.
"""

from __future__ import annotations

import time as clock

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab import precision
from icl_lab.errors import InvalidValueError, NonFiniteError
from icl_lab.objectives.curvature import curvature, loss_and_norm
from icl_lab.objectives.objective import Objective
from icl_lab.training.progress import progress_reporter
from icl_lab.training.segment import (
    SOLVERS,
    Segment,
    Stop,
    first_step_size,
    first_stop,
    integrate,
    next_stop,
    pick_solver,
    step_tolerance,
)
from icl_lab.training.stopping import Evidence, Verdict, judge
from icl_lab.typing import Array, Weights

SEGMENT_STEPS = 1024
END = 1e15
"""Flow time at which a start that still rests is given up."""


class Ensemble(eqx.Module):
    """Where gradient flow took each of S starts.

    Attributes:
      limits: weights with a leading axis S, where the solver stopped.
      losses: (S,) half losses there.
      verdicts, reasons: how and why each flow ended.
      evidence: the facts behind each verdict.
      times: (S,) flow times at the end.
      seconds: wall time of the whole solve, compilation included.
    """

    limits: Weights
    losses: Float[Array, "S"]
    verdicts: tuple[Verdict, ...] = eqx.field(static=True)
    reasons: tuple[str, ...] = eqx.field(static=True)
    evidence: tuple[Evidence, ...]
    times: Float[Array, "S"]
    seconds: float

    def limit(self, index: int) -> Weights:
        """The weights at which one start ended."""
        return jax.tree.map(lambda w: w[index], self.limits)

    @property
    def best(self) -> int:
        """The start that ended lowest, among those that converged if any did."""
        converged = np.array([verdict is Verdict.CONVERGED for verdict in self.verdicts])
        candidates = converged if converged.any() else np.ones_like(converged)
        return int(np.argmin(np.where(candidates & np.isfinite(self.losses), self.losses, np.inf)))

    def outcomes(self, minimum: float, tolerance: float = 1e-8) -> tuple[str, ...]:
        """What each start ended in: "global minimum", "spurious minimum" (converged, but above), or the verdict's own name.

        Args:
          minimum: half loss of the global minimum, from theory.
          tolerance: relative height above `minimum` that still counts as it.
        """

        def name(loss: float, verdict: Verdict) -> str:
            if verdict is not Verdict.CONVERGED:
                return verdict.value
            return "global minimum" if loss <= minimum + tolerance * abs(minimum) else "spurious minimum"

        return tuple(map(name, self.losses, self.verdicts))

    def share(self, minimum: float, tolerance: float = 1e-8) -> tuple[float, float]:
        """Fraction of the starts that end in the global minimum, and its binomial standard error.

        The error is that of (hits + 1) / (S + 2), which does not vanish when every start, or none, succeeds.
        """
        hits = self.outcomes(minimum, tolerance).count("global minimum")
        count = len(self.verdicts)
        smoothed = (hits + 1) / (count + 2)
        return hits / count, float(np.sqrt(smoothed * (1 - smoothed) / count))


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
    """Gradient flow of one objective from a batch of starts.

    Args:
      objective: any objective; it is called without a key.
      starts: real weights with a leading axis S.
      weight_tolerance, solver, rtol: as in `training.gradient_flow`.
      max_steps: budget of solver steps of each start.
      progress: show a progress line when stderr is a terminal and two seconds have passed.

    Raises:
      InvalidValueError: an unknown solver, complex weights, or starts that disagree on S.
      NonFiniteError: a start, or the loss at it, is NaN or infinite.
    """
    if solver not in SOLVERS:
        raise InvalidValueError(f"`solver` must be one of {SOLVERS}; got {solver!r}.")
    if any(np.iscomplexobj(leaf) for leaf in jax.tree.leaves(starts)):
        raise InvalidValueError("`starts` must be real; use `training.gradient_flow` for each complex start.")
    counts = {np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in jax.tree.leaves(starts)}
    if len(counts) != 1 or min(counts) < 1:
        raise InvalidValueError(f"`starts` must have one leading axis S >= 1 on every array; got lengths {sorted(counts)}.")
    started = clock.perf_counter()
    with precision.float64(), progress_reporter(progress, label="gradient flows") as report:
        state = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), starts)
        method = pick_solver(objective, jax.tree.map(lambda leaf: leaf[0], state)) if solver == "auto" else solver
        rtol = step_tolerance(rtol, method, weight_tolerance, objective)
        initial, gradients = map(np.asarray, _losses_and_norms(objective, state))
        finite = np.isfinite(initial) & np.isfinite(gradients)
        if not finite.all():
            bad = int(np.argmin(finite))
            raise NonFiniteError(f"the loss at start {bad} is {initial[bad]} and its gradient has norm {gradients[bad]}.")
        (tolerance, ceiling), not_before = first_stop(initial), np.zeros_like(initial)
        step_size = np.array([first_step_size(*pair) for pair in zip(_norms(state), gradients, strict=True)])
        time, going, steps = np.zeros_like(initial), np.ones(len(initial), bool), 0
        ends: list[tuple[Verdict, str, Evidence]] = [None] * len(initial)  # pyright: ignore[reportAssignmentType]
        while going.any() and steps < max_steps:
            stop = Stop(np.where(going, tolerance, np.inf), np.where(going, not_before, 0.0), np.where(going, ceiling, np.inf))
            out = precision.to_numpy(_integrate_all(objective, state, time, step_size, stop, np.float64(rtol), method))
            # A start that has ended stays where it was: its end must not depend on how long the others take.
            state = jax.tree.map(lambda new, old, keep=going: np.where(_along(keep, new), new, old), out.state, state)
            step_size = np.where(out.accepted > 0, (out.time - time) / np.maximum(out.accepted, 1), step_size)
            stalled = (out.accepted == 0) | (out.time >= END)
            time, steps = np.where(going, out.time, time), steps + int(out.steps.max())
            facts = _evidence(objective, state, initial)
            for i in np.flatnonzero(going):
                verdict, reason = judge(facts[i], weight_tolerance, f"the budget of {max_steps} steps or time {END:g} is spent")
                ends[i] = (verdict, reason, facts[i])
                going[i] = verdict not in (Verdict.CONVERGED, Verdict.DIVERGED) and not stalled[i]
                if going[i] and out.reached[i]:
                    tolerance[i], not_before[i] = next_stop(facts[i], time[i], tolerance[i], not_before[i], weight_tolerance)
            report(float(time.max()), steps, float(out.loss.max()), float(out.gradient_norm.max()))
    verdicts, reasons, evidence = zip(*ends, strict=True)
    return Ensemble(
        limits=state,
        losses=np.array([fact.loss for fact in evidence]),
        verdicts=verdicts,
        reasons=reasons,
        evidence=evidence,
        times=time,
        seconds=clock.perf_counter() - started,
    )


def _evidence(objective: Objective, state: Weights, initial: Float[np.ndarray, "S"]) -> list[Evidence]:
    """Second-order facts at the current point of each start."""
    losses, gradients = map(np.asarray, _losses_and_norms(objective, state))
    second = precision.to_numpy(_curvatures(objective, state))
    errors, sizes = _norms(second.newton_step), _norms(state)
    return [
        Evidence(
            loss=float(losses[i]),
            initial_loss=float(initial[i]),
            gradient_norm=float(gradients[i]),
            weight_norm=float(sizes[i]),
            estimated_weight_error=float(errors[i] / max(sizes[i], 1e-300)),
            smallest_curvature=float(second.smallest[i]),
            largest_curvature=float(second.largest[i]),
        )
        for i in range(len(losses))
    ]


@eqx.filter_jit
def _integrate_all(objective, state, time, step_size, stop, rtol, solver: str) -> Segment:
    """One stretch of every flow; compiled once per type of objective, shapes and solver."""

    def one(state, time, step_size, stop):
        return integrate(
            objective, state, time, jnp.asarray(END), step_size, stop, rtol, solver, SEGMENT_STEPS, keep_path=False
        )

    return jax.vmap(one)(state, time, step_size, stop)


@eqx.filter_jit
def _losses_and_norms(objective, state):
    return jax.vmap(lambda weights: loss_and_norm(objective, weights))(state)


@eqx.filter_jit
def _curvatures(objective, state):
    return jax.vmap(lambda weights: curvature(objective, weights))(state)


def _norms(state: Weights) -> Float[np.ndarray, "S"]:
    """Euclidean norm of each start's weights."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    return np.sqrt(sum(np.sum(leaf.reshape(len(leaf), -1) ** 2, axis=1) for leaf in leaves))


def _along(flags: np.ndarray, like: np.ndarray) -> np.ndarray:
    """(S,) flags shaped to select along the first axis of `like`."""
    return flags.reshape(-1, *(1,) * (like.ndim - 1))
