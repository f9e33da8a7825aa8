"""The paper claims themselves: they hold at values of one's own, and a wrong formula on either side makes them fail."""

import numpy as np
import pytest

from icl_lab.claims import registry, verify
from icl_lab.claims.claim import STATUSES
from icl_lab.core.errors import AssumptionError, InvalidValueError
from icl_lab.objectives import RegressionLoss
from icl_lab.theory.descent import vonoswald2022
from icl_lab.theory.regression import exact_loss, mahankali2023, zhang2023
from tests.claims.claim_runs import assert_holds, failed_checks, run_claim, with_slow

pytestmark = pytest.mark.claims

# Small enough that each compiles once and runs in seconds.
SETTINGS = {
    "zhang2023.thm4.1": {"d": 2, "N": 6, "rotate": True, "theta": "random", "sigma": 0.3, "seed": 4},
    "mahankali2023.thm1": {"d": 2, "N": 4, "s2": 0.3, "starts": 2, "samples": 40_000},
    "mahankali2023.thm2": {"d": 2, "N": 4, "s2": 0.3, "starts": 2, "samples": 40_000},
    "vonoswald2022.prop1": {"d": 3, "k": 2, "N": 5, "eta": 1.7, "distribution": "uniform", "seed": 9},
    "lab.exact-loss": {"d": 2, "N": 3, "s2": 0.1, "samples": 40_000, "seed": 2},
}


def run(id):
    return run_claim(id, SETTINGS[id])


def test_the_registry_holds_these_claims():
    assert set(SETTINGS) <= set(registry.all_claims())


def test_the_listing_says_what_each_parameter_accepts():
    for claim in registry.listing():
        assert claim["statement"].endswith(".")
        assert claim["source"]
        assert claim["status"] in STATUSES
        for name, parameter in claim["parameters"].items():
            assert parameter["accepts"], (claim["id"], name)
        # Defaults are accepted by their own ranges.
        registry.all_claims()[claim["id"]].resolve()


# Theorem 1 is Theorem 2 at the identity, by the same code, but compiles anew.
QUICK = with_slow(SETTINGS, {"mahankali2023.thm1"})


@pytest.mark.parametrize("id", QUICK)
def test_the_claim_holds(id):
    entry = run(id)
    assert entry["passed"], failed_checks(entry)


def test_a_limit_without_the_term_of_order_one_over_n_is_caught(monkeypatch):
    monkeypatch.setattr(zhang2023, "gamma", lambda covariance, context_length: (1 + 1 / context_length) * covariance)
    assert {"w_pv", "w_kq", "preconditioner", "risk"} <= failed_checks(run("zhang2023.thm4.1"))


def test_a_step_size_without_its_one_is_caught(monkeypatch):
    monkeypatch.setattr(mahankali2023, "step_size", lambda dim, length, noise: 1 / (length + dim + noise))
    assert {"step", "risk", "eta"} <= failed_checks(run("mahankali2023.thm2"))


def test_an_isotropic_step_on_anisotropic_inputs_is_caught(monkeypatch):
    right = mahankali2023.optimum

    def isotropic(task):
        best = right(task)
        object.__setattr__(best, "preconditioner", np.eye(task.dim) * np.trace(best.preconditioner) / task.dim)
        return best

    monkeypatch.setattr(mahankali2023, "optimum", isotropic)
    assert failed_checks(run("mahankali2023.thm2")) == {"step"}


def test_a_step_of_the_summed_loss_is_caught(monkeypatch):
    right = vonoswald2022.gradient_step
    monkeypatch.setattr(vonoswald2022, "gradient_step", lambda w, x, y, eta: right(w, x, y, eta * len(x)))
    assert failed_checks(run("vonoswald2022.prop1")) == {"label_slots", "prediction"}


@pytest.mark.slow
def test_a_moment_without_one_of_its_pairings_is_caught(monkeypatch):
    def incomplete(tokens, middle, count):
        trace = np.einsum("ij,pji->p", middle, tokens)
        return count**2 * tokens @ middle @ tokens + count * trace[:, None, None] * tokens

    monkeypatch.setattr(exact_loss, "_wishart", incomplete)
    wrong = failed_checks(run("lab.exact-loss"))
    assert {"risk_query_in", "risk_query_out", "gradient_w_pv_query_out", "gradient_w_kq_query_out"} <= wrong


def test_a_loss_that_is_off_by_a_part_in_a_billion_is_caught(monkeypatch):
    right = RegressionLoss.risk
    monkeypatch.setattr(RegressionLoss, "risk", lambda self, weights: right(self, weights) * (1 + 1e-9))
    assert failed_checks(run("lab.exact-loss")) == {"risk_query_in", "risk_query_out"}


def test_a_start_outside_the_assumption_is_refused_before_training():
    with pytest.raises(AssumptionError, match=r"Assumption 3\.3"):
        verify.run(["zhang2023.thm4.1"], {"sigma": 0.7})


def test_a_spectrum_of_another_length_is_refused():
    with pytest.raises(InvalidValueError, match=r"d = \d eigenvalues; got 2"):
        verify.run(["*"], {"Lam": [1.0, 2.0]})


@pytest.mark.slow
@pytest.mark.parametrize("id", SETTINGS)
def test_the_claim_holds_at_its_defaults_and_away_from_them(id):
    assert_holds(id, {}, {"d": 7, "N": 13, "seed": 3})


@pytest.mark.slow
def test_a_wide_spectrum_is_integrated_implicitly():
    for id in ("zhang2023.thm4.1", "mahankali2023.thm2"):
        assert_holds(id, {"Lam": [4.0, 1.0, 0.1], "rotate": True})


@pytest.mark.slow
def test_claims_run_in_processes_of_their_own():
    seen = []
    names = ["vonoswald2022.prop1", "lab.exact-loss"]
    overrides = {"d": 2, "N": 3, "samples": 1000}
    entries = verify.run(names, overrides, 2, lambda done, total, entry: seen.append((done, total)))
    assert [entry["id"] for entry in entries] == names
    assert seen == [(1, 2), (2, 2)]
    alone = verify.run(names, overrides)
    for one, other in zip(entries, alone, strict=True):
        assert [check["measured"] for check in one["checks"]] == [check["measured"] for check in other["checks"]]
