"""Rollouts of a forecaster on a scalar series: predict, append the prediction, predict again.

Every step has one more value than the last, hence one more column of the Hankel matrix and one more example in the context.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.core import compiled, precision
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array, Weights
from icl_lab.tasks.prompt import Prompt, check_count
from icl_lab.tasks.series.forecasting import forecast_prompt

Forecaster = Callable[[Weights, Prompt], Array]
"""A model, or a function of weights and prompt -> (1,)."""

COLLAPSED = 0.05
"""Share of the standard deviation of the series below which a prediction counts as collapsed."""


def rollout(model: Forecaster, weights: Weights, series: Float[Array, "*B n"], order: int, steps: int) -> Float[Array, "*B K"]:
    """The values that a forecaster appends to a series, in float64.

    Args:
      model: a model, or a function defined once, which is compiled once for every length.
      weights: its weights; other weights of the same shapes reuse the compiled programs.
      series: (n,) observed values in time order, or a batch of series (B, n).
      order: p, length of the lag windows, p < n.
      steps: K >= 1.

    Returns:
      (K,) or (B, K).

    Raises:
      InvalidValueError: `order` or `steps` out of range.
    """
    check_count(steps, "steps", 1, "A rollout appends at least one value.")
    values = np.atleast_2d(np.asarray(series, dtype=np.float64))
    observed = values.shape[1]
    with precision.float64():
        for _ in range(steps):
            values = np.concatenate([values, np.asarray(_next(model, weights, values, order))], axis=1)
    appended = values[:, observed:]
    return appended[0] if np.ndim(series) == 1 else appended


@compiled.jit
def _next(model: Forecaster, weights: Weights, values: Float[Array, "B n"], order: int) -> Float[Array, "B 1"]:
    return jax.vmap(lambda one: model(weights, forecast_prompt(one, order)))(jnp.asarray(values))


def collapse_step(predictions: Float[Array, "K"], std: float) -> int | None:
    """The first step from which on a whole window of predictions is close to zero.

    Args:
      predictions: (K,) of one rollout.
      std: standard deviation of the series that is continued.

    Returns:
      The smallest k (0 is the first prediction) with |predictions[k : k + window]| < 0.05 std throughout, where window =
      max(5, min(20, K // 5)); None if there is none.

    Raises:
      InvalidValueError: std <= 0.

    Source: the public code of Zhou et al. (arXiv 2510.09776).
    """
    if not std > 0:
        raise InvalidValueError(f"`std` must be > 0; got {std!r}. A constant series cannot collapse.")
    small = np.abs(np.asarray(predictions)) < COLLAPSED * std
    window = max(5, min(20, len(small) // 5))
    if len(small) < window:
        return None
    starts = np.flatnonzero(np.lib.stride_tricks.sliding_window_view(small, window).all(axis=1))
    return int(starts[0]) if starts.size else None
