"""Momentum, blocks and Gauss-Seidel sweeps: loops written out, and the algorithms that each of them becomes at its ends."""

import numpy as np
import pytest

from icl_lab import estimators
from icl_lab.core.errors import InvalidValueError
from icl_lab.tasks.prompt import Prompt
from tests.prompts import random_prompt

data = pytest.mark.parametrize("complex_data", [False, True], ids=["real", "complex"])


@data
@pytest.mark.parametrize("each", [False, True], ids=["one", "each"])
def test_momentum_takes_a_share_of_the_last_step_again(each, complex_data):
    prompt = random_prompt(0, complex_data=complex_data)
    steps = np.linspace(0.02, 0.1, 7) if each else 0.05
    shares = np.linspace(0.1, 0.9, 7) if each else 0.6
    start = np.ones((2, 3))
    weights, move = start.astype(prompt.inputs.dtype), np.zeros((2, 3))
    path = np.asarray(estimators.momentum_sgd_path(prompt, steps, shares, start))
    for t, (x, y) in enumerate(zip(prompt.inputs, prompt.labels, strict=True)):
        gradient = np.outer(weights @ x - y, x.conj())
        move = np.broadcast_to(shares, 7)[t] * move - np.broadcast_to(steps, 7)[t] * gradient
        weights = weights + move
        np.testing.assert_allclose(path[t], weights, rtol=1e-11)
    np.testing.assert_array_equal(estimators.momentum_sgd_weights(prompt, steps, shares, start), path[-1])
    np.testing.assert_allclose(estimators.momentum_sgd(prompt, steps, shares, start), path[-1] @ prompt.query, rtol=1e-12)


def test_without_momentum_it_is_online_gradient_descent_and_two_examples_show_the_second_difference():
    prompt = random_prompt(1)
    np.testing.assert_allclose(estimators.momentum_sgd(prompt, 0.1, 0.0), estimators.online_sgd(prompt, 0.1), rtol=1e-13)
    first, second, third = estimators.momentum_sgd_path(prompt, 0.1, 0.4)[:3]
    x, y = prompt.inputs[2], prompt.labels[2]
    expected = second + 0.4 * (second - first) + 0.1 * np.outer(y - second @ x, x)
    np.testing.assert_allclose(third, expected, rtol=1e-12)


@data
@pytest.mark.parametrize("batch", [1, 2, 3, 7, 50])
def test_all_gradients_of_a_block_are_taken_where_it_begins(batch, complex_data):
    prompt = random_prompt(2, complex_data=complex_data)
    steps, start = np.linspace(0.02, 0.1, 7), np.ones((2, 3))
    weights = start.astype(prompt.inputs.dtype)
    for first in range(0, 7, batch):
        begin = weights
        for i in range(first, min(first + batch, 7)):
            x, y = prompt.inputs[i], prompt.labels[i]
            weights = weights + steps[i] * np.outer(y - begin @ x, x.conj())
    np.testing.assert_allclose(estimators.minibatch_sgd_weights(prompt, steps, batch, start), weights, rtol=1e-11)
    np.testing.assert_allclose(estimators.minibatch_sgd(prompt, steps, batch, start), weights @ prompt.query, rtol=1e-11)


def test_blocks_of_one_are_online_gradient_descent_and_one_block_is_a_gradient_step():
    prompt = random_prompt(3)
    np.testing.assert_allclose(estimators.minibatch_sgd(prompt, 0.1, 1), estimators.online_sgd(prompt, 0.1), rtol=1e-13)
    np.testing.assert_allclose(estimators.minibatch_sgd(prompt, 0.1, 7), estimators.gradient_descent(prompt, 0.7), rtol=1e-13)
    between = np.asarray(estimators.minibatch_sgd(prompt, 0.1, 3))
    assert np.linalg.norm(between - estimators.minibatch_sgd(prompt, 0.1, 1)) > 0.01 * np.linalg.norm(between)


