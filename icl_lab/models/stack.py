"""Layers of different kinds: softmax attention that copies, followed by linear attention that takes a step, say."""

from __future__ import annotations

import equinox as eqx
from jaxtyping import Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array, Weights
from icl_lab.models.attention import SelfAttention
from icl_lab.tasks.prompt import Prompt


class Stack(eqx.Module):
    """One architecture a layer, each applied to its own weights; the first makes the tokens, the last reads the answer.

    Attributes:
      layers: the architectures, first to last.
    """

    layers: tuple[SelfAttention, ...]

    def __check_init__(self):
        if not self.layers:
            raise InvalidValueError("`layers` must hold at least one architecture; got none.")
        names = {layer.embedding for layer in self.layers}
        if len(names) > 1:
            raise InvalidValueError(f"the layers of a stack share one `embedding`; got {', '.join(sorted(names))}.")

    def apply(self, weights: Weights, tokens: Inexact[Array, "T D"]) -> Inexact[Array, "T E"]:
        """All tokens after all layers."""
        for layer, own in zip(self.layers, weights, strict=True):
            tokens = layer.apply(own, tokens)
        return tokens

    def __call__(self, weights: Weights, prompt: Prompt) -> Inexact[Array, "k"]:
        """The answer (k,) to a prompt's query; `weights` hold one entry a layer."""
        first, last = self.layers[0], self.layers[-1]
        tokens = self.apply(weights, first.tokens(prompt))
        return last.readout_sign * tokens[-1, last.label_slots(tokens.shape[1], prompt.labels.shape[1])]
