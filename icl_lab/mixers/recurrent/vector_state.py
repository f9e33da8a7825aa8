r"""Mixers whose state is a vector: each channel is a sum of its own values, and a query only says what of it is put out.

Channel c of a key acts on channel c of the value and of the query, so K = V; products of different channels are never taken,
and a regression of values on keys needs channels that differ in their keys and hold the same value. The scale is 1 by default.

    mixer    key                            state                          output                source
    hgrn     logit of how much is written   h                              s q_t h_t             Qin et al.    arXiv 2311.04823
    rwkv4    logarithm of a weight          weighted mean, log of the      sigmoid(s q_t) m_t    Peng et al.   arXiv 2305.13048
                                            sum of the weights

.. math:: h_t = f_t\, h_{t-1} + (1 - f_t)\, v_t, \qquad 1 - f_t = (1 - l)\, \operatorname{sigmoid}(k_t)

.. math:: m_t = \frac{\sum_{i<t} e^{k_i + g_{i+1} + \dots + g_{t-1}} v_i + e^{u + k_t} v_t}
                     {\sum_{i<t} e^{k_i + g_{i+1} + \dots + g_{t-1}} + e^{u + k_t}}

The updates of both are associative: a block is one scan of logarithmic depth. No exponential of a positive number is taken.
"""

from __future__ import annotations

import abc
from typing import ClassVar, Generic, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Float, Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import is_traced
from icl_lab.core.typing import Array
from icl_lab.mixers.base import Description, Mixer
from icl_lab.mixers.forms import in_form, state_before, sums_to_end
from icl_lab.mixers.parameters import ChannelParameter, check_parameter, per_channel
from icl_lab.mixers.recurrent.linear import CHANNEL_LOG_DECAY

State = TypeVar("State")
"""What is kept, a tree of arrays (V,); with a leading token axis of many tokens."""


class VectorStateMixer(Mixer, Generic[State]):
    """What the mixers of this module have in common: the state of a token is its own share and what is left of the one before.

    The state after a token is what the token alone writes into an empty one, joined with the decayed state before it; blocks of
    tokens join in the same way, so all states are one associative scan.

    Attributes:
      scale: multiplies the queries; None is K^{-1/2}.
    """

    scale: float | int | Float[Array, ""] | None = 1.0

    @abc.abstractmethod
    def alone(self, keys: Array, values: Array, gates: dict[str, Array]) -> tuple[Float[Array, "T V"], State]:
        """For each token the log decay of the state before it, and what it writes."""

    @abc.abstractmethod
    def joined(self, state: State, log_decay: Array, written: State) -> State:
        """A decayed state and what was written since; entry by entry."""

    @abc.abstractmethod
    def outputs_from(self, queries: Array, keys: Array, values: Array, before: State, after: State) -> Array:
        """Outputs from the states before and after each token."""

    @abc.abstractmethod
    def start(self, initial: State | None, values: Inexact[Array, "T V"]) -> State:
        """The state before the first token, checked."""

    def mix(self, queries, keys, values, gates, form, chunk, initial):
        """Outputs and last state; the states of all tokens are no larger than the outputs."""
        start = self.start(initial, values)

        def join(earlier, later):
            return earlier[0] + later[0], self.joined(earlier[1], *later)

        def token(state, row):
            state = self.joined(state, *row)
            return state, state

        def block(state, rows):
            states = jax.vmap(self.joined, (None, 0, 0))(state, *jax.lax.associative_scan(join, rows))
            return jax.tree.map(lambda x: x[-1], states), states

        # Tokens that fill up the last block may write, so the last state is that of the last token.
        after, _ = in_form(token, block, start, self.alone(keys, values, gates), form, chunk)
        before = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest[:-1]]), start, after)
        return self.outputs_from(queries, keys, values, before, after), jax.tree.map(lambda x: x[-1], after)