@data
@pytest.mark.parametrize(("n", "d"), [(7, 3), (4, 10)])
@pytest.mark.parametrize("sweeps", [0, 1, 3])
def test_a_sweep_solves_each_equation_in_turn_for_its_own_coefficient(n, d, sweeps, complex_data):
    prompt = random_prompt(4, n=n, d=d, complex_data=complex_data)
    gram = np.array([[np.vdot(b, a) for b in prompt.inputs] for a in prompt.inputs])
    coefficients = np.zeros_like(prompt.labels)
    for _ in range(sweeps):
        for i in range(n):
            others = sum(gram[i, j] * coefficients[j] for j in range(n) if j != i)
            coefficients[i] = (prompt.labels[i] - others) / gram[i, i]
    expected = sum(np.outer(c, x.conj()) for c, x in zip(coefficients, prompt.inputs, strict=True))
    np.testing.assert_allclose(estimators.gauss_seidel_weights(prompt, sweeps), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(estimators.gauss_seidel(prompt, sweeps), expected @ prompt.query, rtol=1e-9, atol=1e-12)


@data
@pytest.mark.parametrize("sweeps", [1, 4])
def test_sweeps_are_passes_of_the_method_of_kaczmarz(sweeps, complex_data):
    prompt = random_prompt(5, complex_data=complex_data)
    inputs = prompt.inputs.copy()
    inputs[2] = 0.0
    passes = Prompt(np.tile(inputs, (sweeps, 1)), np.tile(prompt.labels, (sweeps, 1)), prompt.query, prompt.target)
    once = Prompt(inputs, prompt.labels, prompt.query, prompt.target)
    expected = estimators.online_sgd_weights(passes, 1.0, normalised=True)
    np.testing.assert_allclose(estimators.gauss_seidel_weights(once, sweeps), expected, rtol=1e-10, atol=1e-11)


def test_a_sweep_fits_the_last_example_and_many_the_interpolant_of_least_norm():
    prompt = random_prompt(6, n=4, d=10)
    once = estimators.gauss_seidel_weights(prompt)
    np.testing.assert_allclose(once @ prompt.inputs[-1], prompt.labels[-1], rtol=1e-12)
    assert np.abs(once @ prompt.inputs[0] - prompt.labels[0]).max() > 0.01
    weights = estimators.gauss_seidel_weights(prompt, 400)
    np.testing.assert_allclose(weights, estimators.ols_weights(prompt), rtol=1e-10, atol=1e-12)


def test_orthogonal_inputs_need_one_sweep_and_any_order():
    prompt = random_prompt(7, n=3, d=3)
    inputs = np.linalg.qr(prompt.inputs)[0] * np.array([2.0, 0.5, 1.0])[:, None]
    orthogonal = Prompt(inputs, prompt.labels, prompt.query, prompt.target)
    np.testing.assert_allclose(estimators.gauss_seidel(orthogonal), estimators.ols(orthogonal), rtol=1e-12)


def test_bad_momenta_batches_and_counts_are_refused():
    prompt = random_prompt(8)
    with pytest.raises(InvalidValueError, match=r"`momentum` must be in \[0, 1\], 0 being none; got 1.1"):
        estimators.momentum_sgd(prompt, 0.1, 1.1)
    with pytest.raises(InvalidValueError, match=r"`momentum` must be a number or one per example, \(7,\)"):
        estimators.momentum_sgd(prompt, 0.1, np.full(3, 0.5))
    with pytest.raises(InvalidValueError, match="`initial` must be the matrix W_0"):
        estimators.momentum_sgd(prompt, 0.1, 0.5, np.zeros((3, 2)))
    with pytest.raises(InvalidValueError, match="`batch` must be an integer >= 1; got 0"):
        estimators.minibatch_sgd(prompt, 0.1, 0)
    with pytest.raises(InvalidValueError, match="`step_size` must be finite"):
        estimators.minibatch_sgd(prompt, np.inf, 2)
    with pytest.raises(InvalidValueError, match="`sweeps` must be an integer >= 0; got -1"):
        estimators.gauss_seidel(prompt, -1)
