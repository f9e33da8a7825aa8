"""A few hundred points of a path, kept while it is travelled and measured at its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from icl_lab.core import compiled
from icl_lab.core.typing import Array, Weights
from icl_lab.objectives.curvature import loss_and_norm
from icl_lab.training.result import Trajectory

Loss = Callable[..., Float[Array, ""]]
"""Of weights and a batch: an objective takes a key, or nothing."""
MAX_POINTS = 256
MOST_POINTS = 2 * MAX_POINTS + 8
"""Room for those of a full recorder, its first and its last; a multiple of the points measured at a time."""


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

    def trajectory(self, loss: Loss, embed: Callable[[Weights], Weights], batch: Any = None) -> Trajectory:
        """The recorded path with its losses (on one batch, where `loss` takes any) and gradient norms, mapped by `embed`."""
        times, points = zip(*self.points, strict=True)
        # One length, so that one program measures every path.
        padding = [points[-1]] * (MOST_POINTS - len(points))
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *points, *padding)
        measured = jax.tree.map(lambda x: np.asarray(x)[: len(points)], _measure(loss, embed, stacked, batch))
        weights, losses, gradient_norms = measured
        return Trajectory(np.asarray(times), weights, np.asarray(losses, float), np.asarray(gradient_norms, float))


@compiled.jit
def _measure(loss: Loss, embed: Callable[[Weights], Weights], path: Weights, batch: Any):
    """The embedded weights, loss and gradient norm of each point, a few at a time so that memory does not grow with them."""
    return jax.lax.map(lambda w: (embed(w), *loss_and_norm(loss, w, batch)), path, batch_size=8)
