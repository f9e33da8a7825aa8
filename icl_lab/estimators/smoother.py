r"""Kernel smoothing on one prompt: the answer is a weighted mean of the labels, by how close each input is to the query.

.. math:: \hat y = c \sum_i a_i y_i, \qquad a = \operatorname{softmax}_i \kappa(x_i, x_q) / h^2

This is the estimator of Nadaraya and Watson, and what one head of softmax attention computes when its W_KQ is a multiple of
the identity on the inputs and its W_PV one on the labels. Two heads of opposite matrices compute a difference of two smoothers,
the kernel "odd". Nothing is fitted: the answer is not linear in the query.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import is_traced
from icl_lab.core.typing import Array
from icl_lab.estimators.batch.gradient_descent import check_finite_values
from icl_lab.estimators.examples import examples
from icl_lab.estimators.names import estimator
from icl_lab.tasks.prompt import Prompt

EXPONENTS = ("gaussian", "exponential", "opposite")
"""Kernels that are the exponential of `kernel_scores`."""
KERNELS = (*EXPONENTS, "odd")
"""Those, and the difference of "exponential" and "opposite"."""


def kernel_scores(inputs: Inexact[Array, "N d"], query: Inexact[Array, "d"], kernel: str) -> Float[Array, "N"]:
    r"""The real exponents kappa(x_i, x_q) of a kernel, to be divided by the squared bandwidth.

    Args:
      inputs: (N, d).
      query: (d,), of the same dtype.
      kernel: "gaussian", :math:`-\lVert x_i - x_q \rVert^2 / 2`; "exponential", :math:`\operatorname{Re} x_i^* x_q`;
        "opposite", minus that, for heads that look at the inputs on the other side.

    Raises:
      InvalidValueError: another kernel.
    """
    if kernel == "gaussian":
        return -jnp.sum(jnp.abs(inputs - query[None, :]) ** 2, axis=1) / 2
    if kernel not in EXPONENTS:
        raise InvalidValueError(f"`kernel` must be one of {', '.join(EXPONENTS)} (a smoother has odd, too); got {kernel!r}.")
    products = jnp.real(inputs.conj() @ query)
    return products if kernel == "exponential" else -products


@estimator
def kernel_smoother(
    prompt: Prompt,
    bandwidth: float | Float[Array, ""],
    kernel: str = "gaussian",
    scale: float | Float[Array, ""] = 1.0,
) -> Inexact[Array, "k"]:
    """The mean of the labels weighted by a softmax over the examples, times `scale`.

    The Gaussian kernel tends to the label of the nearest input as the bandwidth falls to 0. As it grows, every kernel tends to
    the mean of the labels, but "odd" to a step of gradient descent on centred inputs, of size 2 scale / bandwidth^2.

    Args:
      prompt: one prompt with N examples.
      bandwidth: h > 0, in units of the inputs.
      kernel: one of `KERNELS`.
      scale: c, multiplies the answer.

    Returns:
      (k,).

    Raises:
      InvalidValueError: a bandwidth that is not positive and finite, an unknown kernel, or a scale that is not finite.
      NonFiniteError: a NaN or an infinity in the prompt.

    Source: for the softmax head, von Oswald et al., arXiv 2212.07677, section on softmax attention.
    """
    inputs, labels, query = examples(prompt)
    if not is_traced(bandwidth) and not (np.isfinite(bandwidth) and bandwidth > 0):
        raise InvalidValueError(f"`bandwidth` must be a finite number > 0; got {bandwidth!r}.")
    check_finite_values(scale, "scale")
    scores = kernel_scores(inputs, query, "exponential" if kernel == "odd" else kernel)
    scores = scores / jnp.asarray(bandwidth, scores.dtype) ** 2
    weights = jax.nn.softmax(scores)
    if kernel == "odd":
        weights = weights - jax.nn.softmax(-scores)
    return jnp.asarray(scale, labels.dtype) * (weights.astype(labels.dtype) @ labels)
