"""The data an estimator reads from one prompt, checked once and brought to one dtype.

Conventions of the whole package: inputs X (N, d) and labels Y (N, k) have examples as rows, the fitted matrix W (k, d)
models y_i ~ W x_i and the prediction is W x_q. Complex data are allowed everywhere: inner products and least squares
conjugate the inputs, so the normal equations read X^* X W^T = X^* Y.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import is_traced
from icl_lab.core.typing import Array
from icl_lab.tasks.prompt import Prompt, check_finite


def examples(prompt: Prompt) -> tuple[Inexact[Array, "N d"], Inexact[Array, "N k"], Inexact[Array, "d"]]:
    """Inputs, labels and query of one prompt, in their common float or complex type (float32 at least).

    Args:
      prompt: one prompt. Its values are checked only where they are known, that is outside jit and vmap.

    Returns:
      inputs (N, d), labels (N, k), query (d,).

    Raises:
      InvalidValueError: a batch instead of one prompt, no examples, or shapes that do not fit together.
      NonFiniteError: a NaN or an infinity in a concrete prompt.
    """
    inputs, labels, query = prompt.inputs, prompt.labels, prompt.query
    shapes = f"inputs {inputs.shape}, labels {labels.shape}, query {query.shape}"
    if inputs.ndim != 2 or labels.ndim != 2 or query.ndim != 1:
        raise InvalidValueError(
            f"An estimator takes one prompt, with inputs (N, d), labels (N, k) and query (d,); got {shapes}. "
            "Map over a batch with `jax.vmap`."
        )
    if inputs.shape[0] < 1 or labels.shape[0] != inputs.shape[0] or query.shape[0] != inputs.shape[1]:
        raise InvalidValueError(
            f"A prompt needs N >= 1 examples, as many labels as inputs, and a query of the inputs' dimension; got {shapes}."
        )
    if not any(is_traced(leaf) for leaf in (inputs, labels, query, prompt.target)):
        check_finite(prompt)
    dtype = np.dtype(np.float32)
    for array in (inputs, labels, query):
        dtype = np.promote_types(dtype, array.dtype)
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    return jnp.asarray(inputs, dtype), jnp.asarray(labels, dtype), jnp.asarray(query, dtype)


def predict(weights: Inexact[Array, "k d"], prompt: Prompt) -> Inexact[Array, "k"]:
    """The prediction W x_q of a fitted matrix, in the dtype of W."""
    return weights @ jnp.asarray(prompt.query, weights.dtype)
