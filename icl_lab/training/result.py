"""Results of training as values: the path of the weights, where it ended, and why; of one start or of many."""

from __future__ import annotations

from collections.abc import Sequence

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array, Weights
from icl_lab.training.stopping import Evidence, Verdict


class Trajectory(eqx.Module):
    """Weights along training.

    Attributes:
      times: (S,) flow times (or step numbers of a descent), increasing, the start included.
      weights: pytree of weights with a leading axis S.
      losses: (S,) half losses.
      gradient_norms: (S,) Euclidean norms of the gradient; NaN where they were not measured.
    """

    times: Float[Array, "S"]
    weights: Weights
    losses: Float[Array, "S"]
    gradient_norms: Float[Array, "S"]

    def at(self, index: int) -> Weights:
        """The weights at one saved time."""
        return jax.tree.map(lambda w: w[index], self.weights)

    @staticmethod
    def between(start: Weights, end: Weights, time: float, losses: Sequence[float], norms: Sequence[float]) -> Trajectory:
        """A path of which only the ends are kept, from time 0 to `time`, with the losses and gradient norms there."""
        stacked = jax.tree.map(lambda *ends: np.stack(ends), start, end)
        return Trajectory(np.array([0.0, time]), stacked, np.asarray(losses, float), np.asarray(norms, float))


class TrainingResult(eqx.Module):
    """What every kind of training returns.

    Attributes:
      limit: the weights where the solver stopped; theory is compared with these.
      trajectory: the path to them.
      verdict, reason: how and why training ended.
      time: flow time at the end (number of steps for a descent).
      steps: solver steps (accepted and rejected) or optimiser steps.
      evidence: the facts behind the verdict.
      polished: the stationary point that Newton steps reach from the limit, or None; never used in place of `limit`.
      method: solver or optimiser.
      seconds: wall time, compilation included.
      resumed: whether it continued from a checkpoint (then digits, though not bits, agree with an undisturbed run).
      batch_losses: loss of each update of a descent before it, on that update's batch, those since the checkpoint if it was
        resumed; none for a flow.
    """

    limit: Weights
    trajectory: Trajectory
    verdict: Verdict = eqx.field(static=True)
    reason: str = eqx.field(static=True)
    time: float
    steps: int
    evidence: Evidence
    polished: Weights | None
    method: str = eqx.field(static=True)
    seconds: float
    resumed: bool = eqx.field(static=True, default=False)
    batch_losses: Float[Array, "K"] = eqx.field(default_factory=lambda: np.zeros(0))

    @property
    def converged(self) -> bool:
        """Whether the verdict is CONVERGED."""
        return self.verdict is Verdict.CONVERGED

    @property
    def estimated_weight_error(self) -> float:
        """Relative distance to the nearest stationary point, estimated by a Newton step."""
        return self.evidence.estimated_weight_error


class Ensemble(eqx.Module):
    """Where training took each of S starts.

    Attributes:
      results: one for each start; of its path a result has the two ends, and its seconds are an equal share of all.
    """

    results: tuple[TrainingResult, ...]

    @property
    def limits(self) -> Weights:
        """The weights at the ends, with a leading axis S."""
        return jax.tree.map(lambda *leaves: np.stack(leaves), *(result.limit for result in self.results))

    def limit(self, start: int) -> Weights:
        """The weights at which one start ended."""
        return self.results[start].limit

    @property
    def losses(self) -> Float[np.ndarray, "S"]:
        """Half losses at the ends."""
        return np.array([result.evidence.loss for result in self.results])

    @property
    def batch_losses(self) -> Float[np.ndarray, "S K"]:
        """Losses of every update of the descents before it, on that update's batch."""
        return np.stack([result.batch_losses for result in self.results])

    @property
    def times(self) -> Float[np.ndarray, "S"]:
        """Flow times (or steps) at the ends."""
        return np.array([result.time for result in self.results])

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """How each start ended."""
        return tuple(result.verdict for result in self.results)

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """The facts behind each verdict."""
        return tuple(result.evidence for result in self.results)

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


def check_starts(starts: Weights) -> int:
    """The length S of the leading axis of `starts`; raises `InvalidValueError` unless every array has one of that length."""
    counts = {np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in jax.tree.leaves(starts)}
    if len(counts) != 1 or min(counts) < 1:
        raise InvalidValueError(
            "`starts` must have one leading axis of the same length S >= 1 on every array; got lengths "
            f"{sorted(counts)}, where 0 stands for none."
        )
    return counts.pop()
