"""The explicit step, and the best step size against printed values and sampled contexts."""

import numpy as np
import pytest

from icl_lab.theory.descent import vonoswald2022
from icl_lab.theory.regression import lsa
from icl_lab.theory.regression.problem import Problem

PRINTED = 1e-9


@pytest.mark.parametrize(
    ("dim", "length", "variance", "kurtosis", "noise_variance", "eta", "loss"),
    [
        (10, 10, 1 / 12, 9 / 5, 0.0, 6.060606061, 0.206228956),
        (10, 10, 1 / 3, 9 / 5, 0.0, 1.515151515, 0.824915825),
        (10, 10, 1.0, 3.0, 0.0, 0.476190476, 2.619047619),
        (3, 5, 1 / 3, 9 / 5, 0.0, 1.923076923, 0.179487179),
        (10, 25, 1 / 3, 9 / 5, 0.0, 2.155172414, 0.469348659),
        (5, 20, 1.0, 3.0, 0.0, 0.769230769, 0.576923077),
        (5, 20, 1.0, 3.0, 0.49, 0.755001888, 0.612495281),
    ],
)
def test_reference_numbers(dim, length, variance, kurtosis, noise_variance, eta, loss):
    distribution = (dim, length, variance, kurtosis, noise_variance)
    assert vonoswald2022.optimal_step_size(*distribution) == pytest.approx(eta, abs=PRINTED)
    assert vonoswald2022.one_step_loss(vonoswald2022.optimal_step_size(*distribution), *distribution) == pytest.approx(
        loss, abs=PRINTED
    )


def test_one_example_in_one_dimension_by_hand():
    # (1/2) E w^2 x_q^2 (1 - eta x^2)^2 with x uniform on (-1, 1): E x^2 = 1/3, E x^4 = 1/5.
    eta = 0.8
    by_hand = 0.5 / 3 * (1 - 2 * eta / 3 + eta**2 / 5)
    assert vonoswald2022.one_step_loss(eta, 1, 1, 1 / 3, 9 / 5) == pytest.approx(by_hand, rel=1e-14)


def test_the_optimal_step_size_is_optimal():
    distribution = (4, 7, 0.6, 2.2, 0.3, 1.7)
    best = vonoswald2022.optimal_step_size(*distribution)
    losses = [vonoswald2022.one_step_loss(best * (1 + off), *distribution) for off in (-1e-4, 0.0, 1e-4)]
    # The loss is quadratic, so the two neighbours of its minimum are equally high.
    assert losses[0] - losses[1] == pytest.approx(losses[2] - losses[1], rel=1e-4)
    assert losses[0] > losses[1]


def test_the_gaussian_loss_is_half_the_general_risk():
    eta, noise_variance, task_variance = 0.6, 0.3, 1.7
    half = vonoswald2022.one_step_loss(eta, 3, 6, 0.8, 3.0, noise_variance, task_variance)
    risk = lsa.risk(Problem(0.8 * np.eye(3), task_variance * np.eye(3), noise_variance, 6), eta * np.eye(3))
    assert half == pytest.approx(risk / 2, rel=1e-13)


def test_the_loss_is_that_of_sampled_contexts(rng):
    # Given the context, the loss is (sig2 / 2) |I - eta S|_F^2; uniform inputs on (-1/2, 1/2).
    dim, length, samples, eta = 3, 5, 100_000, 7.0
    x = rng.uniform(-0.5, 0.5, size=(samples, length, dim))
    gram = np.einsum("pni,pnj->pij", x, x) / length
    losses = np.sum((np.eye(dim)[None] - eta * gram) ** 2, axis=(1, 2)) / 24
    expected = vonoswald2022.one_step_loss(eta, dim, length, 1 / 12, 9 / 5)
    standard_error = np.std(losses) / np.sqrt(samples)
    assert abs(np.mean(losses) - expected) < 4 * standard_error
    # The Gaussian kurtosis must be told from the uniform one.
    assert abs(np.mean(losses) - vonoswald2022.one_step_loss(eta, dim, length, 1 / 12, 3.0)) > 4 * standard_error


def test_the_step_is_minus_the_gradient_of_the_mean_loss(rng):
    x, y, start = rng.normal(size=(5, 3)), rng.normal(size=(5, 2)), rng.normal(size=(2, 3))

    def loss(weights):
        return np.sum((x @ weights.T - y) ** 2) / (2 * len(x))

    stepped = vonoswald2022.gradient_step(start, x, y, 0.4)
    for index in np.ndindex(2, 3):
        unit = np.zeros((2, 3))
        unit[index] = 1.0
        # Central differences of a quadratic are exact at any step.
        slope = (loss(start + unit) - loss(start - unit)) / 2
        assert stepped[index] - start[index] == pytest.approx(-0.4 * slope, abs=1e-13)


def test_steps_converge_to_least_squares(rng):
    x, y = rng.normal(size=(9, 3)), rng.normal(size=(9, 2))
    iterates = vonoswald2022.descent_iterates(rng.normal(size=(2, 3)), x, y, np.full(2000, 0.4))
    assert iterates.shape == (2001, 2, 3)
    np.testing.assert_allclose(iterates[-1], np.linalg.lstsq(x, y)[0].T, rtol=1e-10)


