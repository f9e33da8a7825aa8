"""Least squares on one prompt: ordinary, of minimum norm, and recursive."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Inexact

from icl_lab.estimators.examples import examples, predict
from icl_lab.estimators.ridge import Penalty, check_penalty, penalty_matrix
from icl_lab.tasks.prompt import Prompt
from icl_lab.typing import Array

CORRECTIONS = 5
WELL_CONDITIONED = 1e-3
"""Largest squared condition number, in units of 1 / eps, at which the corrections are trusted to converge: by about that
factor each. Singular inputs have 1 or more, so there is room for an estimate that is too small."""


def ols_weights(prompt: Prompt) -> Inexact[Array, "k d"]:
    r"""The least squares matrix of least Frobenius norm, :math:`W^\top = X^+ Y`.

    Singular values below eps max(N, d) times the largest count as zero. With N >= d inputs in general position it is
    ordinary least squares, with N < d the interpolating matrix of minimum norm.

    Well conditioned inputs take a Cholesky factor of their smaller Gram matrix and a few corrections by the residual, as
    accurate as an orthogonal factorisation; a singular value decomposition is made only if a prompt of the batch needs one.

    Args:
      prompt: one prompt with N examples.

    Returns:
      W (k, d).

    Raises:
      NonFiniteError: a NaN or an infinity in the prompt.
    """
    inputs, labels, _ = examples(prompt)
    return _least_squares(inputs, labels).T


@jax.custom_jvp
def _least_squares(inputs: Inexact[Array, "N d"], labels: Inexact[Array, "N k"]) -> Inexact[Array, "d k"]:
    fast, trusted = _by_gram_matrix(inputs, labels)
    # A loop of at most one round and not a condition: under vmap a condition takes both branches of every prompt, a loop
    # is left out if no prompt needs it.
    return jax.lax.while_loop(
        lambda state: ~state[1],
        lambda _: (jnp.linalg.lstsq(inputs, labels)[0].astype(fast.dtype), jnp.array(True)),
        (fast, trusted),  # pyright: ignore[reportArgumentType]
    )[0]


@_least_squares.defjvp
def _tangent_of_least_squares(primals, tangents):
    # Of the decomposition, since a loop has no reverse mode.
    return jax.jvp(lambda inputs, labels: jnp.linalg.lstsq(inputs, labels)[0], primals, tangents)


def _by_gram_matrix(inputs: Inexact[Array, "N d"], labels: Inexact[Array, "N k"]) -> tuple[Array, Array]:
    """X^+ Y by the normal equations of the smaller side, and whether the inputs are conditioned well enough for it."""
    count, dim = inputs.shape
    adjoint = inputs.conj().T
    gram = inputs @ adjoint if count < dim else adjoint @ inputs
    factor = cho_factor(gram)

    def right_side(residual):
        return residual if count < dim else adjoint @ residual

    # The largest eigenvalue of the inverse comes from a few steps of the power method, from a vector with a part in every
    # direction. It rides along: two solves of a program that do not wait for each other could wait for each other's threads.
    start = jnp.asarray(np.cos(1.0 + np.arange(len(gram)) ** 2), gram.dtype)[:, None]
    solved = cho_solve(factor, jnp.concatenate([right_side(labels), start], axis=1))
    for _ in range(CORRECTIONS):
        # Each shrinks the error by the square of the condition number times the rounding error, until rounding is left.
        fitted = (adjoint @ solved if count < dim else solved)[:, :-1]
        direction = solved[:, -1:] / jnp.linalg.norm(solved[:, -1:]).astype(gram.dtype)
        sides = jnp.concatenate([right_side(labels - inputs @ fitted), direction], axis=1)
        found = cho_solve(factor, sides)
        solved = jnp.concatenate([solved[:, :-1] + found[:, :-1], found[:, -1:]], axis=1)
    solution = (adjoint @ solved if count < dim else solved)[:, :-1]
    squared_condition = jnp.linalg.norm(solved[:, -1]) * jnp.real(jnp.trace(gram))
    return solution, squared_condition * jnp.finfo(gram.dtype).eps < WELL_CONDITIONED  # False for NaN


def ols(prompt: Prompt) -> Inexact[Array, "k"]:
    """The prediction W x_q of least squares, of minimum norm when N < d; see `ols_weights`."""
    return predict(ols_weights(prompt), prompt)


def recursive_least_squares_path(prompt: Prompt, penalty: Penalty) -> Inexact[Array, "N k d"]:
    r"""The ridge matrices of the first 1 .. N examples, by one rank-one update of the inverse an example.

    With R the inverse of the penalised Gram matrix so far,

    .. math:: g = \frac{R\,\bar x}{1 + x^\top R\,\bar x}, \qquad
              W \leftarrow W + (y - W x)\, g^\top, \qquad R \leftarrow R - g\, x^\top R .

    For a sequence of states, row t - 2 times x_t is the answer of the mesa layer at position t.

    Args:
      prompt: one prompt with N examples, taken in order.
      penalty: Lambda, as in `ridge_weights`; the start is R = Lambda^{-1}, W = 0.

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
    """The ridge matrix of all examples, built one at a time: the last of `recursive_least_squares_path`."""
    return recursive_least_squares_path(prompt, penalty)[-1]


def recursive_least_squares(prompt: Prompt, penalty: Penalty) -> Inexact[Array, "k"]:
    """The prediction W x_q of recursive least squares, equal to ridge; see `recursive_least_squares_weights`."""
    return predict(recursive_least_squares_weights(prompt, penalty), prompt)
