"""Claims about the landscape: they hold away from the defaults, and wrong formulas make the right checks fail."""

import dataclasses

import numpy as np
import pytest

from icl_lab.theory.regression import exact_loss, lsa, minima
from tests.claims.claim_runs import failed_checks, runs_of

pytestmark = pytest.mark.claims

SETTINGS = {
    "lab.exact-loss-multihead": {"d": 2, "N": 3, "s2": 0.1, "heads": 3, "normaliser": "none", "samples": 20_000, "seed": 2},
    "lab.global-min": {"d": 2, "N": 4, "s2": 0.1, "starts": 12, "query_in_sum": False, "seed": 2},
    "lab.spurious-minima": {"d": 2, "N": 3, "s2": 0.0, "starts": 2},
}

run = runs_of(SETTINGS)


def measured(entry, name):
    return next(check["measured"] for check in entry["checks"] if check["name"] == name)


@pytest.mark.slow
def test_several_heads_are_right_and_one_dropped_pairing_is_seen(monkeypatch):
    assert not failed_checks(run("lab.exact-loss-multihead"))

    def symmetric(tokens, middle, count):
        """E[G A G] with A in place of its transpose, which only several heads can tell apart."""
        trace = np.einsum("ij,pji->p", middle, tokens)
        return (count**2 + count) * tokens @ middle @ tokens + count * trace[:, None, None] * tokens

    monkeypatch.setattr(exact_loss, "_wishart", symmetric)
    assert {"risk_query_in", "gradient_w_pv_query_in", "gradient_w_kq_query_out"} <= failed_checks(
        run("lab.exact-loss-multihead")
    )


@pytest.mark.slow
def test_the_global_minimum_holds_and_an_optimum_without_noise_is_caught(monkeypatch):
    assert not failed_checks(run("lab.global-min"))
    right = lsa.optimal_preconditioner
    monkeypatch.setattr(lsa, "optimal_preconditioner", lambda problem: right(dataclasses.replace(problem, noise_variance=0.0)))
    wrong = failed_checks(run("lab.global-min"))
    assert {"best_preconditioner", "structured_preconditioner", "best_risk", "singular_preconditioner"} <= wrong


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [{"d": 1, "N": 3}, {"d": 4, "N": 7, "normaliser": "none"}, {"Lam": [3.0, 0.4]}])
def test_the_global_minimum_elsewhere(overrides):
    assert not failed_checks(run("lab.global-min", starts=12, **overrides))


@pytest.mark.slow
def test_the_branch_is_a_minimum_at_short_contexts_and_wrong_criteria_are_caught(monkeypatch):
    entry = run("lab.spurious-minima")
    assert not failed_checks(entry)
    assert measured(entry, "branch_is_a_minimum_abs") == 1
    assert measured(entry, "flat_directions_abs") == 2
    right = minima.branch_curvature
    monkeypatch.setattr(minima, "branch_curvature", lambda d, n, s2, query: right(d, n, s2, not query))
    monkeypatch.setattr(minima, "half_loss_below_branch", lambda *args: 0.7)
    wrong = failed_checks(run("lab.spurious-minima"))
    assert {"criterion_matrix", "branch_is_a_minimum_abs", "half_loss_reached_from_the_branch"} <= wrong


@pytest.mark.slow
def test_at_longer_contexts_flows_beside_the_branch_end_in_another_minimum():
    entry = run("lab.spurious-minima", d=3, N=8, Lam=[1.5, 1.0, 0.5], rotate=True)
    assert not failed_checks(entry)
    assert measured(entry, "branch_is_a_minimum_abs") == 0
    assert measured(entry, "half_loss_reached_from_the_branch") == pytest.approx(0.9489070700, abs=1e-9)
    assert not failed_checks(run("lab.spurious-minima", d=3, N=5, s2=0.6, query_in_sum=False, Lam=[0.7, 1.9, 1.1]))
