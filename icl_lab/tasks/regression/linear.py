"""In-context linear regression: y_i = w.x_i + noise with a Gaussian task vector w."""

from __future__ import annotations

from typing import Any, TypeGuard

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Float

from icl_lab.core.errors import UnsupportedProblemError
from icl_lab.core.linalg import check_covariance
from icl_lab.core.prng import stream
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.distributions.covariates import CovariateDistribution, covariates_for, normals
from icl_lab.tasks.distributions.spectra import apply_root, as_covariance, covariance_root
from icl_lab.tasks.prompt import Prompt, RegressionTask, Task, add_noise, as_float64, check_prompt_fits, regression_prompt


class LinearRegression(RegressionTask):
    """y_i = w.x_i + ε_i, w ~ N(0, Ω) drawn once per prompt, ε_i ~ N(0, noise_std^2); the target is the noiseless w.x_q.

    Args:
      dim: d >= 1.
      context_length: N >= 1, labelled examples; the query is not counted.
      covariance: Λ of Gaussian covariates: None (identity), a (d,) spectrum or a (d, d) positive definite matrix.
      task_covariance: Ω, given in the same ways; may be singular.
      noise_std: standard deviation of the label noise, >= 0.
      covariates: any other covariate distribution, instead of `covariance`.

    Attributes:
      covariates: the distribution of the inputs.
      task_covariance: (d, d) Ω.
      task_root: square root of Ω, computed once (see `spectra.covariance_root`). Derived: to change Ω, make a new task.

    Raises:
      InvalidValueError: a size below 1, a shape that does not fit dim, negative noise, or covariates given twice.
      NotPositiveDefiniteError: Λ not symmetric positive definite, or Ω not symmetric positive semidefinite.

    Examples:
      >>> import jax
      >>> from icl_lab import tasks
      >>> task = tasks.LinearRegression(dim=2, context_length=8, covariance=[2.0, 0.5], noise_std=0.1)
      >>> task.covariance
      array([[2. , 0. ],
             [0. , 0.5]])
      >>> float(task.signal_variance)
      2.5
      >>> prompt = task.sample(jax.random.key(0))
      >>> prompt.inputs.shape, prompt.labels.shape, prompt.query.shape
      ((8, 2), (8, 1), (2,))
    """

    dim: int = eqx.field(static=True)
    context_length: int = eqx.field(static=True)
    covariates: CovariateDistribution
    task_covariance: Float[Array, "d d"]
    task_root: Array | None

    def __init__(
        self,
        dim: int,
        context_length: int,
        covariance: Any = None,
        task_covariance: Any = None,
        noise_std: Any = 0.0,
        covariates: CovariateDistribution | None = None,
    ):
        self.dim = dim
        self.context_length = context_length
        self.label_dim = 1
        self.covariates = covariates_for(dim, covariance, covariates)
        self.task_covariance = as_covariance(task_covariance, dim, "task_covariance")
        check_covariance(self.task_covariance, "task_covariance", allow_singular=True)
        self.task_root = covariance_root(self.task_covariance)
        self.noise_std = as_float64(noise_std)

    def with_context_length(self, length: int) -> LinearRegression:
        return LinearRegression(
            self.dim,
            length,
            task_covariance=self.task_covariance,
            noise_std=self.noise_std,
            covariates=self.covariates,
        )

    @property
    def covariance(self) -> Float[Array, "d d"]:
        """(d, d) Λ = E[x x^T]."""
        return self.covariates.covariance

    @property
    def signal_variance(self) -> Float[Array, ""] | float:
        """Variance of a noiseless label, tr(ΛΩ)."""
        return (self.covariance * self.task_covariance).sum()

    @property
    def label_variance(self) -> Float[Array, ""] | float:
        """Variance of a label, tr(ΛΩ) + noise_std^2."""
        return self.signal_variance + self.noise_std**2

    def sample(self, key: Key) -> Prompt:
        """One prompt; its latent is the task vector w (d,)."""
        check_prompt_fits(self.context_length, self.dim)
        inputs = self.covariates.sample(stream(key, "inputs"), self.context_length + 1)
        task_vector = self.sample_task(key)
        return regression_prompt(key, inputs, (inputs @ task_vector)[:, None], self.noise_std, task_vector)

    def sample_task(self, key: Key) -> Float[Array, "d"]:
        """The task vector of the prompt of a key."""
        return apply_root(self.task_root, normals(stream(key, "task"), 1, self.dim))[0]

    def sample_examples(self, key: Key, task_vector: Float[Array, "d"], count: int) -> Float[Array, "count D"]:
        """`count` examples (x_i, y_i) of a task as rows, D = d + 1: a prompt too long for memory is drawn in such pieces.

        Raises:
          UnsupportedProblemError: the inputs of a prompt share a random covariance, of which each piece would draw its own.
        """
        if self.covariates.shared_covariance:
            raise UnsupportedProblemError(
                f"the inputs of a prompt of `{type(self.covariates).__name__}` are not independent of each other, so that a "
                "prompt cannot be drawn in pieces. Draw it whole, by `sample`."
            )
        inputs = self.covariates.sample(stream(key, "inputs"), count)
        labels = add_noise(stream(key, "noise"), (inputs @ task_vector)[:, None], self.noise_std)
        return jnp.concatenate([inputs, labels], axis=1)


def is_plain(task: Task) -> TypeGuard[LinearRegression]:
    """Whether a task's prompts are those of `LinearRegression`; a subclass that draws its own may mean others."""
    own = ("sample", "sample_task", "with_context_length")
    return isinstance(task, LinearRegression) and all(
        getattr(type(task), name) is getattr(LinearRegression, name) for name in own
    )
