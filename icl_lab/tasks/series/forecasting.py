"""Given scalar series: as prompts, and the series that the public code of Zhou et al. draws from its seeds."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.tasks.prompt import Prompt, check_count
from icl_lab.tasks.series.autoregressive import autocovariances

ATTEMPTS = 1000
"""Draws of coefficients after which the public code gives up."""


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


class PublishedSeries(NamedTuple):
    """Coefficients (p,), nearest lag first, and the series (length,) that follows them in the same random stream."""

    coefficients: Float[np.ndarray, "p"]
    values: Float[np.ndarray, "length"]


def published_series(
    order: int, seed: int, noise_std: float = 0.05, length: int = 50_000, burn_in: int = 100
) -> PublishedSeries:
    """The data of one run of the public code, number for number up to rounding.

    Coefficients are uniform on (-0.9, 0.9)^p, drawn until stationary; the first p values are independent with the stationary
    variance, and `burn_in` values are dropped.

    Args:
      order: p >= 1.
      seed: of numpy's legacy generator.
      noise_std: standard deviation of the innovations.
      length: values kept, >= 1.
      burn_in: values dropped, >= p.

    Raises:
      InvalidValueError: a count out of range, or no stationary coefficients within the attempts of the public code.

    Source: github.com/MasterZhou1/ICL-Time-Series, data of Zhou et al. (arXiv 2510.09776).
    """
    check_count(order, "order", 1, "An autoregression has at least one lag.")
    check_count(length, "length", 1, "A series has at least one value.")
    check_count(burn_in, "burn_in", order, "The first p values are not jointly stationary.")
    stream = np.random.RandomState(seed)
    for _ in range(ATTEMPTS):
        coefficients = stream.uniform(-0.9, 0.9, order)
        if np.max(np.abs(np.roots(np.append(1.0, -coefficients)))) < 1:
            break
    else:
        raise InvalidValueError(f"seed {seed} gives no stationary coefficients of order {order} in {ATTEMPTS} draws.")
    start = stream.normal(0, np.sqrt(autocovariances(coefficients, noise_std, 1)[0]), order)
    innovations = stream.normal(0, noise_std, length + burn_in - order)
    recursion = np.append(1.0, -coefficients)
    import scipy.signal  # takes a second, and few runs forecast

    memory = scipy.signal.lfiltic([1.0], recursion, start[::-1])
    following, _ = scipy.signal.lfilter([1.0], recursion, innovations, zi=memory)
    return PublishedSeries(coefficients, np.concatenate([start, following])[burn_in:])
