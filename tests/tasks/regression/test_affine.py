"""An intercept: it is all that differs from the linear task, and it has its variance."""

import equinox as eqx
import jax
import numpy as np
import pytest

from icl_lab.core.errors import InvalidValueError
from icl_lab.tasks import AffineRegression, LinearRegression, Sphere

LINEAR = LinearRegression(2, 3, [2.0, 0.5], noise_std=0.3)


def test_one_number_is_added_to_every_answer_of_the_linear_task(key):
    plain, shifted = LINEAR.sample(key), AffineRegression(LINEAR, 4.0).sample(key)
    np.testing.assert_array_equal(shifted.inputs, plain.inputs)
    np.testing.assert_array_equal(shifted.query, plain.query)
    np.testing.assert_array_equal(shifted.latent[:2], plain.latent)
    intercept = shifted.latent[2]
    assert intercept != 0
    np.testing.assert_allclose(shifted.labels - plain.labels, np.full((3, 1), intercept), rtol=1e-13)
    np.testing.assert_allclose(shifted.target - plain.target, [intercept], rtol=1e-13)


def test_without_variance_it_is_the_linear_task(key):
    plain, shifted = LINEAR.sample(key), AffineRegression(LINEAR, 0.0).sample(key)
    for name in ("inputs", "labels", "query", "target"):
        np.testing.assert_array_equal(getattr(shifted, name), getattr(plain, name))


def test_moments_of_intercept_and_labels(agrees):
    prompts = jax.tree.map(np.asarray, eqx.filter_jit(AffineRegression(LINEAR, 4.0).sample_batch)(jax.random.key(1), 40_000))
    intercepts = prompts.latent[:, 2]
    assert agrees(intercepts, 0.0)
    assert agrees(intercepts**2, 4.0)
    assert agrees(intercepts**4, 3 * 4.0**2)
    assert agrees(intercepts[:, None] * prompts.latent[:, :2], np.zeros(2))
    # tr(covariance) = 2.5; two labels of a prompt share the intercept, and their inputs are independent.
    labels = prompts.labels[:, :, 0]
    assert agrees(labels[:, :, None] * labels[:, None, :], 4.0 + (2.5 + 0.09) * np.eye(3))
    assert agrees(prompts.target[:, 0] ** 2, 6.5)


def test_any_inputs_and_lengths_of_the_linear_task(key):
    task = AffineRegression(LinearRegression(3, 4, covariates=Sphere(3)), 2.0)
    assert (task.dim, task.label_dim, task.context_length) == (3, 1, 4)
    np.testing.assert_allclose(np.linalg.norm(task.sample(key).inputs, axis=1), np.ones(4), rtol=1e-14)
    there = task.with_context_length(7)
    assert there.sample(key).inputs.shape == (7, 3)
    jax.tree.map(np.testing.assert_array_equal, task.sample(key), there.with_context_length(4).sample(key))


def test_refused():
    with pytest.raises(InvalidValueError, match=r"`intercept_variance` must be a finite number >= 0; got -1.0"):
        AffineRegression(LINEAR, -1.0)
    with pytest.raises(InvalidValueError, match="`context_length` must be an integer >= 1; got 0"):
        AffineRegression(LINEAR).with_context_length(0)
