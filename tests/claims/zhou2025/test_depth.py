"""Claims of Zhou et al. beyond one layer: they hold at other values, and a planted error makes the right checks fail."""

import numpy as np
import pytest

from icl_lab.claims import registry
from icl_lab.claims.zhou2025 import depth as zhou2025_depth
from icl_lab.claims.zhou2025 import published as zhou2025_published
from icl_lab.core.errors import AssumptionError, InvalidValueError
from icl_lab.models import constructions
from icl_lab.theory.series import autoregressive, rollout, softmax_series
from tests.claims.claim_runs import assert_holds, failed_checks, runs_of

pytestmark = pytest.mark.claims

# Small enough that each compiles once and runs in seconds.
SETTINGS = {
    "zhou2025.monotone": {"rho": [0.4], "N": 6, "L": 1, "sigma": 0.6, "samples": 4_000, "seed": 2},
    "zhou2025.depth2": {"rho": [0.3], "N": 200, "sigma": 0.7, "samples": 4_000, "seed": 3},
    "zhou2025.cot-bayes": {"rho": [0.6, 0.2], "sigma": 0.5, "K": 3, "samples": 20_000, "seed": 4},
    "zhou2025.cot-plugin": {"rho": [-0.5], "factor": 1.3, "k": 2, "sigma": 2.0, "samples": 20_000, "seed": 5},
    "zhou2025.cot-lsa": {"rho": [0.6, 0.2], "N": 35, "K": 5, "k": 4, "sigma": 0.7, "samples": 4_000, "seed": 6},
    "zhou2025.softmax-limit": {"rho": [-0.4], "N": 4_000, "sigma": 2.0, "samples": 40, "seed": 7},
    "zhou2025.softmax-var": {"rho": [0.3], "N": 200, "sigma": 0.5, "samples": 10_000, "seed": 8},
    "zhou2025.predicted-gap": {"p": 3, "seed": 101, "seeds": 2, "N": 60},
    "zhou2025.undertrained": {"seed": 102, "N": 20, "length": 20_000},
}
QUICK = [id for id in SETTINGS if id != "zhou2025.undertrained"]

run = runs_of(SETTINGS)


def numbers(entry, name):
    (found,) = (check for check in entry["checks"] if check["name"] == name)
    return found


@pytest.mark.parametrize("id", QUICK)
def test_the_claim_holds(id):
    assert_holds(id, SETTINGS[id])


@pytest.mark.slow
def test_standardised_training_reaches_the_closed_form_and_raw_training_does_not():
    entry = run("zhou2025.undertrained")
    assert entry["passed"], failed_checks(entry)


def test_training_that_is_too_short_even_when_standardised_is_caught():
    entry = run("zhou2025.undertrained", epochs=1, length=10_000)
    assert failed_checks(entry) == {"scaled_excess_over_closed_form_abs"}


def test_a_best_rollout_that_forgets_its_last_step_is_caught(monkeypatch):
    right = rollout.bayes_mse
    monkeypatch.setattr(rollout, "bayes_mse", lambda rho, sigma, steps: right(rho, sigma, steps + 1)[1:])
    assert failed_checks(run("zhou2025.cot-bayes")) == {
        "second_moments",
        "errors",
        "sampled_second_moments",
        "sampled_errors",
    }


def test_a_stationary_variance_without_the_noise_is_caught(monkeypatch):
    right = rollout.lyapunov_covariance
    monkeypatch.setattr(rollout, "lyapunov_covariance", lambda rho, s2: right(rho, s2) - s2 * np.eye(len(rho)))
    assert {"second_moments", "sampled_second_moments"} == failed_checks(run("zhou2025.cot-bayes"))
    assert {"error", "errors", "sampled_errors"} == failed_checks(run("zhou2025.cot-plugin"))


def test_swapped_companion_matrices_are_caught(monkeypatch):
    right = rollout.plugin_mse
    monkeypatch.setattr(rollout, "plugin_mse", lambda rho, used, sigma, steps: right(used, rho, sigma, steps))
    assert failed_checks(run("zhou2025.cot-plugin")) == {"error", "errors", "sampled_errors"}


def test_a_recursion_that_never_refreshes_its_estimate_is_caught(monkeypatch):
    right = rollout.lsa_rollout

    def frozen(series, rho, sigma, shrinkage, steps):
        first = right(series, rho, sigma, shrinkage, 1)
        scale = first[:, 0] / (series[:, -len(rho) :] @ rho[::-1])
        window, appended = series[:, -len(rho) :], []
        for _ in range(steps):
            appended.append(scale * (window @ rho[::-1]))
            window = np.concatenate([window[:, 1:], appended[-1][:, None]], axis=1)
        return np.stack(appended, axis=1)

    monkeypatch.setattr(rollout, "lsa_rollout", frozen)
    assert failed_checks(run("zhou2025.cot-lsa")) == {"one_path", "largest_distance_from_the_recursion_abs", "ratio_of_medians"}


