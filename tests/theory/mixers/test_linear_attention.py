"""Linear attention's risks: known numbers, a simulation, and that no scale and no start is better."""

import numpy as np
import pytest
import scipy.optimize

from icl_lab.core.errors import InvalidValueError
from icl_lab.theory.mixers import linear_attention
from icl_lab.theory.mixers.problem import KeyMoments, MixerProblem
from icl_lab.theory.regression import mahankali2023
from tests.theory.mixers import simulation

SETTINGS = [("gaussian", 5, 9, 0.4), ("gaussian", 3, 20, 0.0), ("sphere", 4, 11, 0.3)]


def problem_of(law, dim, length, noise):
    return MixerProblem(getattr(KeyMoments, law)(dim), length, noise)


def test_known_numbers():
    gaussian, sphere = problem_of("gaussian", 8, 24, 0.25), problem_of("sphere", 8, 24, 0.0)
    assert linear_attention.minimum_risk(gaussian) == pytest.approx(8 * 9.25 / 33.25, rel=1e-14)
    assert linear_attention.minimum_risk(gaussian) == pytest.approx(2.2256, abs=5e-5)
    assert linear_attention.best_scale(gaussian) == pytest.approx(1 / 33.25, rel=1e-14)
    assert linear_attention.minimum_risk(sphere) == pytest.approx(1.8065, abs=5e-5)
    assert linear_attention.best_scale(sphere) == pytest.approx(1 / (23 / 8 + 1), rel=1e-14)
    shares = [linear_attention.minimum_risk(problem_of("sphere", 8, n, 0.0)) / 8 for n in (4, 8, 16, 32, 64)]
    np.testing.assert_allclose(shares, [0.636, 0.467, 0.304, 0.179, 0.099], atol=5e-4)
    centred = problem_of("gaussian", 8, 23, 0.25)  # of n = 24
    assert linear_attention.minimum_risk(centred) == pytest.approx(2.2946, abs=5e-5)


def test_known_numbers_of_starts():
    problem, square = problem_of("gaussian", 5, 10, 0.0), 5 * 1.2**2
    tuned = linear_attention.tuned_start(problem, square)
    assert tuned.risk == pytest.approx(2.9708, abs=5e-5)
    assert tuned.scale == pytest.approx(5 / (square * 6 + 5 * 16), rel=1e-14)
    assert tuned.share == pytest.approx(1 - 10 * tuned.scale, rel=1e-14)
    assert linear_attention.minimum_risk(problem, square) == pytest.approx(4.5750, abs=5e-5)
    assert linear_attention.minimum_risk(problem) == pytest.approx(1.8750, abs=5e-5)


@pytest.mark.parametrize(("dim", "length", "noise"), [(3, 5, 0.0), (6, 30, 0.7)])
def test_gaussian_keys_are_the_regression_of_another_module(dim, length, noise):
    problem = problem_of("gaussian", dim, length, noise)
    assert linear_attention.minimum_risk(problem) == pytest.approx(mahankali2023.minimum_risk(dim, length, noise), rel=1e-13)
    assert linear_attention.best_scale(problem) == pytest.approx(mahankali2023.step_size(dim, length, noise), rel=1e-13)


@pytest.mark.parametrize(("law", "dim", "length", "noise"), SETTINGS)
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_the_risk_is_that_of_simulated_prompts(law, dim, length, noise, share):
    rng, mean = np.random.default_rng(1), np.linspace(0.2, 0.8, dim)
    problem, square = problem_of(law, dim, length, noise), float(mean @ mean)
    scale = 0.8 * linear_attention.best_scale(problem, square)

    def write(state, k, v, _):
        return state + scale * v[:, None] * k

    ran = simulation.run(rng, 40_000, dim, length, noise, rule=write, law=law, start=share * mean, mean=mean)
    expected = linear_attention.risk(problem, scale, share, square)
    assert abs(simulation.deviation(ran.state, ran.task, expected)) <= 4
    assert abs(simulation.deviation(ran.state, ran.task, 1.1 * expected)) > 4


@pytest.mark.parametrize(("law", "dim", "length", "noise"), SETTINGS)
def test_no_scale_and_no_start_is_better(law, dim, length, noise):
    problem, square = problem_of(law, dim, length, noise), 1.7
    zero = scipy.optimize.minimize_scalar(lambda scale: linear_attention.risk(problem, scale, 0.0, square))
    assert linear_attention.best_scale(problem, square) == pytest.approx(zero.x, rel=1e-6)
    assert linear_attention.minimum_risk(problem, square) == pytest.approx(zero.fun, rel=1e-12)
    tuned = linear_attention.tuned_start(problem, square)
    both = scipy.optimize.minimize(lambda x: linear_attention.risk(problem, x[0] / length, x[1], square), [0.5, 0.5], tol=1e-12)
    np.testing.assert_allclose([tuned.scale * length, tuned.share], both.x, rtol=1e-5)
    assert tuned.risk == pytest.approx(both.fun, rel=1e-10)
    assert tuned.risk == pytest.approx(linear_attention.risk(problem, tuned.scale, tuned.share, square), rel=1e-12)
    assert linear_attention.minimum_risk(problem) < tuned.risk < zero.fun


def test_moments_are_those_of_draws_and_impossible_ones_are_refused():
    rng = np.random.default_rng(0)
    for law in ("gaussian", "sphere"):
        draws, keys = simulation.draw_keys(rng, 200_000, 3, law), getattr(KeyMoments, law)(3)
        for values, expected in (
            (draws[:, 0] ** 2, keys.second),
            (np.sum(draws**2, axis=1) * draws[:, 1] ** 2, keys.fourth),
            (draws[:, 0] ** 2 * draws[:, 2] ** 2, keys.cross),
            (draws[:, 0] ** 4, 3 * keys.cross),
        ):
            assert abs(np.mean(values) - expected) < 4 * np.std(values) / np.sqrt(len(values))
    with pytest.raises(InvalidValueError, match="`dim` must be >= 1; got 0"):
        KeyMoments(0, 1.0, 2.0)
    with pytest.raises(InvalidValueError, match="`second` must be > 0"):
        KeyMoments(2, 0.0, 2.0)
    with pytest.raises(InvalidValueError, match="`fourth` must be at least d c\\^2 = 2"):
        KeyMoments(2, 1.0, 1.9)


@pytest.mark.parametrize(("length", "noise", "name"), [(-1, 0.0, "context_length"), (3, -0.1, "noise_variance")])
def test_problems_that_are_none_are_refused(length, noise, name):
    with pytest.raises(InvalidValueError, match=f"`{name}` must be >= 0"):
        MixerProblem(KeyMoments.gaussian(2), length, noise)
