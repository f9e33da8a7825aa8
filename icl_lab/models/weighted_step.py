"""One linear layer that gives each position of the context a weight of its own: one step of weighted gradient descent."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Float

from icl_lab.core.typing import Array
from icl_lab.tasks.prompt import Prompt


class StepWeights(eqx.Module):
    """What the layer trains.

    Attributes:
      lags: (N,) c, one number a position of the context, oldest first.
      preconditioner: (d, d) P; None is the identity, and is not trained.
    """

    lags: Float[Array, "N"]
    preconditioner: Float[Array, "d d"] | None = None


class WeightedStep(eqx.Module):
    r"""The prediction of weighted preconditioned gradient descent, one step from zero.

    .. math:: \hat y = x_q^\top P \sum_i c_i\, y_i x_i

    It is the step of size 1 on the half squared errors weighted by c. Negative weights are allowed.

    Source: Li et al. (arXiv 2504.04308), a layer of gated linear attention read at its last token.
    """

    def __call__(self, weights: StepWeights, prompt: Prompt) -> Float[Array, "k"]:
        """The answer (k,) to the query of one prompt."""
        query = jnp.asarray(prompt.query)
        if weights.preconditioner is not None:
            query = jnp.asarray(weights.preconditioner).T @ query
        return (jnp.asarray(weights.lags) * (prompt.inputs @ query)) @ prompt.labels
