"""The explicit step, and the best step size against printed values and sampled contexts."""

import numpy as np
import pytest

from icl_lab.theory import lsa, vonoswald2022

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
    law = (dim, length, variance, kurtosis, noise_variance)
    assert vonoswald2022.optimal_step_size(*law) == pytest.approx(eta, abs=PRINTED)
    assert vonoswald2022.one_step_loss(vonoswald2022.optimal_step_size(*law), *law) == pytest.approx(loss, abs=PRINTED)


def test_one_example_in_one_dimension_by_hand():
    # (1/2) E w^2 x_q^2 (1 - eta x^2)^2 with x uniform on (-1, 1): E x^2 = 1/3, E x^4 = 1/5.
    eta = 0.8
    by_hand = 0.5 / 3 * (1 - 2 * eta / 3 + eta**2 / 5)
    assert vonoswald2022.one_step_loss(eta, 1, 1, 1 / 3, 9 / 5) == pytest.approx(by_hand, rel=1e-14)


def test_the_optimal_step_size_is_optimal():
    law = (4, 7, 0.6, 2.2, 0.3, 1.7)
    best = vonoswald2022.optimal_step_size(*law)
    losses = [vonoswald2022.one_step_loss(best * (1 + off), *law) for off in (-1e-4, 0.0, 1e-4)]
    # The loss is quadratic, so the two neighbours of its minimum are equally high.
    assert losses[0] - losses[1] == pytest.approx(losses[2] - losses[1], rel=1e-4)
    assert losses[0] > losses[1]


def test_the_gaussian_loss_is_half_the_general_risk():
    eta, noise_variance, task_variance = 0.6, 0.3, 1.7
    half = vonoswald2022.one_step_loss(eta, 3, 6, 0.8, 3.0, noise_variance, task_variance)
    risk = lsa.risk(eta * np.eye(3), 0.8 * np.eye(3), task_variance * np.eye(3), noise_variance, 6)
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
