"""From the configuration group `task` to a distribution of prompts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from icl_lab import tasks
from icl_lab.config.choice import Group, choose
from icl_lab.config.covariance import covariance_matrix
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import check_covariance
from icl_lab.tasks.prompt import Task, check_count


def build_task(group: Group) -> Task:
    """The distribution of the prompts that `task` describes; ranges are checked by the task's own class.

    Raises:
      IclLabError: a value out of range.
    """
    return choose(_TASKS, group, "task")(group)


def _covariance(group: Group) -> np.ndarray:
    check_count(group["dim"], "task.dim", 1, "An input has at least one coordinate.")
    return covariance_matrix(group["covariance"], group["dim"], group["rotate"])


def _task_covariance(group: Group, dim: int, covariance: np.ndarray | None) -> np.ndarray:
    """Omega; `inverse` needs the inputs' covariance."""
    value, name = group["task_covariance"], "task.task_covariance"
    if not (isinstance(value, str) and value == "inverse"):
        return covariance_matrix(value, dim, name=name)
    if covariance is None:
        raise InvalidValueError(f"`{name}=inverse` needs a task with `task.covariance`; got task={group['kind']}.")
    check_covariance(covariance, "task.covariance")
    inverse = np.linalg.inv(covariance)
    return 0.5 * (inverse + inverse.T)


def _linear_regression(group: Group) -> tasks.LinearRegression:
    covariance = _covariance(group)
    return tasks.LinearRegression(
        group["dim"],
        group["context_length"],
        covariance=covariance,
        task_covariance=_task_covariance(group, group["dim"], covariance),
        noise_std=group["noise_std"],
    )


def _regression_with(distribution: Callable[[Group], tasks.CovariateDistribution]) -> Callable[[Group], Task]:
    """Linear regression whose inputs follow another distribution."""

    def build(group: Group) -> Task:
        covariates = distribution(group)
        return tasks.LinearRegression(
            covariates.dim,
            group["context_length"],
            task_covariance=_task_covariance(group, covariates.dim, None),
            noise_std=group["noise_std"],
            covariates=covariates,
        )

    return build


def _finite_support(group: Group) -> tuple[np.ndarray, np.ndarray]:
    """Values and probabilities, one row an eigenvalue, shorter rows padded with values of probability 0."""
    values, probabilities = group["values"], group["probabilities"]
    lengths = [len(row) for row in values], [len(row) for row in probabilities]
    if lengths[0] != lengths[1] or not lengths[0] or not all(lengths[0]):
        raise InvalidValueError(
            "`task.values` and `task.probabilities` must be lists of d non-empty rows of equal lengths; got rows of "
            f"lengths {lengths[0]} and {lengths[1]}."
        )
    longest = max(lengths[0])
    padded = [list(row) + [row[-1]] * (longest - len(row)) for row in values]
    chances = [list(row) + [0.0] * (longest - len(row)) for row in probabilities]
    return np.asarray(padded, dtype=np.float64), np.asarray(chances, dtype=np.float64)


def _nonlinear_regression(group: Group) -> Task:
    return tasks.NonlinearRegression(
        group["dim"],
        group["context_length"],
        response=choose(_RESPONSES, group, "task", "response")(group),
        covariance=_covariance(group),
        noise_std=group["noise_std"],
    )


def _linear_dynamics(group: Group) -> Task:
    return tasks.LinearDynamics(
        group["dim"],
        group["context_length"],
        transition=choose(_TRANSITIONS, group, "task", "transition")(),
        start=choose(_SEQUENCE_STARTS, group, "task", "start")(group["start_scale"]),
        noise_std=group["noise_std"],
    )


_TASKS: dict[str, Callable[[Group], Task]] = {
    "linear_regression": _linear_regression,
    "affine": lambda group: tasks.AffineRegression(_linear_regression(group), group["intercept_variance"]),
    "drift": lambda group: tasks.DriftingRegression(
        group["dim"], group["context_length"], group["persistence"], noise_std=group["noise_std"]
    ),
    "uniform": _regression_with(lambda group: tasks.Uniform(group["dim"], group["half_width"])),
    "student": _regression_with(lambda group: tasks.StudentT(group["dim"], group["degrees_of_freedom"], group["scale"])),
    "two_sizes": _regression_with(lambda group: tasks.TwoSizes(group["dim"], group["kurtosis"], group["variance"])),
    "sine": lambda group: tasks.SineRegression(
        group["context_length"], group["half_width"], group["distribution"], noise_std=group["noise_std"]
    ),
    "sphere": _regression_with(lambda group: tasks.Sphere(group["dim"], group["radius"])),
    "random_diagonal": _regression_with(lambda group: tasks.FiniteDiagonal(*_finite_support(group))),
    "gaussian_mixture": _regression_with(lambda group: tasks.GaussianMixture(group["covariances"], group["probabilities"])),
    "exponential_diagonal": _regression_with(lambda group: tasks.ExponentialDiagonal(group["dim"], group["scale"])),
    "rotated_spectrum": _regression_with(lambda group: tasks.RotatedSpectrum(*_finite_support(group))),
    "nonlinear": _nonlinear_regression,
    "autoregressive": lambda group: tasks.Autoregressive(
        group["coefficients"], group["context_length"], noise_std=group["noise_std"]
    ),
    "random_autoregressive": lambda group: tasks.RandomAutoregressive(
        group["order"], group["context_length"], noise_std=group["noise_std"], bound=group["bound"]
    ),
    "linear_dynamics": _linear_dynamics,
    "markov": lambda group: tasks.MarkovChain(group["states"], group["context_length"], group["concentration"]),
    "recall": lambda group: tasks.AssociativeRecall(
        group["dim"], group["context_length"], group["value_dim"], group["orthonormal"]
    ),
}

_RESPONSES: dict[str, Callable[[Group], tasks.Response]] = {
    "linear": lambda group: tasks.Linear(),
    "monomial": lambda group: tasks.SingleIndex(tasks.Monomial(group["degree"])),
    "hermite": lambda group: tasks.SingleIndex(tasks.Hermite(group["degree"])),
    "sign": lambda group: tasks.SingleIndex(tasks.Sign()),
    "relu": lambda group: tasks.SingleIndex(tasks.ReLU()),
    "relu_network": lambda group: tasks.ReLUNetwork(group["width"]),
    "random_cosine": lambda group: tasks.RandomCosine(),
}

_TRANSITIONS: dict[str, Callable[[], tasks.TransitionDistribution]] = {
    "diagonal_unitary": tasks.DiagonalUnitary,
    "haar_orthogonal": tasks.HaarOrthogonal,
    "rotation_blocks": tasks.RotationBlocks,
}

_SEQUENCE_STARTS: dict[str, Callable[[float], tasks.StartDistribution]] = {
    "gaussian": tasks.GaussianStart,
    "complex_gaussian": tasks.ComplexGaussianStart,
    "sparse": tasks.SparseStart,
    "rademacher": tasks.RademacherStart,
    "constant": tasks.ConstantStart,
}
