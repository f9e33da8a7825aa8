"""Delta rules with decay on drifting tasks, and the Kalman filter that none beats: known numbers, simulations, limits."""

import math

import numpy as np
import pytest

from icl_lab.core.errors import InvalidValueError
from icl_lab.theory.mixers import delta_rule, gated_delta, kalman, retention
from icl_lab.theory.mixers.problem import KeyMoments, MixerProblem
from tests.theory.mixers import simulation

LADDER, CORRELATION = MixerProblem(KeyMoments.gaussian(4), 200, 0.1), 0.97


def test_known_numbers_of_the_drift_ladder():
    a, noise = CORRELATION, LADDER.noise_variance
    delta = gated_delta.best_gates(LADDER, a, "deltanet", ahead=1)
    gated = gated_delta.best_gates(LADDER, a, "gated_deltanet", ahead=1, readout=a)
    np.testing.assert_allclose([delta.step, delta.risk], [0.143, 1.296], atol=5e-4)
    np.testing.assert_allclose([gated.decays[0], gated.step, gated.risk], [0.97, 0.1575, 1.141], atol=5e-4)
    draw = np.random.default_rng(7).normal
    bayes, error = kalman.risks((draw(size=(4000, 200, 4)) for _ in range(2)), noise, a)
    assert error < 0.002
    assert abs(bayes - 0.827) < 4 * error + 5e-4
    risks = retention.window_risks(LADDER, a)[1]
    head = retention.best_head(LADDER, a)
    assert risks[-1] > min(risks) > head.risk > delta.risk > gated.risk > bayes


def test_known_numbers_of_channels_that_drift_apart():
    problem, correlation = MixerProblem(KeyMoments.gaussian(8), math.inf, 0.05), np.repeat([0.8, 1.0], 4)
    one = gated_delta.best_gates(problem, correlation, "gated_deltanet")
    each = gated_delta.best_gates(problem, correlation, "kda")
    np.testing.assert_allclose([one.risk, each.risk, each.risk / one.risk], [3.923, 3.493, 0.890], atol=5e-4)
    np.testing.assert_allclose([one.decays[0], one.step], [0.994, 0.037], atol=5e-4)
    np.testing.assert_allclose(each.decays, np.repeat([0.901, 0.996], 4), atol=5e-4)
    assert each.step == pytest.approx(0.057, abs=5e-4)


@pytest.mark.parametrize(
    ("law", "correlation", "decay", "noise", "step", "length"),
    [
        ("gaussian", 0.9, 0.8, 0.3, 0.1, 3),
        ("gaussian", np.array([0.5, 0.95, 1.0]), np.array([0.6, 0.9, 0.99]), 0.2, 0.12, 30),
        ("sphere", np.array([0.8, 0.9, 0.99]), np.array([1.0, 0.7, 0.95]), 0.05, 0.8, 40),
    ],
)
def test_the_risks_are_those_of_simulated_prompts(law, correlation, decay, noise, step, length):
    problem = MixerProblem(getattr(KeyMoments, law)(3), length, noise)
    rule = simulation.delta_rule(step, decay)
    ran = simulation.run(np.random.default_rng(8), 60_000, 3, length, noise, rule=rule, correlation=correlation, law=law)
    now = gated_delta.risk(problem, correlation, decay, step)
    assert abs(simulation.deviation(ran.state, ran.task, now)) <= 4
    assert abs(simulation.deviation(ran.state, ran.task, 1.1 * now)) > 4
    ahead = gated_delta.risk(problem, correlation, decay, step, ahead=1, readout=0.9)
    assert abs(simulation.deviation(0.9 * ran.state, ran.next_task, ahead)) <= 4
    # Channel by channel.
    crossed, squared = gated_delta.moments(problem, correlation, decay, step)
    for values, expected in ((ran.state * ran.task, crossed), (ran.state**2, squared)):
        error = np.std(values, axis=0) / np.sqrt(len(values))
        assert np.all(np.abs(np.mean(values, axis=0) - expected) <= 4 * error)


def test_an_endless_context_is_the_limit_of_long_ones_and_a_state_without_variance_has_no_risk():
    keys, correlation, decay = KeyMoments.gaussian(3), np.array([0.5, 0.95, 1.0]), np.array([0.6, 0.9, 0.99])
    endless = MixerProblem(keys, math.inf, 0.2)
    long = gated_delta.risk(MixerProblem(keys, 5000, 0.2), correlation, decay, 0.12)
    assert gated_delta.risk(endless, correlation, decay, 0.12) == pytest.approx(long, rel=1e-12)
    assert gated_delta.risk(endless, correlation, 1.0, 0.41) == math.inf  # above 2 / (d + 2)
    assert gated_delta.risk(endless, correlation, 1.0, 0.39) < math.inf


