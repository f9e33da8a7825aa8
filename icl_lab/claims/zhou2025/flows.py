"""Gradient flows of one layer on a series from many starts: where each ends, and the best of them."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from icl_lab import objectives, training
from icl_lab.claims.setting import integer
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.models import LSAWeights, initializers

# The flow stops at the first, which leaves errors of a gap well below the second.
WEIGHT_TOLERANCE, GAP_TOLERANCE = 1e-7, 1e-7
# A risk is that close to the minimum, in units of the noise, only at the minimum.
RISK_TOLERANCE = 1e-7
START_SCALE = 0.1
"""Standard deviation of the starting weights, for series of unit variance: small, but no long plateau."""
MAX_STEPS = 20_000
"""A start that takes longer has found a valley of another stationary point."""
ENOUGH_STARTS, ROUNDS = 8, 6
""""Best of at least eight starts": with that many, more are drawn, for a few rounds, until one is at the minimum."""


class StartsSetting(Seeded):
    """Gradient flow from random starts."""

    starts: int = integer(
        8, 1, "number of starts", ", random; with eight or more, further ones are drawn until one finds the global minimum"
    )

    @property
    def are_enough(self) -> bool:
        """Whether there are enough starts to tell the global minimum."""
        return self.starts >= ENOUGH_STARTS


@dataclasses.dataclass(frozen=True)
class Limits:
    """Where gradient flow took each start.

    Attributes:
      weights: of every start, matrices with a leading axis.
      risks: (S,) E(prediction - y)^2.
      converged: (S,).
      smallest_curvatures: (S,) smallest eigenvalue of the Hessian, relative to the largest.
    """

    weights: LSAWeights
    risks: np.ndarray
    converged: np.ndarray
    smallest_curvatures: np.ndarray

    @property
    def best(self) -> int:
        """The start of least risk."""
        return int(np.argmin(self.risks))

    def of(self, index: int) -> LSAWeights:
        """The weights of one start."""
        return jax.tree.map(lambda w: w[index], self.weights)


def train(objective: objectives.MomentLoss, starts: LSAWeights) -> Limits:
    """Gradient flow from a batch of starts."""
    ensemble = training.gradient_flows(
        objective, starts, weight_tolerance=WEIGHT_TOLERANCE, solver="tsit5", max_steps=MAX_STEPS
    )
    return Limits(
        weights=ensemble.limits,
        risks=2 * np.asarray(ensemble.losses),
        # A start beside a stationary point has no loss to lose, which the verdict would ask for.
        converged=np.array([e.estimated_weight_error <= WEIGHT_TOLERANCE for e in ensemble.evidence]),
        smallest_curvatures=np.array([e.smallest_curvature / e.largest_curvature for e in ensemble.evidence]),
    )


def random_starts(order: int, spread: float, setting: StartsSetting, part: int) -> LSAWeights:
    """Gaussian starts for a series of standard deviation `spread`; the answer is cubic in it, and quadratic in the weights."""
    key = jax.random.fold_in(setting.stream("starts"), part)
    return initializers.gaussian(key, order + 1, START_SCALE / spread, setting.starts)


def best_of_starts(
    objective: objectives.MomentLoss, setting: StartsSetting, noise: float, minimum: float, first: LSAWeights | None = None
) -> Limits:
    """Flows from random starts, and from more of them while none is at the minimum, if there are enough to tell.

    Args:
      objective: exact loss on a series.
      setting: how many starts at a time, and their seed.
      noise: sigma.
      minimum: least risk, at which no more starts are drawn.
      first: one more start, put before the random ones of the first round.
    """
    order = objective.task.dim
    spread = float(np.sqrt(objective.moments.variance))
    rounds = []
    for part in range(ROUNDS if setting.are_enough else 1):
        begin = random_starts(order, spread, setting, part)
        if first is not None:
            begin = jax.tree.map(lambda one, many: np.concatenate([one[None], many]), first, begin)
        rounds.append(train(objective, begin))
        if rounds[-1].risks.min() <= minimum + RISK_TOLERANCE * noise**2:
            break
    return Limits(
        weights=jax.tree.map(lambda *parts: np.concatenate(parts), *(part.weights for part in rounds)),
        risks=np.concatenate([part.risks for part in rounds]),
        converged=np.concatenate([part.converged for part in rounds]),
        smallest_curvatures=np.concatenate([part.smallest_curvatures for part in rounds]),
    )
