"""The delta rule's risk and best step, with and without momentum: known numbers, simulations, limits."""

import numpy as np
import pytest

from icl_lab.theory.mixers import delta_rule, linear_attention, momentum
from icl_lab.theory.mixers.problem import KeyMoments, MixerProblem
from tests.theory.mixers import simulation


def test_known_numbers_of_the_delta_rule():
    step, risk = delta_rule.best_step(MixerProblem(KeyMoments.gaussian(8), 24, 0.25))
    assert (step, risk) == (pytest.approx(0.0909, abs=5e-5), pytest.approx(0.8054, abs=5e-5))
    shares = [delta_rule.risk(MixerProblem(KeyMoments.sphere(8), n, 0.0), 1.0) / 8 for n in (4, 8, 16, 32, 64)]
    np.testing.assert_allclose(shares, (7 / 8) ** np.array([4, 8, 16, 32, 64]), rtol=1e-12)
    np.testing.assert_allclose(shares, [0.586, 0.344, 0.118, 0.0139, 0.0002], rtol=0.03)
    best = [delta_rule.best_step(MixerProblem(KeyMoments.gaussian(8), n, 0.25))[1] for n in (4, 8, 16, 32, 64, 128)]
    np.testing.assert_allclose(best, [5.32, 3.55, 1.64, 0.440, 0.114, 0.045], rtol=0.01)
    linear = [linear_attention.minimum_risk(MixerProblem(KeyMoments.gaussian(8), n, 0.25)) for n in (4, 8, 16, 32, 64, 128)]
    np.testing.assert_allclose(linear, [5.58, 4.29, 2.93, 1.79, 1.01, 0.539], atol=0.005)
    assert np.all(np.array(best) < linear)


@pytest.mark.parametrize(
    ("law", "dim", "length", "noise", "step"),
    [("gaussian", 3, 15, 0.4, 0.12), ("gaussian", 5, 4, 0.0, 0.2), ("sphere", 4, 10, 0.3, 0.6), ("sphere", 2, 9, 0.1, 1.7)],
)
def test_the_risk_is_that_of_simulated_prompts(law, dim, length, noise, step):
    rng = np.random.default_rng(4)
    ran = simulation.run(rng, 40_000, dim, length, noise, rule=simulation.delta_rule(step), law=law)
    expected = delta_rule.risk(MixerProblem(getattr(KeyMoments, law)(dim), length, noise), step)
    assert abs(simulation.deviation(ran.state, ran.task, expected)) <= 4
    assert abs(simulation.deviation(ran.state, ran.task, 1.1 * expected)) > 4


@pytest.mark.parametrize("keys", [KeyMoments.gaussian(3), KeyMoments.sphere(5)], ids=["gaussian", "sphere"])
@pytest.mark.parametrize(("length", "noise"), [(1, 0.0), (10, 0.0), (10, 0.5), (300, 0.05)])
def test_no_step_is_better(keys, length, noise):
    problem = MixerProblem(keys, length, noise)
    step, risk = delta_rule.best_step(problem)
    grid = np.linspace(0, 2 * keys.second / keys.fourth, 4001)
    risks = [delta_rule.risk(problem, float(one)) for one in grid]
    assert risk <= min(risks) * (1 + 1e-12)
    assert step == pytest.approx(grid[int(np.argmin(risks))], abs=grid[1])


def test_one_example_is_one_step_of_linear_attention_and_a_step_of_zero_learns_nothing():
    keys = KeyMoments.gaussian(4)
    one = MixerProblem(keys, 1, 0.3)
    assert delta_rule.risk(one, 0.1) == pytest.approx(linear_attention.risk(one, 0.1), rel=1e-14)
    assert delta_rule.risk(MixerProblem(keys, 50, 0.3), 0.0) == 4.0


def test_the_implicit_step_minimises_its_quadratic():
    rng = np.random.default_rng(5)
    key, before, value, weight = rng.normal(size=3), rng.normal(size=3), 0.7, 2.5
    after = before + delta_rule.implicit_step(weight, float(key @ key)) * (value - before @ key) * key
    expected = np.linalg.solve(np.eye(3) + weight * np.outer(key, key), before + weight * value * key)
    np.testing.assert_allclose(after, expected, rtol=1e-12)


def test_known_numbers_of_momentum():
    problem = MixerProblem(KeyMoments.gaussian(4), 30, 0.2)
    assert momentum.risk(problem, 0.5, 0.06) == pytest.approx(0.101792008121019, rel=1e-12)
    assert momentum.risk(problem, 0.9, 0.02) == pytest.approx(0.7136847874076633, rel=1e-12)
    short, long = (momentum.best(MixerProblem(KeyMoments.gaussian(8), n, 0.25)) for n in (24, 64))
    # The momenta were read off a grid of step 0.025.
    assert np.all(np.abs(np.subtract(short, [0.05, 0.087, 0.8051])) < [0.0125, 5e-4, 1e-4])
    assert np.all(np.abs(np.subtract(long, [0.425, 0.033, 0.1122])) < [0.0125, 5e-4, 5e-5])
    for n, found in ((24, short), (64, long)):
        problem = MixerProblem(KeyMoments.gaussian(8), n, 0.25)
        assert found.risk < delta_rule.best_step(problem)[1]
        assert found.risk == pytest.approx(momentum.risk(problem, found.momentum, found.step), rel=1e-12)
        grid = [
            momentum.risk(problem, float(mu), float(beta)) for mu in np.linspace(0, 0.9, 46) for beta in np.linspace(0, 0.2, 81)
        ]
        assert found.risk <= min(grid)


@pytest.mark.parametrize(
    ("law", "dim", "length", "noise", "share", "step"),
    [("gaussian", 3, 20, 0.3, 0.4, 0.08), ("gaussian", 5, 8, 0.0, 0.8, 0.03), ("sphere", 4, 25, 0.2, 0.6, 0.3)],
)
def test_the_risk_with_momentum_is_that_of_simulated_prompts(law, dim, length, noise, share, step):
    move = np.zeros((40_000, dim))

    def rule(state, keys, values, _):
        nonlocal move
        move = share * move + step * (values - np.sum(keys * state, axis=1))[:, None] * keys
        return state + move

    ran = simulation.run(np.random.default_rng(6), 40_000, dim, length, noise, rule=rule, law=law)
    expected = momentum.risk(MixerProblem(getattr(KeyMoments, law)(dim), length, noise), share, step)
    assert abs(simulation.deviation(ran.state, ran.task, expected)) <= 4
    assert abs(simulation.deviation(ran.state, ran.task, 1.1 * expected)) > 4


def test_without_momentum_it_is_the_delta_rule():
    for keys in (KeyMoments.gaussian(3), KeyMoments.sphere(6)):
        for length in (0, 1, 17):
            problem = MixerProblem(keys, length, 0.3)
            expected = delta_rule.risk(problem, 0.1)
            assert momentum.risk(problem, 0.0, 0.1) == pytest.approx(expected, rel=1e-12)
