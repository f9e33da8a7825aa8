"""`Problem`: what every closed form of Gaussian linear regression depends on.

    x ~ N(0, Lambda),  w ~ N(0, Omega),  y_i = w.x_i + noise of variance s2,  N context examples.

A closed form takes the problem as its first argument.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.core.typing import Array
from icl_lab.tasks.distributions.covariates import Gaussian
from icl_lab.tasks.regression.linear import LinearRegression


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """Linear regression with Gaussian inputs, Gaussian tasks and label noise, read in a context of N examples.

    Attributes:
      covariance: (d, d), Lambda, of the inputs; positive definite.
      task_covariance: (d, d), Omega, of the task vectors; positive semidefinite, w w^T for one fixed task. It need not commute
        with Lambda.
      noise_variance: s2 >= 0, of a label.
      context_length: N >= 1, `math.inf` allowed.

    Raises:
      InvalidValueError: `context_length` below 1, or negative noise.

    Examples:
      >>> import numpy as np
      >>> from icl_lab import theory
      >>> problem = theory.Problem(np.diag([2.0, 0.5]), np.eye(2), noise_variance=0.25, context_length=8)
      >>> problem.dim, problem.label_variance
      (2, 2.75)
    """

    covariance: Float[Array, "d d"]
    task_covariance: Float[Array, "d d"]
    noise_variance: float
    context_length: int | float

    def __post_init__(self) -> None:
        if not self.context_length >= 1:
            raise InvalidValueError(
                f"`context_length` must be >= 1; got {self.context_length!r}. The layer averages over the examples."
            )
        if not self.noise_variance >= 0:
            raise InvalidValueError(f"`noise_variance` must be >= 0; got {self.noise_variance!r}.")

    @classmethod
    def of(cls, task: LinearRegression) -> Problem:
        """The problem that a linear task with Gaussian inputs poses, in float64 numpy.

        Raises:
          UnsupportedProblemError: the inputs are not Gaussian with one fixed covariance.
        """
        if not isinstance(task.covariates, Gaussian):
            raise UnsupportedProblemError(
                f"The closed form needs Gaussian inputs with a fixed covariance; the task draws them from "
                f"{type(task.covariates).__name__}. Use `objectives.population`, which samples the moments of any distribution."
            )
        return cls(
            covariance=np.asarray(task.covariance, dtype=np.float64),
            task_covariance=np.asarray(task.task_covariance, dtype=np.float64),
            noise_variance=float(np.asarray(task.noise_std)) ** 2,
            context_length=task.context_length,
        )

    @property
    def dim(self) -> int:
        """Number of inputs, d."""
        return len(self.covariance)

    @property
    def label_variance(self) -> float:
        """tau = tr(Lambda Omega) + s2, the variance of a label."""
        return float(np.trace(self.covariance @ self.task_covariance)) + self.noise_variance
