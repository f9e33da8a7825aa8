"""Online gradient descent, explicit and implicit: a loop, the method of Kaczmarz, limits, and what it refuses."""

import numpy as np
import pytest

from icl_lab import estimators
from icl_lab.core.errors import InvalidValueError, NonFiniteError
from icl_lab.tasks.prompt import Prompt
from tests.prompts import random_prompt


@pytest.mark.parametrize("complex_data", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
def test_it_steps_along_the_gradient_of_one_example_after_the_other(complex_data, normalised):
    prompt = random_prompt(0, complex_data=complex_data)
    steps, start = np.linspace(0.05, 0.2, 7), np.ones((2, 3))
    weights = start.astype(prompt.inputs.dtype)
    path = estimators.online_sgd_path(prompt, steps, normalised, start)
    for t, (x, y) in enumerate(zip(prompt.inputs, prompt.labels, strict=True)):
        gradient = np.array([[(weights[a] @ x - y[a]) * x[b].conjugate() for b in range(3)] for a in range(2)])
        weights = weights - steps[t] / (np.vdot(x, x).real if normalised else 1.0) * gradient
        np.testing.assert_allclose(path[t], weights, rtol=1e-11, atol=1e-12)
    np.testing.assert_array_equal(estimators.online_sgd_weights(prompt, steps, normalised, start), path[-1])
    answer = estimators.online_sgd(prompt, steps, normalised, start)
    np.testing.assert_allclose(answer, path[-1] @ prompt.query, rtol=1e-12)


@pytest.mark.parametrize("complex_data", [False, True])
@pytest.mark.parametrize("shape", [(), (3,), (7, 1), (7, 3)], ids=str)
def test_a_decay_shrinks_the_weights_and_the_gradient_is_taken_at_what_is_left(shape, complex_data):
    prompt = random_prompt(9, complex_data=complex_data)
    decay = np.random.default_rng(1).uniform(0.5, 1.0, size=shape)
    decay = float(decay) if shape == () else decay
    start = np.ones((2, 3))
    weights = start.astype(prompt.inputs.dtype)
    path = estimators.online_sgd_path(prompt, 0.2, initial=start, decay=decay)
    for t, (x, y) in enumerate(zip(prompt.inputs, prompt.labels, strict=True)):
        weights = weights @ np.diag(np.broadcast_to(decay, (7, 3))[t])
        weights = weights + 0.2 * np.outer(y - weights @ x, x.conj())
        np.testing.assert_allclose(path[t], weights, rtol=1e-11, atol=1e-12)
    np.testing.assert_array_equal(estimators.online_sgd_weights(prompt, 0.2, initial=start, decay=decay), path[-1])
    answer = estimators.online_sgd(prompt, 0.2, initial=start, decay=decay)
    np.testing.assert_allclose(answer, path[-1] @ prompt.query, rtol=1e-12)


def test_a_decay_of_one_changes_nothing_one_of_zero_leaves_the_last_example_and_a_small_step_leaves_a_discount():
    prompt = random_prompt(10)
    plain = estimators.online_sgd(prompt, 0.2)
    np.testing.assert_array_equal(estimators.online_sgd(prompt, 0.2, decay=np.ones((7, 3))), plain)
    last = 0.2 * prompt.labels[-1] * (prompt.inputs[-1] @ prompt.query)
    np.testing.assert_allclose(estimators.online_sgd(prompt, 0.2, decay=0.0), last, rtol=1e-13)
    # The correction is of second order in the step.
    small = estimators.online_sgd(prompt, 1e-7, decay=0.9)
    discounted = np.asarray(estimators.discounted_gradient_step(prompt, 1e-7, 0.9))
    assert 1e-9 < np.linalg.norm(small - discounted) / np.linalg.norm(discounted) < 1e-5


def test_one_example_is_one_step_of_gradient_descent():
    prompt = random_prompt(1, n=1)
    np.testing.assert_allclose(estimators.online_sgd(prompt, 0.3), estimators.gradient_descent(prompt, 0.3), rtol=1e-13)


def test_a_normalised_step_of_one_fits_each_example_when_it_comes():
    prompt = random_prompt(2)
    path = estimators.online_sgd_path(prompt, 1.0, normalised=True)
    np.testing.assert_allclose(np.einsum("tkd,td->tk", path, prompt.inputs), prompt.labels, rtol=1e-11)


def test_many_normalised_passes_tend_to_the_interpolant_of_minimum_norm():
    prompt = random_prompt(3, n=3, d=8)
    passes = Prompt(np.tile(prompt.inputs, (300, 1)), np.tile(prompt.labels, (300, 1)), prompt.query, prompt.target)
    weights = estimators.online_sgd_weights(passes, 1.0, normalised=True)
    np.testing.assert_allclose(weights, estimators.ols_weights(prompt), rtol=1e-9, atol=1e-10)


def test_an_input_of_zero_changes_nothing():
    prompt = random_prompt(4)
    inputs = prompt.inputs.copy()
    inputs[2] = 0.0
    path = estimators.online_sgd_path(Prompt(inputs, prompt.labels, prompt.query, prompt.target), 0.5, normalised=True)
    np.testing.assert_array_equal(path[2], path[1])
    assert np.all(np.isfinite(path))


@pytest.mark.parametrize("complex_data", [False, True])
def test_an_implicit_step_takes_the_gradient_where_it_arrives_and_that_is_a_minimum(complex_data):
    prompt = random_prompt(6, complex_data=complex_data)
    steps, before = np.geomspace(0.05, 50.0, 7), np.ones((2, 3))
    path = np.asarray(estimators.implicit_online_sgd_path(prompt, steps, before))
    rng = np.random.default_rng(0)
    for eta, x, y, after in zip(steps, prompt.inputs, prompt.labels, path, strict=True):
        gradient = np.outer(after @ x - y, x.conj())
        np.testing.assert_allclose(after, before - eta * gradient, rtol=0, atol=1e-12 * (1 + eta * np.abs(x) @ np.abs(x)))

        def loss(weights, x=x, y=y, eta=eta, before=before):
            return np.sum(np.abs(weights - before) ** 2) + eta * np.sum(np.abs(y - weights @ x) ** 2)

        assert all(loss(after) < loss(after + 1e-3 * rng.normal(size=(2, 3))) for _ in range(20))
        before = after
    np.testing.assert_array_equal(estimators.implicit_online_sgd_weights(prompt, steps, np.ones((2, 3))), path[-1])
    answer = estimators.implicit_online_sgd(prompt, steps, np.ones((2, 3)))
    np.testing.assert_allclose(answer, path[-1] @ prompt.query, rtol=1e-12)


def test_one_implicit_step_from_zero_is_ridge_and_none_diverges():
    prompt = random_prompt(7, n=1)
    np.testing.assert_allclose(estimators.implicit_online_sgd(prompt, 4.0), estimators.ridge(prompt, 0.25), rtol=1e-12)
    prompt = random_prompt(8, n=40)
    np.testing.assert_array_equal(estimators.implicit_online_sgd(prompt, 0.0), np.zeros(2))
    # The explicit step of this size grows by its size times the norm of an input at each example.
    assert np.abs(estimators.online_sgd(prompt, 1e6)).max() > 1e100
    limit = estimators.online_sgd(prompt, 1.0, normalised=True)
    # To first order in one over the step times an input's squared norm, the smallest of which is above 0.09.
    np.testing.assert_allclose(estimators.implicit_online_sgd(prompt, 1e6), limit, rtol=0, atol=1e-4)
    assert np.min(np.sum(np.abs(prompt.inputs) ** 2, axis=1)) > 0.09


def test_bad_steps_starts_and_prompts_are_refused():
    prompt = random_prompt(5)
    with pytest.raises(InvalidValueError, match="`step_size` must be finite"):
        estimators.online_sgd(prompt, np.nan)
    with pytest.raises(InvalidValueError, match=r"one per example, \(7,\); got shape \(6,\)"):
        estimators.online_sgd(prompt, np.ones(6))
    with pytest.raises(InvalidValueError, match=r"`decay` must be in \[0, 1\], 1 keeping all and 0 nothing; got -0.1"):
        estimators.online_sgd(prompt, 0.1, decay=-0.1)
    with pytest.raises(InvalidValueError, match="`initial` must be the matrix W_0"):
        estimators.online_sgd(prompt, 0.1, initial=np.zeros((3, 2)))
    with pytest.raises(InvalidValueError, match="`step_size` must be finite"):
        estimators.implicit_online_sgd(prompt, np.inf)
    with pytest.raises(InvalidValueError, match="`step_size` must be >= 0, because an implicit step"):
        estimators.implicit_online_sgd(prompt, -0.1)
    labels = prompt.labels.copy()
    labels[0, 0] = np.inf
    with pytest.raises(NonFiniteError):
        estimators.online_sgd(Prompt(prompt.inputs, labels, prompt.query, prompt.target), 0.1)
