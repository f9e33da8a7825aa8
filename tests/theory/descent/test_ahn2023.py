"""Closed forms of preconditioned gradient descent in layers, against sampling, each other, and values worked out before."""

import numpy as np
import pytest

from icl_lab.theory.descent import ahn2023, gram_moments
from icl_lab.theory.regression import lsa
from icl_lab.theory.regression.problem import Problem

BEST = {
    # d, n, L, corrected: a, b without the last, risk
    (2, 4, 2, False): ((0.300032617, 0.926961247), (0.0,), 0.51942740286),
    (5, 20, 3, False): ((0.422408534, 0.689126087, 1.71421738), (0.0, 0.0), 0.13360842938),
    (2, 4, 2, True): ((0.525361778, 2.190594684), (0.338899089,), 0.26568069684),
    (5, 20, 2, True): ((0.516762320, 3.474663620), (20 * 0.022439357 / 0.516762320,), 0.05750115264),
}


@pytest.mark.parametrize("case", BEST)
def test_the_best_layers_are_those_worked_out_before(case):
    dim, length, layers, corrected = case
    a, b, risk = BEST[case]
    steps, moves, minimum = ahn2023.best_stack(dim, length, layers, corrected)
    np.testing.assert_allclose(steps, a, rtol=2e-9)
    np.testing.assert_allclose(moves[:-1], b, rtol=5e-8)
    np.testing.assert_allclose(minimum, risk, rtol=2e-10)
    np.testing.assert_allclose(ahn2023.stack_risk(steps, moves, dim, length), minimum, rtol=1e-12)


@pytest.mark.slow
def test_three_moving_layers():
    steps, moves, minimum = ahn2023.best_stack(5, 20, 3, corrected=True)
    np.testing.assert_allclose(steps, (0.338297, 2.090841, 8.568057), rtol=1e-6)
    np.testing.assert_allclose(moves[:2], (0.877582, 0.578162), rtol=1e-5)
    np.testing.assert_allclose(minimum, 0.00096131066, rtol=1e-7)


def test_slopes_are_those_of_the_risk(rng):
    a, b, size = rng.normal(1.0, 0.3, 3), rng.normal(0.3, 0.1, 3), 1e-6
    by_step, by_move = ahn2023.stack_slopes(a, b, 3, 5)
    for i in range(3):
        unit = size * np.eye(3)[i]
        along_a = ahn2023.stack_risk(a + unit, b, 3, 5) - ahn2023.stack_risk(a - unit, b, 3, 5)
        along_b = ahn2023.stack_risk(a, b + unit, 3, 5) - ahn2023.stack_risk(a, b - unit, 3, 5)
        np.testing.assert_allclose(by_step[i], along_a / (2 * size), rtol=1e-5)
        np.testing.assert_allclose(by_move[i], along_b / (2 * size), rtol=1e-5, atol=1e-6)
    assert by_move[2] == 0


def test_a_stack_is_gradient_descent_on_sampled_prompts(rng):
    a, length, dim = np.array([0.3, 0.9]), 4, 2
    inputs = rng.normal(size=(40_000, length, dim))
    errors = np.eye(dim)
    for step in a:
        errors = errors @ (np.eye(dim) - step / length * np.swapaxes(inputs, 1, 2) @ inputs)
    squares = np.sum(errors**2, axis=(1, 2))
    expected = ahn2023.stack_risk(a, np.zeros(2), dim, length)
    assert abs(np.mean(squares) - expected) < 4 * np.std(squares) / np.sqrt(len(squares))


def test_one_layer_is_a_case_of_any_covariances():
    values = np.array([1.0, 0.25, 2.0])
    np.testing.assert_allclose(ahn2023.one_layer_risk(values, 6), 1.198329799, rtol=1e-9)
    problem = Problem(np.diag(values), np.eye(3), 0.0, 6)
    best = lsa.optimal_preconditioner(problem)
    np.testing.assert_allclose(np.diag(ahn2023.shrinkage(values, 6)), best, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(ahn2023.one_layer_risk(values, 6), lsa.minimum_risk(problem))
    np.testing.assert_allclose(ahn2023.one_layer_risk(np.ones(5), 20), 30 / 26, rtol=1e-14)


@pytest.mark.parametrize(("dim", "length", "step", "risk"), [(3, 8, 0.941176471, 27 / 17), (5, 20, 1.212121212, 65 / 33)])
def test_relu_attention(dim, length, step, risk):
    best = ahn2023.relu_step(dim, length)
    np.testing.assert_allclose(best, step, rtol=1e-9)
    np.testing.assert_allclose(ahn2023.relu_risk(best, dim, length), risk, rtol=1e-9)
    for factor in (0.99, 1.01):
        assert ahn2023.relu_risk(factor * best, dim, length) > ahn2023.relu_risk(best, dim, length)


def test_descent_weights_use_the_transpose(rng):
    matrix, inputs, labels = rng.normal(size=(1, 2, 2)), rng.normal(size=(3, 2)), rng.normal(size=3)
    np.testing.assert_allclose(ahn2023.descent_weights(matrix, inputs, labels)[0], matrix[0].T @ inputs.T @ labels / 3)


def test_distance_to_identity(rng):
    matrix = rng.normal(size=(3, 3))
    candidates = [np.linalg.norm(matrix - c * np.eye(3)) for c in np.linspace(-3, 3, 6001)]
    np.testing.assert_allclose(ahn2023.distance_to_identity(matrix), min(candidates) / np.linalg.norm(matrix), rtol=1e-6)
    assert ahn2023.distance_to_identity(2 * np.eye(4)) == 0


def test_the_rule_of_a_stack_is_exact_for_its_degree():
    rule = ahn2023.stack_rule(3, 4, 2, corrected=True)
    moments = gram_moments.gaussian_moments(3, 4, 8)
    np.testing.assert_allclose([rule.weights @ rule.nodes**k for k in range(9)], [float(m) for m in moments], rtol=1e-12)
