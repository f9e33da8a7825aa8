"""`Objective`: what a model is trained on. Exact moments, sampled moments and streamed prompts are all this one callable."""

from __future__ import annotations

import abc

import equinox as eqx
from jaxtyping import Float

from icl_lab.tasks.prompt import Task
from icl_lab.typing import Array, Key, Weights


class Objective(eqx.Module):
    """Half the mean squared error of a model's prediction, L = 1/2 E |yhat - target|^2, as a function of its weights.

    The half makes gradient flow run on the clock of Zhang, Frei, Bartlett (arXiv 2306.09927): dW/dt = -grad L. Regression
    targets are noiseless, so L is half the risk in excess of the query's own noise. `risk` is E |yhat - target|^2, without
    the half.

    Attributes:
      task: the law of the prompts.
      model: the architecture.
    """

    task: eqx.AbstractVar[Task]
    model: eqx.AbstractVar[eqx.Module]

    @abc.abstractmethod
    def __call__(self, weights: Weights, key: Key | None = None) -> Float[Array, ""]:
        """The half loss at `weights`. Only streamed prompts use `key`; without it they use one fixed set of prompts."""

    @abc.abstractmethod
    def risk(self, weights: Weights) -> float:
        """E |yhat - target|^2 at `weights`, in float64."""

    @abc.abstractmethod
    def standard_error(self, weights: Weights) -> float:
        """Standard error of `risk(weights)` from sampling the prompts; 0.0 where the loss is exact."""

    @property
    def rate_spread(self) -> float:
        """Ratio of the fastest to the slowest relaxation rate near the optimum, where known; decides explicit or implicit
        integration. 1.0 where unknown."""
        return 1.0
