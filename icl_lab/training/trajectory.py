"""Results of training as values: the path of the weights, where it ended, and why."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from icl_lab.core import compiled
from icl_lab.core.typing import Array, Key, Weights
from icl_lab.objectives.curvature import loss_and_norm
from icl_lab.objectives.objective import Objective
from icl_lab.training.stopping import Evidence, Verdict

MAX_POINTS = 256
MOST_POINTS = 2 * MAX_POINTS + 8
"""Room for those of a full recorder, its first and its last; a multiple of the points measured at a time."""


class Trajectory(eqx.Module):
    """Weights along training.

    Attributes:
      times: (S,) flow times (or step numbers of a descent), increasing, the start included.
      weights: pytree of weights with a leading axis S.
      losses: (S,) half losses.
      gradient_norms: (S,) Euclidean norms of the gradient.
    """

    times: Float[Array, "S"]
    weights: Weights
    losses: Float[Array, "S"]
    gradient_norms: Float[Array, "S"]

    def at(self, index: int) -> Weights:
        """The weights at one saved time."""
        return jax.tree.map(lambda w: w[index], self.weights)


class TrainingResult(eqx.Module):
    """What gradient flow or descent returns.

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

    @property
    def converged(self) -> bool:
        """Whether the verdict is CONVERGED."""
        return self.verdict is Verdict.CONVERGED

    @property
    def estimated_weight_error(self) -> float:
        """Relative distance to the nearest stationary point, estimated by a Newton step."""
        return self.evidence.estimated_weight_error


class Recorder:
    """Collects points (time, weights) and keeps a few hundred, spread evenly over those seen, by dropping every other one.

    Keeping solver steps rather than fixed times makes the points dense where the weights move and sparse on plateaus.
    """

    def __init__(self):
        self.points: list[tuple[float, Weights]] = []
        self._stride = 1
        self._seen = 0

    def add(self, times: Float[Array, "S"], weights: Weights) -> None:
        """Add a stack of points in increasing time."""
        i = -self._seen % self._stride
        while i < len(times):
            self.points.append((float(times[i]), jax.tree.map(lambda w, i=i: np.array(w[i]), weights)))
            if len(self.points) > 2 * MAX_POINTS:
                self.points = self.points[::2]
                self._stride *= 2
            i += 1 + -(self._seen + i + 1) % self._stride
        self._seen += len(times)

    def add_always(self, time: float, weights: Weights) -> None:
        """Add one point that is never skipped (but for one already there at this time)."""
        if not self.points or time > self.points[-1][0]:
            self.points.append((time, jax.tree.map(np.array, weights)))

    def trajectory(self, objective: Objective, embed: Callable[[Weights], Weights], key: Key | None = None) -> Trajectory:
        """The recorded path with its losses (on the prompts of `key`) and gradient norms, each point mapped by `embed`."""
        times, points = zip(*self.points, strict=True)
        # One length, so that one program measures every path.
        padding = [points[-1]] * (MOST_POINTS - len(points))
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *points, *padding)
        measured = jax.tree.map(lambda x: np.asarray(x)[: len(points)], _measure(objective, embed, stacked, key))
        weights, losses, gradient_norms = measured
        return Trajectory(np.asarray(times), weights, np.asarray(losses, float), np.asarray(gradient_norms, float))


@compiled.jit
def _measure(objective: Objective, embed: Callable[[Weights], Weights], path: Weights, key: Key | None):
    """The embedded weights, loss and gradient norm of each point, a few at a time so that memory does not grow with them."""
    return jax.lax.map(lambda w: (embed(w), *loss_and_norm(objective, w, key)), path, batch_size=8)
