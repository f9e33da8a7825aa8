"""In-context regression with an intercept: a linear task whose labels are all shifted by one random number."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Float

from icl_lab.core.prng import stream
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.prompt import Prompt, Task, as_default_float, as_float64, check_nonnegative
from icl_lab.tasks.regression.linear import LinearRegression


class AffineRegression(Task):
    """y_i = w.x_i + b + ε_i, b ~ N(0, intercept_variance) drawn once per prompt; the target is the noiseless w.x_q + b.

    Inputs, task vector and noise are those of a linear task, number for number, so that the intercept is all that is added.

    Args:
      linear: the task without an intercept.
      intercept_variance: variance of b, >= 0.

    Raises:
      InvalidValueError: a negative variance.

    Examples:
      >>> import jax
      >>> from icl_lab import tasks
      >>> linear = tasks.LinearRegression(dim=2, context_length=8)
      >>> prompt = tasks.AffineRegression(linear, intercept_variance=4.0).sample(jax.random.key(0))
      >>> prompt.inputs.shape, prompt.latent.shape
      ((8, 2), (3,))
    """

    dim: int = eqx.field(static=True)
    label_dim: int = eqx.field(static=True)
    context_length: int = eqx.field(static=True)
    linear: LinearRegression
    intercept_variance: Float[Array, ""]

    def __init__(self, linear: LinearRegression, intercept_variance: Any = 1.0):
        self.dim, self.label_dim, self.context_length = linear.dim, linear.label_dim, linear.context_length
        self.linear = linear
        self.intercept_variance = as_float64(intercept_variance)

    def __check_init__(self):
        check_nonnegative(self.intercept_variance, "intercept_variance")

    def with_context_length(self, length: int) -> AffineRegression:
        return AffineRegression(self.linear.with_context_length(length), self.intercept_variance)

    def sample(self, key: Key) -> Prompt:
        """One prompt; its latent is the task vector followed by the intercept (d + 1,)."""
        prompt = self.linear.sample(key)
        intercept = jnp.sqrt(as_default_float(self.intercept_variance)) * jax.random.normal(stream(key, "intercept"))
        return Prompt(
            inputs=prompt.inputs,
            labels=prompt.labels + intercept,
            query=prompt.query,
            target=prompt.target + intercept,
            latent=jnp.append(prompt.latent, intercept),
        )
