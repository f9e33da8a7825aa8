"""What linear and softmax self-attention have in common: tokens, layers, loops, and where the answer is read.

Conventions: tokens are rows, T of them and D wide, the query token last. Which token attends to which:

    causal   query_in_sum   token t attends to
    False    False          the context: every token but the last
    False    True           every token, itself included
    True     False          i < t
    True     True           i <= t

so the query token attends to the same set whether or not the layer is causal. Several layers are a tuple of weights, in
which token-wise maps (`token_maps`) may stand among attention layers; `loops` applies the whole tuple that many times.
The answer is the label block of the query token after the last layer, times `readout_sign`: its last k slots, or its
first k with the "paired" embedding.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array, Weights
from icl_lab.models.token_maps import TokenMap
from icl_lab.models.weights import LSAWeights
from icl_lab.tasks.embeddings import embedding
from icl_lab.tasks.prompt import Prompt, check_count

LAYER_NORM_FLOOR = 1e-5
"""Added to the variance of a token before its root is taken."""


class SelfAttention(eqx.Module):
    """A self-attention architecture without its weights: hashable, no arrays inside.

    Subclasses say what one layer adds to every token, and what it adds to the query token alone.
    """

    query_in_sum: eqx.AbstractVar[bool]
    causal: eqx.AbstractVar[bool]
    loops: eqx.AbstractVar[int]
    readout_sign: eqx.AbstractVar[float]
    embedding: eqx.AbstractVar[str]
    layer_norm: eqx.AbstractVar[bool]
    clip: eqx.AbstractVar[float | None]

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

    @property
    def is_single_pass(self) -> bool:
        """Whether the weights are applied once, with nothing but attention: what the closed forms of one layer are about."""
        return self.loops == 1 and not self.layer_norm and self.clip is None

    @abc.abstractmethod
    def updates(self, weights: LSAWeights, tokens: Inexact[Array, "T D"]) -> Inexact[Array, "T D"]:
        """What one layer adds to every token; `weights` carry a head axis."""

    @abc.abstractmethod
    def query_update(self, weights: LSAWeights, tokens: Inexact[Array, "T D"]) -> Inexact[Array, "D"]:
        """What one layer adds to the last token, at the cost of that token alone; `weights` carry a head axis."""

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
          weights: one layer's weights, or a tuple with one entry a layer.
          tokens: (T, D), the query token last.

        Returns:
          (T, E), in the common dtype of weights and tokens; E = D unless a token-wise map changes the width.

        Raises:
          InvalidValueError: the weights are not made for tokens of width D.
        """
        layers, tokens = _prepare(weights, tokens, self.loops)
        return self._run(layers, tokens, self.loops)

    def __call__(self, weights: Weights, prompt: Prompt, query_label: Inexact[Array, "k"] | None = None) -> Inexact[Array, "k"]:
        """The answer to a prompt's query.

        The last layer updates the query token only; earlier layers update all tokens.

        Args:
          weights: one layer's weights, or a tuple with one entry a layer.
          prompt: N labelled examples and a query.
          query_label: see `tokens`.

        Returns:
          (k,) the prediction.

        Raises:
          InvalidValueError: the weights are not made for tokens of this width.
        """
        layers, tokens = _prepare(weights, self.tokens(prompt, query_label), self.loops)
        tokens = self._run(layers, tokens, self.loops - 1)
        tokens = self._run(layers[:-1], tokens, 1)
        last, query = layers[-1], tokens[-1]
        if isinstance(last, TokenMap):
            answer = last(query[None])[0]
        else:
            answer = self._clipped(query + self.query_update(last, self._normalised(tokens)))
        return self.readout_sign * answer[self.label_slots(answer.shape[0], prompt.labels.shape[1])]

    def _normalised(self, tokens: Array) -> Array:
        """What attention sees of the tokens: with `layer_norm`, each has mean 0 and variance 1 over its slots."""
        if not self.layer_norm:
            return tokens
        centred = tokens - jnp.mean(tokens, axis=1, keepdims=True)
        return centred / jnp.sqrt(jnp.mean(centred**2, axis=1, keepdims=True) + LAYER_NORM_FLOOR)

    def _clipped(self, tokens: Array) -> Array:
        return tokens if self.clip is None else jnp.clip(tokens, -self.clip, self.clip)

    def _run(self, layers: Sequence[LSAWeights | TokenMap], tokens: Array, loops: int) -> Array:
        def once(_, tokens):
            for layer in layers:
                if isinstance(layer, TokenMap):
                    tokens = layer(tokens)
                else:
                    tokens = self._clipped(tokens + self.updates(layer, self._normalised(tokens)))
            return tokens

        if loops <= 1:
            return once(0, tokens) if loops else tokens
        # A loop of the compiled program, so that 50 loops compile as fast as two.
        return jax.lax.fori_loop(0, loops, once, tokens)


def _prepare(weights: Weights, tokens: Array, loops: int) -> tuple[tuple[LSAWeights | TokenMap, ...], Array]:
    """The layers, attention in merged form with a head axis, and the tokens, all in their common dtype."""
    given = weights if isinstance(weights, tuple | list) else [weights]
    layers = [layer if isinstance(layer, TokenMap) else layer.merged() for layer in given]
    if not layers:
        raise InvalidValueError("`weights` must hold at least one layer; got an empty tuple.")
    width = tokens.shape[1]
    for number, layer in enumerate(layers):
        if isinstance(layer, TokenMap):
            before, after = layer.widths
            if before != width:
                raise InvalidValueError(f"layer {number} maps tokens of width {before}; these are {width} wide.")
            width = after
            continue
        for name, matrix in (("w_pv", layer.w_pv), ("w_kq", layer.w_kq)):
            if matrix.ndim not in (2, 3) or matrix.shape[-2:] != (width, width):
                raise InvalidValueError(
                    f"`{name}` of layer {number} must be ({width}, {width}), with an optional head axis first, because "
                    f"the tokens are {width} wide; got shape {tuple(matrix.shape)}."
                )
    if loops > 1 and width != tokens.shape[1]:
        raise InvalidValueError(f"layers that are looped must keep the width of a token; {tokens.shape[1]} becomes {width}.")
    # Real prompts meet complex weights, and float32 weights float64 prompts: that promotion is meant.
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(tokens, *jax.tree.leaves(layers))

    def cast(layer):
        layer = layer if isinstance(layer, TokenMap) else layer.with_head_axis()
        return jax.tree.map(lambda matrix: jnp.asarray(matrix, dtype=dtype), layer)

    return tuple(map(cast, layers)), jnp.asarray(tokens, dtype=dtype)
