r"""Gauss-Seidel sweeps over one prompt: the interpolant by its coefficients on the examples.

A matrix in the span of the inputs, :math:`W = \sum_j c_j x_j^*`, fits all examples if its coefficients C (N, k) solve

.. math:: G\, C = Y, \qquad G = X X^*, \quad G_{ij} = x_j^* x_i .

A forward sweep solves one equation after the other for its own coefficient, the others being what they are,

.. math:: (D + L)\, C \leftarrow Y - L^*\, C, \qquad G = L + D + L^* .

It is a pass of online gradient descent with the step 1 / |x_i|^2 (the method of Kaczmarz), written without one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Inexact

from icl_lab.core.typing import Array
from icl_lab.estimators.derived import prediction_of
from icl_lab.estimators.examples import examples
from icl_lab.tasks.prompt import Prompt, check_count


def gauss_seidel_weights(prompt: Prompt, sweeps: int = 1) -> Inexact[Array, "k d"]:
    """The matrix of a prompt after some forward sweeps from zero.

    With many sweeps over N <= d inputs in general position it tends to the interpolant of least Frobenius norm.

    Args:
      prompt: one prompt with N examples, taken in order; one whose input is zero is left out.
      sweeps: L >= 0, how often the prompt is read.

    Returns:
      W (k, d).

    Raises:
      InvalidValueError: a negative number of sweeps.
      NonFiniteError: a NaN or an infinity in the prompt.

    Source: the textbook's iteration; for the delta rule that one sweep is, arXiv 2406.06484.
    """
    inputs, labels, _ = examples(prompt)
    check_count(sweeps, "sweeps", 0, "It is how often the prompt is read.")
    gram = inputs @ inputs.conj().T
    squares = jnp.diagonal(gram)
    # The equation of an input that is zero says nothing; with a 1 on the diagonal it has a solution, which W does not see.
    lower = jnp.tril(gram, -1) + jnp.diag(jnp.where(squares == 0, 1, squares))
    upper = jnp.triu(gram, 1)

    def sweep(coefficients, _):
        return solve_triangular(lower, labels - upper @ coefficients, lower=True), None

    coefficients = jax.lax.scan(sweep, jnp.zeros_like(labels), length=sweeps)[0]
    return coefficients.T @ inputs.conj()


gauss_seidel = prediction_of(gauss_seidel_weights, "The prediction W x_q (k,) after some forward sweeps from zero.")
