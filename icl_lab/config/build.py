"""From a resolved configuration to the objects of the library: model, initial weights, objective, training.

Each function takes the plain dict of one group. Ranges are checked by the classes that are built here; what only the
combination of groups can get wrong is checked here.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from icl_lab import mixers, models, objectives, training
from icl_lab.config.build_task import build_task as build_task
from icl_lab.config.choice import Group, choose
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.prng import stream
from icl_lab.core.typing import Key, Weights
from icl_lab.tasks.prompt import Task, check_count


def build_model(group: Group) -> models.Learner:
    """The architecture that `model` describes."""
    names = ("loops", "readout_sign", "embedding", "layer_norm", "clip")
    return choose(_ARCHITECTURES, group, "model")(group, {name: group[name] for name in names})


def build_weights(trainer: Group, model_group: Group, task: Task, model: models.Learner, key: Key) -> Weights:
    """The start of training: `trainer.init` at `trainer.init_scale`, in the parametrisation of `model`.

    Raises:
      InvalidValueError: an unknown start or parametrisation, fewer than one layer, or the one-layer one-head start of a
        theorem for another architecture; for a mixer as `models.MixerWeights.init`.
      AssumptionError: a scale <= 0.
    """
    layers, heads = model_group["layers"], model_group["heads"]
    check_count(layers, "model.layers", 1, "A model has at least one layer.")
    build = choose(_STARTS, trainer, "trainer", "init")
    width = jax.eval_shape(lambda k: model.tokens(task.sample(k)), key).shape[1]
    mixed = model_group["kind"] == "mixer"
    if build is not _gaussian_start and (mixed or layers > 1 or heads is not None or width != task.dim + 1):
        raise InvalidValueError(
            f"trainer.init={trainer['init']} is the start of one layer of one head of attention on tokens of width d + 1; got "
            f"model.kind={model_group['kind']}, layers={layers}, heads={heads} and width {width} at d = {task.dim}. "
            "Use trainer.init=gaussian."
        )
    scale = float(trainer["init_scale"])
    keys = [jax.random.fold_in(stream(key, "init"), layer) for layer in range(layers)]
    if mixed:
        layer = _mixer_layer(model_group)
        sizes = {name: model_group[name] for name in ("heads", "key_width", "value_width", "gates", "data_dependent")}
        layered = tuple(models.MixerWeights.init(k, width, layer, scale, **sizes) for k in keys)
    else:
        separate = choose({"merged": False, "separate": True}, model_group, "model", "parametrisation")
        layered = tuple(build(k, task.dim, width, scale, heads, separate) for k in keys)
    return layered[0] if layers == 1 else layered


def build_objective(group: Group, task: Task, model: models.Learner, layers: int, key: Key) -> objectives.Objective:
    """The loss that `objective` describes."""
    kind = group["kind"]
    key = stream(key, "objective")
    if kind == "population":
        return objectives.population(task, model, key, prompts=group["prompts"], layers=layers)
    if kind == "sampled":
        return objectives.SampledLoss.build(task, model, key, prompts=group["prompts"])
    if kind == "streamed":
        return objectives.StreamedLoss.build(task, model, key, batch=group["batch"])
    raise InvalidValueError(f"`objective.kind` must be population, sampled or streamed; got {kind!r}.")


def train(
    group: Group, objective: objectives.Objective, weights: Weights, key: Key, checkpoint: Path | None = None
) -> training.TrainingResult:
    """Train as `trainer` describes; a descent that was interrupted goes on from its `checkpoint`.

    It ends at the same bits as one that was not. A flow would agree to its tolerance only, so it begins anew.
    """
    if group["kind"] == "gradient_flow":
        return training.gradient_flow(
            objective,
            weights,
            weight_tolerance=group["weight_tolerance"],
            solver=group["solver"],
            max_steps=group["max_steps"],
        )
    return training.descend(
        objective,
        weights,
        build_optimiser(group),
        steps=group["steps"],
        key=stream(key, "training"),
        checkpoint=checkpoint,
    )


def build_optimiser(group: Group) -> optax.GradientTransformation:
    """The optax optimiser called `trainer.optimiser` at `trainer.learning_rate`, its other settings as optax has them.

    Raises:
      InvalidValueError: optax has no optimiser of that name that needs a learning rate only, or the rate is not > 0.
    """
    name, rate = group["optimiser"], group["learning_rate"]
    factory: Any = getattr(optax, name, None)
    # Capitals are classes, an underscore is optax's own business, and `scale_by_` the part of an optimiser that has no sign.
    public = re.fullmatch(r"(?!scale_by_)[a-z]\w*", name) is not None
    parameters = dict(inspect.signature(factory).parameters) if public and callable(factory) else {}
    if "learning_rate" not in parameters:
        raise InvalidValueError(
            "`trainer.optimiser` must be the name of an optax optimiser with a learning rate (sgd, adam, adamw, ...); "
            f"got {name!r}."
        )
    needed = [other.name for other in parameters.values() if other.default is other.empty and other.name != "learning_rate"]
    if needed:
        raise InvalidValueError(
            f"`trainer.optimiser` must be an optax optimiser that needs a learning rate and no more; {name} asks for "
            f"{', '.join(needed)} too."
        )
    if not (np.isfinite(rate) and rate > 0):
        raise InvalidValueError(f"`trainer.learning_rate` must be a finite number > 0; got {rate!r}.")
    # What optax itself takes, with a warning, where an optimiser draws noise and is given no key.
    noise = {"key": 0} if "key" in parameters else {}
    optimiser = factory(learning_rate=rate, **noise)
    assert isinstance(optimiser, optax.GradientTransformation)
    return optimiser


def _gaussian_start(key: Key, dim: int, width: int, scale: float, heads: int | None, separate: bool) -> Weights:
    start = models.initializers.separate_gaussian if separate else models.initializers.gaussian
    return start(key, width, scale, heads)


def _zhang_start(key: Key, dim: int, width: int, scale: float, heads: int | None, separate: bool) -> Weights:
    start = models.initializers.zhang(dim, scale)
    return models.initializers.balanced(start) if separate else start


def _zhang_random_start(key: Key, dim: int, width: int, scale: float, heads: int | None, separate: bool) -> Weights:
    start = models.initializers.zhang(dim, scale, models.initializers.random_theta(key, dim))
    return models.initializers.balanced(start) if separate else start


def _mixer_layer(group: Group) -> models.MixerLayer:
    own = {name: group[name] for name in ("query_in_sum", "writes", "convolution", "unit_keys", "output_norm")}
    return models.MixerLayer(mixers.named(group["mixer"], **group["parameters"]), **own)


def _linear_attention(group: Group, of_learner: Group) -> models.Learner:
    own = {name: group[name] for name in ("query_in_sum", "causal", "normaliser")}
    return models.LinearSelfAttention(**own, **of_learner)


def _softmax_attention(group: Group, of_learner: Group) -> models.Learner:
    own = {name: group[name] for name in ("query_in_sum", "causal", "inverse_temperature")}
    return models.SoftmaxSelfAttention(**own, **of_learner)


def _mixer_model(group: Group, of_learner: Group) -> models.Learner:
    return models.Layered(_mixer_layer(group), **of_learner)


_ARCHITECTURES = {
    "linear_attention": _linear_attention,
    "softmax_attention": _softmax_attention,
    "mixer": _mixer_model,
}
_STARTS = {"zhang": _zhang_start, "zhang_random": _zhang_random_start, "gaussian": _gaussian_start}
