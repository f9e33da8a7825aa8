"""Retention on a drifting task: known numbers, linear equations, a simulation, and that no head is better."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.optimize

from icl_lab.core.errors import InvalidValueError
from icl_lab.theory.descent import li2025
from icl_lab.theory.mixers import linear_attention, retention
from icl_lab.theory.mixers.problem import KeyMoments, MixerProblem
from tests.theory.mixers import simulation

DRIFT = MixerProblem(KeyMoments.gaussian(4), 200, 0.1), 0.97


def test_known_numbers_of_a_drifting_task():
    problem, correlation = DRIFT
    head = retention.best_head(problem, correlation)
    np.testing.assert_allclose([head.decay, head.scale, head.risk], [0.89279, 0.07721, 1.76425], atol=5e-6)
    weights, risk = retention.best_weights(problem, correlation)
    assert risk == pytest.approx(head.risk, rel=1e-12)
    assert np.max(np.abs(weights - head.scale * head.decay ** np.arange(199, -1, -1.0))) < 1e-11
    risks = retention.window_risks(problem, correlation)[1]
    assert np.argmin(risks) + 1 == 14
    np.testing.assert_allclose([risks[13], risks[-1]], [1.9208, 3.6532], atol=5e-5)


@pytest.mark.parametrize(
    ("dim", "length", "correlation", "noise", "expected"),
    [
        (4, 12, 0.9, 0.2, 2.693209280905203),
        (3, 6, 0.7, 0.0, 2.566326332473773),
        (8, 24, 0.95, 0.25, 5.042209359236045),
    ],
)
def test_the_filter_solves_the_linear_equations(dim, length, correlation, noise, expected):
    drifting = MixerProblem(KeyMoments.gaussian(dim), length, noise)
    weights, risk = retention.best_weights(drifting, correlation)
    assert risk == pytest.approx(expected, rel=1e-13)
    place = np.arange(length + 1)
    joint = correlation ** np.abs(place[:, None] - place[None, :])
    problem = li2025.CorrelatedTasks(joint[:-1, :-1], joint[:-1, -1], dim, noise)
    np.testing.assert_allclose(weights, li2025.best_weights(problem), rtol=1e-12)
    scale, equal = (values[-1] for values in retention.window_risks(drifting, correlation))
    np.testing.assert_allclose((scale, equal), li2025.best_equal_weight(problem), rtol=1e-12)
    geometric = 0.1 * 0.8 ** np.arange(length - 1, -1, -1.0)
    head = retention.head_risk(drifting, correlation, 0.8, 0.1)
    assert head == pytest.approx(li2025.risk(problem, geometric), rel=1e-12)


@pytest.mark.parametrize(("law", "dim", "noise", "correlation"), [("gaussian", 3, 0.3, 0.9), ("sphere", 5, 0.05, 0.98)])
def test_the_risks_are_those_of_simulated_prompts(law, dim, noise, correlation):
    problem = MixerProblem(getattr(KeyMoments, law)(dim), 40, noise)
    head = retention.best_head(problem, correlation)
    length, decay, scale = problem.context_length, 0.95 * head.decay, 1.2 * head.scale

    def write(state, k, v, _):
        return decay * state + scale * v[:, None] * k

    draw = {"correlation": correlation, "law": law}
    ran = simulation.run(np.random.default_rng(2), 30_000, dim, length, noise, rule=write, **draw)
    expected = retention.head_risk(problem, correlation, decay, scale)
    assert abs(simulation.deviation(ran.state, ran.next_task, expected)) <= 4
    assert abs(simulation.deviation(ran.state, ran.next_task, 1.1 * expected)) > 4
    weights, risk = retention.best_weights(dataclasses.replace(problem, context_length=12), correlation)

    def weigh(state, k, v, t):
        return state + weights[t] * v[:, None] * k

    ran = simulation.run(np.random.default_rng(3), 30_000, dim, 12, noise, rule=weigh, **draw)
    assert abs(simulation.deviation(ran.state, ran.next_task, risk)) <= 4


@pytest.mark.parametrize("keys", [KeyMoments.gaussian(3), KeyMoments.sphere(5), KeyMoments.gaussian(1)], ids=str)
@pytest.mark.parametrize(("noise", "correlation"), [(0.3, 0.9), (0.0, 0.2), (2.0, 0.999)])
def test_no_head_is_better_on_an_endless_context(keys, noise, correlation):
    endless = MixerProblem(keys, math.inf, noise)
    head = retention.best_head(endless, correlation)

    def risk(x):
        return retention.head_risk(endless, correlation, float(x[0]), float(x[1]) * head.scale)

    assert risk([head.decay, 1.0]) == pytest.approx(head.risk, rel=1e-10)
    for start in ([0.5, 0.5], [0.95 * head.decay, 1.5]):
        found = scipy.optimize.minimize(risk, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14})
        np.testing.assert_allclose(found.x, [head.decay, 1.0], atol=1e-5)
        assert found.fun >= head.risk * (1 - 1e-12)
    long = retention.head_risk(MixerProblem(keys, 20_000, noise), correlation, head.decay, head.scale)
    assert long == pytest.approx(head.risk, rel=1e-10)


def test_a_task_that_does_not_drift_leaves_linear_attention():
    for keys in (KeyMoments.gaussian(4), KeyMoments.sphere(4)):
        problem = MixerProblem(keys, 9, 0.2)
        weights, risk = retention.best_weights(problem, 1.0)
        np.testing.assert_allclose(weights, np.full(9, linear_attention.best_scale(problem)), rtol=1e-12)
        assert risk == pytest.approx(linear_attention.minimum_risk(problem), rel=1e-12)
        scales, risks = retention.window_risks(problem, 1.0)
        assert (scales[-1], risks[-1]) == (pytest.approx(weights[0], rel=1e-12), pytest.approx(risk, rel=1e-12))
        head = retention.head_risk(problem, 1.0, 1.0, 0.05)
        assert head == pytest.approx(linear_attention.risk(problem, 0.05), rel=1e-12)


@pytest.mark.parametrize(
    ("dim", "length", "expected"), [(5, 20, 1.1886903601545908), (3, 8, 1.0257123458449242), (10, 40, 2.223442624662681)]
)
def test_known_numbers_of_a_fixed_step(dim, length, expected):
    keys = KeyMoments.gaussian(dim)
    assert retention.fixed_step_risk(MixerProblem(keys, length, 0.0)) == pytest.approx(expected, rel=1e-14)
    # The same quadratic, at these weights and their best scale.
    weights = retention.fixed_step_weights(length)
    for noise in (0.0, 0.6):
        square, total = np.sum(weights**2), np.sum(weights)
        best = dim * (dim + 1 + noise) * square / (total**2 + (dim + 1 + noise) * square)
        assert retention.fixed_step_risk(MixerProblem(keys, length, noise)) == pytest.approx(best, rel=1e-12)
    share = np.log(2) / length
    kept = [np.prod(np.full(length + 1 - i, np.exp(-share))) for i in range(1, length + 1)]
    np.testing.assert_allclose(weights, (1 - np.exp(-share)) * np.array(kept), rtol=1e-12)


def test_a_fixed_step_costs_four_per_cent_of_a_long_context():
    problem = MixerProblem(KeyMoments.gaussian(5), 10**7, 0.0)
    ratio = retention.fixed_step_risk(problem) / linear_attention.minimum_risk(problem)
    assert ratio == pytest.approx(1.0397207708399179, rel=1e-6)


@pytest.mark.parametrize("correlation", [0.0, -0.5, 1.5, math.nan])
def test_a_correlation_that_is_none_is_refused(correlation):
    problem = MixerProblem(KeyMoments.gaussian(2), 3, 0.1)
    for function in (
        lambda: retention.best_head(problem, correlation),
        lambda: retention.best_weights(problem, correlation),
    ):
        with pytest.raises(InvalidValueError, match=r"`correlation` must be in \(0, 1\]"):
            function()
