"""Claims about risks: they hold away from the defaults, also where squared errors have no variance, and errors are caught."""

import dataclasses
import math

import pytest

from icl_lab.claims import verify
from icl_lab.core.errors import AssumptionError
from icl_lab.theory.regression import bayes, lsa, nonlinear
from tests.claims.claim_runs import failed_checks, runs_of, with_slow

pytestmark = pytest.mark.claims

SETTINGS = {
    "lab.risk-shift": {"d": 2, "N": 5, "M": 3, "s2": 0.1, "samples": 20_000, "seed": 2},
    "lab.ols": {"d": 2, "N": 5, "s2": 0.4, "samples": 20_000, "seed": 2},
    "lab.minnorm": {"d": 5, "N": 2, "lam": 1.7, "Om": [1.0, 2.0, 0.5, 1.0, 1.0], "samples": 20_000, "seed": 2},
    "lab.bayes": {"d": 2, "N": 3, "s2": 0.6, "Lam": [2.0, 0.5], "rotate": True, "samples": 20_000, "seed": 2},
    "lab.crossover": {"d": 3, "s2": 2.0, "samples": 20_000},
    "lab.one-over-N": {"d": 2, "N": 7, "samples": 20_000, "seed": 2},
}

run = runs_of(SETTINGS)


@pytest.mark.parametrize("id", with_slow(SETTINGS, {"lab.one-over-N"}))
def test_the_claim_holds(id):
    assert not failed_checks(run(id))


@pytest.mark.slow
@pytest.mark.parametrize("length", [2, 3, 4, 5, 8])
def test_least_squares_at_every_distance_from_the_interpolation_threshold(length):
    """Two dimensions: infinite at 2 and 3, without a variance at 4 and 5."""
    entry = run("lab.ols", N=length)
    assert not failed_checks(entry)
    assert any("tail_index" in check["name"] for check in entry["checks"]) == (length < 4)
    assert not failed_checks(run("lab.ols", N=length, s2=0.0))


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 3, 4, 5, 8])
def test_minimum_norm_at_every_distance_from_the_interpolation_threshold(length):
    assert not failed_checks(run("lab.minnorm", N=length, samples=50_000))
    assert not failed_checks(run("lab.minnorm", N=length, s2=0.0))


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 0.3, 6.0])
def test_the_crossover_at_other_noise(noise):
    assert not failed_checks(run("lab.crossover", s2=noise))


def test_too_few_examples_for_least_squares_are_refused():
    with pytest.raises(AssumptionError, match="N >= d = 4"):
        verify.run(["lab.ols"], {"d": 4, "N": 3})


def test_a_risk_with_the_wrong_query_moment_is_caught(monkeypatch):
    right = lsa.risk
    monkeypatch.setattr(lsa, "risk", lambda problem, step, query=None: right(problem, step))
    assert failed_checks(run("lab.risk-shift")) == {"risk_shifted_query"}


def test_a_second_moment_in_place_of_a_covariance_is_caught(monkeypatch):
    right = nonlinear.rectified_distribution

    def uncentred(lam, w, s2):
        best, spread, error = right(lam, w, s2)
        return best, spread + (lam @ best)[:, None] * (lam @ best)[None, :] * 4, error

    monkeypatch.setattr(nonlinear, "rectified_distribution", uncentred)
    assert failed_checks(run("lab.risk-shift", samples=100_000)) == {"risk_rectified_labels"}


def test_least_squares_with_one_degree_of_freedom_too_many_is_caught(monkeypatch):
    monkeypatch.setattr(bayes, "ols_risk", lambda d, n, s2: s2 * d / (n - d))
    assert failed_checks(run("lab.ols")) == {"risk_random_tasks"}


def test_a_bias_of_the_wrong_share_is_caught(monkeypatch):
    monkeypatch.setattr(bayes, "minimum_norm_risk", lambda d, n, s2, lam, trace: lam * trace * n / d)
    assert failed_checks(run("lab.minnorm")) == {"risk_minimum_norm"}


def test_a_bayes_risk_of_half_the_noise_is_caught(monkeypatch):
    right = bayes.risk

    def of_half_the_noise(problem, contexts):
        return right(dataclasses.replace(problem, noise_variance=problem.noise_variance / 2), contexts)

    monkeypatch.setattr(bayes, "risk", of_half_the_noise)
    assert failed_checks(run("lab.bayes")) == {"bayes_risk"}


def test_a_crossover_one_too_late_is_caught(monkeypatch):
    right = bayes.longest_winning_context
    monkeypatch.setattr(bayes, "longest_winning_context", lambda d, s2: math.floor(right(d, s2)) + 1.5)
    assert "who_wins_at_each_length_abs" in failed_checks(run("lab.crossover"))
