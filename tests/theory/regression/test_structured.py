"""The lemmas about structured weights, against brute force, finite differences and an independent loss."""

import numpy as np
import pytest

from icl_lab.theory.regression import exact_loss, lsa, structured
from icl_lab.theory.regression.problem import Problem

COVARIANCE = np.diag([2.0, 1.0, 0.5])
LENGTH = 10
PRINTED = 1e-9


@pytest.fixture
def general(rng):
    """A covariance off the axes, another of the tasks, and structured weights."""
    root, tasks, inner = rng.normal(size=(3, 3, 3))
    return root @ root.T + 0.3 * np.eye(3), tasks @ tasks.T, 0.7, inner


def embed(u, inner):
    w_pv, w_kq = np.zeros((2, 4, 4))
    w_pv[-1, -1], w_kq[:3, :3] = u, inner
    return w_pv, w_kq


def test_the_prediction_is_the_sum_over_tokens(rng):
    inputs, labels, query = rng.normal(size=(5, 3)), rng.normal(size=5), rng.normal(size=3)
    w_pv, w_kq = rng.normal(size=(2, 4, 4))
    tokens = [np.append(x, y) for x, y in zip(inputs, labels, strict=True)] + [np.append(query, 0.0)]
    update = sum((w_pv @ e) * (e @ w_kq @ tokens[-1]) for e in tokens) / 5
    assert structured.prediction(w_pv, w_kq, inputs, labels, query) == pytest.approx(update[-1], rel=1e-13)


@pytest.mark.parametrize(("dim", "length", "negative"), [(3, 6, 4), (4, 2, 3)])
def test_the_quadratic_form_is_the_prediction(rng, dim, length, negative):
    inputs, task, query = rng.normal(size=(length, dim)), rng.normal(size=dim), rng.normal(size=dim)
    labels = inputs @ task
    active = rng.normal(size=(dim + 1, dim + 1))
    w_pv, w_kq = np.zeros((2, dim + 1, dim + 1))
    w_pv[-1], w_kq[:, :dim] = active[:, -1], active[:, :dim]
    form = structured.quadratic_form(inputs, labels, query)
    vec = active.ravel(order="F")
    assert vec @ form @ vec == pytest.approx(structured.prediction(w_pv, w_kq, inputs, labels, query), rel=1e-12)
    values = np.linalg.eigvalsh(form)
    np.testing.assert_allclose(structured.quadratic_form_eigenvalues(inputs, labels, query), values, atol=1e-12)
    assert structured.negative_directions(dim, length) == negative == np.sum(values < -1e-12)


def test_the_velocity_is_the_slope_of_the_whole_layer(general):
    covariance, tasks, u, inner = general
    noiseless, noisy = Problem(covariance, np.eye(3), 0.0, LENGTH), Problem(covariance, tasks, 0.4, LENGTH)
    for problem, velocity in (
        (noiseless, structured.velocity(u, inner, covariance, LENGTH)),
        (noisy, structured.general_velocity(noisy, u, inner)),
    ):
        slopes = exact_loss.risk_gradient(problem, *embed(u, inner), query_in_sum=True)
        assert velocity[0] == pytest.approx(-slopes[0][-1, -1] / 2, rel=1e-10)
        np.testing.assert_allclose(velocity[1], -slopes[1][:3, :3] / 2, rtol=1e-10, atol=1e-10)


def test_the_reduced_loss_is_half_the_risk_less_that_of_zero(general):
    covariance, _, u, inner = general
    problem = Problem(covariance, np.eye(3), 0.0, LENGTH)
    risk = exact_loss.risk(problem, *embed(u, inner), query_in_sum=True)
    reduced = structured.reduced_loss(u, inner, covariance, LENGTH)
    assert reduced == pytest.approx((risk - np.trace(covariance)) / 2, rel=1e-11)
    lowest = structured.minimum_reduced_loss(covariance, LENGTH)
    assert lowest == pytest.approx((lsa.minimum_risk(problem) - np.trace(covariance)) / 2, rel=1e-11)
    assert structured.loss_gap(u, inner, covariance, LENGTH) == pytest.approx(reduced - lowest, rel=1e-11)


def test_reference_losses():
    start = structured.reduced_loss(0.1, 0.1 * np.eye(3) / np.sqrt(3), COVARIANCE, LENGTH)
    assert start + 1.75 == pytest.approx(1.7198870275, abs=PRINTED)
    assert structured.minimum_reduced_loss(COVARIANCE, LENGTH) + 1.75 == pytest.approx(0.4819697994, abs=PRINTED)
