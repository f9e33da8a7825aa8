r"""A trainable layer round any token mixer: projections to queries, keys and values, gates, and back to the tokens.

.. math:: e_j \leftarrow e_j + \sum_h W_O^h\, o_j^h, \qquad o^h = \mathrm{mixer}(W_Q^h e,\; W_K^h e,\; W_V^h e;\; g^h(e))

The tokens before the query are a causal sequence: token j is written before it is read, so its update knows of the tokens up
to and including j. The query token, the last one, reads after all of them; it is written too only with `query_in_sum`.

A gate is constant or linear in the token before it is brought into its range by a monotone map:

    range             value at raw x
    [a, b]            a + (b - a) sigmoid(x)
    (-inf, b]         b - softplus(-x)         of a log decay (b = 0): the share that is kept is sigmoid(x)
    [a, inf)          a + softplus(x)
    (-inf, inf)       x
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.prng import stream
from icl_lab.core.typing import Array, Key, Weights
from icl_lab.mixers.base import Gate, Mixer
from icl_lab.models.initializers import check_gaussian, normal
from icl_lab.models.layer import Layer, check_class
from icl_lab.tasks.prompt import check_count

FIRST_LOG_DECAY = -0.02
"""Log decay at the start of training unless another is asked for, below its largest value: 98 % is kept at each token."""
FIRST_UNBOUNDED = 0.01
"""Where a gate without any bound starts: not at 0, where the gradient of a product of two of them vanishes."""


class GateMap(eqx.Module):
    """One gate of all heads before it is brought into range: bias + slope e_j.

    Attributes:
      bias: (H,), or (H, K) of a gate per key channel.
      slope: (H, D) or (H, K, D); None if the gate is the same at every token.
    """

    bias: Inexact[Array, "H *K"]
    slope: Inexact[Array, "H *K D"] | None = None


class MixerWeights(eqx.Module):
    """The weights of a layer round a mixer, heads first.

    Attributes:
      w_q: (H, K, D), token to query.
      w_k: (H, K, D), token to key.
      w_v: (H, V, D), token to value.
      w_o: (H, D, V), output to what is added to the token.
      gates: the mixer's gates by name.
    """

    w_q: Inexact[Array, "H K D"]
    w_k: Inexact[Array, "H K D"]
    w_v: Inexact[Array, "H V D"]
    w_o: Inexact[Array, "H D V"]
    gates: dict[str, GateMap]

    @staticmethod
    def init(
        key: Key,
        width: int,
        mixer: Mixer,
        scale: float,
        *,
        heads: int = 1,
        key_width: int | None = None,
        value_width: int | None = None,
        gates: Mapping[str, float] | None = None,
        data_dependent: bool = False,
    ) -> MixerWeights:
        """Projections with independent N(0, scale^2) entries, and gates that start at the same value for every token.

        Args:
          key: random key.
          width: D, width of a token.
          mixer: the mixer, which says what its gates are.
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
        known = {gate.name: gate for gate in mixer.description.gates}
        starts = {name: default_start(gate) for name, gate in known.items()} | dict(gates or {})
        mixer.check_gates(**starts)
        shapes = {
            "w_q": (heads, key_width, width),
            "w_k": (heads, key_width, width),
            "w_v": (heads, value_width, width),
            "w_o": (heads, width, value_width),
        }
        maps = {}
        for name, gate in known.items():
            lead = (heads, key_width) if gate.per_channel else (heads,)
            slope = scale * normal(stream(key, name), (*lead, width)) if data_dependent else None
            maps[name] = GateMap(np.full(lead, raw_value(starts[name], gate)), slope)
        projections = {name: scale * normal(stream(key, name), shape) for name, shape in shapes.items()}
        return MixerWeights(**projections, gates=maps)


