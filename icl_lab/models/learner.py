"""The one way from a prompt to an answer: tokens, layers and token-wise maps in a row, loops, and where the answer is read.

The weights of a learner are those of one layer, or a tuple with one entry a layer, in which token-wise maps (`token_maps`) may
stand among them; `loops` applies the whole tuple that many times. All layers but the last update every token; the last one
updates the query token only. The answer is the label block of the query token, times `readout_sign`: its last k slots, or its
first k with the "paired" embedding.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array, Weights
from icl_lab.models.layer import Layer
from icl_lab.models.token_maps import TokenMap
from icl_lab.tasks.embeddings import embedding
from icl_lab.tasks.prompt import Prompt, check_count

LAYER_NORM_FLOOR = 1e-5
"""Added to the variance of a token before its root is taken."""

Step = tuple[Layer, Any] | TokenMap
"""A layer with its prepared weights, or a token-wise map."""


class Learner(eqx.Module):
    """An architecture without its weights; a subclass says which layers it has.

    Attributes:
      embedding: name of the map from prompt to tokens, see `tasks.embeddings`.
      loops: how often the same weights are applied.
      readout_sign: 1 or -1, multiplies the label block that is read.
      layer_norm: whether a layer sees each token with its slots shifted and scaled to mean 0 and variance 1; what it adds
        goes to the token itself.
      clip: slots are cut to [-clip, clip] after every layer, so that deep learners stay finite; None cuts nothing.
    """

    embedding: str = eqx.field(static=True, kw_only=True, default="merged")
    loops: int = eqx.field(static=True, kw_only=True, default=1)
    readout_sign: float = eqx.field(static=True, kw_only=True, default=1.0)
    layer_norm: bool = eqx.field(static=True, kw_only=True, default=False)
    clip: float | None = eqx.field(static=True, kw_only=True, default=None)

    def __check_init__(self):
        check_count(self.loops, "loops", 1, "The weights are applied that many times.")
        if self.readout_sign not in (1.0, -1.0):
            raise InvalidValueError(
                f"`readout_sign` must be 1 or -1; got {self.readout_sign!r}. A scale belongs in the weights."
            )
        embedding(self.embedding)
        if self.embedding == "paired_short":
            raise InvalidValueError(
                '`embedding` "paired_short" has no empty slots for the answer, which would add to x_t; use "paired".'
            )
        if self.clip is not None and not self.clip > 0:
            raise InvalidValueError(f"`clip` must be null or a number > 0, the largest modulus of a slot; got {self.clip!r}.")

    @abc.abstractmethod
    def kinds(self, count: int) -> Sequence[Layer]:
        """The layers of `count` entries of the weights, token-wise maps not counted.

        Raises:
          InvalidValueError: the learner has another number of layers.
        """

    @property
    def is_single_pass(self) -> bool:
        """Whether the weights are applied once, with nothing but the layers: what the closed forms of one layer are about."""
        return self.loops == 1 and not self.layer_norm and self.clip is None

    def tokens(self, prompt: Prompt, query_label: Inexact[Array, "k"] | None = None) -> Inexact[Array, "T D"]:
        """The tokens of a prompt, the query token last.

        Args:
          prompt: N labelled examples and a query.
          query_label: (k,) start value of the query token's label block instead of zero; gradient descent from W0
            starts it at readout_sign * W0 x_q.

        Returns:
          (T, D) tokens as rows.
        """
        tokens = jnp.asarray(embedding(self.embedding)(prompt))
        if query_label is None:
            return tokens
        block = self.label_slots(tokens.shape[1], prompt.labels.shape[1])
        return tokens.at[-1, block].set(jnp.asarray(query_label, dtype=tokens.dtype))

    def label_slots(self, token_dim: int, label_dim: int) -> slice:
        """The slots of a token that hold its label, and after the last layer the answer."""
        return slice(0, label_dim) if self.embedding == "paired" else slice(token_dim - label_dim, token_dim)

    def apply(self, weights: Weights, tokens: Inexact[Array, "T D"]) -> Inexact[Array, "T E"]:
        """All tokens after all layers and loops.

        Args:
          weights: one layer's weights, or a tuple with one entry a layer or token-wise map.
          tokens: (T, D), the query token last.

        Returns:
          (T, E), in the common dtype of weights and tokens; E = D unless a token-wise map changes the width.

        Raises:
          InvalidValueError: the weights are not made for these layers, or for tokens of width D.
        """
        steps, tokens = self._prepared(weights, tokens)
        return self._run(steps, tokens, self.loops)

    def __call__(self, weights: Weights, prompt: Prompt, query_label: Inexact[Array, "k"] | None = None) -> Inexact[Array, "k"]:
        """The answer to a prompt's query.

        Args:
          weights: one layer's weights, or a tuple with one entry a layer or token-wise map.
          prompt: N labelled examples and a query.
          query_label: (k,) start value of the query token's label block instead of zero.

        Returns:
          (k,) the prediction.

        Raises:
          InvalidValueError: the weights are not made for these layers, or for tokens of this width.
        """
        steps, tokens = self._prepared(weights, self.tokens(prompt, query_label))
        tokens = self._run(steps, tokens, self.loops - 1)
        tokens = self._run(steps[:-1], tokens, 1)
        last, query = steps[-1], tokens[-1]
        if isinstance(last, TokenMap):
            answer = last(query[None])[0]
        else:
            layer, own = last
            answer = self._clipped(query + layer.query_update(own, self._normalised(tokens)))
        return self.readout_sign * answer[self.label_slots(answer.shape[0], prompt.labels.shape[1])]

    def _prepared(self, weights: Weights, tokens: Array) -> tuple[list[Step], Array]:
        """The layers with their weights checked and prepared, and the tokens, all in their common dtype."""
        entries = list(weights) if isinstance(weights, tuple | list) else [weights]
        if not entries:
            raise InvalidValueError("`weights` must hold at least one layer; got an empty tuple.")
        kinds = iter(self.kinds(sum(not isinstance(entry, TokenMap) for entry in entries)))
        width, steps = tokens.shape[1], []
        for number, entry in enumerate(entries):
            if isinstance(entry, TokenMap):
                before, after = entry.widths
                if before != width:
                    raise InvalidValueError(f"layer {number} maps tokens of width {before}; these are {width} wide.")
                steps.append(entry)
                width = after
            else:
                layer = next(kinds)
                steps.append((layer, layer.prepared(entry, width, f"layer {number}")))
        if self.loops > 1 and width != tokens.shape[1]:
            raise InvalidValueError(
                f"layers that are looped must keep the width of a token; {tokens.shape[1]} becomes {width}."
            )
        arrays = [step if isinstance(step, TokenMap) else step[1] for step in steps]
        # Real prompts meet complex weights, and float32 weights float64 prompts: that promotion is meant.
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.result_type(tokens, *jax.tree.leaves(arrays))
        cast = jax.tree.map(lambda matrix: jnp.asarray(matrix, dtype=dtype), arrays)
        steps = [own if isinstance(step, TokenMap) else (step[0], own) for step, own in zip(steps, cast, strict=True)]
        return steps, jnp.asarray(tokens, dtype=dtype)

    def _normalised(self, tokens: Array) -> Array:
        """What a layer sees of the tokens: with `layer_norm`, each has mean 0 and variance 1 over its slots."""
        if not self.layer_norm:
            return tokens
        centred = tokens - jnp.mean(tokens, axis=1, keepdims=True)
        return centred / jnp.sqrt(jnp.mean(centred**2, axis=1, keepdims=True) + LAYER_NORM_FLOOR)

    def _clipped(self, tokens: Array) -> Array:
        return tokens if self.clip is None else jnp.clip(tokens, -self.clip, self.clip)

    def _run(self, steps: Sequence[Step], tokens: Array, loops: int) -> Array:
        def once(_, tokens):
            for step in steps:
                if isinstance(step, TokenMap):
                    tokens = step(tokens)
                else:
                    layer, own = step
                    tokens = self._clipped(tokens + layer.updates(own, self._normalised(tokens)))
            return tokens

        if loops <= 1:
            return once(0, tokens) if loops else tokens
        # A loop of the compiled program, so that 50 loops compile as fast as two.
        return jax.lax.fori_loop(0, loops, once, tokens)


class Layered(Learner):
    """A learner of any layers: `Layered((SoftmaxLayer(), LinearLayer()), embedding="positioned")`.

    Attributes:
      layers: the layers first to last, or one layer for every entry of the weights that is no token-wise map.
    """

    layers: Layer | tuple[Layer, ...]

    def __check_init__(self):
        listed = (self.layers,) if isinstance(self.layers, Layer) else self.layers
        if not listed:
            raise InvalidValueError("`layers` must hold at least one layer; got none.")
        for layer in listed:
            if isinstance(layer, Learner):
                raise InvalidValueError(f"`layers` must hold layers, which have no embedding and no loops; got {layer}.")

    def kinds(self, count: int) -> Sequence[Layer]:
        """The layers, as many as there are weights for."""
        if isinstance(self.layers, Layer):
            return [self.layers] * count
        if count != len(self.layers):
            raise InvalidValueError(
                f"`weights` must hold one entry for each of the {len(self.layers)} layers, token-wise maps apart; got {count}."
            )
        return self.layers
