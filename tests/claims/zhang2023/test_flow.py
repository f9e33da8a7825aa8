"""The lemmas on the way to Theorem 4.1 hold at values of one's own, and a planted error makes the right checks fail."""

import numpy as np
import pytest

from icl_lab.claims import verify
from icl_lab.core.errors import AssumptionError
from icl_lab.theory.regression import structured, zhang2023
from tests.claims.claim_runs import assert_holds, failed_checks, runs_of, with_slow

pytestmark = pytest.mark.claims

START = {"d": 2, "N": 6, "rotate": True, "theta": "random", "sigma": 0.3, "seed": 4}
SETTINGS = {
    "zhang2023.setup": {"d": 2, "N": 3, "seed": 1},
    "zhang2023.lem5.1": {"d": 4, "N": 2, "seed": 3},
    "zhang2023.asm3.3": START,
    "zhang2023.lem5.2": {"d": 2, "N": 6, "s2": 0.4, "seed": 1},
    "zhang2023.lemA.1": START,
    "zhang2023.corA.2": START,
    "zhang2023.lem5.3": {"d": 2, "N": 6, "starts": 2, "seed": 2},
    "zhang2023.lemA.3": START,
    "zhang2023.lemA.4-A.5": START,
    "zhang2023.lem5.4": START,
}
# Gradient flow of every entry compiles for long.
QUICK = with_slow(SETTINGS, {"zhang2023.lemA.3"})

run = runs_of(SETTINGS)


def measured(entry):
    return {check["name"]: check["measured"] for check in entry["checks"]}


@pytest.mark.parametrize("id", QUICK)
def test_the_claim_holds(id):
    assert_holds(id, SETTINGS[id])


def test_defaults_are_the_reference_configuration():
    (start,), (loss,), (form,) = (verify.run([f"zhang2023.{name}"]) for name in ("asm3.3", "lemA.1", "lem5.1"))
    assert measured(start)["largest_sigma"] == pytest.approx(0.6729217938, abs=1e-9)
    assert measured(loss)["half_loss_at_start"] == pytest.approx(1.7198870275, abs=1e-9)
    assert measured(form)["negative_eigenvalues"] == 4
    assert measured(run("zhang2023.lem5.1"))["negative_eigenvalues"] == 3


def test_a_form_of_twice_the_size_is_caught(monkeypatch):
    right = structured.quadratic_form
    monkeypatch.setattr(structured, "quadratic_form", lambda *data: 2 * right(*data))
    assert failed_checks(run("zhang2023.lem5.1")) == {"prediction", "hessian_distance_abs"}


def test_a_rank_that_forgets_the_query_is_caught(monkeypatch):
    monkeypatch.setattr(structured, "negative_directions", min)
    assert failed_checks(run("zhang2023.lem5.1")) == {"negative_eigenvalues"}


def test_a_flow_of_the_whole_squared_error_is_caught(monkeypatch):
    right = structured.velocity
    monkeypatch.setattr(structured, "velocity", lambda *state: tuple(2 * x for x in right(*state)))
    assert failed_checks(run("zhang2023.lem5.2")) == {"du", "dU", "du_query_out", "dU_query_out"}


def test_a_general_flow_whose_factors_are_swapped_is_caught(monkeypatch):
    def swapped(problem, u, inner):
        signal = problem.covariance @ problem.task_covariance @ problem.covariance
        pull = problem.covariance @ inner @ structured.response_moment(problem)
        return float(np.sum(inner * signal) - u * np.sum(inner * pull)), u * signal - u**2 * pull

    monkeypatch.setattr(structured, "general_velocity", swapped)
    assert {"du_general", "dU_general"} <= failed_checks(run("zhang2023.lem5.2"))


def test_a_gap_without_its_root_is_caught(monkeypatch):
    def gap(u, inner, covariance, length):
        return float(np.linalg.norm(u * inner - np.linalg.inv(zhang2023.gamma(covariance, length))) ** 2 / 2)

    monkeypatch.setattr(structured, "loss_gap", gap)
    assert failed_checks(run("zhang2023.corA.2")) == {"gap"}


def test_a_minimum_of_another_size_is_caught(monkeypatch):
    monkeypatch.setattr(structured, "minimum_reduced_loss", lambda covariance, length: -np.trace(covariance) / 3)
    assert failed_checks(run("zhang2023.corA.2")) == {"smallest_half_loss", "smallest_reduced_loss"}
    assert failed_checks(run("zhang2023.lem5.3")) == {"half_loss_along_the_curve_0", "half_loss_along_the_curve_1"}


def test_bounds_of_ten_times_the_size_are_caught(monkeypatch):
    for name in ("scale_lower_bound", "pl_constant", "start_loss_bound"):
        right = getattr(zhang2023, name)
        monkeypatch.setattr(zhang2023, name, lambda *start, right=right: 10 * right(*start))
    assert failed_checks(run("zhang2023.lemA.4-A.5")) == {"start_loss_bound", "start_loss_abs", "u_lower_bound", "smallest_u"}
    assert "mu" in failed_checks(run("zhang2023.lem5.4"))


def test_a_bound_beyond_the_slowest_point_of_the_path_is_caught(monkeypatch):
    right = zhang2023.pl_constant
    monkeypatch.setattr(zhang2023, "pl_constant", lambda *start: 1e5 * right(*start))
    assert failed_checks(run("zhang2023.lem5.4")) == {"mu", "smallest_gradient_over_gap", "largest_log_gap_plus_mu_t_abs"}


def test_a_start_outside_the_assumption_is_refused():
    for id in ("zhang2023.asm3.3", "zhang2023.lemA.4-A.5", "zhang2023.lem5.4", "zhang2023.lemA.1", "zhang2023.lemA.3"):
        with pytest.raises(AssumptionError, match=r"Assumption 3\.3"):
            verify.run([id], {"sigma": 0.7})


@pytest.mark.slow
@pytest.mark.parametrize("id", SETTINGS)
def test_the_claim_holds_at_its_defaults_and_away_from_them(id):
    assert_holds(id, {}, {"d": 7, "N": 13, "seed": 3})
