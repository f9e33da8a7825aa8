"""A given scalar series as a prompt: what `autoregressive` samples, from data."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.errors import InvalidValueError
from icl_lab.tasks.prompt import Prompt
from icl_lab.typing import Array


def forecast_prompt(values: Float[Array, "n"], order: int) -> Prompt:
    """The prompt that asks for the value after x_1 .. x_n: N = n - p lag windows as inputs, the last p values as query.

    Args:
      values: (n,), in time order.
      order: p, length of a lag window, 1 <= p < n.

    Returns:
      One prompt, to which `autoregressive.series` is the inverse; its target is NaN, since the next value is not known.

    Raises:
      InvalidValueError: no complete window fits.
    """
    length = values.shape[0]
    if not 1 <= order < length:
        raise InvalidValueError(f"`order` must be between 1 and {length - 1}, one less than the number of values; got {order}.")
    values = jnp.asarray(values)
    windows = values[np.arange(length - order)[:, None] + np.arange(order)[None, :]]
    return Prompt(
        inputs=windows, labels=values[order:, None], query=values[-order:], target=jnp.full((1,), jnp.nan, values.dtype)
    )
