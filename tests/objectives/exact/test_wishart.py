"""Exact losses of several layers: the moments behind their rules, and risks that are known in closed form."""

import jax.numpy as jnp
import numpy as np
import pytest

from icl_lab import models
from icl_lab.core.errors import UnsupportedProblemError
from icl_lab.models import LSAWeights
from icl_lab.objectives.exact import wishart
from icl_lab.tasks import LinearRegression
from icl_lab.theory.descent import gram_moments
from icl_lab.theory.regression import lsa
from icl_lab.theory.regression.problem import Problem

MODEL = models.LinearSelfAttention(query_in_sum=False, readout_sign=-1.0)


def one_layer(weights, prompt):
    inner = jnp.pad(-jnp.asarray(weights), ((0, 1), (0, 1)))
    return MODEL(LSAWeights(jnp.zeros_like(inner).at[-1, -1].set(1.0), inner), prompt)


@pytest.mark.parametrize(("dim", "length"), [(1, 1), (3, 2), (2, 4), (5, 20)])
def test_path_moments_are_those_of_the_recursion(dim, length):
    assert wishart.path_moments(dim, length, 10) == gram_moments.gaussian_moments(dim, length, 10)


@pytest.mark.parametrize(("dim", "length"), [(2, 4), (2, 1), (3, 2)])
def test_one_layer_has_the_closed_risk_for_any_covariances(dim, length, rng):
    inputs, tasks = np.diag(np.linspace(1.5, 0.5, dim)) + 0.1, np.diag(np.linspace(0.6, 1.2, dim)) - 0.05
    step = rng.normal(size=(dim, dim))
    task = LinearRegression(dim=dim, context_length=length, covariance=inputs, task_covariance=tasks)
    risk = wishart.wishart_cubature(task, one_layer, 2).risk(step)
    # Layers with Q = -diag(A, 0) precondition with the transpose of A.
    np.testing.assert_allclose(risk, lsa.risk(Problem(inputs, tasks, 0.0, length), step.T), rtol=1e-12)


def test_the_bidiagonal_rule_has_the_risk_of_multiples(rng):
    inputs = np.diag([1.5, 0.5, 0.8])
    task = LinearRegression(dim=3, context_length=4, covariance=inputs, task_covariance=np.linalg.inv(inputs))
    step = 0.7 * np.linalg.inv(inputs)
    expected = lsa.risk(Problem(inputs, np.linalg.inv(inputs), 0.0, 4), step)
    np.testing.assert_allclose(wishart.bidiagonal_cubature(task, one_layer, 2).risk(step), expected, rtol=1e-12)
    spectral = wishart.spectral_cubature(3, 4, one_layer, 2)
    np.testing.assert_allclose(spectral.risk(np.full((1, 1), 0.7)), expected, rtol=1e-12)


@pytest.mark.parametrize(("dim", "length", "degree"), [(3, 4, 2), (5, 20, 8), (4, 2, 8), (2, 4, 27)])
def test_the_spectral_rule_is_that_of_chebyshevs_algorithm(dim, length, degree):
    moments = [int(m) for m in gram_moments.gaussian_moments(dim, length, 2 * (degree // 2) + 1)]
    for one, other in zip(wishart.spectral_rule(dim, length, degree), gram_moments.gauss_rule(moments), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11)


def test_what_the_rules_cannot_do_is_refused():
    with pytest.raises(UnsupportedProblemError, match="noise"):
        wishart.wishart_cubature(LinearRegression(dim=2, context_length=3, noise_std=0.1), one_layer, 2)
    with pytest.raises(UnsupportedProblemError, match="prompts"):
        wishart.wishart_cubature(LinearRegression(dim=6, context_length=8), one_layer, 4)
    task = LinearRegression(dim=2, context_length=3, task_covariance=[2.0, 1.0])
    with pytest.raises(UnsupportedProblemError, match="inverse"):
        wishart.bidiagonal_cubature(task, one_layer, 2)
