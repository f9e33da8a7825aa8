"""Centred gradient descent against known numbers and simulation, and the best scalar softmax heads."""

import numpy as np
import pytest

from icl_lab.theory.descent import softmax_heads, vonoswald2022

# (d, N, variance, kurtosis): eta_c and L_c.
KNOWN = {
    (10, 10, 1 / 12, 9 / 5): (6.342494715, 0.218463707),
    (10, 10, 1.0, 3.0): (0.5, 2.75),
    (5, 20, 1.0, 3.0): (0.8, 0.6),
}


@pytest.mark.parametrize("setting", KNOWN)
def test_known_optima(setting):
    eta, loss = KNOWN[setting]
    assert softmax_heads.centred_step_size(*setting) == pytest.approx(eta, rel=1e-9)
    assert softmax_heads.centred_optimum(*setting) == pytest.approx(loss, rel=1e-8)
    assert softmax_heads.centred_loss(eta, *setting) == pytest.approx(loss, rel=1e-8)


@pytest.mark.parametrize("distribution", ["gaussian", "uniform"])
def test_the_loss_is_that_of_simulated_steps(distribution):
    generator = np.random.default_rng(1)
    count, dim, context_length, eta = 100_000, 3, 4, 0.7
    shape = (count, context_length, dim)
    x = generator.standard_normal(shape) if distribution == "gaussian" else generator.uniform(-1.0, 1.0, shape) * np.sqrt(3)
    centred = x - x.mean(axis=1, keepdims=True)
    missed = np.eye(dim)[None] - eta / context_length * np.einsum("bni,bnj->bij", centred, x)
    losses = np.sum(missed**2, axis=(1, 2)) / 2
    expected = softmax_heads.centred_loss(eta, dim, context_length, 1.0, 3.0 if distribution == "gaussian" else 9 / 5)
    assert abs(losses.mean() - expected) < 4 * losses.std() / np.sqrt(count)


@pytest.mark.parametrize(("dim", "context_length"), [(1, 2), (4, 3), (10, 40)])
def test_the_gap_to_plain_descent_closes(dim, context_length):
    eta = vonoswald2022.optimal_step_size(dim, context_length, 1.0, 3.0)
    plain = vonoswald2022.one_step_loss(eta, dim, context_length, 1.0, 3.0)
    ratio = softmax_heads.centred_optimum(dim, context_length, 1.0, 3.0) / plain
    assert ratio == pytest.approx((context_length + dim + 1) / (context_length + dim), rel=1e-12)


@pytest.mark.parametrize(
    ("opposite", "temperature", "value", "loss"), [(False, 7.20, 0.815, 0.2912), (True, 3.63, 0.996, 0.2152)]
)
def test_known_heads(opposite, temperature, value, loss):
    points = np.random.default_rng(3).uniform(-0.5, 0.5, (20_000, 11, 10))
    found = softmax_heads.best_heads(points[:, :-1], points[:, -1], 1 / 12, 9 / 5, opposite)
    assert found.loss == pytest.approx(loss, abs=4 * np.hypot(found.standard_error, 2e-4))
    assert found.temperature == pytest.approx(temperature, rel=0.05)
    assert found.value == pytest.approx(value, rel=0.05)


def test_scale_of_the_inputs_only_rescales_the_temperature():
    points = np.random.default_rng(0).standard_normal((2_000, 6, 2))
    first, second = (
        softmax_heads.best_heads(sigma * points[:, :-1], sigma * points[:, -1], sigma**2, 3.0, False) for sigma in (1.0, 0.5)
    )
    assert second.temperature == pytest.approx(4 * first.temperature, rel=1e-6)
    assert second.loss == pytest.approx(first.loss / 4, rel=1e-6)
