"""Least squares on one prompt: ordinary, of minimum norm, and recursive."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Inexact

from icl_lab.core.typing import Array
from icl_lab.estimators.examples import examples, predict
from icl_lab.estimators.names import estimator
from icl_lab.estimators.ridge import Penalty, check_penalty, penalty_matrix
from icl_lab.tasks.prompt import Prompt


def ols_weights(prompt: Prompt) -> Inexact[Array, "k d"]:
    r"""The least squares matrix of least Frobenius norm, :math:`W^\top = X^+ Y`.

    The pseudo-inverse comes from a singular value decomposition; singular values below eps max(N, d) times the largest
    count as zero. With N >= d inputs in general position it is ordinary least squares, with N < d the interpolating
    matrix of minimum norm.

    Args:
      prompt: one prompt with N examples.

    Returns:
      W (k, d).

    Raises:
      NonFiniteError: a NaN or an infinity in the prompt.
    """
    inputs, labels, _ = examples(prompt)
    return jnp.linalg.lstsq(inputs, labels)[0].T


@estimator
def ols(prompt: Prompt) -> Inexact[Array, "k"]:
    """The prediction W x_q of ordinary least squares on the examples of one prompt, of minimum norm where N < d.

    Args:
      prompt: one prompt with N examples.

    Returns:
      (k,).

    Raises:
      NonFiniteError: a NaN or an infinity in the prompt.

    Examples:
      >>> import numpy as np
      >>> from icl_lab import estimators
      >>> from icl_lab.tasks import Prompt
      >>> inputs = np.array([[1.0], [2.0], [3.0]])
      >>> prompt = Prompt(inputs, labels=2 * inputs, query=np.array([5.0]), target=np.array([10.0]), latent=np.array([2.0]))
      >>> print(estimators.ols(prompt).round(3))
      [10.]
    """
    return predict(ols_weights(prompt), prompt)


def recursive_least_squares_path(prompt: Prompt, penalty: Penalty) -> Inexact[Array, "N k d"]:
    r"""The ridge matrices of the first 1 .. N examples, by one rank-one update of the inverse an example.

    With R the inverse of the penalised Gram matrix so far,

    .. math:: g = \frac{R\,\bar x}{1 + x^\top R\,\bar x}, \qquad
              W \leftarrow W + (y - W x)\, g^\top, \qquad R \leftarrow R - g\, x^\top R .

    For a sequence of states, row t - 2 times x_t is the answer of the mesa layer at position t.

    Args:
      prompt: one prompt with N examples, taken in order.
      penalty: Lambda, a number lambda > 0 (for lambda I) or a positive definite matrix (d, d); the start is
        R = Lambda^{-1}, W = 0.

    Returns:
      W after each example, (N, k, d); equal to ridge up to rounding, which grows as the penalty gets small.

    Raises:
      InvalidValueError, NotPositiveDefiniteError: a penalty that is not positive definite, or of the wrong shape.
      NonFiniteError: a NaN or an infinity in the prompt.

    Source: the mesa layer of von Oswald et al., arXiv 2309.05858, without forgetting.
    """
    inputs, labels, query = examples(prompt)
    dim = query.shape[0]
    check_penalty(penalty, dim)
    factor = cho_factor(penalty_matrix(penalty, dim, inputs.dtype))
    inverse = cho_solve(factor, jnp.eye(dim, dtype=inputs.dtype))

    def update(state, example):
        weights, inverse = state
        x, y = example
        direction = inverse @ x.conj()
        gain = direction / (1 + x @ direction)
        weights = weights + jnp.outer(y - weights @ x, gain)
        return (weights, inverse - jnp.outer(gain, direction.conj())), weights

    start = jnp.zeros((labels.shape[1], dim), inputs.dtype)
    return jax.lax.scan(update, (start, inverse), (inputs, labels))[1]


def recursive_least_squares_weights(prompt: Prompt, penalty: Penalty) -> Inexact[Array, "k d"]:
    """The ridge matrix W (k, d) of a prompt, found by one rank-one update an example: the end of the path.

    Args:
      prompt: one prompt with N examples, taken in order.
      penalty: Lambda, a number lambda > 0 (for lambda I) or a positive definite matrix (d, d).
    """
    return recursive_least_squares_path(prompt, penalty)[-1]


@estimator
def recursive_least_squares(prompt: Prompt, penalty: Penalty) -> Inexact[Array, "k"]:
    """The prediction W x_q (k,) of recursive least squares, which is that of ridge regression up to rounding.

    Args:
      prompt: one prompt with N examples, taken in order.
      penalty: Lambda, a number lambda > 0 (for lambda I) or a positive definite matrix (d, d).
    """
    return predict(recursive_least_squares_weights(prompt, penalty), prompt)