@pytest.mark.parametrize("length", [0, 1, 12])
def test_without_decay_and_drift_it_is_the_delta_rule(length):
    for keys in (KeyMoments.gaussian(4), KeyMoments.sphere(3)):
        problem = MixerProblem(keys, length, 0.3)
        expected = delta_rule.risk(problem, 0.1)
        assert gated_delta.risk(problem, 1.0, 1.0, 0.1) == pytest.approx(expected, rel=1e-12)
    problem = MixerProblem(KeyMoments.gaussian(8), 24, 0.25)
    gates = gated_delta.best_gates(problem, 1.0, "deltanet")
    np.testing.assert_allclose((gates.step, gates.risk), delta_rule.best_step(problem), rtol=1e-6)


def test_more_gates_are_never_worse_and_best_ones_cannot_be_moved():
    problem, correlation = MixerProblem(KeyMoments.gaussian(4), 40, 0.1), np.array([0.7, 0.7, 0.9, 0.99])
    found = [gated_delta.best_gates(problem, correlation, kind) for kind in ("deltanet", "gated_deltanet", "kda")]
    assert found[0].risk > found[1].risk > found[2].risk
    decays, step, lowest = found[2]
    assert decays[0] == decays[1] != decays[2]
    for shift in 0.01 * np.concatenate([np.eye(5), -np.eye(5)]):
        moved = gated_delta.risk(problem, correlation, np.minimum(decays + shift[:4], 1.0), float(step + shift[4]))
        assert moved > lowest
    with pytest.raises(InvalidValueError, match="`kind` must be one of deltanet, gated_deltanet, kda; got 'gla'"):
        gated_delta.best_gates(problem, 0.9, "gla")


def test_the_filters_risk_is_the_conditional_variance_of_the_querys_task():
    rng, a, noise = np.random.default_rng(9), np.array([0.9, 0.5, 1.0]), 0.3
    contexts = rng.normal(size=(2, 6, 3))
    lags, ahead = np.abs(np.arange(6)[:, None] - np.arange(6)[None, :]), np.arange(6, 0, -1)
    traces = []
    for keys in contexts:
        labels = sum(a[c] ** lags * np.outer(keys[:, c], keys[:, c]) for c in range(3)) + noise * np.eye(6)
        crossed = a[:, None] ** ahead[None, :] * keys.T
        traces.append(3 - np.trace(crossed @ np.linalg.solve(labels, crossed.T)))
    mean, error = kalman.risks([contexts], noise, a)
    assert mean == pytest.approx(np.mean(traces), rel=1e-12)
    assert error == pytest.approx(abs(traces[0] - traces[1]) / 2, rel=1e-12)


def test_scalar_steps_are_kalman_gains_in_one_dimension():
    a, noise, keys = 0.97, 0.1, np.random.default_rng(10).normal(size=9)
    steps = kalman.scalar_steps(keys**2, 1, noise, a)
    for t in range(1, 9):
        variance = kalman.risks([np.tile(keys[None, :t, None], (2, 1, 1))], noise, a)[0]
        assert steps[t] == pytest.approx(delta_rule.implicit_step(variance / noise, float(keys[t] ** 2)), rel=1e-12)


def test_a_delta_rule_with_scalar_steps_comes_between_the_best_constant_step_and_the_filter():
    length, noise, a = LADDER.context_length, LADDER.noise_variance, CORRELATION
    drawn = np.random.default_rng(11).normal(size=(length, 20_000, 4))
    steps = kalman.scalar_steps(np.sum(drawn**2, axis=2), 4, noise, a)

    def rule(state, k, values, t):
        return simulation.delta_rule(steps[t][:, None], a)(state, k, values, t)

    rng = np.random.default_rng(12)
    ran = simulation.run(rng, 20_000, 4, length, noise, rule=rule, correlation=a, keys=drawn)
    squares = np.sum((a * ran.state - ran.next_task) ** 2, axis=1)
    error = np.std(squares) / np.sqrt(len(squares))
    assert abs(np.mean(squares) - 0.929) < 4 * np.hypot(error, 0.012)
    assert 0.83 + 4 * error < np.mean(squares) < 1.14 - 4 * error