def test_steps_of_different_sizes_are_taken_in_order(rng):
    x, y, start = rng.normal(size=(5, 3)), rng.normal(size=(5, 2)), rng.normal(size=(2, 3))
    iterates = vonoswald2022.descent_iterates(start, x, y, np.array([0.4, 0.1]))
    second = vonoswald2022.gradient_step(vonoswald2022.gradient_step(start, x, y, 0.4), x, y, 0.1)
    np.testing.assert_allclose(iterates, [start, vonoswald2022.gradient_step(start, x, y, 0.4), second], rtol=1e-14)


def test_moving_the_weights_or_the_labels_is_the_same_loss(rng):
    x, y, start = rng.normal(size=(7, 4)), rng.normal(size=(7, 3)), rng.normal(size=(3, 4))
    stepped = vonoswald2022.gradient_step(start, x, y, 0.6)
    moved = y - x @ (stepped - start).T
    assert vonoswald2022.transformed_loss(stepped, x, y) == pytest.approx(np.sum((x @ start.T - moved) ** 2), rel=1e-13)


def test_an_attended_query_is_an_example_with_a_label(rng):
    # From zero it is descent on N + 1 examples of which the last has label 0, divided by N.
    x, y, query = rng.normal(size=(6, 3)), rng.normal(size=(6, 2)), rng.normal(size=3)
    slots = vonoswald2022.attended_query_slots(np.zeros((2, 3)), x, y, query, 0.3, 4)
    points, labels = np.vstack([x, query[None]]), np.vstack([y, np.zeros((1, 2))])
    weights = vonoswald2022.descent_iterates(np.zeros((2, 3)), points, labels, np.full(4, 0.3 * 7 / 6))[-1]
    np.testing.assert_allclose(slots, labels - points @ weights.T, rtol=1e-12)


def test_the_shift_of_an_attended_query_is_that_of_the_slots(rng):
    x, y, query, start = rng.normal(size=(6, 3)), rng.normal(size=(6, 2)), rng.normal(size=3), rng.normal(size=(2, 3))
    slots = vonoswald2022.attended_query_slots(start, x, y, query, 0.3, 1)
    stepped = vonoswald2022.gradient_step(start, x, y, 0.3)
    shift = vonoswald2022.attended_query_shift(start, np.vstack([x, query[None]]), query, 0.3, 6)
    without = np.vstack([y - x @ (stepped - start).T, -(stepped @ query)[None]])
    np.testing.assert_allclose(slots - without, shift, rtol=1e-10, atol=1e-12)


def test_the_layer_is_its_matrix_form(rng):
    tokens, w_pv, w_kq = rng.normal(size=(5, 4)), rng.normal(size=(4, 4)), rng.normal(size=(4, 4))
    context = tokens[:-1]
    expected = tokens + (tokens @ w_kq.T @ context.T @ context) @ w_pv.T
    np.testing.assert_allclose(vonoswald2022.attention_layer(tokens, w_pv, w_kq), expected, rtol=1e-12)


def test_the_expansion_of_the_softmax(rng):
    scores, step = rng.normal(size=6), 1e-2
    orders = vonoswald2022.softmax_expansion(scores)

    def remainder(e):
        exact = np.exp(e * scores) / np.sum(np.exp(e * scores))
        return np.linalg.norm(exact - e ** np.arange(4) @ orders)

    # What three orders leave is of the fourth.
    assert np.log2(remainder(step) / remainder(step / 2)) == pytest.approx(4, abs=0.1)
    np.testing.assert_allclose(np.sum(orders, axis=1), [1, 0, 0, 0], atol=1e-15)


def test_norms_of_the_best_step_from_zero():
    np.testing.assert_allclose(vonoswald2022.mean_square_step(10, 10, 9 / 5), 5.050505, rtol=1e-6)
    np.testing.assert_allclose(vonoswald2022.mean_square_step(10, 10, 3.0), 4.761905, rtol=1e-6)
    eta = vonoswald2022.optimal_step_size(10, 10, 1 / 12, 9 / 5)
    generator = np.random.default_rng(0)
    points, tasks = generator.uniform(-0.5, 0.5, (20_000, 11, 10)), generator.standard_normal((20_000, 10))
    means, errors = vonoswald2022.mean_step_norms(points[:, :-1], points[:, -1], tasks, eta)
    assert np.all(np.abs(means - [0.4864, 2.0831]) < 4 * errors)
    assert np.all(errors < 0.01 * means)


def test_the_end_of_the_flow_keeps_the_invariant():
    rate, d = 1.3, 4
    for value, key in ((0.0, 0.0), (2.0, 0.1), (0.1, 50.0)):
        beta = vonoswald2022.limit_scale(value, key, d, rate)
        np.testing.assert_allclose((rate / beta) ** 2 - d * beta**2, value - key, atol=1e-10)


def test_the_midpoint_without_rescaling():
    for beta in (0.4, -2.0):
        values, keys = -1.3 / beta, beta
        halfway = (values - 1.3) / 2 * (keys + 1) / 2
        np.testing.assert_allclose(vonoswald2022.midpoint_rate(beta, 1.3), -halfway, rtol=1e-14)
    assert vonoswald2022.midpoint_rate(1.0, 1.3) == 1.3
