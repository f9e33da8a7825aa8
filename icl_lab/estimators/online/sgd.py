r"""Online gradient descent on one prompt: one pass over the examples in order, one step an example.

.. math:: W_t = W_{t-1} + \eta_t\, (y_t - W_{t-1} x_t)\, x_t^*

Each step moves W along the gradient of that example's half squared error alone,
:math:`\frac12 \lVert W x_t - y_t \rVert^2`; the step is not divided by N. With a step of 1 / |x_t|^2 the example is fitted
exactly (the method of Kaczmarz). With weight decay, the weights shrink before each step and the gradient is taken at what is
left of them,

.. math:: W'_t = W_{t-1} \operatorname{diag}(\alpha_t), \qquad W_t = W'_t + \eta_t\, (y_t - W'_t x_t)\, x_t^* .

The implicit step takes the gradient where it arrives, at W_t instead of W_{t-1}. It is the minimum of a quadratic,

.. math:: W_t = \operatorname{argmin}_W\; \lVert W - W_{t-1} \rVert^2 + \eta_t\, \lVert y_t - W x_t \rVert^2 ,
          \qquad W_t\, (I + \eta_t\, x_t x_t^*) = W_{t-1} + \eta_t\, y_t x_t^* ,

so that no step size, however large, makes it diverge.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Inexact

from icl_lab.core.typing import Array
from icl_lab.estimators.batch.gradient_descent import starting_weights
from icl_lab.estimators.derived import end_of, prediction_of
from icl_lab.estimators.examples import examples
from icl_lab.estimators.online.each import Decay, check_between, decay_of_each, number_of_each
from icl_lab.tasks.prompt import Prompt


def online_sgd_path(
    prompt: Prompt,
    step_size: float | Float[Array, "*N"],
    normalised: bool = False,
    initial: Inexact[Array, "k d"] | None = None,
    decay: Decay = 1.0,
) -> Inexact[Array, "N k d"]:
    """The matrices after the first 1 .. N examples of one pass of stochastic gradient descent.

    Args:
      prompt: one prompt with N examples, taken in order.
      step_size: eta, one number for all examples or one for each, (N,).
      normalised: whether the step is eta / |x_t|^2; an input that is zero then changes nothing.
      initial: W_0 (k, d); zeros by default.
      decay: alpha in [0, 1], by which the weights are multiplied before each step: a number, (d,) for one an input coordinate,
        (N, 1) for one an example or (N, d).

    Returns:
      W after each example, (N, k, d).

    Raises:
      InvalidValueError: a step size or start that is not finite, a decay outside [0, 1], or a wrong shape.
      NonFiniteError: a NaN or an infinity in the prompt.

    Source: the delta rule, arXiv 2406.06484, Section 2.2, read as a regression of labels on inputs; with a decay, arXiv
    2412.06464, and one for each coordinate, arXiv 2510.26692.
    """
    inputs, labels, _ = examples(prompt)
    sizes = number_of_each(step_size, "step_size", inputs)
    if normalised:
        squares = jnp.sum(inputs * inputs.conj(), axis=1)
        sizes = jnp.where(squares == 0, 0, sizes / jnp.where(squares == 0, 1, squares))

    def step(weights, x, y, size, kept):
        weights = weights * kept[None, :]
        return weights + size * jnp.outer(y - weights @ x, x.conj())

    decays = decay_of_each(decay, inputs)
    return _path(step, starting_weights(initial, inputs, labels), inputs, labels, sizes, decays)


online_sgd_weights = end_of(online_sgd_path, "The matrix W (k, d) after one pass of stochastic gradient descent.")
online_sgd = prediction_of(online_sgd_weights, "The prediction W x_q (k,) after one pass of stochastic gradient descent.")


def implicit_online_sgd_path(
    prompt: Prompt, step_size: float | Float[Array, "*N"], initial: Inexact[Array, "k d"] | None = None
) -> Inexact[Array, "N k d"]:
    """The matrices after the first 1 .. N examples of one pass of implicit stochastic gradient descent.

    Args:
      prompt: one prompt with N examples, taken in order.
      step_size: eta >= 0, one number for all examples or one for each, (N,).
      initial: W_0 (k, d); zeros by default.

    Returns:
      W after each example, (N, k, d), each by a solve of the normal equations: O(N d^3).

    Raises:
      InvalidValueError: a step size or start that is not finite, or of the wrong shape; a step size below 0.
      NonFiniteError: a NaN or an infinity in the prompt.

    Source: Toulis and Airoldi, arXiv 1408.2923, for the algorithm; arXiv 2407.14207 for the mixer that it is.
    """
    inputs, labels, _ = examples(prompt)
    sizes = number_of_each(step_size, "step_size", inputs)
    check_between(step_size, "step_size", 0.0, np.inf, "because an implicit step is a minimum")

    def step(weights, x, y, size):
        normal = jnp.eye(x.shape[0], dtype=x.dtype) + size * jnp.outer(x, x.conj())
        # The equations have W on the left of a Hermitian matrix, the solver takes it on the right.
        return jax.scipy.linalg.solve(normal, (weights + size * jnp.outer(y, x.conj())).conj().T, assume_a="pos").conj().T

    return _path(step, starting_weights(initial, inputs, labels), inputs, labels, sizes)


implicit_online_sgd_weights = end_of(implicit_online_sgd_path, "The matrix W (k, d) after one pass of implicit steps.")
implicit_online_sgd = prediction_of(implicit_online_sgd_weights, "The prediction W x_q (k,) after one pass of implicit steps.")


def _path(step: Callable, start: Inexact[Array, "k d"], *each: Array) -> Inexact[Array, "N k d"]:
    """W after each example; a step takes W and its example's row of every array of `each`, and returns W."""

    def after(weights, example):
        weights = step(weights, *example)
        return weights, weights

    return jax.lax.scan(after, start, each)[1]
