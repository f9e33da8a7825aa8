"""When a flow has ended, and what to call it.

A small gradient is a saddle as often as a minimum, so a flow is CONVERGED only if the loss has fallen from its start, the
Hessian has no negative eigenvalue beyond rounding, and the Newton step (not the gradient) says that the weights are within
the asked tolerance of a stationary point.
"""

from __future__ import annotations

import enum
import math
from typing import Any

import equinox as eqx

FALLEN_SHARE = 1e-3
"""Share of the starting loss by which the loss must have fallen before a rest point may be called a limit."""
END = 1e15
"""Flow time at which a flow that still rests at its start is given up."""
LONG = 1000
"""Solver steps after which a flow may be given up for its pace."""
BEYOND = 10.0
"""Factor by which a flow that is given up would overrun its budget at its pace."""
DOUBTS = 5
"""Judgements in a row that have to say so."""


class Verdict(enum.Enum):
    """How a flow or a descent ended; MAX_STEPS is every end short of a limit that is no saddle."""

    CONVERGED = "converged"
    PLATEAU = "plateau"
    MAX_STEPS = "max_steps"
    DIVERGED = "diverged"


class Evidence(eqx.Module):
    """What the verdict is drawn from, at the point where training stopped; NaN where it was not measured.

    Attributes:
      loss, initial_loss: half losses.
      gradient_norm: Euclidean norm of the gradient.
      weight_norm: Euclidean norm of the weights.
      estimated_weight_error: norm of the Newton step over `weight_norm`.
      smallest_curvature, largest_curvature: extreme eigenvalues of the Hessian.
      relaxation_rate: rate at which the estimated error decays.
      unresolved: directions, symmetries of the loss apart, whose curvature is lost in rounding.
      input_rounding: relative error of the limit that the rounding of the problem's own numbers leaves.
    """

    loss: float
    initial_loss: float
    gradient_norm: float
    weight_norm: float
    estimated_weight_error: float = float("nan")
    smallest_curvature: float = float("nan")
    largest_curvature: float = float("nan")
    relaxation_rate: float = float("nan")
    unresolved: int = 0
    input_rounding: float = 0.0

    @property
    def fallen(self) -> bool:
        """Whether the loss has left its starting level."""
        return self.loss < self.initial_loss - FALLEN_SHARE * abs(self.initial_loss)

    @property
    def negative_curvature(self) -> bool:
        """Whether there is a direction of descent to second order.

        Along a gauge direction the curvature is of order gradient/weight instead of 0, with either sign, so that much is
        allowed; so is rounding.
        """
        allowed = 10 * self.gradient_norm / max(self.weight_norm, 1e-300) + 1e-9 * abs(self.largest_curvature)
        return self.smallest_curvature < -allowed

    def time_left(self, weight_tolerance: float) -> float:
        """About the flow time until the weights are within the tolerance, at the rate at which they now relax."""
        if self.unresolved:
            return math.inf
        if not self.estimated_weight_error > weight_tolerance:
            return 0.0
        # A rate of the wrong sign is one lost in rounding, and no larger than it seems.
        return math.log(self.estimated_weight_error / weight_tolerance) / max(abs(self.relaxation_rate), 1e-300)


def why_hopeless(
    evidence: Evidence, weight_tolerance: float, steps: int, steps_left: int, pace: float, earlier_pace: float
) -> str | None:
    """A clause that says why more steps will not bring the limit, or None while they may; one judgement, see `given_up`.

    That is so if the flow has left its start and every saddle, its steps no longer grow, and the time that is left is many
    times what the rest of the budget covers.

    Args:
      evidence: facts at the current point.
      weight_tolerance: asked relative weight error.
      steps: solver steps so far.
      steps_left: of the budget.
      pace: flow time of a step, lately.
      earlier_pace: the same, half a stretch before; 0 for steps that grow by themselves.
    """
    if steps < LONG or not evidence.fallen or evidence.negative_curvature or not pace < 2 * earlier_pace:
        return None
    needed = evidence.time_left(weight_tolerance) / max(pace, 1e-300)
    if needed <= BEYOND * max(steps_left, LONG):
        return None
    more = "no number of steps" if math.isinf(needed) else f"about {needed:.0e} more steps"
    return f"after {steps} steps, {pace:.2g} of time each and no longer growing, {more} would do"


def given_up(why: str | None, evidence: Evidence, doubts: int) -> tuple[int, str | None]:
    """How many judgements in a row have said that a flow is hopeless, and the clause once that is enough.

    An estimated rate passes through zero where the slowest direction turns from concave to convex, so that one judgement by it
    proves little; a direction that rounding hides stays hidden.
    """
    doubts = 0 if why is None else doubts + 1
    return doubts, why if doubts >= (1 if evidence.unresolved else DOUBTS) else None


def why_spent(steps: int, max_steps: int, stalled: bool) -> str:
    """The clause that says what ended a flow that has not arrived."""
    if stalled:
        return "the solver cannot make a step"
    return f"the budget of {max_steps} steps is spent" if steps >= max_steps else f"the flow time {END:g} was reached"


def judge(evidence: Evidence, weight_tolerance: float, why_stopped: str) -> tuple[Verdict, str]:
    """The verdict and its reason in one sentence.

    Args:
      evidence: facts at the end point.
      weight_tolerance: asked relative weight error.
      why_stopped: clause that says what ended the integration, for the case that nothing else did.
    """
    e = evidence
    if not all(map(_finite, (e.loss, e.gradient_norm, e.weight_norm))):
        return Verdict.DIVERGED, f"the loss or the weights became non-finite (loss {e.loss:.3g})."
    if not e.fallen:
        return Verdict.PLATEAU, (
            f"the loss {e.loss:.6g} has fallen by less than {FALLEN_SHARE:g} of its start {e.initial_loss:.6g}: "
            "a rest point or plateau at the start, not a limit."
        )
    if e.negative_curvature:
        return Verdict.PLATEAU, (
            f"the Hessian has a negative eigenvalue {e.smallest_curvature:.3g} (largest {e.largest_curvature:.3g}): a saddle."
        )
    if e.unresolved:
        return Verdict.MAX_STEPS, (
            f"{why_stopped}; {e.unresolved} direction(s) that are no symmetry of the loss have a curvature below rounding (the "
            f"largest is {e.largest_curvature:.3g}), so that nothing says how far the weights are from their limit there."
        )
    if e.estimated_weight_error <= weight_tolerance:
        known = (
            ""
            if e.input_rounding <= weight_tolerance
            else (f" The covariance, rounded to double precision, determines the limit to about {e.input_rounding:.1g}.")
        )
        return Verdict.CONVERGED, (
            f"estimated relative weight error {e.estimated_weight_error:.2g} <= {weight_tolerance:.2g}, loss fallen from "
            f"{e.initial_loss:.6g} to {e.loss:.6g}, smallest curvature {e.smallest_curvature:.2g}.{known}"
        )
    return Verdict.MAX_STEPS, (
        f"{why_stopped} at estimated relative weight error {e.estimated_weight_error:.2g} > {weight_tolerance:.2g}."
    )


def _finite(x: float) -> bool:
    return x == x and abs(x) != float("inf")


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