class HGRN(VectorStateMixer[Array]):
    """The hierarchically gated recurrent network's mixer: a moving average of the values, as fast as the keys say.

    Attributes:
      lower_bound: l in [0, 1), the smallest share of the state that a token leaves.
    """

    name: ClassVar[str] = "hgrn"
    lower_bound: float | int | Float[Array, ""] = eqx.field(default=0.0, kw_only=True)

    def __check_init__(self):
        if not is_traced(self.lower_bound) and not 0 <= self.lower_bound < 1:
            raise InvalidValueError(
                f"`lower_bound` must be >= 0 and < 1, because it is a share of the state; got {self.lower_bound!r}."
            )

    @property
    def description(self) -> Description:
        """No degree: keys pass through a sigmoid."""
        return Description(channels, None, frozenset({"scale_values"}), "2311.04823", channelwise=True)

    def alone(self, keys, values, gates):
        """The forget gate's logarithm, and the value times what it does not keep."""
        keys = jnp.real(keys)
        bound = jnp.asarray(self.lower_bound, keys.dtype)
        written = ((1 - bound) * jax.nn.sigmoid(keys)).astype(values.dtype) * values
        return jnp.logaddexp(jnp.log(bound), jnp.log1p(-bound) - jax.nn.softplus(keys)), written

    def joined(self, state, log_decay, written):
        """A weighted sum."""
        return jnp.exp(log_decay).astype(written.dtype) * state + written

    def outputs_from(self, queries, keys, values, before, after):
        """The state after the token, times the query."""
        return queries * after

    def start(self, initial, values):
        """Zeros, or the vector h."""
        return state_before(initial, jnp.zeros(values.shape[1:], values.dtype), "state h of earlier tokens")

    def answer(self, query, keys, values, gates, initial):
        """A sum over the tokens, each times the decay after it."""
        log_decay, written = self.alone(keys, values, gates)
        left = jnp.exp(sums_to_end(log_decay)).astype(values.dtype)
        return query * (jnp.sum(left[1:] * written, axis=0) + left[0] * self.start(initial, values))


class WeightedMean(NamedTuple):
    """A mean of values for each channel.

    Attributes:
      mean: (V,).
      log_weight: (V,), the logarithm of the sum of the weights; minus infinity of none.
    """

    mean: Array
    log_weight: Array


class RWKV4(VectorStateMixer[WeightedMean]):
    """RWKV-4's mixer: a mean of the values under weights that decay; the query, its receptance, gates it and does not choose.

    The gate `log_decay` is -w of the paper, one number a channel there; the decay of token t acts after t has been read.

    Attributes:
      bonus: u, added to the logarithm of the weight of the token that is read; one number or (K,).
    """

    name: ClassVar[str] = "rwkv4"
    bonus: ChannelParameter = eqx.field(default=0.0, kw_only=True)

    def __check_init__(self):
        check_parameter(self.bonus, "bonus", "it is part of the logarithm of a weight", positive=False)

    @property
    def description(self) -> Description:
        """No degree; a vector added to every key cancels in the mean."""
        signature = frozenset({"scale_values", "shift_keys"})
        gates = (CHANNEL_LOG_DECAY,)
        return Description(lambda n, k, v: 2 * v, None, signature, "2305.13048", gates, channelwise=True)

    def alone(self, keys, values, gates):
        """The value, with the exponential of the key as its weight."""
        return gates["log_decay"], WeightedMean(values, jnp.real(keys))

    def joined(self, state, log_decay, written):
        """The mean of two means; the share of the later one is at most 1."""
        total = jnp.logaddexp(state.log_weight + log_decay, written.log_weight)
        share = jnp.exp(written.log_weight - total).astype(written.mean.dtype)
        return WeightedMean(state.mean + share * (written.mean - state.mean), total)

    def outputs_from(self, queries, keys, values, before, after):
        """The mean before the token joined with the token at its bonus, times the gate."""
        read = self.joined(before, jnp.zeros_like(before.log_weight), WeightedMean(values, self._read_logs(keys)))
        return _gate(queries) * read.mean

    def start(self, initial, values):
        """An empty mean, or the one of earlier tokens."""
        nothing = jnp.full(values.shape[1:], -jnp.inf, jnp.finfo(values.dtype).dtype)
        empty = WeightedMean(jnp.zeros(values.shape[1:], values.dtype), nothing)
        state = state_before(initial, empty, "`WeightedMean` of earlier tokens")
        return state._replace(log_weight=jnp.real(state.log_weight))

    def answer(self, query, keys, values, gates, initial):
        """A softmax over the tokens of each channel, of which the last has the bonus and no token decays by its own gate."""
        start, left = self.start(initial, values), sums_to_end(gates["log_decay"][:-1])
        earlier = jnp.concatenate([start.log_weight[None], jnp.real(keys[:-1])]) + left
        weights = jax.nn.softmax(jnp.concatenate([earlier, self._read_logs(keys[-1:])]), axis=0)
        means = jnp.concatenate([start.mean[None], values])
        return _gate(query) * jnp.sum(weights.astype(values.dtype) * means, axis=0)

    def _read_logs(self, keys: Inexact[Array, "T K"]) -> Float[Array, "T K"]:
        logs = jnp.real(keys)
        return logs + per_channel(self.bonus, "bonus", logs.shape[1], logs.dtype)[None]


def channels(tokens: int, key_width: int, value_width: int) -> int:
    """Numbers in a vector state: V, however many tokens there were."""
    return value_width


def _gate(queries: Array) -> Array:
    return jax.nn.sigmoid(jnp.real(queries)).astype(queries.dtype)