class MixerLayer(Layer):
    """A layer round a token mixer; its weights are `MixerWeights`.

    Attributes:
      mixer: any mixer, with its own parameters.
      query_in_sum: whether the query token is written before it is read.
    """

    mixer: Mixer
    query_in_sum: bool = eqx.field(static=True, kw_only=True, default=False)

    def prepared(self, weights: Weights, width: int, place: str) -> MixerWeights:
        """The weights as they are, after a check of every shape."""
        check_class(weights, MixerWeights, place)
        gates = {gate.name: gate for gate in self.mixer.description.gates}
        if weights.gates.keys() != gates.keys():
            raise InvalidValueError(
                f"`gates` of {place} must be {sorted(gates)}, those of {self.mixer.name}; got {sorted(weights.gates)}."
            )
        (heads, key_width), value_width = weights.w_k.shape[:2], weights.w_v.shape[1]
        shapes = {
            "w_q": (weights.w_q, (heads, key_width, width)),
            "w_k": (weights.w_k, (heads, key_width, width)),
            "w_v": (weights.w_v, (heads, value_width, width)),
            "w_o": (weights.w_o, (heads, width, value_width)),
        }
        for name, own in weights.gates.items():
            lead = (heads, key_width) if gates[name].per_channel else (heads,)
            shapes[f"gates.{name}.bias"] = own.bias, lead
            if own.slope is not None:
                shapes[f"gates.{name}.slope"] = own.slope, (*lead, width)
        for name, (matrix, expected) in shapes.items():
            if matrix.shape != expected:
                raise InvalidValueError(
                    f"`{name}` of {place} must be {expected}, because the tokens are {width} wide and the keys say {heads} "
                    f"head(s) of width {key_width}; got shape {tuple(matrix.shape)}."
                )
        return weights

    def updates(self, weights: MixerWeights, tokens: Inexact[Array, "T D"]) -> Inexact[Array, "T D"]:
        """The mixer's output at every token, projected back and summed over heads; the query's is that of `query_update`."""
        written = self._written(tokens)

        def head(own: MixerWeights) -> Array:
            keys, values, gates = written @ own.w_k.T, written @ own.w_v.T, self._gates(own, written)
            queries = tokens @ own.w_q.T
            outputs = self.mixer.outputs(queries[: written.shape[0]], keys, values, **gates)
            if not self.query_in_sum:
                outputs = jnp.concatenate([outputs, self.mixer.read(queries[-1], keys, values, **gates)[None]])
            return outputs @ own.w_o.T

        return jnp.sum(jax.vmap(head)(weights), axis=0)

    def query_update(self, weights: MixerWeights, tokens: Inexact[Array, "T D"]) -> Inexact[Array, "D"]:
        """What the query token reads, projected back and summed over heads."""
        written = self._written(tokens)

        def head(own: MixerWeights) -> Array:
            keys, values, gates = written @ own.w_k.T, written @ own.w_v.T, self._gates(own, written)
            return own.w_o @ self.mixer.read(own.w_q @ tokens[-1], keys, values, **gates)

        return jnp.sum(jax.vmap(head)(weights), axis=0)

    def _written(self, tokens: Array) -> Array:
        return tokens if self.query_in_sum else tokens[:-1]

    def _gates(self, own: MixerWeights, tokens: Array) -> dict[str, Any]:
        """The gates of one head at some tokens, in their ranges; one number, or (K,), for all tokens if they are constant."""
        values = {}
        for gate in self.mixer.description.gates:
            bias, slope = own.gates[gate.name].bias, own.gates[gate.name].slope
            raw = bias
            if slope is not None:
                linear = tokens @ slope.T
                raw = linear + jnp.broadcast_to(bias, linear.shape)
            values[gate.name] = in_range(jnp.real(raw), gate)
        return values


def in_range(raw: Float[Array, "*any"], gate: Gate) -> Float[Array, "*any"]:
    """The value of a gate from any real number, by the map of the module."""
    if np.isinf(gate.lowest) and np.isinf(gate.highest):
        return raw
    if np.isinf(gate.lowest):
        return gate.highest - jax.nn.softplus(-raw)
    if np.isinf(gate.highest):
        return gate.lowest + jax.nn.softplus(raw)
    return gate.lowest + (gate.highest - gate.lowest) * jax.nn.sigmoid(raw)


def raw_value(value: float, gate: Gate) -> float:
    """The real number at which a gate has a value: the inverse of `in_range`.

    Raises:
      InvalidValueError: a value at an end of the range, which no real number reaches.
    """
    if not gate.lowest < value < gate.highest:
        raise InvalidValueError(
            f"`{gate.name}` of a layer that is trained must start strictly between {gate.lowest:g} and {gate.highest:g}, as "
            f"its ends are reached by no finite weights; got {value!r}."
        )
    if np.isinf(gate.lowest) and np.isinf(gate.highest):
        return value
    if np.isinf(gate.lowest):
        return -_inverse_softplus(gate.highest - value)
    if np.isinf(gate.highest):
        return _inverse_softplus(value - gate.lowest)
    share = (value - gate.lowest) / (gate.highest - gate.lowest)
    return float(np.log(share) - np.log1p(-share))


def _inverse_softplus(value: float) -> float:
    # log(e^v - 1), of which e^v would overflow.
    return float(value + np.log(-np.expm1(-value)))


def default_start(gate: Gate) -> float:
    """Where a gate starts unless another value is asked for.

    It is the middle of a range, `FIRST_LOG_DECAY` below its end, 1 above its start, and `FIRST_UNBOUNDED` if it has neither.
    """
    if np.isinf(gate.lowest) and np.isinf(gate.highest):
        return FIRST_UNBOUNDED
    if np.isinf(gate.lowest):
        return gate.highest + FIRST_LOG_DECAY
    return gate.lowest + 1.0 if np.isinf(gate.highest) else (gate.lowest + gate.highest) / 2
