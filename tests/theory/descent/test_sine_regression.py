"""Reference losses on sine waves against published-scale numbers, quadrature and simulated steps."""

import numpy as np
import pytest

from icl_lab.tasks.regression.sine import DISTRIBUTIONS
from icl_lab.theory.descent import sine_regression

# Predict 0, best fixed function, and loss and step size of one step from 0 and from the mean; N = 10, inputs up to 5.
KNOWN = {
    "text": (2.125833333, 1.502834678, 0.196852365, 1.809445, 0.129817045, 1.779651),
    "independent": (0.025833333, 0.017210515, 0.002392169, 1.809445, 0.001463286, 1.773729),
    "published": (0.025943575, 0.015588841, 0.002374599, 1.803959, 0.001306681, 1.768643),
}


@pytest.mark.parametrize("distribution", KNOWN)
def test_known_losses(distribution):
    mean, moment = sine_regression.coefficient_moments(*DISTRIBUTIONS[distribution])
    spread = moment - np.outer(mean, mean)
    from_zero, from_mean = (sine_regression.best_step(10, 5.0, matrix) for matrix in (moment, spread))
    losses = [sine_regression.zero_loss(5.0, matrix) for matrix in (moment, spread)]
    found = [*losses, from_zero.loss, from_zero.step_size, from_mean.loss, from_mean.step_size]
    np.testing.assert_allclose(found, KNOWN[distribution], rtol=1e-6)


@pytest.mark.parametrize("half_width", [0.3, 2.0, 5.0])
def test_feature_moments_are_those_of_quadrature(half_width):
    nodes, weights = np.polynomial.legendre.leggauss(60)
    phi = np.stack([np.sin(half_width * nodes), np.cos(half_width * nodes)])
    second, fourth = sine_regression.feature_moments(half_width)
    np.testing.assert_allclose(second, np.einsum("in,jn,n->ij", phi, phi, weights / 2), atol=1e-13)
    np.testing.assert_allclose(fourth, np.einsum("in,jn,kn,ln,n->ijkl", phi, phi, phi, phi, weights / 2), atol=1e-13)


def test_independent_moments_in_closed_form():
    mean, moment = sine_regression.coefficient_moments((0.1, 5.0), (0.0, np.pi), shared=False)
    np.testing.assert_allclose(mean, [0.0, 2.55 * 2 / np.pi], atol=1e-14)
    np.testing.assert_allclose(moment, (0.1**2 + 0.1 * 5 + 5**2) / 6 * np.eye(2), atol=1e-13)


def test_shared_draws_correlate_amplitude_and_phase():
    u = (np.arange(200_000) + 0.5) / 200_000
    a, rho = 0.1 + 0.4 * u, np.pi * u
    w = np.stack([a * np.cos(rho), a * np.sin(rho)])
    mean, moment = sine_regression.coefficient_moments((0.1, 0.5), (0.0, np.pi), shared=True)
    np.testing.assert_allclose(mean, w.mean(axis=1), atol=1e-9)
    np.testing.assert_allclose(moment, w @ w.T / u.size, atol=1e-9)


def test_the_loss_of_a_step_is_that_of_simulated_steps():
    generator = np.random.default_rng(0)
    count, context_length, half_width, eta = 200_000, 3, 1.3, 1.1
    x = generator.uniform(-half_width, half_width, (count, context_length))
    w = generator.standard_normal((count, 2)) @ np.array([[1.0, 0.4], [0.0, 0.7]])
    phi = np.stack([np.sin(x), np.cos(x)], axis=2)
    step = eta / context_length * np.einsum("bni,bnj,bj->bi", phi, phi, w)
    second, _ = sine_regression.feature_moments(half_width)
    losses = np.einsum("bi,ij,bj->b", w - step, second, w - step) / 2
    moment = np.array([[1.0, 0.4], [0.4, 0.16 + 0.49]])
    expected = sine_regression.step_loss(eta, context_length, half_width, moment)
    assert abs(losses.mean() - expected) < 4 * losses.std() / np.sqrt(count)


def test_the_best_step_is_the_lowest():
    moment = np.diag([1.0, 0.5])
    best = sine_regression.best_step(5, 2.0, moment)
    assert best.loss == pytest.approx(sine_regression.step_loss(best.step_size, 5, 2.0, moment), rel=1e-12)
    for eta in (0.99 * best.step_size, 1.01 * best.step_size):
        assert sine_regression.step_loss(eta, 5, 2.0, moment) > best.loss
