"""Planted errors in the theory of time courses and training are caught by the claims that rest on them."""

import numpy as np
import pytest

from icl_lab.claims import verify
from icl_lab.core.errors import AssumptionError
from icl_lab.theory.regression import optimum, stability, structured, timecourse, zhangsaxe2025
from tests.claims.claim_runs import failed_checks, run_claim

pytestmark = pytest.mark.claims

SMALL = {"d": 2, "N": 6}


def failed(id, settings):
    return failed_checks(run_claim(id, settings))


@pytest.mark.slow
def test_a_limit_that_ignores_the_imbalance_is_caught(monkeypatch):
    right = optimum.balanced_weights
    monkeypatch.setattr(optimum, "balanced_weights", lambda product, imbalance=0.0: right(product))
    wrong = failed("lab.balanced-limit", SMALL)
    assert wrong == {f"{part}_limit_{words}" for part in "uU" for words in ("large_u", "large_U")}


def test_a_velocity_with_the_wrong_power_of_u_is_caught(monkeypatch):
    right = structured.general_velocity

    def wrong(problem, u, inner):
        du, slope = right(problem, u, inner)
        return du, slope / u

    monkeypatch.setattr(structured, "general_velocity", wrong)
    caught = failed("lab.structured-flow", SMALL)
    assert caught == {"dU_dt_query_in", "dU_dt_query_out", "u_along_the_flow", "U_along_the_flow"}


def test_a_plateau_that_ignores_the_angle_of_the_start_is_caught(monkeypatch):
    right = timecourse.plateau_time
    aligned = lambda problem, sigma, theta, share: right(problem, sigma, np.eye(len(theta)) / np.sqrt(len(theta)), share)  # noqa: E731
    monkeypatch.setattr(timecourse, "plateau_time", aligned)
    assert failed("lab.plateau", SMALL) == {"time_from_random", "difference_of_starts_abs"}


def test_a_drift_of_the_other_sign_is_caught(monkeypatch):
    right = stability.descent

    def wrong(problem, u, inner, *rest):
        u_end, inner_end, kappa = right(problem, u, inner, *rest)
        return u_end, inner_end, 2 * (u**2 - np.sum(inner**2)) - kappa

    monkeypatch.setattr(stability, "descent", wrong)
    assert "kappa_step_h_over_1_abs" in failed("lab.gd-invariant", SMALL | {"h": 0.04})


def test_a_factored_head_balanced_like_a_merged_one_is_caught(monkeypatch):
    monkeypatch.setattr(
        zhangsaxe2025, "full_rank_limit", lambda product: (float(np.trace(product)) ** 0.5, product / np.trace(product) ** 0.5)
    )
    assert failed("lab.one-head-fullrank", SMALL) == {"u_limit", "KK_limit"}


def test_a_slow_mode_off_by_two_per_cent_is_caught(monkeypatch):
    right = timecourse.slow_mode_time
    monkeypatch.setattr(timecourse, "slow_mode_time", lambda *parameters: 1.02 * right(*parameters))
    assert failed("lab.slow-mode", {"N": 40, "Lam": [1.0, 0.25]}) == {"time_between_shares"}


@pytest.mark.slow
def test_strict_saddles_at_every_set_would_be_caught(monkeypatch):
    monkeypatch.setattr(zhangsaxe2025, "is_strict_saddle", lambda learned: bool(np.any(learned == 0) and np.any(learned == 1)))
    settings = {"d": 2, "N": 9, "H": 2, "Lam": [1.0, 0.5], "sigma": 5e-3}
    assert failed("zhangsaxe2025.separate", settings) == {"negative_curvature_of_balanced_heads_abs"}


@pytest.mark.parametrize(
    ("id", "settings", "words"),
    [
        ("lab.balanced-limit", {"sigma": 3.0, "u0": 3.0}, "no lower loss"),
        ("lab.plateau", {"sigma": 1e-3}, "must be at most"),
        ("lab.plateau", {"fraction": 1.0}, "between 0 and 1"),
        ("lab.plateau", {"Lam": [4.0, 1.0, 0.1], "N": 200}, "in the tail"),
        ("lab.slow-mode", {"Lam": [1.0, 0.5]}, "at most 0.3"),
        ("lab.slow-mode", {"low": 0.5, "high": 0.2}, "low < high"),
        ("lab.escape-exponent", {"Lam": [2.0, 1.0, 0.5], "d": 3, "sigma": 1e-3}, "power law"),
        ("lab.gd-invariant", {"h": 0.2}, "largest stable step"),
        ("lab.sgd-sanity", {"lr": 0.1}, "largest stable step"),
        ("lab.sgd-sanity", {"Lam": [0.3, 0.2, 0.1]}, "slowest mode"),
        ("zhangsaxe2025.separate", {"v0": 1.0}, "below half"),
    ],
)
def test_settings_outside_a_statement_are_refused(id, settings, words):
    with pytest.raises(AssumptionError, match=words):
        verify.run([id], settings)
