"""The lab's claims about sequences: they hold at values of one's own, and a wrong formula makes them fail."""

import pytest

from icl_lab.claims import registry, verify
from icl_lab.core.errors import AssumptionError, InvalidValueError
from icl_lab.theory.descent import vonoswald2022
from icl_lab.theory.dynamics import rotations, vonoswald2023
from icl_lab.theory.series import autoregressive, random_autoregressive
from tests.claims.claim_runs import failed_checks, run_claim, with_slow

pytestmark = pytest.mark.claims

FAST = {
    "lab.ar-moments": {"rho": [0.6, 0.2, -0.1], "sigma": 0.7, "samples": 0},
    "lab.ridge-bayes": {"d": 2, "T": 5, "sigma": 0.5, "tau": 1.2, "seed": 3},
    "lab.ar1-random": {"N": 7, "bound": 0.8, "sigma": 0.6, "starts": 3, "samples": 0, "seed": 2},
    "lab.rotation-gd1": {"d": 6, "T": 9, "sigma": 0.3, "samples": 0},
    "vonoswald2023.gd1": {"d": 2, "T": 6, "a": -0.3, "b": 1.4, "seed": 1},
    "vonoswald2023.mesa-layer": {"d": 2, "T": 7, "sigma": 0.5, "lam": 0.7, "seed": 5},
    "vonoswald2023.multilayer": {"d": 2, "n": 5, "L": 3, "eta": 0.1, "K": 4, "lam": 0.5, "kappa": 4.0, "seed": 1},
}
SLOW = {
    "lab.ar-prior": {"p": 4, "bound": 0.9, "samples": 40_000},
    "lab.ar-ols": {"rho": [0.6, 0.2], "N": 100, "samples": 10_000, "seed": 5},
    "lab.gram": {"p": 1, "N": 9, "d": 3, "bound": 0.5, "samples": 20_000},
    "lab.ar2-random": {"N": 6, "bound": 0.6, "sigma": 0.7, "starts": 4, "nodes": 9},
    "lab.haar-gd1-limit": {"d": 2, "group": "SO", "samples": 20_000, "seed": 4},
    "lab.haar-minnorm": {"d": 3, "samples": 20_000, "seed": 1},
    "lab.noisy-rotation-ols": {"d": 2, "T": 300, "sigma": 0.8, "samples": 5_000, "seed": 2},
    "lab.complex-vs-real": {"T": 4, "a0": 0.5, "b0": 0.4, "sigma": 0.8},
}


def run(id, settings=None):
    return run_claim(id, settings or (FAST | SLOW)[id])


def test_the_registry_holds_these_claims():
    assert set(FAST | SLOW) <= set(registry.all_claims())


@pytest.mark.parametrize("id", with_slow(FAST | SLOW, SLOW))
def test_the_claim_holds(id):
    entry = run(id)
    assert entry["passed"], failed_checks(entry)


def test_an_infinite_context_is_a_length():
    entry = run("lab.ar1-random", {"N": "inf", "starts": 3, "bound": 0.7})
    assert entry["passed"], failed_checks(entry)


def test_a_variance_without_its_last_partial_autocorrelation_is_caught(monkeypatch):
    right = autoregressive.variance_from_partial_autocorrelations
    monkeypatch.setattr(autoregressive, "variance_from_partial_autocorrelations", lambda rho, s2: right(rho[:-1], s2))
    assert failed_checks(run("lab.ar-moments")) == {"variance_by_partial_autocorrelations"}


def test_a_prior_variance_that_is_a_standard_deviation_is_caught(monkeypatch):
    right = autoregressive.conditioned_mean
    monkeypatch.setattr(autoregressive, "conditioned_mean", lambda x, y, s2, t2: right(x, y, s2, t2**0.5))
    assert failed_checks(run("lab.ridge-bayes")) == {"state_by_conditioning", "series_by_conditioning"}


def test_moments_over_one_window_less_are_caught(monkeypatch):
    right = random_autoregressive.random_feature_moments
    monkeypatch.setattr(random_autoregressive, "random_feature_moments", lambda p, N, *rest: right(p, N - 1, *rest))
    assert failed_checks(run("lab.ar1-random")) == {"eta", "excess"}


def test_a_trace_average_without_distinct_blocks_is_caught(monkeypatch):
    right = rotations.mean_traces
    monkeypatch.setattr(rotations, "mean_traces", lambda blocks, n: blocks * right(1, n))
    # The mean of a single trace is a sum over the blocks, whatever the others do.
    assert failed_checks(run("lab.rotation-gd1")) == {"M_t", "s", "half_loss"}


def test_a_step_of_the_summed_loss_is_caught(monkeypatch):
    right = vonoswald2022.gradient_step
    monkeypatch.setattr(vonoswald2022, "gradient_step", lambda w, x, y, eta: right(w, x, y, eta * len(x)))
    assert failed_checks(run("vonoswald2023.gd1")) == {"all_positions_at_once", "last_position", "gradient_descent"}


def test_an_inclusive_causal_mask_and_a_slower_rate_are_caught(monkeypatch):
    right = vonoswald2023.causal_residuals
    monkeypatch.setattr(vonoswald2023, "causal_residuals", lambda x, y, eta, layers: right(x, y, eta, layers + 1))
    monkeypatch.setattr(vonoswald2023, "chebyshev_factor", vonoswald2023.constant_step_factor)
    assert failed_checks(run("vonoswald2023.multilayer")) == {"causal_residuals", "chebyshev_worst_error_abs"}


@pytest.mark.slow
def test_limits_of_the_other_group_are_caught(monkeypatch):
    monkeypatch.setattr(rotations, "haar_step_limits", lambda dim, special=False: (2.0 * dim + 1, 6.0 * dim + 9))
    assert {"c", "M"} <= failed_checks(run("lab.haar-gd1-limit"))


def test_bad_settings_are_refused():
    with pytest.raises(InvalidValueError, match="stationary"):
        verify.run(["lab.ar-moments"], {"rho": [1.0]})
    with pytest.raises(InvalidValueError, match="even"):
        verify.run(["lab.rotation-gd1"], {"d": 3})
    with pytest.raises(InvalidValueError, match="an integer >= 1 or inf"):
        verify.run(["lab.ar1-random"], {"N": 0})
    with pytest.raises(AssumptionError, match="bound"):
        verify.run(["lab.ar2-random"], {"bound": 0.97})
