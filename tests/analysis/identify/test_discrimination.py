"""How many prompts tell two functions apart: formula against simulation, lower bounds; which of several functions is chosen."""

import numpy as np
import pytest

from icl_lab import analysis, estimators, tasks
from icl_lab.analysis.identify.discrimination import (
    SIGMAS,
    Comparison,
    Count,
    compare,
    relative_root,
    required_prompts,
    simplest,
)

DRAWS = 4000


def told(draw, rng, count):
    """Share of samples of `count` prompts whose mean is `SIGMAS` standard errors from zero, the deviation being known."""
    pilot = draw(rng, (200_000,))
    means = draw(rng, (DRAWS, count)).mean(axis=1)
    return np.mean(np.abs(means) >= SIGMAS * pilot.std() / np.sqrt(count))


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, shape: 0.5 + rng.normal(size=shape),
        # Squared distances are like this: skewed and never negative.
        lambda rng, shape: rng.normal(size=shape) ** 2,
    ],
)
def test_at_that_number_of_prompts_half_of_the_samples_tell(draw, rng):
    count = required_prompts(draw(rng, (200_000,)))
    assert not count.at_least
    number = round(count.prompts)
    assert number == pytest.approx((SIGMAS / (0.5 if draw(rng, (1000,)).min() < 0 else 1 / np.sqrt(2))) ** 2, rel=0.05)
    # The mean of a skewed distribution is above its median; its share is a little below a half.
    assert 0.4 < told(draw, rng, number) < 0.56
    assert told(draw, rng, 4 * number) > 0.99
    assert told(draw, rng, number // 4) < 0.06


def test_two_means_on_prompts_of_their_own_take_the_deviations_of_both(rng):
    first, second = 1.3 * rng.normal(size=400_000) ** 2, rng.normal(size=400_000) ** 2
    deviation = float(np.hypot(first.std(), second.std()))
    number = round(required_prompts(first - second, deviation).prompts)
    # E = 0.3, variances 2 * 1.69 + 2.
    assert number == pytest.approx(16 * 5.38 / 0.09, rel=0.06)
    means = rng.chisquare(number, size=(2, DRAWS)) / number * np.array([1.3, 1.0])[:, None]
    share = np.mean(means[0] - means[1] >= SIGMAS * np.sqrt(5.38 / number))
    assert share == pytest.approx(0.5, abs=0.05)


def test_what_the_prompts_do_not_show_is_a_lower_bound(rng):
    noise = rng.normal(size=10_000)
    count = required_prompts(noise - noise.mean())
    # The largest mean that these prompts allow is four standard errors: as many prompts as were drawn.
    assert count.at_least
    assert count.prompts == pytest.approx(10_000, rel=1e-9)
    assert str(count) == "> 10000"
    assert required_prompts(np.zeros(5)) == Count(np.inf)
    assert required_prompts(np.ones(5) + 1e-3 * noise[:5]) == Count(2.0)
    assert [str(Count(n)) for n in (np.inf, 2.0, 1.5e9)] == ["inf", "2", "1.5e+09"]
    assert Count(np.inf).plain() == {"prompts": "inf", "at_least": False}


def test_the_standard_error_of_a_relative_distance_is_that_of_repeated_estimates(rng):
    def estimate():
        model = rng.normal(size=500)
        return relative_root((0.1 * model + 0.2 * rng.normal(size=500)) ** 2, model**2)

    results = [estimate() for _ in range(1000)]
    means = [result.mean for result in results]
    assert np.mean(means) == pytest.approx(np.sqrt(0.05), rel=0.01)
    # A standard deviation of 1000 draws is known to 2.2 percent.
    assert np.mean([result.standard_error for result in results]) == pytest.approx(np.std(means), rel=0.09)
    assert relative_root(np.zeros(3), np.ones(3)).standard_error == 0


def test_the_simplest_function_within_the_resolution_or_not_clearly_beaten_is_chosen(rng):
    norms, base = np.ones(1000), rng.uniform(0.5, 1.5, 1000)
    assert simplest(np.stack([base, 1e-14 * base, 1e-20 * base]), norms, 1e-6) == 1
    assert simplest(np.stack([base, 0.3 * base, 0.05 * base]), norms, 1e-6) == 2
    assert simplest(np.stack([0.3 * base, base, 0.1 * base]), norms, 1e-6) == 2
    # Roots of the mean squares are 10% apart at 0.81: a tolerance above or below that.
    assert simplest(np.stack([base, 0.82 * base]), norms, 1e-6) == 0
    assert simplest(np.stack([base, 0.80 * base]), norms, 1e-6) == 1
    assert simplest(np.stack([base, 0.82 * base]), norms, 1e-6, 0.05) == 1
    assert simplest(np.stack([base, 0.80 * base]), norms, 1e-6, 0.15) == 0


def test_a_function_is_clearly_closer_beyond_chance_and_beyond_the_tolerance(rng):
    base = rng.uniform(0.5, 1.5, 1000)
    found = compare(0.25 * base, base)
    assert found.gain == pytest.approx(0.5)
    assert found.errors == pytest.approx(base.mean() / base.std(ddof=1) * np.sqrt(1000))
    assert found.clear(0.4)
    assert not found.clear(0.6)
    assert str(Comparison(0.5, 4.25)) == "50%, 4.2 standard errors"
    # One outlier makes the difference: the mean is lower by far, but not beyond chance.
    spike = np.where(np.arange(1000) == 0, 1e4, 1e-2)
    assert not compare(np.full(1000, 1e-2), spike).clear(0.1)
    assert compare(np.full(4, 0.25), np.full(4, 1.0)) == Comparison(0.5, np.inf)
    assert compare(base, base) == Comparison(0.0, 0.0)


def test_the_smaller_a_penalty_the_more_prompts_tell_it_from_ols_by_its_risk(key):
    task = tasks.LinearRegression(4, 12, covariance=[2.0, 1.0, 1.0, 0.5], noise_std=0.3)

    def counts(penalty):
        found = analysis.identify(estimators.named("ridge", penalty=penalty), task, key, 1024)
        assert found.verdict == "ridge"
        ols = next(row for row in found.ranked if row.candidate.family == "OLS")
        assert not ols.by_risk.at_least
        return ols.by_answers.prompts, ols.by_risk.prompts

    (first_answers, first_risk), (second_answers, second_risk) = counts(1e-2), counts(1e-3)
    # The difference of two risks is linear in a small penalty, their noise is not: its square has to be averaged away.
    assert second_risk == pytest.approx(100 * first_risk, rel=0.2)
    # Answers have no noise.
    assert second_answers == pytest.approx(first_answers, rel=0.1)
    assert 10 < first_answers < 1000 < first_risk
