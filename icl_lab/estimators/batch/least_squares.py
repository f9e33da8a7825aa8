"""Least squares on one prompt: ordinary, and of minimum norm."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Inexact

from icl_lab.core.typing import Array
from icl_lab.estimators.examples import examples, predict
from icl_lab.estimators.names import estimator
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
      Labels without noise are fitted exactly:

      >>> import jax
      >>> from icl_lab import estimators, tasks
      >>> prompt = tasks.LinearRegression(dim=3, context_length=8).sample(jax.random.key(0))
      >>> bool(abs(estimators.ols(prompt) - prompt.target) < 1e-4)
      True
    """
    return predict(ols_weights(prompt), prompt)
