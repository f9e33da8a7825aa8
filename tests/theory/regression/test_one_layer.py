"""The landscape of one layer: known values, and the axial loss against simulated contexts."""

import numpy as np
import pytest

from icl_lab.theory.descent import vonoswald2022
from icl_lab.theory.regression import one_layer


def test_known_curvatures_at_zero():
    values = one_layer.saddle_curvatures(3, 1 / 12)
    assert values == pytest.approx([-0.012028131, *[-0.006944444] * 3, *[0.006944444] * 3, 0.012028131], abs=1e-9)
    assert one_layer.escape_rate(3, 1 / 12) == pytest.approx(values[-1], rel=1e-14)


def test_known_heights():
    assert one_layer.wrong_mode_loss(10, 10, 1 / 12, 9 / 5) == pytest.approx(0.395622896, abs=1e-9)
    assert one_layer.wrong_mode_loss(2, 2, 1.0, 3.0) == pytest.approx(0.8, rel=1e-14)
    assert one_layer.false_minimum(2, 2) == pytest.approx(0.799493701, abs=1e-9)
    assert one_layer.false_minimum(3, 30) == pytest.approx(0.608030946, abs=1e-9)
    assert one_layer.false_minimum(3, 30, 0.25) == pytest.approx(0.25 * 0.608030946, abs=1e-9)


def test_the_axial_loss_contains_both_modes():
    d, n, kurtosis = 4, 7, 9 / 5
    eta = vonoswald2022.optimal_step_size(d, n, 1.0, kurtosis)
    least = vonoswald2022.one_step_loss(eta, d, n, 1.0, kurtosis)
    assert one_layer.axial_loss(np.array([0.0, 1.0, 0.0, eta, eta]), d, n, kurtosis) == pytest.approx(least, rel=1e-13)
    size = one_layer.wrong_mode_size(d, n, 1.0, kurtosis)
    wrong = one_layer.wrong_mode_loss(d, n, 1.0, kurtosis)
    assert one_layer.axial_loss(np.array([size, 0.0, 1.0, 0.0, 0.0]), d, n, kurtosis) == pytest.approx(wrong, rel=1e-13)


@pytest.mark.parametrize(("kurtosis", "half_width"), [(3.0, None), (9 / 5, np.sqrt(3.0))])
def test_the_axial_loss_is_that_of_simulated_contexts(rng, kurtosis, half_width):
    d, n, count = 2, 3, 200_000
    beta, label, alpha, p, q = weights = np.array([0.5, 0.7, 0.3, -0.4, 0.6])
    shape = (count, n, d)
    x = rng.normal(size=shape) if half_width is None else rng.uniform(-half_width, half_width, size=shape)
    w = rng.normal(size=(count, d))
    z = np.concatenate([x, np.einsum("pni,pi->pn", x, w)[..., None]], axis=2)
    scores = np.array([[p, 0.0], [0.0, q], [alpha, 0.0]])
    answers = np.einsum("a,pna,pnb,bc->pc", np.array([beta, 0.0, label]), z, z, scores, optimize=True) / n
    losses = np.sum((answers - w) ** 2, axis=1) / 2
    error = np.std(losses) / np.sqrt(count)
    assert abs(np.mean(losses) - one_layer.axial_loss(weights, d, n, kurtosis)) < 4 * error
