"""Population losses: exact moments, sampled moments, streamed prompts, all the same kind of callable."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax

from icl_lab.core.typing import Key
from icl_lab.models.linear_attention import LinearSelfAttention
from icl_lab.objectives.curvature import Curvature as Curvature
from icl_lab.objectives.curvature import curvature as curvature
from icl_lab.objectives.exact import independent, phases, series
from icl_lab.objectives.exact.correlated import WeightedStepLoss as WeightedStepLoss
from icl_lab.objectives.exact.cubature import CubatureLoss as CubatureLoss
from icl_lab.objectives.exact.cubature import rotation_cubature as rotation_cubature
from icl_lab.objectives.exact.independent import independent_loss as independent_loss
from icl_lab.objectives.exact.moments import Features as Features
from icl_lab.objectives.exact.moments import MomentLoss as MomentLoss
from icl_lab.objectives.exact.moments import Moments as Moments
from icl_lab.objectives.exact.phases import phase_features as phase_features
from icl_lab.objectives.exact.phases import phase_loss as phase_loss
from icl_lab.objectives.exact.regression import RegressionLoss as RegressionLoss
from icl_lab.objectives.exact.series import hankel_features as hankel_features
from icl_lab.objectives.exact.series import series_loss as series_loss
from icl_lab.objectives.held_out import HeldOut as HeldOut
from icl_lab.objectives.objective import Loss as Loss
from icl_lab.objectives.objective import Objective as Objective
from icl_lab.objectives.sampled import SampledLoss as SampledLoss
from icl_lab.objectives.streamed import StreamedLoss as StreamedLoss
from icl_lab.objectives.structured import StructuredLoss as StructuredLoss
from icl_lab.objectives.structured import StructuredWeights as StructuredWeights
from icl_lab.tasks.prompt import Task

EXACT: tuple[Callable[[Task, eqx.Module], Objective | None], ...] = (
    RegressionLoss.try_build,
    independent.try_build,
    phases.try_build,
    series.try_build,
    WeightedStepLoss.try_build,
)
"""The exact losses of one layer; the first that is known for a task and a model is taken."""


def population(task: Task, model: eqx.Module, key: Key | None = None, prompts: int = 10_000, layers: int = 1) -> Objective:
    """The best available loss of a model on a task: exact if known, else from sampled moments, else on streamed prompts.

    Args:
      task: the distribution of the prompts.
      model: the architecture.
      key: for sampling; seed 0 if omitted.
      prompts: how many prompts the moments are sampled from, where they are sampled.
      layers: number of layers of the weights; more than one is no polynomial.

    Examples:
      >>> from icl_lab import models, objectives, tasks
      >>> task = tasks.LinearRegression(dim=2, context_length=8)
      >>> loss = objectives.population(task, models.LinearSelfAttention())
      >>> type(loss).__name__
      'RegressionLoss'
      >>> round(float(loss.risk(models.initializers.zhang(dim=2, scale=1e-6))), 3)  # E (w.x)^2 = d
      2.0
    """
    key = jax.random.key(0) if key is None else key
    if layers == 1:
        for try_build in EXACT:
            if (loss := try_build(task, model)) is not None:
                return loss
        if isinstance(model, LinearSelfAttention) and model.is_single_pass:
            return SampledLoss.build(task, model, key, prompts)
    return StreamedLoss.build(task, model, key)
