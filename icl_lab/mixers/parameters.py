"""Parameters of a mixer that are one number, or one number a key channel."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import is_traced
from icl_lab.core.typing import Array

ChannelParameter = float | int | Float[Array, "*K"]
"""A number, or an array () or (K,)."""


def check_parameter(value: ChannelParameter, name: str, reason: str, *, positive: bool = True) -> None:
    """Raise `InvalidValueError` unless every entry is finite and, if asked, > 0; `reason` is a clause. Traced ones pass."""
    if is_traced(value):
        return
    known = np.asarray(value)
    wrong = known[~np.isfinite(known) | (positive and known <= 0)]
    if wrong.size:
        accepted = "finite and > 0" if positive else "finite"
        raise InvalidValueError(f"`{name}` must be {accepted}, because {reason}; got {wrong.flat[0]:g}.")


def per_channel(value: ChannelParameter, name: str, width: int, dtype: Any) -> Float[Array, "K"]:
    """One number for each of the K = `width` key channels.

    Raises:
      InvalidValueError: an array of another shape than () or (K,).
    """
    if np.shape(value) not in ((), (width,)):
        raise InvalidValueError(
            f"`{name}` must be one number or one a key channel, ({width},); got shape {tuple(np.shape(value))}."
        )
    return jnp.broadcast_to(jnp.asarray(value, dtype), (width,))
