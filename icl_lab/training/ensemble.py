"""Gradient flow from many starts at once: one vectorised solve, a verdict for each start, and how many end where.

Every start keeps its own step size, time and stopping rule, those of `training.gradient_flow`; the solver of `training.batch`
advances all of them together, so that many starts cost little more than the slowest. The paths in between are not kept.
"""

from __future__ import annotations

import time as clock

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from icl_lab.core import precision
from icl_lab.core.errors import InvalidValueError, NonFiniteError
from icl_lab.core.typing import Array, Weights
from icl_lab.objectives.objective import Objective
from icl_lab.training.batch import flow_together
from icl_lab.training.coordinates import check_flow
from icl_lab.training.progress import progress_reporter
from icl_lab.training.segment import chosen_solver, step_tolerance
from icl_lab.training.stopping import Evidence, Verdict


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
      progress: show on stderr how far it is, once it takes more than a few seconds.

    Raises:
      InvalidValueError: a solver, tolerance or number of steps that is none, complex weights, or starts that disagree on S.
      NonFiniteError: a start, or the loss at it, is NaN or infinite.
    """
    check_flow(solver, weight_tolerance, max_steps)
    if any(np.iscomplexobj(leaf) for leaf in jax.tree.leaves(starts)):
        raise InvalidValueError("`starts` must be real; use `training.gradient_flow` for each complex start.")
    counts = {np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in jax.tree.leaves(starts)}
    if len(counts) != 1 or min(counts) < 1:
        raise InvalidValueError(f"`starts` must have one leading axis S >= 1 on every array; got lengths {sorted(counts)}.")
    started = clock.perf_counter()
    with precision.float64(), progress_reporter(progress, label="gradient flows") as report:
        state = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), starts)
        method = chosen_solver(solver, objective, jax.tree.map(lambda leaf: leaf[0], state))
        rtols = np.full(counts.pop(), step_tolerance(rtol, method, weight_tolerance, objective))
        ends = flow_together(
            objective, None, state, rtols, method, weight_tolerance, max_steps, report, graded=objective.graded
        )
    verdicts, reasons, evidence = zip(*ends.judgements, strict=True)
    for start, fact in enumerate(evidence):
        if not (np.isfinite(fact.initial_loss) and np.isfinite(fact.weight_norm)):
            raise NonFiniteError(f"the loss at start {start} is {fact.initial_loss}; it must be finite.")
    return Ensemble(
        limits=ends.state,
        losses=np.array([fact.loss for fact in evidence]),
        verdicts=verdicts,
        reasons=reasons,
        evidence=evidence,
        times=ends.times,
        seconds=clock.perf_counter() - started,
    )
