r"""Gradient descent over blocks of one prompt: all gradients of a block are taken where the block begins.

.. math:: W \leftarrow W + \sum_{i \in \text{block}} \eta_i\, (y_i - W x_i)\, x_i^*

Blocks of one example are online gradient descent, one block of all is a step of gradient descent on the sum over the prompt.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float, Inexact

from icl_lab.core.typing import Array
from icl_lab.estimators.batch.gradient_descent import starting_weights
from icl_lab.estimators.derived import prediction_of
from icl_lab.estimators.examples import examples
from icl_lab.estimators.online.each import number_of_each
from icl_lab.tasks.prompt import Prompt, check_count


def minibatch_sgd_weights(
    prompt: Prompt, step_size: float | Float[Array, "*N"], batch: int, initial: Inexact[Array, "k d"] | None = None
) -> Inexact[Array, "k d"]:
    """The matrix after one pass of gradient descent over blocks of consecutive examples.

    Args:
      prompt: one prompt with N examples, taken in order.
      step_size: eta, one number for all examples or one for each, (N,); acts on the *sum* over a block.
      batch: b >= 1, the examples of a block; the last block holds what is left.
      initial: W_0 (k, d); zeros by default.

    Returns:
      W (k, d).

    Raises:
      InvalidValueError: a step size or start that is not finite, or of the wrong shape; a batch below 1.
      NonFiniteError: a NaN or an infinity in the prompt.

    Source: test-time training, arXiv 2407.04620, with a linear inner model.
    """
    inputs, labels, _ = examples(prompt)
    check_count(batch, "batch", 1, "It is the number of examples of a step.")
    sizes = number_of_each(step_size, "step_size", inputs)
    missing = -inputs.shape[0] % batch  # an example of step 0 fills up the last block

    def blocks(rows):
        return jnp.pad(rows, ((0, missing), (0, 0))).reshape(-1, batch, rows.shape[1])

    def step(weights, block):
        x, y, size = block
        return weights + (size * (y - x @ weights.T)).T @ x.conj(), None

    start = starting_weights(initial, inputs, labels)
    return jax.lax.scan(step, start, (blocks(inputs), blocks(labels), blocks(sizes[:, None])))[0]


minibatch_sgd = prediction_of(minibatch_sgd_weights, "The prediction W x_q (k,) after one pass over blocks of examples.")
