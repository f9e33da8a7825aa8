"""The claims about other distributions of test prompts hold at values of one's own, and a planted error makes the right checks
fail.
"""

import numpy as np
import pytest

from icl_lab.claims import verify
from icl_lab.core.errors import AssumptionError, InvalidValueError, NotPositiveDefiniteError
from icl_lab.theory.regression import bayes, lsa, transfer, zhang2023
from tests.claims.claim_runs import assert_holds, failed_checks, runs_of, with_slow

pytestmark = pytest.mark.claims

SIZES = {"d": 2, "N": 6, "rotate": True, "seed": 1}
SETTINGS = {
    "zhang2023.thm4.2": SIZES | {"M": 4, "label": "sign", "s2": 0.2, "samples": 40_000},
    "zhang2023.thm4.2-linear": SIZES | {"M": 4},
    "zhang2023.cor4.3": SIZES | {"eps": 0.1},
    "zhang2023.asymptotics": SIZES | {"M": 4, "s2": 0.3},
    "zhang2023.vs-ols": SIZES | {"M": 3, "samples": 5_000},
    "zhang2023.shift-task": SIZES | {"M": 4, "w": [1.0, -2.0], "samples": 20_000},
    "zhang2023.shift-query": SIZES | {"M": 4, "Lam_q": [[1.0, 0.3], [0.3, 0.5]], "samples": 20_000},
    "zhang2023.shift-covariate": SIZES | {"M": 4, "c": 1.4, "Lam_test": [0.6, 1.5], "samples": 20_000},
}
# The planted errors below name every check of these that fails, so that the others are seen to pass.
SLOW = {f"zhang2023.{name}" for name in ("asymptotics", "cor4.3", "vs-ols", "shift-query", "shift-covariate")}
QUICK = with_slow(SETTINGS, SLOW)

run = runs_of(SETTINGS)


@pytest.mark.parametrize("id", QUICK)
def test_the_claim_holds(id):
    assert_holds(id, SETTINGS[id])


def test_every_label_is_run_unless_one_is_asked_for():
    names = {check["name"] for check in run("zhang2023.thm4.2", label="all", samples=1000)["checks"]}
    assert {f"error_{label}" for label in transfer.LABELS} <= names
    assert {f"error_{label}_noisy" for label in transfer.LABELS} <= names
    assert {"error_linear_exact", "error_linear_noisy_exact"} <= names


def test_a_second_moment_in_place_of_a_covariance_is_caught(monkeypatch):
    right = transfer.single_index_distribution

    def uncentred(label, vector, covariance, noise=0.0):
        distribution = right(label, vector, covariance, noise)
        mean = covariance @ distribution.slope
        return distribution._replace(product_covariance=distribution.product_covariance + np.outer(mean, mean))

    monkeypatch.setattr(transfer, "single_index_distribution", uncentred)
    assert failed_checks(run("zhang2023.thm4.2")) == {"error_sign", "error_sign_noisy"}


def test_a_bias_of_order_one_over_n_is_caught(monkeypatch):
    right = transfer.error

    def slow(covariance, length, test_length, distribution):
        variance_free = right(covariance, length, np.inf, distribution) - distribution.minimum
        return right(covariance, length, test_length, distribution) + (length - 1) * variance_free

    monkeypatch.setattr(transfer, "error", slow)
    assert {"error_linear_exact", "error_linear_noisy_exact"} <= failed_checks(run("zhang2023.thm4.2", label="linear"))


def test_a_risk_with_the_test_length_in_gamma_is_caught(monkeypatch):
    right = zhang2023.risk
    monkeypatch.setattr(
        zhang2023, "risk", lambda covariance, length, test_length: right(covariance, min(test_length, 100), test_length)
    )
    # At the training length, and only there, the two coincide.
    assert failed_checks(run("zhang2023.thm4.2-linear", M=6)) == {"risk_at_1", "risk_at_100", "risk_at_infinity"}


