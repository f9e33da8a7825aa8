r"""Online gradient descent on one prompt: one pass over the examples in order, one step an example.

.. math:: W_t = W_{t-1} + \eta_t\, (y_t - W_{t-1} x_t)\, x_t^*

Each step moves W along the gradient of that example's half squared error alone,
:math:`\frac12 \lVert W x_t - y_t \rVert^2`; the step is not divided by N. With a step of 1 / |x_t|^2 the example is fitted
exactly (the method of Kaczmarz).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float, Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.estimators.examples import examples, predict
from icl_lab.estimators.gradient_descent import check_finite_values, starting_weights
from icl_lab.estimators.names import estimator
from icl_lab.tasks.prompt import Prompt


def online_sgd_path(
    prompt: Prompt,
    step_size: float | Float[Array, "*N"],
    normalised: bool = False,
    initial: Inexact[Array, "k d"] | None = None,
) -> Inexact[Array, "N k d"]:
    """The matrices after the first 1 .. N examples of one pass of stochastic gradient descent.

    Args:
      prompt: one prompt with N examples, taken in order.
      step_size: eta, one number for all examples or one for each, (N,).
      normalised: whether the step is eta / |x_t|^2; an input that is zero then changes nothing.
      initial: W_0 (k, d); zeros by default.

    Returns:
      W after each example, (N, k, d).

    Raises:
      InvalidValueError: a step size or start that is not finite, or of the wrong shape.
      NonFiniteError: a NaN or an infinity in the prompt.

    Source: the delta rule, arXiv 2406.06484, Section 2.2, read as a regression of labels on inputs.
    """
    inputs, labels, _ = examples(prompt)
    check_finite_values(step_size, "step_size")
    sizes = jnp.asarray(step_size, jnp.finfo(inputs.dtype).dtype)
    if sizes.shape not in ((), inputs.shape[:1]):
        raise InvalidValueError(
            f"`step_size` must be a number or one per example, ({inputs.shape[0]},); got shape {sizes.shape}."
        )
    sizes = jnp.broadcast_to(sizes, inputs.shape[:1])
    if normalised:
        squares = jnp.sum(jnp.abs(inputs) ** 2, axis=1)
        sizes = jnp.where(squares == 0, 0, sizes / jnp.where(squares == 0, 1, squares))

    def step(weights, example):
        x, y, size = example
        weights = weights + size * jnp.outer(y - weights @ x, x.conj())
        return weights, weights

    start = starting_weights(initial, inputs, labels)
    return jax.lax.scan(step, start, (inputs, labels, sizes.astype(inputs.dtype)))[1]


def online_sgd_weights(
    prompt: Prompt,
    step_size: float | Float[Array, "*N"],
    normalised: bool = False,
    initial: Inexact[Array, "k d"] | None = None,
) -> Inexact[Array, "k d"]:
    """The matrix W (k, d) after one pass of stochastic gradient descent over the examples of a prompt.

    Args:
      prompt: one prompt with N examples, taken in order.
      step_size: eta, one number for all examples or one for each, (N,).
      normalised: whether the step is eta / |x_t|^2.
      initial: W_0 (k, d); zeros by default.
    """
    return online_sgd_path(prompt, step_size, normalised, initial)[-1]


@estimator
def online_sgd(
    prompt: Prompt,
    step_size: float | Float[Array, "*N"],
    normalised: bool = False,
    initial: Inexact[Array, "k d"] | None = None,
) -> Inexact[Array, "k"]:
    """The prediction W x_q (k,) after one pass of stochastic gradient descent over the examples of a prompt.

    Args:
      prompt: one prompt with N examples, taken in order.
      step_size: eta, one number for all examples or one for each, (N,).
      normalised: whether the step is eta / |x_t|^2.
      initial: W_0 (k, d); zeros by default.
    """
    return predict(online_sgd_weights(prompt, step_size, normalised, initial), prompt)
