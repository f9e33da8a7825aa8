"""Coefficients of layers read back from weights that were made of them."""

import numpy as np
import pytest

from icl_lab import analysis
from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.models import LinearSelfAttention, LSAWeights, SoftmaxSelfAttention, constructions

MODELS = [
    LinearSelfAttention(query_in_sum=False, readout_sign=-1.0, normaliser=normaliser)
    for normaliser in ("none", "context_length")
]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("separate", [False, True])
def test_gd_plus_plus_is_read_back_in_any_gauge(model, separate):
    steps, bends = np.array([0.4, -0.7, 1.1]), np.array([0.05, 0.2, 0.3])
    stack = constructions.gd_plus_plus(model, 3, 6, steps, bends, separate=separate)
    stack = tuple(LSAWeights(-2.0 * one.merged().w_pv, one.merged().w_kq / -2.0) for one in stack)
    found = analysis.layer_coefficients(stack, model, 6)
    np.testing.assert_allclose(found.preconditioners, steps[:, None, None] * np.eye(3), atol=1e-14)
    np.testing.assert_allclose(found.step_sizes, steps)
    np.testing.assert_allclose(found.gammas, [0.05, 0.2, 0.0], atol=1e-14)
    np.testing.assert_allclose(found.outside_w_pv, 0, atol=1e-14)
    np.testing.assert_allclose(found.outside_w_kq, 0, atol=1e-14)


@pytest.mark.parametrize("model", MODELS)
def test_matrices_are_the_transposes_of_the_preconditioners(model, rng):
    matrices = rng.normal(size=(2, 3, 3))
    stack = constructions.preconditioned_gradient_descent(model, 6, matrices)
    found = analysis.layer_coefficients(stack, model, 6)
    np.testing.assert_allclose(found.preconditioners, np.swapaxes(matrices, 1, 2), rtol=1e-12)


def test_what_lies_outside_is_a_share_and_inactive_entries_do_not_count(rng):
    first, last = (LSAWeights(rng.normal(size=(3, 3)), rng.normal(size=(3, 3))) for _ in range(2))
    found = analysis.layer_coefficients((first, last), MODELS[0], 4)
    outside = [first.w_pv[0, 2], first.w_pv[1, 2], first.w_pv[2, 0], first.w_pv[2, 1]]
    np.testing.assert_allclose(found.outside_w_pv[0], np.linalg.norm(outside) / np.linalg.norm(first.w_pv))
    row = last.w_pv[2]
    np.testing.assert_allclose(found.outside_w_pv[1], np.linalg.norm(row[:2]) / np.linalg.norm(row))
    inside = np.linalg.norm(last.w_kq[:2, :2]) / np.linalg.norm(last.w_kq)
    np.testing.assert_allclose(found.outside_w_kq[1] ** 2 + inside**2, 1)
    single = analysis.layer_coefficients(last, MODELS[0], 4)
    active = last.w_kq[:, :2]
    np.testing.assert_allclose(single.outside_w_kq[0], np.linalg.norm(active[2]) / np.linalg.norm(active))


def test_the_distance_to_multiples_of_the_identity():
    matrix = np.diag([1.0, 3.0])
    np.testing.assert_allclose(analysis.distance_to_identity(matrix), np.sqrt(2 / 10))
    covariance = np.array([[1.0, 0.6], [0.6, 0.5]])
    stack = np.stack([np.linalg.inv(covariance), -3 * np.linalg.inv(covariance)])
    np.testing.assert_allclose(analysis.distance_to_identity(stack, covariance), 0, atol=1e-12)
    assert np.all(analysis.distance_to_identity(stack) > 0.1)
    assert np.isnan(analysis.distance_to_identity(np.zeros((2, 2))))


def test_weights_that_are_no_such_layers_are_refused(rng):
    layer = LSAWeights(rng.normal(size=(2, 3, 3)), rng.normal(size=(2, 3, 3)))
    with pytest.raises(UnsupportedProblemError, match="one head"):
        analysis.layer_coefficients(layer, MODELS[0], 4)
    for model in (LinearSelfAttention(), SoftmaxSelfAttention()):
        with pytest.raises(UnsupportedProblemError, match="readout_sign"):
            analysis.layer_coefficients(LSAWeights(np.eye(3), np.eye(3)), model, 4)
    with pytest.raises(InvalidValueError, match="zero"):
        analysis.layer_coefficients(LSAWeights(np.zeros((3, 3)), np.eye(3)), MODELS[0], 4)
