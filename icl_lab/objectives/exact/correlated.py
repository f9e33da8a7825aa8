r"""The exact loss of one weighted preconditioned gradient step on correlated tasks.

With b = sum_i c_i y_i x_i the error is x_q.(P b - w_q), and x_q is independent of both, so

.. math:: E(\hat y - y)^2 = E\lVert P b - w_q \rVert^2
          = \tfrac{\lVert P \rVert_F^2}{d} E\lVert b \rVert^2 - \tfrac{2 \operatorname{tr} P}{d} E[b \cdot w_q] + d,

E b b^T and E b w_q^T being multiples of the identity. Two examples share no input, so that their y_i x_i meet in
E w_i.w_j alone; one example also has the fourth moment of its input, E (w.x)^2 |x|^2 = (d + 2) |w|^2, and its noise.

Source: the setting of Li et al. (arXiv 2504.04308); moments by Isserlis' theorem.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Float

from icl_lab.core.typing import Array, Key
from icl_lab.models.weighted_step import StepWeights, WeightedStep
from icl_lab.objectives.objective import Objective
from icl_lab.tasks.prompt import Task
from icl_lab.tasks.regression.correlated import CorrelatedRegression


class WeightedStepLoss(Objective):
    """Half the mean squared error of a `WeightedStep` on `CorrelatedRegression`, in closed form."""

    task: CorrelatedRegression
    model: WeightedStep

    @staticmethod
    def try_build(task: Task, model: eqx.Module) -> WeightedStepLoss | None:
        """The loss, or None for another task or model."""
        if isinstance(task, CorrelatedRegression) and isinstance(model, WeightedStep):
            return WeightedStepLoss(task, model)
        return None

    def __call__(self, weights: StepWeights, key: Key | None = None) -> Float[Array, ""]:
        d, lags = self.task.dim, jnp.asarray(weights.lags)
        correlations = jnp.asarray(self.task.correlations, lags.dtype)
        noise = jnp.asarray(self.task.noise_std, lags.dtype) ** 2
        own, query = jnp.diagonal(correlations)[:-1], correlations[:-1, -1]
        between = correlations[:-1, :-1] - jnp.diag(own)
        square = d * (lags @ between @ lags + jnp.sum(lags**2 * ((d + 2) * own + noise)))
        if weights.preconditioner is None:
            norm, trace = 1.0, 1.0
        else:
            P = jnp.asarray(weights.preconditioner)
            norm, trace = jnp.sum(P**2) / d, jnp.trace(P) / d
        return 0.5 * (norm * square - 2 * trace * d * (lags @ query) + d)
