"""In-context regression in which every example has a task vector of its own, correlated with that of the query."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import check_covariance, is_traced
from icl_lab.core.prng import stream
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.distributions.covariates import Gaussian, normals
from icl_lab.tasks.distributions.spectra import apply_root, as_covariance, covariance_root
from icl_lab.tasks.prompt import Prompt, RegressionTask, as_float64, check_prompt_fits, regression_prompt

ROUNDING = 1e-12
"""By how much the diagonal of a matrix of correlations may miss 1."""


class CorrelatedRegression(RegressionTask):
    """y_i = w_i.x_i + ε_i, x_i ~ N(0, I), ε_i ~ N(0, noise_std^2), with task vectors w_1 .. w_N, w_q that are jointly Gaussian.

    Each w_i is N(0, I), coordinates are independent, and E w_i w_j^T = C_ij I. The target is the noiseless w_q.x_q. With all
    correlations 1 this is `LinearRegression` with isotropic inputs and tasks.

    Args:
      dim: d >= 1.
      correlations: (M, M) C, M = N + 1, the query last: positive semidefinite with ones on the diagonal.
      noise_std: standard deviation of the label noise, >= 0.

    Attributes:
      context_length: N >= 1, read off the correlations.
      task_root: square root of C, computed once (see `spectra.covariance_root`). Derived: to change C, make a new task.

    Raises:
      InvalidValueError: a size below 1, correlations that are no square matrix with ones on the diagonal, or negative noise.
      NotPositiveDefiniteError: correlations that are not symmetric positive semidefinite.

    Examples:
      >>> import jax
      >>> import numpy as np
      >>> from icl_lab import tasks
      >>> task = tasks.CorrelatedRegression(dim=2, correlations=np.array([[1.0, 0.5], [0.5, 1.0]]))
      >>> task.context_length
      1
      >>> task.sample(jax.random.key(0)).latent.shape  # w_1, w_q
      (2, 2)

    Source: the multi-task prompts of Li et al. (arXiv 2504.04308).
    """

    dim: int = eqx.field(static=True)
    context_length: int = eqx.field(static=True)
    covariates: Gaussian
    correlations: Float[Array, "M M"]
    task_root: Array | None

    def __init__(self, dim: int, correlations: Float[Array, "M M"], noise_std: Any = 0.0):
        self.dim, self.label_dim = dim, 1
        self.context_length = len(correlations) - 1
        self.covariates = Gaussian(np.eye(dim))
        self.correlations = as_covariance(correlations, self.context_length + 1, "correlations")
        check_covariance(self.correlations, "correlations", allow_singular=True)
        self.task_root = covariance_root(self.correlations)
        self.noise_std = as_float64(noise_std)

    def __check_init__(self):
        if not is_traced(self.correlations) and np.max(np.abs(np.diagonal(self.correlations) - 1)) > ROUNDING:
            raise InvalidValueError(
                "`correlations` must have ones on the diagonal, since a task vector's entries have variance 1; "
                f"got {np.diagonal(self.correlations).tolist()}."
            )

    def sample(self, key: Key) -> Prompt:
        """One prompt; its latent holds the task vectors (N + 1, d), the query's last."""
        check_prompt_fits(self.context_length, self.dim)
        inputs = self.covariates.sample(stream(key, "inputs"), self.context_length + 1)
        # The root mixes the examples, coordinate by coordinate.
        vectors = apply_root(self.task_root, normals(stream(key, "task"), self.dim, self.context_length + 1)).T
        responses = jnp.sum(inputs * vectors, axis=1, keepdims=True)
        return regression_prompt(key, inputs, responses, self.noise_std, vectors)
