"""`Problem`: what every closed form of linear regression depends on.

    x ~ N(0, Lambda),  w ~ N(0, Omega),  y_i = w.x_i + noise of variance s2,  N context examples.

A closed form takes the problem as its first argument. Those that know inputs by their second and fourth moments alone hold for
any law of independent inputs, whose fourth moment the problem carries; the others call `Problem.check_gaussian`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.core.typing import Array
from icl_lab.tasks.distributions.covariates import Gaussian
from icl_lab.tasks.regression.linear import LinearRegression


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """Linear regression with independent inputs, Gaussian tasks and label noise, read in a context of N examples.

    Attributes:
      covariance: (d, d), Lambda, of the inputs; positive definite.
      task_covariance: (d, d), Omega, of the task vectors; positive semidefinite, w w^T for one fixed task. It need not commute
        with Lambda.
      noise_variance: s2 >= 0, of a label.
      context_length: N >= 1, `math.inf` allowed.
      fourth_moment: the function A -> E[x x^T A x x^T] of (d, d) matrices; None for Gaussian inputs.

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
    fourth_moment: Callable[[Float[Array, "d d"]], Float[Array, "d d"]] | None = None

    def __post_init__(self) -> None:
        if not self.context_length >= 1:
            raise InvalidValueError(
                f"`context_length` must be >= 1; got {self.context_length!r}. The layer averages over the examples."
            )
        if not self.noise_variance >= 0:
            raise InvalidValueError(f"`noise_variance` must be >= 0; got {self.noise_variance!r}.")

    @classmethod
    def of(cls, task: LinearRegression) -> Problem:
        """The problem that a linear task poses, in float64 numpy.

        Raises:
          UnsupportedProblemError: the inputs of a prompt share a random covariance, or their fourth moments are infinite or not
            known.
        """
        law = task.covariates
        if law.shared_covariance:
            raise UnsupportedProblemError(
                f"The closed form needs inputs that are independent of each other, and those of a prompt of "
                f"`{type(law).__name__}` share a random covariance. Use `objectives.population`, which samples the moments of "
                "any distribution."
            )
        gaussian = isinstance(law, Gaussian)
        if not gaussian:
            law.fourth_moment(np.eye(task.dim))  # an unknown one is refused here
        return cls(
            covariance=np.asarray(task.covariance, dtype=np.float64),
            task_covariance=np.asarray(task.task_covariance, dtype=np.float64),
            noise_variance=float(np.asarray(task.noise_std)) ** 2,
            context_length=task.context_length,
            fourth_moment=None if gaussian else law.fourth_moment,
        )

    def check_gaussian(self) -> None:
        """Raise `UnsupportedProblemError` unless inputs are Gaussian: for closed forms that need more than fourth moments."""
        if self.fourth_moment is not None:
            raise UnsupportedProblemError(
                "The closed form needs Gaussian inputs, and these have another fourth moment. `theory.lsa` takes any law."
            )

    @property
    def signal_moment(self) -> Float[Array, "d d"]:
        """(d, d) E[x x^T Omega x x^T]; 2 Lambda Omega Lambda + tr(Lambda Omega) Lambda for Gaussian inputs."""
        if self.fourth_moment is not None:
            return np.asarray(self.fourth_moment(self.task_covariance), dtype=np.float64)
        signal = self.covariance @ self.task_covariance
        return 2 * signal @ self.covariance + np.trace(signal) * self.covariance

    @property
    def dim(self) -> int:
        """Number of inputs, d."""
        return len(self.covariance)

    @property
    def label_variance(self) -> float:
        """tau = tr(Lambda Omega) + s2, the variance of a label."""
        return float(np.trace(self.covariance @ self.task_covariance)) + self.noise_variance
