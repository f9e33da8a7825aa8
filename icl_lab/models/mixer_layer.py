r"""A trainable layer round any token mixer: projections to queries, keys and values, gates, and back to the tokens.

.. math:: e_j \leftarrow e_j + \sum_h W_O^h\, o_j^h, \qquad o^h = \mathrm{mixer}(W_Q^h e,\; W_K^h e,\; W_V^h e;\; g^h(e))

The tokens before the query are a causal sequence: token j is written before it is read, so its update knows of the tokens up
to and including j. The query token, the last one, reads after all of them; it is written too only with `query_in_sum`.

A token may write several pairs of key and value, one after the other, as the products of steps of DeltaProduct do. Off unless
asked for, as in language models: a short causal convolution of the queries, keys and values along the tokens, each channel by
itself, with a SiLU behind it; queries and keys of length 1; outputs of mean square 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.prng import stream
from icl_lab.core.typing import Array, Key, Weights
from icl_lab.mixers.base import Gate, Mixer
from icl_lab.models.gates import GateMap, default_start, in_range, raw_value
from icl_lab.models.initializers import check_gaussian, normal
from icl_lab.models.layer import Layer, check_class
from icl_lab.tasks.prompt import check_count

SMALLEST_SQUARE = 1e-12
"""Added to a squared length before its root is taken, which has no gradient at 0."""


class MixerWeights(eqx.Module):
    """The weights of a layer round a mixer, heads first.

    Attributes:
      w_q: (H, K, D), token to query.
      w_k: (H, K, D), token to key; (H, n, K, D) if a token writes n > 1 pairs.
      w_v: (H, V, D), token to value; (H, n, V, D) likewise.
      w_o: (H, D, V), output to what is added to the token.
      gates: the mixer's gates by name.
      taps: of the short convolution behind w_q, w_k and w_v, by their names: their shape with the C taps, that of the token
        itself last, in place of D. Empty without a convolution.
    """

    w_q: Inexact[Array, "H K D"]
    w_k: Inexact[Array, "H *n K D"]
    w_v: Inexact[Array, "H *n V D"]
    w_o: Inexact[Array, "H D V"]
    gates: dict[str, GateMap]
    taps: dict[str, Inexact[Array, "H *n_K C"]] = eqx.field(default_factory=dict)

    @staticmethod
    def init(
        key: Key,
        width: int,
        layer: MixerLayer,
        scale: float,
        *,
        heads: int = 1,
        key_width: int | None = None,
        value_width: int | None = None,
        gates: Mapping[str, float] | None = None,
        data_dependent: bool = False,
    ) -> MixerWeights:
        """Projections with independent N(0, scale^2) entries, gates that start at the same value for every token, and
        convolutions that start at the token itself.

        Args:
          key: random key.
          width: D, width of a token.
          layer: the layer, which says what its gates are and how many pairs a token writes.
          scale: standard deviation of an entry, > 0.
          heads: H >= 1.
          key_width: K; None means D.
          value_width: V; None means D.
          gates: where some gates start, strictly inside their ranges; by default as `default_start` says.
          data_dependent: whether gates depend on the token, with slopes of independent N(0, scale^2) entries.

        Raises:
          InvalidValueError: a size below 1, a scale that is not > 0, an unknown gate, or a start outside its range.
        """
        check_gaussian(width, scale, heads)
        key_width, value_width = key_width or width, value_width or width
        check_count(key_width, "key_width", 1, "It is the width of a key.")
        check_count(value_width, "value_width", 1, "It is the width of a value.")
        known = layer.gates
        starts = {name: default_start(gate) for name, gate in known.items()} | dict(gates or {})
        layer.mixer.check_gates(**starts)
        shapes = layer.shapes(heads, width, key_width, value_width)
        maps = {}
        for name, gate in known.items():
            lead = layer.gate_shape(gate, heads, key_width)
            slope = scale * normal(stream(key, name), (*lead, width)) if data_dependent else None
            maps[name] = GateMap(np.full(lead, raw_value(starts[name], gate)), slope)
        projections = {name: scale * normal(stream(key, name), shape) for name, shape in shapes.items()}
        first = np.eye(1, layer.convolution, layer.convolution - 1)[0]
        taps: dict[str, Array] = {
            name: np.broadcast_to(first, (*shapes[name][:-1], len(first))) for name in CONVOLVED if len(first)
        }
        return MixerWeights(**projections, gates=maps, taps=taps)


CONVOLVED = ("w_q", "w_k", "w_v")
"""The projections that a short convolution follows."""


class MixerLayer(Layer):
    """A layer round a token mixer; its weights are `MixerWeights`.

    Attributes:
      mixer: any mixer, with its own parameters.
      query_in_sum: whether the query token is written before it is read.
      writes: n >= 1, pairs of key and value that a token writes.
      convolution: C, taps of the short convolution; 0 for none.
      unit_keys: whether queries and keys are divided by their lengths.
      output_norm: whether outputs are divided by the root of their mean square.

    Raises:
      InvalidValueError: fewer than one write or a negative number of taps.
    """

    mixer: Mixer
    query_in_sum: bool = eqx.field(static=True, kw_only=True, default=False)
    writes: int = eqx.field(static=True, kw_only=True, default=1)
    convolution: int = eqx.field(static=True, kw_only=True, default=0)
    unit_keys: bool = eqx.field(static=True, kw_only=True, default=False)
    output_norm: bool = eqx.field(static=True, kw_only=True, default=False)

    def __check_init__(self):
        check_count(self.writes, "writes", 1, "It is the number of pairs that a token writes.")
        check_count(self.convolution, "convolution", 0, "It is the number of taps, 0 for none.")

    @property
    def gates(self) -> dict[str, Gate]:
        """What the mixer takes besides queries, keys and values, by name."""
        return {gate.name: gate for gate in self.mixer.description.gates}

    @property
    def _several(self) -> tuple[int, ...]:
        """The axis of the pairs of a token, if it writes more than one."""
        return (self.writes,) if self.writes > 1 else ()

    def shapes(self, heads: int, width: int, key_width: int, value_width: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the projections."""
        return {
            "w_q": (heads, key_width, width),
            "w_k": (heads, *self._several, key_width, width),
            "w_v": (heads, *self._several, value_width, width),
            "w_o": (heads, width, value_width),
        }

    def gate_shape(self, gate: Gate, heads: int, key_width: int) -> tuple[int, ...]:
        """The shape of the bias of a gate."""
        return (heads, *self._several, *((key_width,) if gate.per_channel else ()))

    def prepared(self, weights: Weights, width: int, place: str) -> MixerWeights:
        """The weights as they are, after a check of every shape."""
        check_class(weights, MixerWeights, place)
        if weights.gates.keys() != self.gates.keys():
            raise InvalidValueError(
                f"`gates` of {place} must be {sorted(self.gates)}, those of {self.mixer.name}; got {sorted(weights.gates)}."
            )
        convolved = CONVOLVED if self.convolution else ()
        if set(weights.taps) != set(convolved):
            raise InvalidValueError(
                f"`taps` of {place} must be of {list(convolved)}, as its convolution has {self.convolution} tap(s); got "
                f"{sorted(weights.taps)}."
            )
        heads, key_width, value_width = len(weights.w_k), weights.w_k.shape[-2], weights.w_v.shape[-2]
        projections = self.shapes(heads, width, key_width, value_width)
        shapes = {name: (getattr(weights, name), shape) for name, shape in projections.items()}
        for name, taps in weights.taps.items():
            shapes[f"taps.{name}"] = taps, (*projections[name][:-1], self.convolution)
        for name, own in weights.gates.items():
            lead = self.gate_shape(self.gates[name], heads, key_width)
            shapes[f"gates.{name}.bias"] = own.bias, lead
            if own.slope is not None:
                shapes[f"gates.{name}.slope"] = own.slope, (*lead, width)
        for name, (matrix, expected) in shapes.items():
            if matrix.shape != expected:
                raise InvalidValueError(
                    f"`{name}` of {place} must be {expected}, because the tokens are {width} wide, the keys say {heads} "
                    f"head(s) of width {key_width} and a token writes {self.writes} pair(s); got shape {tuple(matrix.shape)}."
                )
        return weights

    def updates(self, weights: MixerWeights, tokens: Inexact[Array, "T D"]) -> Inexact[Array, "T D"]:
        """The mixer's output at every token, projected back and summed over heads; the query's is that of `query_update`."""
        written = self._written(tokens)

        def head(own: MixerWeights) -> Array:
            queries = self._projected(own, "w_q", tokens)
            keys, values, gates = self._pairs(own, written)
            outputs = self.mixer.outputs(queries[: written.shape[0]], keys, values, **gates)
            if not self.query_in_sum:
                outputs = jnp.concatenate([outputs, self.mixer.read(queries[-1], keys, values, **gates)[None]])
            return self._normalised(outputs) @ own.w_o.T

        return jnp.sum(jax.vmap(head)(weights), axis=0)

    def query_update(self, weights: MixerWeights, tokens: Inexact[Array, "T D"]) -> Inexact[Array, "D"]:
        """What the query token reads, projected back and summed over heads."""
        written, near = self._written(tokens), tokens[-max(self.convolution, 1) :]

        def head(own: MixerWeights) -> Array:
            keys, values, gates = self._pairs(own, written)
            query = self._projected(own, "w_q", near)[-1]
            return own.w_o @ self._normalised(self.mixer.read(query, keys, values, **gates))

        return jnp.sum(jax.vmap(head)(weights), axis=0)

    def _written(self, tokens: Array) -> Array:
        return tokens if self.query_in_sum else tokens[:-1]

    def _projected(self, own: MixerWeights, name: str, tokens: Inexact[Array, "T D"]) -> Inexact[Array, "nT K"]:
        """Queries, keys or values of one head, those of a token one after the other."""
        rows = jnp.moveaxis(getattr(own, name) @ tokens.T, -1, 0)
        if self.convolution:
            before = jnp.concatenate([jnp.zeros((self.convolution - 1, *rows.shape[1:]), rows.dtype), rows])
            shifted = jnp.stack([before[c : c + len(rows)] for c in range(self.convolution)], axis=-1)
            rows = jax.nn.silu(jnp.einsum("t...c,...c->t...", shifted, own.taps[name]))
        if self.unit_keys and name != "w_v":
            rows = rows / jnp.sqrt(jnp.sum(jnp.abs(rows) ** 2, axis=-1, keepdims=True) + SMALLEST_SQUARE)
        return rows.reshape(-1, rows.shape[-1])

    def _pairs(self, own: MixerWeights, written: Inexact[Array, "T D"]) -> tuple[Array, Array, dict[str, Any]]:
        """Keys, values and gates of one head; a gate is one number, or (K,), for all tokens where it is constant."""
        gates = {}
        for name, gate in self.gates.items():
            raw, slope = own.gates[name].bias, own.gates[name].slope
            if slope is not None:
                linear = jnp.moveaxis(slope @ written.T, -1, 0)
                raw = linear + jnp.broadcast_to(raw, linear.shape)
            elif self.writes > 1:
                raw = jnp.broadcast_to(raw, (len(written), *raw.shape))
            if raw.ndim > gate.per_channel:
                raw = raw.reshape(-1, *raw.shape[raw.ndim - gate.per_channel :])
            gates[name] = in_range(jnp.real(raw), gate)
        return self._projected(own, "w_k", written), self._projected(own, "w_v", written), gates

    def _normalised(self, outputs: Inexact[Array, "*T V"]) -> Inexact[Array, "*T V"]:
        if not self.output_norm:
            return outputs
        return outputs / jnp.sqrt(jnp.mean(jnp.abs(outputs) ** 2, axis=-1, keepdims=True) + SMALLEST_SQUARE)
