r"""The layers of delta rules that take one pass of stochastic gradient descent, explicit or implicit, over a prompt's examples.

On tokens (x_i, y_i) with keys a x_i, values y_i and write strength beta the state of the mixer is that of
`estimators.online_sgd` at step size eta = a^2 beta, transposed and in units of a:

.. math:: S_i = S_{i-1} + \beta\, a x_i\, (y_i - a S_{i-1}^\top x_i)^\top, \qquad W_i = a\, S_i^\top

so a = sqrt(eta / beta) makes any step size > 0 of a strength inside its range. The gate of Longhorn has no upper end, and is
the step size eta of `estimators.implicit_online_sgd` at a = 1. The query token (x_q, 0) reads W_N x_q into its label slots and
is not written.
"""

from __future__ import annotations

import equinox as eqx
import numpy as np

from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.mixers.base import Mixer
from icl_lab.mixers.recurrent.delta import DeltaNet, Longhorn
from icl_lab.models.gates import GateMap, default_start, raw_value
from icl_lab.models.learner import Layered
from icl_lab.models.mixer_layer import MixerLayer, MixerWeights
from icl_lab.tasks.prompt import check_count


def online_sgd(model: Layered, dim: int, step_size: float, label_dim: int = 1) -> MixerWeights:
    """The weights with which a layer of the delta rule computes `estimators.online_sgd` on every prompt.

    Args:
      model: a learner on "merged" tokens whose layer is `MixerLayer(mixers.named("deltanet"))`, the query not in the sum.
      dim: d, dimension of the inputs.
      step_size: eta > 0. If the mixer divides its step by |x_t|^2, so does the estimator, and eta must be below its largest
        write strength.
      label_dim: k.

    Returns:
      One layer of one head, on tokens of width d + k.

    Raises:
      InvalidValueError: a size below 1, or a step size that is not > 0.
      UnsupportedProblemError: another architecture.
    """
    mixer = _mixer(model, DeltaNet, step_size)
    normalised = isinstance(mixer, DeltaNet) and mixer.normalised_step
    strength = step_size if normalised else default_start(mixer.description.gates[0])
    return _pass(model, mixer, dim, label_dim, strength, np.sqrt(step_size / strength))


def implicit_online_sgd(model: Layered, dim: int, step_size: float, label_dim: int = 1) -> MixerWeights:
    """The weights with which a layer of Longhorn computes `estimators.implicit_online_sgd` on every prompt.

    Args:
      model: a learner on "merged" tokens whose layer is `MixerLayer(mixers.named("longhorn"))`, the query not in the sum.
      dim: d, dimension of the inputs.
      step_size: eta > 0.
      label_dim: k.

    Returns:
      One layer of one head, on tokens of width d + k.

    Raises:
      InvalidValueError: a size below 1, or a step size that is not > 0.
      UnsupportedProblemError: another architecture.
    """
    return _pass(model, _mixer(model, Longhorn, step_size), dim, label_dim, step_size, 1.0)


def _mixer(model: Layered, kind: type[Mixer], step_size: float) -> Mixer:
    """The mixer of a model, if it takes the pass."""
    if not (np.isfinite(step_size) and step_size > 0):
        raise InvalidValueError(f"`step_size` must be a finite number > 0, as a write strength is; got {step_size!r}.")
    layer = model.layers
    plain = isinstance(layer, MixerLayer) and eqx.tree_equal(layer, MixerLayer(layer.mixer))
    if not isinstance(layer, MixerLayer) or not isinstance(layer.mixer, kind) or not plain:
        raise UnsupportedProblemError(
            f"One layer of the delta rule `{kind.name}` takes the pass, with query_in_sum=False and no option; got {layer}. "
            "The query would be written with the label zero, and another rule or a decay changes the step."
        )
    if model.embedding != "merged" or model.layer_norm:
        raise UnsupportedProblemError(
            f'The pass is over tokens (x, y) as they are: embedding "merged" and layer_norm=False; got {model.embedding!r} and '
            f"layer_norm={model.layer_norm}."
        )
    return layer.mixer


def _pass(model: Layered, mixer: Mixer, dim: int, label_dim: int, strength: float, size: float) -> MixerWeights:
    """The weights of the module at keys a x, with the one gate of the mixer at the same value for all tokens."""
    check_count(dim, "dim", 1, "It is the number of input coordinates.")
    check_count(label_dim, "label_dim", 1, "It is the number of label coordinates.")
    (gate,) = mixer.description.gates
    scale = dim**-0.5 if mixer.scale is None else np.asarray(mixer.scale)
    inputs, labels = np.eye(dim, dim + label_dim)[None], np.eye(label_dim, dim + label_dim, k=dim)[None]
    return MixerWeights(
        w_q=size / scale * inputs,
        w_k=size * inputs,
        w_v=labels,
        w_o=model.readout_sign * labels.swapaxes(1, 2),
        gates={gate.name: GateMap(np.full(1, raw_value(strength, gate)))},
    )
