r"""Ridge regression on one prompt: the Bayes predictor of Gaussian linear tasks.

The penalty is added to the *unnormalised* Gram matrix, never multiplied by N:

.. math:: (X^* X + \Lambda)\, W^\top = X^* Y .
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Float, Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import check_covariance, is_traced
from icl_lab.core.typing import Array
from icl_lab.estimators.examples import examples, predict
from icl_lab.estimators.names import estimator
from icl_lab.tasks.prompt import Prompt

Penalty = float | Float[Array, ""] | Float[Array, "d d"]
"""lambda > 0, standing for lambda I, or a real symmetric positive definite matrix."""


def check_penalty(penalty: Penalty, dim: int) -> None:
    """Raise unless `penalty` is a positive number or a positive definite (dim, dim) matrix; traced ones go unchecked.

    Raises:
      InvalidValueError: a number that is not positive and finite, or a wrong shape.
      NotPositiveDefiniteError: a matrix that is not symmetric positive definite.
    """
    if np.shape(penalty) not in ((), (dim, dim)):
        raise InvalidValueError(
            f"`penalty` must be a number or have shape ({dim}, {dim}), d being the dimension of the inputs; "
            f"got shape {np.shape(penalty)}."
        )
    if is_traced(penalty):
        return
    if np.ndim(penalty) == 2:
        check_covariance(np.asarray(penalty), "penalty")
    elif not (np.isfinite(penalty) and penalty > 0):
        raise InvalidValueError(f"`penalty` must be a finite number > 0; got {penalty!r}. Its limit at 0 is `ols`.")


def ridge_weights(prompt: Prompt, penalty: Penalty, *, dual: bool | None = None) -> Inexact[Array, "k d"]:
    r"""The ridge regression matrix of a prompt.

    .. math:: W^\top = (X^* X + \Lambda)^{-1} X^* Y = \Lambda^{-1} X^* (I_N + X \Lambda^{-1} X^*)^{-1} Y

    The first form costs a Cholesky factorisation of size d, the second of size N. It is the posterior mean, hence the
    predictor of least squared error, when the rows of W are independent N(0, Omega), the labels are W x_i plus
    N(0, s2 I) noise, and the penalty is s2 Omega^{-1}: whatever the distribution of the inputs, and also for sequences, whose
    inputs are past outputs.

    Args:
      prompt: one prompt with N examples.
      penalty: Lambda, a number lambda > 0 (for lambda I) or a real symmetric positive definite matrix (d, d); *not*
        multiplied by N.
      dual: whether to factorise the (N, N) matrix; by default if N < d and the penalty is a number.

    Returns:
      W (k, d).

    Raises:
      InvalidValueError: a penalty that is not positive, or of the wrong shape.
      NotPositiveDefiniteError: a matrix penalty that is not positive definite.
      NonFiniteError: a NaN or an infinity in the prompt.

    Source: for the Bayes property with s2 Omega^{-1}, Mahankali, Hashimoto, Ma, arXiv 2307.03576, Lemma 1.
    """
    inputs, labels, query = examples(prompt)
    dim = query.shape[0]
    check_penalty(penalty, dim)
    scalar = np.ndim(penalty) == 0
    matrix = penalty_matrix(penalty, dim, inputs.dtype)
    adjoint = inputs.conj().T
    if dual is None:
        # A matrix penalty has to be factorised at size d anyway.
        dual = scalar and inputs.shape[0] < dim
    if not dual:
        return cho_solve(cho_factor(adjoint @ inputs + matrix), adjoint @ labels).T
    whitened = adjoint / jnp.asarray(penalty, inputs.dtype) if scalar else cho_solve(cho_factor(matrix), adjoint)
    kernel = jnp.eye(inputs.shape[0], dtype=inputs.dtype) + inputs @ whitened
    return (whitened @ cho_solve(cho_factor(kernel), labels)).T


def penalty_matrix(penalty: Penalty, dim: int, dtype: np.dtype) -> Inexact[Array, "d d"]:
    """The penalty as a (dim, dim) matrix of the given dtype."""
    value = jnp.asarray(penalty, dtype)
    return value * jnp.eye(dim, dtype=dtype) if value.ndim == 0 else value


@estimator
def ridge(prompt: Prompt, penalty: Penalty) -> Inexact[Array, "k"]:
    """The prediction W x_q of ridge regression on the examples of one prompt.

    Args:
      prompt: one prompt with N examples.
      penalty: Lambda, a number lambda > 0 (for lambda I) or a positive definite matrix (d, d); added to the *unnormalised*
        X^* X.

    Returns:
      (k,). Errors and source are those of `ridge_weights`, which returns W.

    Examples:
      >>> import numpy as np
      >>> from icl_lab import estimators
      >>> from icl_lab.tasks import Prompt
      >>> inputs = np.array([[1.0], [2.0], [3.0]])
      >>> prompt = Prompt(inputs, labels=2 * inputs, query=np.array([5.0]), target=np.array([10.0]), latent=np.array([2.0]))
      >>> print(estimators.ridge(prompt, penalty=1.0).round(3))  # 5 * 28 / (14 + 1)
      [9.333]
    """
    return predict(ridge_weights(prompt, penalty), prompt)
