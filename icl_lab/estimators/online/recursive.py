r"""Recursive least squares on one prompt: ridge regression by one rank-one update an example, with or without forgetting.

With R the inverse of the penalised Gram matrix so far and a forgetting factor f,

.. math:: g = \frac{R\,\bar x}{f + x^\top R\,\bar x}, \qquad
          W \leftarrow W + (y - W x)\, g^\top, \qquad R \leftarrow (R - g\, x^\top R) / f .

An example of age j then counts f^j times, and so does the penalty: after N examples it is f^N of what it was. The mesa layer
forgets examples and keeps its penalty (`discounted_ridge`); the two agree without forgetting only.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Float, Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import is_traced
from icl_lab.core.typing import Array
from icl_lab.estimators.batch.ridge import Penalty, check_penalty, penalty_matrix
from icl_lab.estimators.derived import end_of, prediction_of
from icl_lab.estimators.examples import examples
from icl_lab.tasks.prompt import Prompt


def recursive_least_squares_path(
    prompt: Prompt, penalty: Penalty, forgetting: float | Float[Array, ""] = 1.0
) -> Inexact[Array, "N k d"]:
    """The matrices after the first 1 .. N examples; without forgetting, the ridge matrices of these examples.

    For a sequence of states, row t - 2 times x_t is the answer of the mesa layer at position t, if nothing is forgotten.

    Args:
      prompt: one prompt with N examples, taken in order.
      penalty: Lambda, a number lambda > 0 (for lambda I) or a positive definite matrix (d, d); the start is
        R = Lambda^{-1}, W = 0.
      forgetting: f in (0, 1], by which an example counts less with every later one.

    Returns:
      W after each example, (N, k, d); equal to ridge with weights f^(N - i) and penalty f^N Lambda up to rounding, which grows
      as the penalty gets small.

    Raises:
      InvalidValueError, NotPositiveDefiniteError: a penalty that is not positive definite, or of the wrong shape.
      InvalidValueError: a forgetting factor outside (0, 1].
      NonFiniteError: a NaN or an infinity in the prompt.

    Source: for f = 1 the mesa layer of von Oswald et al., arXiv 2309.05858; the textbook's recursion otherwise.
    """
    inputs, labels, query = examples(prompt)
    dim = query.shape[0]
    check_penalty(penalty, dim)
    if not is_traced(forgetting) and not 0 < forgetting <= 1:
        raise InvalidValueError(f"`forgetting` must be in (0, 1], 1 forgetting nothing; got {forgetting!r}.")
    factor = cho_factor(penalty_matrix(penalty, dim, inputs.dtype))
    inverse = cho_solve(factor, jnp.eye(dim, dtype=inputs.dtype))
    kept = jnp.asarray(forgetting, inputs.dtype)

    def update(state, example):
        weights, inverse = state
        x, y = example
        direction = inverse @ x.conj()
        gain = direction / (kept + x @ direction)
        weights = weights + jnp.outer(y - weights @ x, gain)
        return (weights, (inverse - jnp.outer(gain, direction.conj())) / kept), weights

    start = jnp.zeros((labels.shape[1], dim), inputs.dtype)
    return jax.lax.scan(update, (start, inverse), (inputs, labels))[1]


recursive_least_squares_weights = end_of(recursive_least_squares_path, "The matrix W (k, d) after all examples.")
recursive_least_squares = prediction_of(recursive_least_squares_weights, "The prediction W x_q (k,) after all examples.")