def test_a_second_estimate_equal_to_the_first_is_caught(monkeypatch):
    def squared(series, rho, sigma):
        observed, best = rollout.innovations(series, rho)
        estimate = np.mean(observed**2, axis=1) / sigma**2
        return best[:, -1] * (1 - (1 - estimate) ** 2), best[:, -1]

    monkeypatch.setattr(rollout, "two_layer_prediction", squared)
    assert failed_checks(run("zhou2025.depth2")) == {"prediction", "correction_to_the_best_abs"}


def test_a_gap_of_one_layers_order_is_caught(monkeypatch):
    monkeypatch.setattr(rollout, "two_layer_gap", lambda rho, length: 2.0 * length)
    assert failed_checks(run("zhou2025.depth2")) == {"scaled_gap"}


def test_a_fourth_moment_to_leading_order_only_is_caught(monkeypatch):
    monkeypatch.setattr(rollout, "equal_estimates_gap", lambda rho, length: 12.0)
    assert failed_checks(run("zhou2025.depth2", samples=10_000)) == {"scaled_gap"}


def test_two_layers_without_their_second_are_caught(monkeypatch):
    right = constructions.series.two_layers

    def first_alone(rho, sigma):
        first, second = right(rho, sigma)
        return first, type(second)(0 * second.w_pv, second.w_kq)

    monkeypatch.setattr(constructions.series, "two_layers", first_alone)
    assert failed_checks(run("zhou2025.depth2")) >= {"prediction", "scaled_gap", "below_one_layer"}


def test_a_layer_that_writes_something_is_caught(monkeypatch):
    right = zhou2025_depth._without_value

    def writes(key, width, scale):
        idle = right(key, width, scale)
        return type(idle)(idle.w_pv + 1e-9, idle.w_kq)

    monkeypatch.setattr(zhou2025_depth, "_without_value", writes)
    assert failed_checks(run("zhou2025.monotone")) >= {"appended_layer", "prepended_layer", "largest_change_abs"}


def test_a_softmax_limit_without_the_covariance_is_caught(monkeypatch):
    monkeypatch.setattr(softmax_series, "readout_limit", lambda rho, sigma, query: sigma**2 * query)
    assert failed_checks(run("zhou2025.softmax-limit")) == {"readout"}


def test_a_softmax_head_with_the_variance_of_linear_attention_is_caught(monkeypatch):
    monkeypatch.setattr(softmax_series, "scaled_gap", lambda rho, sigma, scale: 2 * sigma**2 * 0.0989)
    monkeypatch.setattr(softmax_series, "finite_gap", lambda rho, sigma, *_: (2 * sigma**2 * 0.0989, 1e-3))
    assert failed_checks(run("zhou2025.softmax-var")) == {"scaled_gap", "limit_of_scaled_gap"}


def test_an_explained_variance_that_counts_the_noise_is_caught(monkeypatch):
    right = autoregressive.variance_from_partial_autocorrelations
    monkeypatch.setattr(autoregressive, "variance_from_partial_autocorrelations", lambda rho, s2: right(rho, s2) + s2)
    assert "explained_over_noise" in failed_checks(run("zhou2025.predicted-gap"))


def test_a_listed_number_with_two_digits_swapped_is_caught(monkeypatch):
    monkeypatch.setitem(zhou2025_published.LISTED, 3, (0.2448, 4.2188, 0.2693, 3.2903, 36.1185, 3.2630, 5.4650))
    assert failed_checks(run("zhou2025.predicted-gap")) == {"listed"}


def test_a_gap_of_unscaled_weights_is_caught(monkeypatch):
    right = rollout.one_layer_gap
    monkeypatch.setattr(rollout, "one_layer_gap", lambda rho, length: right(rho, length) * (length + 4) / length)
    assert failed_checks(run("zhou2025.predicted-gap")) == {"gaps_over_noise"}


def test_settings_outside_a_claim_are_refused():
    claims = registry.all_claims()
    with pytest.raises(InvalidValueError, match="stationary"):
        claims["zhou2025.cot-bayes"].resolve({"rho": [1.1]})
    with pytest.raises(InvalidValueError, match="null"):
        claims["zhou2025.depth2"].resolve({"rho": None})
    with pytest.raises(InvalidValueError, match="at most K"):
        claims["zhou2025.cot-lsa"].resolve({"K": 3})
    with pytest.raises(InvalidValueError, match="entries"):
        claims["zhou2025.softmax-limit"].resolve({"q": [1.0]})
    with pytest.raises(AssumptionError, match="too small"):
        claims["zhou2025.softmax-var"].resolve({"C": 0.4})
    with pytest.raises(InvalidValueError, match="published value"):
        claims["zhou2025.undertrained"].resolve({"sigma": 1.0})
