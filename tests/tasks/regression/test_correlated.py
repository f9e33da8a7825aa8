"""Regression with a task vector for each example: what is drawn, and what is refused."""

import jax
import numpy as np
import pytest

from icl_lab.core.errors import InvalidValueError, NotPositiveDefiniteError
from icl_lab.tasks import CorrelatedRegression

JOINT = np.array([[1.0, 0.5, -0.3], [0.5, 1.0, 0.2], [-0.3, 0.2, 1.0]])


def test_labels_are_those_of_the_own_task_vectors():
    prompt = CorrelatedRegression(3, JOINT).sample(jax.random.key(1))
    np.testing.assert_allclose(prompt.labels[:, 0], np.sum(prompt.inputs * prompt.latent[:-1], axis=1), rtol=1e-12)
    np.testing.assert_allclose(prompt.target[0], prompt.query @ prompt.latent[-1], rtol=1e-12)


def test_task_vectors_have_the_correlations():
    vectors = np.asarray(CorrelatedRegression(2, JOINT).sample_batch(jax.random.key(0), 40_000).latent)
    np.testing.assert_allclose(np.einsum("pia,pja->ij", vectors, vectors) / (2 * len(vectors)), JOINT, atol=0.02)


def test_equal_tasks_are_one():
    vectors = np.asarray(CorrelatedRegression(2, np.ones((4, 4))).sample(jax.random.key(0)).latent)
    np.testing.assert_allclose(vectors, np.broadcast_to(vectors[0], vectors.shape), rtol=1e-7)


def test_wrong_correlations_are_refused():
    with pytest.raises(InvalidValueError, match="ones on the diagonal"):
        CorrelatedRegression(2, 2 * JOINT)
    with pytest.raises(NotPositiveDefiniteError):
        CorrelatedRegression(2, np.array([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(InvalidValueError):
        CorrelatedRegression(2, np.ones((1, 1)))
