"""What an online algorithm may have for each example, a step size or a decay: checked, and brought to full size."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import is_traced
from icl_lab.core.typing import Array
from icl_lab.estimators.batch.gradient_descent import check_finite_values

Decay = float | Float[Array, "..."]
"""alpha in [0, 1]: a number, (d,) for one an input coordinate, (N, 1) for one an example, or (N, d)."""


def check_between(value: float | Array, name: str, low: float, high: float, reason: str) -> None:
    """Raise `InvalidValueError` unless the entries of `value` are in [low, high]; traced ones go unchecked."""
    entries = np.asarray(low if is_traced(value) else value)
    if not np.all((entries >= low) & (entries <= high)):
        accepted = f"in [{low:g}, {high:g}]" if np.isfinite(high) else f">= {low:g}"
        raise InvalidValueError(f"`{name}` must be {accepted}, {reason}; got {entries}.")


def number_of_each(value: float | Float[Array, "*N"], name: str, inputs: Inexact[Array, "N d"]) -> Inexact[Array, "N"]:
    """One number for each example, in the dtype of the inputs.

    Raises:
      InvalidValueError: numbers that are not finite, or neither one nor one per example.
    """
    check_finite_values(value, name)
    numbers = jnp.asarray(value, inputs.dtype)
    if numbers.shape not in ((), inputs.shape[:1]):
        raise InvalidValueError(f"`{name}` must be a number or one per example, ({len(inputs)},); got shape {numbers.shape}.")
    return jnp.broadcast_to(numbers, inputs.shape[:1])


def decay_of_each(decay: Decay, inputs: Inexact[Array, "N d"]) -> Inexact[Array, "N d"]:
    """The decay at each example of each input coordinate, in the dtype of the inputs.

    Raises:
      InvalidValueError: a decay outside [0, 1], or of a shape that is none of (), (d,), (N, 1) and (N, d).
    """
    check_between(decay, "decay", 0.0, 1.0, "1 keeping all and 0 nothing")
    count, dim = inputs.shape
    if np.shape(decay) not in ((), (dim,), (count, 1), (count, dim)):
        raise InvalidValueError(
            f"`decay` must be a number, or one per coordinate ({dim},), per example ({count}, 1) or for both ({count}, {dim}); "
            f"got shape {np.shape(decay)}."
        )
    return jnp.broadcast_to(jnp.asarray(decay, inputs.dtype), inputs.shape)


def left_of_each(decay: Decay, inputs: Inexact[Array, "N d"]) -> Inexact[Array, "N d"]:
    r"""What the decays of later examples leave of each example, :math:`\prod_{s > i} \alpha_s`, for each input coordinate."""
    factors = decay_of_each(decay, inputs)
    later = jnp.concatenate([factors[1:], jnp.ones_like(factors[:1])])
    return jnp.cumprod(later[::-1], axis=0)[::-1]
