"""The gates of a trainable layer: real numbers, constant or linear in the token, that a monotone map brings into range.

range             value at raw x
[a, b]            a + (b - a) sigmoid(x)
(-inf, b]         b - softplus(-x)         of a log decay (b = 0): the share that is kept is sigmoid(x)
[a, inf)          a + softplus(x)
(-inf, inf)       x
"""

from __future__ import annotations

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.mixers.base import Gate

FIRST_LOG_DECAY = -0.02
"""Log decay at the start of training unless another is asked for, below its largest value: 98 % is kept at each token."""
FIRST_UNBOUNDED = 0.01
"""Where a gate without any bound starts: not at 0, where the gradient of a product of two of them vanishes."""


class GateMap(eqx.Module):
    """One gate of all heads before it is brought into range: bias + slope e_j.

    Attributes:
      bias: (H,), with an axis of the writes of a token if there are several, and one of the key channels if each has its own.
      slope: the same with a last axis D; None if the gate is the same at every token.
    """

    bias: Inexact[Array, "H *n_K"]
    slope: Inexact[Array, "H *n_K D"] | None = None


def in_range(raw: Float[Array, "*any"], gate: Gate) -> Float[Array, "*any"]:
    """The value of a gate from any real number, by the table of the module."""
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
