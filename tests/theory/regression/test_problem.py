"""The problem of a task, and the values that are refused."""

import math

import numpy as np
import pytest

from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.tasks.distributions.covariates import Gaussian
from icl_lab.tasks.distributions.independent import StudentT, TwoSizes, Uniform
from icl_lab.tasks.distributions.random_covariance import ExponentialDiagonal
from icl_lab.tasks.regression.linear import LinearRegression
from icl_lab.theory.regression import bayes, exact_loss, mahankali2023, zhang2023
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


def test_a_task_of_any_independent_inputs_poses_a_problem_that_knows_their_fourth_moment():
    law = TwoSizes(2, kurtosis=[1.5, 6.0], variance=[1.0, 2.0])
    problem = Problem.of(LinearRegression(2, 5, task_covariance=COVARIANCE, covariates=law))
    np.testing.assert_allclose(problem.signal_moment, law.fourth_moment(COVARIANCE), rtol=1e-15)
    gaussian = Problem.of(LinearRegression(2, 5, COVARIANCE, [1.0, 3.0]))
    np.testing.assert_allclose(gaussian.signal_moment, Gaussian(COVARIANCE).fourth_moment(np.diag([1.0, 3.0])), rtol=1e-14)


def test_closed_forms_that_know_more_than_fourth_moments_refuse_inputs_that_are_not_gaussian():
    task = LinearRegression(2, 5, covariates=Uniform(2, 3**0.5))
    problem = Problem.of(task)
    forms = (
        lambda: bayes.risk(problem, ()),
        lambda: bayes.scaled_limit(problem),
        lambda: exact_loss.risk(problem, np.eye(3), np.eye(3), query_in_sum=True),
        lambda: mahankali2023.distance_to_step(problem, np.eye(3), np.eye(3)),
        lambda: mahankali2023.optimum(task),
        lambda: zhang2023.optimum(task),
    )
    for form in forms:
        with pytest.raises(UnsupportedProblemError, match="needs Gaussian inputs"):
            form()


@pytest.mark.parametrize(
    ("law", "message"), [(ExponentialDiagonal(2), "`ExponentialDiagonal` share"), (StudentT(2, 3.0), "infinite")]
)
def test_inputs_that_are_not_independent_or_have_no_fourth_moment_are_refused(law, message):
    with pytest.raises(UnsupportedProblemError, match=message):
        Problem.of(LinearRegression(2, 5, covariates=law))


@pytest.mark.parametrize("length", [0, 0.5, -math.inf, math.nan])
def test_a_context_of_no_example_is_refused(length):
    with pytest.raises(InvalidValueError, match=r"context_length.*>= 1"):
        Problem(COVARIANCE, np.eye(2), 0.0, length)


@pytest.mark.parametrize("noise", [-0.1, math.nan])
def test_negative_noise_is_refused(noise):
    with pytest.raises(InvalidValueError, match="noise_variance"):
        Problem(COVARIANCE, np.eye(2), noise, 5)
