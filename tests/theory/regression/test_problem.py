"""The problem of a task, and the values that are refused."""

import math

import numpy as np
import pytest

from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.tasks.distributions.independent import Uniform
from icl_lab.tasks.regression.linear import LinearRegression
from icl_lab.theory.regression.problem import Problem

COVARIANCE = np.array([[1.5, 0.2], [0.2, 0.5]])


def test_a_task_poses_its_own_problem():
    problem = Problem.of(LinearRegression(2, 7, COVARIANCE, [1.0, 3.0], noise_std=0.5))
    np.testing.assert_array_equal(problem.covariance, COVARIANCE)
    np.testing.assert_array_equal(problem.task_covariance, np.diag([1.0, 3.0]))
    assert (problem.noise_variance, problem.context_length, problem.dim) == (0.25, 7, 2)
    assert all(matrix.dtype == np.float64 for matrix in (problem.covariance, problem.task_covariance))


def test_a_label_varies_by_signal_and_noise():
    assert Problem(COVARIANCE, np.diag([1.0, 3.0]), 0.25, math.inf).label_variance == pytest.approx(1.5 + 1.5 + 0.25, rel=1e-15)


def test_inputs_that_are_not_gaussian_are_refused():
    with pytest.raises(UnsupportedProblemError, match="Uniform"):
        Problem.of(LinearRegression(2, 5, covariates=Uniform(2, 1.0)))


@pytest.mark.parametrize("length", [0, 0.5, -math.inf, math.nan])
def test_a_context_of_no_example_is_refused(length):
    with pytest.raises(InvalidValueError, match=r"context_length.*>= 1"):
        Problem(COVARIANCE, np.eye(2), 0.0, length)


@pytest.mark.parametrize("noise", [-0.1, math.nan])
def test_negative_noise_is_refused(noise):
    with pytest.raises(InvalidValueError, match="noise_variance"):
        Problem(COVARIANCE, np.eye(2), noise, 5)
