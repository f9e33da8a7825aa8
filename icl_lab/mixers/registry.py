"""Mixers by name, and mixers as predictors: functions of a prompt, like estimators."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
from jaxtyping import Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.mixers.base import Mixer
from icl_lab.mixers.maps.softmax import ForgettingAttention, SoftmaxAttention
from icl_lab.mixers.recurrent.delta import KDA, DeltaNet, GatedDeltaNet, Longhorn
from icl_lab.mixers.recurrent.descent import TTT, MomentumDelta
from icl_lab.mixers.recurrent.dplr import DPLR
from icl_lab.mixers.recurrent.linear import GLA, HGRN2, RWKV6, LinearAttention, Retention, SimpleGLA
from icl_lab.mixers.recurrent.mamba import Mamba
from icl_lab.mixers.recurrent.mesa import Mesa, PreconditionedDelta
from icl_lab.mixers.recurrent.vector_state import HGRN, RWKV4
from icl_lab.tasks.prompt import Prompt

MIXERS: dict[str, type[Mixer]] = {
    mixer.name: mixer
    for mixer in (
        *(LinearAttention, Retention, SimpleGLA, GLA, HGRN2, RWKV6, Mamba),
        *(DeltaNet, GatedDeltaNet, KDA, Longhorn, MomentumDelta, TTT, DPLR),
        *(Mesa, PreconditionedDelta),
        *(HGRN, RWKV4),
        *(SoftmaxAttention, ForgettingAttention),
    )
}
"""Every mixer of the package by its name; all parameters have defaults."""
KINDS = {bool: "true or false", str: "a name"}
"""What a parameter must be whose default is no number."""


class Predictor(eqx.Module):
    """A mixer that reads one prompt: inputs are its keys, labels its values, and the query is answered and not written.

    Attributes:
      mixer: the mixer.
      gates: its gates by name: numbers for all examples, or an entry an example.
      initial: the state before the first example; empty by default.
    """

    mixer: Mixer
    gates: dict[str, Any]
    initial: Any = None

    def __check_init__(self):
        self.mixer.check_gates(**self.gates)

    def __call__(self, prompt: Prompt) -> Inexact[Array, "V"]:
        """The prediction (k,) for one prompt's query."""
        return self.mixer.read(prompt.query, prompt.inputs, prompt.labels, initial=self.initial, **self.gates)


def named(name: str, **parameters: Any) -> Mixer:
    """The mixer called `name` with its parameters.

    Args:
      name: a key of `MIXERS`.
      **parameters: its fields; `scale` is one of every mixer.

    Raises:
      InvalidValueError: an unknown name or parameter, or a parameter of another type or out of range.
    """
    if name not in MIXERS:
        raise InvalidValueError(f"No mixer is called {name!r}; choose one of {', '.join(sorted(MIXERS))}.")
    if unknown := parameters.keys() - fields(name):
        raise InvalidValueError(f"`{name}` takes the parameters {sorted(fields(name))}; got {sorted(unknown)}.")
    for field in dataclasses.fields(MIXERS[name]):
        value = parameters.get(field.name, field.default)
        kind = next((kind for kind in KINDS if isinstance(field.default, kind)), None)
        if not isinstance(value, kind) if kind else isinstance(value, str | bool | list | dict):
            raise InvalidValueError(f"`{field.name}` of {name} must be {KINDS.get(kind, 'a number')}; got {value!r}.")
    return MIXERS[name](**parameters)


def predictor(name: str, *, initial: Any = None, **parameters: Any) -> Predictor:
    """A mixer as a function of one prompt, which every analysis takes as it takes an estimator.

    Args:
      name: a key of `MIXERS`.
      initial: the state before the first example, as the mixer's `outputs_and_state` returns one; empty by default.
      **parameters: fields of the mixer and its gates. `scale=1.0` makes the state W^T of a fitted matrix, answered by W x_q;
        without it the answer is K^(-1/2) times that.

    Returns:
      Callable and pytree, prompt -> prediction (k,).

    Raises:
      InvalidValueError: an unknown name or parameter, a gate that is missing or out of range.
      NonFiniteError: a NaN or an infinity in a gate.

    Examples:
      The delta rule is online gradient descent:

      >>> import numpy as np
      >>> from icl_lab import estimators, mixers
      >>> from icl_lab.tasks import Prompt
      >>> inputs = np.array([[1.0], [2.0], [3.0]])
      >>> prompt = Prompt(inputs, labels=2 * inputs, query=np.array([5.0]), target=np.array([10.0]), latent=np.array([2.0]))
      >>> delta_rule = mixers.predictor("deltanet", write_strength=0.1, scale=1.0)
      >>> print(delta_rule(prompt).round(2), estimators.online_sgd(prompt, step_size=0.1).round(2))
      [9.46] [9.46]
    """
    own = {key: value for key, value in parameters.items() if name in MIXERS and key in fields(name)}
    mixer = named(name, **own)
    gates = {key: value for key, value in parameters.items() if key not in own}
    accepted = {gate.name for gate in mixer.description.gates}
    if gates.keys() != accepted:
        raise InvalidValueError(
            f"`{name}` takes the parameters {sorted(fields(name))}, and needs the gates {sorted(accepted)}; "
            f"got {sorted(parameters)}."
        )
    return Predictor(mixer, gates, initial)


def fields(name: str) -> set[str]:
    """The parameters of a mixer of the registry that are no gates."""
    return {field.name for field in dataclasses.fields(MIXERS[name])}
