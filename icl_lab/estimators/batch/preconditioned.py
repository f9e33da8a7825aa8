r"""Gradient descent with a matrix in place of the step size.

A preconditioner P (d, d) acts on the gradient from the right, transposed, so that one step from zero predicts

.. math:: \hat y = x_q^\top P \, \frac1N \sum_i y_i x_i

for real data with one label. For P = eta I it is `gradient_descent`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float, Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.estimators.batch.gradient_descent import check_finite_values, mean_gradient, starting_weights
from icl_lab.estimators.derived import prediction_of
from icl_lab.estimators.examples import examples
from icl_lab.tasks.prompt import Prompt, check_count


def preconditioned_gradient_descent_weights(
    prompt: Prompt,
    preconditioner: Float[Array, "*steps d d"],
    steps: int | None = None,
    initial: Inexact[Array, "k d"] | None = None,
) -> Inexact[Array, "k d"]:
    r"""The matrix after some steps of preconditioned gradient descent on the examples of a prompt.

    .. math:: W_{j+1} = W_j - \nabla R(W_j)\, P_j^\top, \qquad R(W) = \frac{1}{2N} \sum_i \lVert W x_i - y_i \rVert^2

    Args:
      prompt: one prompt with N examples.
      preconditioner: P, (d, d) for all steps or (steps, d, d), one for each; need not be symmetric. Multiplies the
        *mean* gradient.
      steps: number of steps >= 0; by default the number of preconditioners, which is 1 for a single matrix.
      initial: W_0 (k, d); zeros by default.

    Returns:
      W (k, d).

    Raises:
      InvalidValueError: a preconditioner or start that is not finite, or shapes or counts that do not fit.
      NonFiniteError: a NaN or an infinity in the prompt.

    Source: Ahn, Cheng, Daneshmand, Sra, arXiv 2306.00297, Lemma 1, with P = A^T in their notation.
    """
    inputs, labels, query = examples(prompt)
    check_finite_values(preconditioner, "preconditioner")
    matrices = jnp.asarray(preconditioner, inputs.dtype)
    dim = query.shape[0]
    if matrices.ndim not in (2, 3) or matrices.shape[-2:] != (dim, dim):
        raise InvalidValueError(
            f"`preconditioner` must have shape ({dim}, {dim}) or (steps, {dim}, {dim}), d being the dimension of the "
            f"inputs; got shape {matrices.shape}."
        )
    if matrices.ndim == 3 and steps not in (None, matrices.shape[0]):
        raise InvalidValueError(f"`steps` is {steps}, but {matrices.shape[0]} preconditioners were given; drop one of them.")
    start = starting_weights(initial, inputs, labels)

    def step(weights, matrix):
        return weights - mean_gradient(weights, inputs, labels) @ matrix.T, None

    if matrices.ndim == 3:
        return jax.lax.scan(step, start, matrices)[0]
    steps = 1 if steps is None else steps
    check_count(steps, "steps", 0, "It is the number of gradient steps.")
    return jax.lax.scan(lambda weights, _: step(weights, matrices), start, length=steps)[0]


preconditioned_gradient_descent = prediction_of(
    preconditioned_gradient_descent_weights, "The prediction W x_q (k,) after some preconditioned steps."
)