def test_a_residual_that_vanishes_is_caught(monkeypatch):
    monkeypatch.setattr(transfer, "residual_bound", lambda covariance, length: 0.0)
    wrong = failed_checks(run("zhang2023.cor4.3"))
    assert wrong == {f"{name}{at}" for name in ("risks_against_bound", "risk_at_sample_size") for at in ("", "_at_4N")}


@pytest.mark.slow
def test_an_isotropic_risk_without_its_one_is_caught(monkeypatch):
    right = transfer.isotropic_risk
    monkeypatch.setattr(transfer, "isotropic_risk", lambda dim, *distribution: right(dim - 1, *distribution) * dim / (dim - 1))
    assert failed_checks(run("zhang2023.asymptotics")) == {"isotropic_bias", "isotropic_noisy_risk"}


def test_least_squares_without_its_one_is_caught(monkeypatch):
    monkeypatch.setattr(bayes, "ols_risk", lambda dim, length, noise: noise * dim / (length - dim))
    wrong = failed_checks(run("zhang2023.vs-ols", s2=100.0, samples=20_000))
    assert "noisy_layer_minus_ols_short_abs" in wrong
    assert wrong <= {"noisy_layer_minus_ols_short_abs", "noisy_layer_minus_ols_long_abs"}


def test_a_risk_that_takes_the_query_from_the_context_is_caught(monkeypatch):
    right = lsa.risk
    monkeypatch.setattr(lsa, "risk", lambda problem, step, query=None: right(problem, step))
    assert failed_checks(run("zhang2023.shift-query")) == {"simulated_risk", "risk_after_infinite_context"}
    assert failed_checks(run("zhang2023.shift-covariate")) == {"simulated_risk_of_other_queries"}


def test_a_risk_trained_on_the_test_distribution_is_caught(monkeypatch):
    right = lsa.risk

    def retrained(problem, step, query=None):
        return right(problem, np.linalg.inv(zhang2023.gamma(problem.covariance, 6)), query)

    monkeypatch.setattr(lsa, "risk", retrained)
    assert failed_checks(run("zhang2023.shift-covariate")) == {"risk_of_scaled_inputs", "risk_of_other_covariance"}
    assert failed_checks(run("zhang2023.shift-task")) == set()


def test_an_error_linear_in_the_factor_is_caught(monkeypatch):
    monkeypatch.setattr(transfer, "scaled_inputs_error", lambda factor, signal: factor**2 * (factor - 1) ** 2 * signal)
    assert failed_checks(run("zhang2023.shift-covariate")) == {"risk_of_scaled_inputs_after_infinite_contexts_abs"}


def test_bad_parameters_are_refused():
    for id in ("zhang2023.thm4.2", "zhang2023.shift-task"):
        with pytest.raises(InvalidValueError, match="`w` must hold d = 3"):
            verify.run([id], {"w": [1.0, 2.0]})
        with pytest.raises(InvalidValueError, match="`w` must not be zero"):
            verify.run([id], {"w": [0.0, 0.0, 0.0]})
    with pytest.raises(AssumptionError, match="M >= d = 3"):
        verify.run(["zhang2023.vs-ols"], {"M": 2})
    with pytest.raises(NotPositiveDefiniteError, match="Lam_q"):
        verify.run(["zhang2023.shift-query"], {"Lam_q": [[1.0, 2.0], [2.0, 1.0]], "d": 2})
    with pytest.raises(InvalidValueError, match="3 x 3"):
        verify.run(["zhang2023.shift-query"], {"Lam_q": [[1.0]]})
    with pytest.raises(InvalidValueError, match="all of one length"):
        verify.run(["zhang2023.shift-query"], {"Lam_q": [[1.0, 2.0], [2.0]]})


@pytest.mark.slow
@pytest.mark.parametrize("id", SETTINGS)
def test_the_claim_holds_at_its_defaults_and_away_from_them(id):
    away = {"d": 5, "N": 13, "seed": 3, "rotate": True}
    assert_holds(id, {}, away if id == "zhang2023.cor4.3" else away | {"M": 9})
