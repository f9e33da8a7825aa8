r"""Online gradient descent with momentum on one prompt: a step is a running sum of gradients that fade.

.. math:: M_t = \mu_t\, M_{t-1} + \eta_t\, (y_t - W_{t-1} x_t)\, x_t^*, \qquad W_t = W_{t-1} + M_t

Each gradient is that of one example's half squared error, taken where the weights are before the step.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float, Inexact

from icl_lab.core.typing import Array
from icl_lab.estimators.batch.gradient_descent import starting_weights
from icl_lab.estimators.derived import end_of, prediction_of
from icl_lab.estimators.examples import examples
from icl_lab.estimators.online.each import check_between, number_of_each
from icl_lab.tasks.prompt import Prompt


def momentum_sgd_path(
    prompt: Prompt,
    step_size: float | Float[Array, "*N"],
    momentum: float | Float[Array, "*N"],
    initial: Inexact[Array, "k d"] | None = None,
) -> Inexact[Array, "N k d"]:
    """The matrices after the first 1 .. N examples of one pass with momentum, which starts at zero.

    Args:
      prompt: one prompt with N examples, taken in order.
      step_size: eta, one number for all examples or one for each, (N,).
      momentum: mu in [0, 1], the share of the last step that is taken again: one number or one for each example, (N,).
      initial: W_0 (k, d); zeros by default.

    Returns:
      W after each example, (N, k, d).

    Raises:
      InvalidValueError: a step size or start that is not finite, a momentum outside [0, 1], or a wrong shape.
      NonFiniteError: a NaN or an infinity in the prompt.

    Source: the memory of Titans, arXiv 2501.00663, with a linear memory and without forgetting.
    """
    inputs, labels, _ = examples(prompt)
    check_between(momentum, "momentum", 0.0, 1.0, "0 being none")
    sizes, shares = number_of_each(step_size, "step_size", inputs), number_of_each(momentum, "momentum", inputs)

    def step(state, example):
        weights, move = state
        x, y, size, share = example
        move = share * move + size * jnp.outer(y - weights @ x, x.conj())
        return (weights + move, move), weights + move

    start = starting_weights(initial, inputs, labels)
    return jax.lax.scan(step, (start, jnp.zeros_like(start)), (inputs, labels, sizes, shares))[1]


momentum_sgd_weights = end_of(momentum_sgd_path, "The matrix W (k, d) after one pass with momentum.")
momentum_sgd = prediction_of(momentum_sgd_weights, "The prediction W x_q (k,) after one pass with momentum.")
