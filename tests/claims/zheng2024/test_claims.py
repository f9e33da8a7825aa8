"""The claims about random phases hold at values of one's own, and a wrong formula makes the right checks fail."""

import numpy as np
import pytest

from icl_lab.claims import registry, verify
from icl_lab.claims.zheng2024 import loss as zheng2024_loss
from icl_lab.core.errors import AssumptionError, InvalidValueError
from icl_lab.theory.dynamics import all_ones, diagonal_loss, phases, recovery, zheng2024
from tests.claims.claim_runs import assert_holds, failed_checks, runs_of, with_slow

pytestmark = pytest.mark.claims

# Small enough that each compiles once and runs in seconds.
SETTINGS = {
    "zheng2024.ode": {"d": 2, "T": 6, "sigma": 0.8, "a0": 0.3, "b0": 0.9, "time": 0.07},
    "zheng2024.thm4.1": {"d": 2, "T": 6, "sigma": 0.8, "a0": 0.7, "b0": -0.2},
    "zheng2024.random-init": {"d": 2, "T": 6, "sigma": 0.8, "std": [0.2], "seed": 3},
    "zheng2024.loss-diag": {"d": 3, "T": 6, "distribution": "skew", "sigma": 0.7, "seed": 4},
    "zheng2024.cubature": {"d": 2, "T": 4, "distribution": "skew", "c": 0.7, "seed": 5},
    "zheng2024.pattern-gram": {"d": 2, "T": 4, "sigma": 0.8, "seed": 6},
    "zheng2024.full-gram": {"d": 2, "T": 4, "sigma": 0.8, "seed": 6},
    "zheng2024.dead-blocks": {"d": 2, "T": 4, "sigma": 0.8, "seed": 7},
    "zheng2024.offdiag": {"d": 3, "T": 5, "sigma": 0.8, "a": 0.2, "b": 0.9},
    "zheng2024.masked": {"d": 2, "T": 6, "c": 0.8, "a0": 0.4, "b0": 0.9},
    "zheng2024.full-ones": {"d": 3, "T": 6, "c": 0.8, "a0": 0.4, "b0": 0.9},
    "zheng2024.mesa-gd": {"d": 2, "T": 6, "t": 7, "distribution": "complex_gaussian", "sigma": 0.8, "seed": 8},
    "zheng2024.test-error": {"d": 3, "T": 7, "t": 9, "sigma": 0.7},
    "zheng2024.prop4.1": {"d": 2, "T": 6, "t": 5, "sigma": 0.8, "samples": 20_000, "seed": 9},
    "zheng2024.thm4.2": {"d": 2, "T": 6, "t": 5, "distribution": "rademacher", "c": 0.8, "samples": 20_000, "seed": 9},
    "zheng2024.sims": {"d": 3, "T": 30, "distribution": "constant"},
}

run = runs_of(SETTINGS)


def test_every_claim_of_the_paper_is_tested():
    assert {id for id in registry.all_claims() if id.startswith("zheng2024.")} == set(SETTINGS)


# These flows differ from those of the other claims in the type of their weights only, and compile for seconds.
SLOW = {"zheng2024.masked", "zheng2024.random-init"}
QUICK = with_slow(SETTINGS, SLOW)


@pytest.mark.parametrize("id", QUICK)
def test_the_claim_holds(id):
    assert_holds(id, SETTINGS[id])


@pytest.mark.parametrize("distribution", ["constant", "skew"])
def test_a_distribution_outside_the_assumption_is_refused(distribution):
    with pytest.raises((AssumptionError, InvalidValueError), match=r"distribution"):
        verify.run(["zheng2024.thm4.1"], {"distribution": distribution})


@pytest.mark.parametrize("id", ["zheng2024.ode", "zheng2024.thm4.1", "zheng2024.masked", "zheng2024.full-ones"])
def test_a_start_that_ends_in_the_saddle_is_refused(id):
    with pytest.raises(AssumptionError, match="saddle"):
        verify.run([id], {"a0": 0.5, "b0": -0.5})


def test_a_wrong_count_of_other_coordinates_is_caught(monkeypatch):
    right = zheng2024.constants

    def wrong(distribution, dim, scale):
        return right(distribution, dim, scale)._replace(kappa3=right(distribution, dim + 1, scale).kappa3)

    monkeypatch.setattr(zheng2024, "constants", wrong)
    assert {"loss", "loss_at_complex_diagonals"} <= failed_checks(run("zheng2024.loss-diag"))
    assert {f"a0=0.7,b0=-0.2_{name}" for name in ("ab", "a", "b", "loss_abs")} == failed_checks(run("zheng2024.thm4.1"))
    assert {"gaussian_abs", "rademacher_abs", "constant_abs"} <= failed_checks(run("zheng2024.test-error"))


def test_lengths_counted_from_t_instead_of_t_minus_one_are_caught(monkeypatch):
    monkeypatch.setattr(zheng2024, "mean_inverse_length", lambda length: float(np.mean(1 / np.arange(2, length))))
    assert {"a", "b", "ab", "final_rate", "ab_by_the_scalar_equation"} == failed_checks(run("zheng2024.ode"))
    assert failed_checks(run("zheng2024.loss-diag")) == {"loss_as_a_polynomial_in_ab"}


def test_exchanged_factors_are_caught(monkeypatch):
    right = zheng2024.limit
    monkeypatch.setattr(zheng2024, "limit", lambda *args: right(*args)[::-1])
    assert failed_checks(run("zheng2024.thm4.1")) == {"a0=0.7,b0=-0.2_a", "a0=0.7,b0=-0.2_b"}


def test_a_limit_for_infinite_length_is_caught(monkeypatch):
    monkeypatch.setattr(zheng2024, "limit_product", lambda distribution, length: distribution.kappa1 / distribution.kappa2)
    assert failed_checks(run("zheng2024.mesa-gd")) == {"ab"}


@pytest.mark.slow
def test_a_limit_for_infinite_length_is_caught_from_other_starts(monkeypatch):
    monkeypatch.setattr(zheng2024, "limit_product", lambda distribution, length: distribution.kappa1 / distribution.kappa2)
    assert {"std=0.2_largest_of_PK_minus_sI_abs", "std=0.2_loss", "std=0.2_moduli"} == failed_checks(
        run("zheng2024.random-init")
    )
    assert {f"a0=0.4,b0=0.9_{name}" for name in ("ab", "a", "b", "loss_abs")} == failed_checks(run("zheng2024.masked"))


def test_a_rate_without_the_number_of_positions_is_caught(monkeypatch):
    right = zheng2024.final_rate
    monkeypatch.setattr(
        zheng2024, "final_rate", lambda distribution, length, *start: right(distribution, length, *start) * 1.001
    )
    assert failed_checks(run("zheng2024.ode")) == {"final_rate"}


def test_an_attention_without_the_conjugate_is_caught(monkeypatch):
    right = phases.predictions
    monkeypatch.setattr(phases, "predictions", lambda w_pv, w_kq, states: right(w_pv, w_kq.conj(), states))
    assert {"gaussian", "rademacher", "constant"} <= failed_checks(run("zheng2024.pattern-gram"))
    assert {"gaussian", "sparse"} <= failed_checks(run("zheng2024.full-gram"))


def test_too_few_angles_are_caught(monkeypatch):
    monkeypatch.setattr(phases, "angle_count", lambda length: length - 1)
    assert "loss" in failed_checks(run("zheng2024.cubature"))


def test_sequences_without_a_common_phase_are_caught(monkeypatch):
    right = zheng2024_loss._orbits
    monkeypatch.setattr(zheng2024_loss, "_orbits", lambda *args: right(*args)[:7])
    names = failed_checks(run("zheng2024.dead-blocks"))
    assert {"gaussian_orbit_other_blocks_abs", "skew_orbit_other_blocks_abs"} <= names
    assert "gaussian_loss_other_blocks_abs" not in names


def test_a_mean_of_zero_taken_for_symmetry_is_caught(monkeypatch):
    right = diagonal_loss.odd_moments
    monkeypatch.setattr(
        diagonal_loss,
        "odd_moments",
        lambda distribution, *args: right("gaussian" if distribution == "skew" else distribution, *args),
    )
    assert failed_checks(run("zheng2024.offdiag")) == {"skew_key_query_abs", "skew_value_abs"}


def test_an_odd_moment_that_is_left_out_is_caught(monkeypatch):
    right = diagonal_loss.odd_moments
    monkeypatch.setattr(diagonal_loss, "odd_moments", lambda *args: right(*args)._replace(spread=0.0))
    assert failed_checks(run("zheng2024.offdiag")) == {"constant_key_query"}


def test_coordinates_counted_twice_are_caught(monkeypatch):
    right = all_ones.power_sum_moment
    monkeypatch.setattr(all_ones, "power_sum_moment", lambda exponents, dim: right(exponents, dim + 1))
    assert {f"a0=0.4,b0=0.9_{name}" for name in ("ab", "ab'", "a'b", "loss")} <= failed_checks(run("zheng2024.full-ones"))
    assert len(failed_checks(run("zheng2024.sims"))) == 3


def test_a_step_of_the_mean_loss_is_caught(monkeypatch):
    right = recovery.gradient_step
    monkeypatch.setattr(recovery, "gradient_step", lambda states, size: right(states, size) / 2)
    assert failed_checks(run("zheng2024.mesa-gd")) == {"layer", "estimator", "autodiff"}


def test_a_ratio_that_forgets_the_finite_length_is_caught(monkeypatch):
    right = recovery.mean_ratio
    monkeypatch.setattr(recovery, "mean_ratio", lambda distribution, product, scale: right(distribution, product, scale) * 1.2)
    assert {"mean_ratio", "mean_ratio_after_long_training"} == failed_checks(run("zheng2024.prop4.1"))
    assert "mean_ratio" in failed_checks(run("zheng2024.thm4.2"))


def test_a_wrong_recovery_condition_is_caught(monkeypatch):
    monkeypatch.setattr(recovery, "is_recovered", lambda starts, distribution: bool(np.allclose(np.abs(starts), 1.0)))
    assert failed_checks(run("zheng2024.thm4.2")) == {"recovered_in_the_limit_abs"}


@pytest.mark.slow
@pytest.mark.parametrize("id", SETTINGS)
def test_the_claim_holds_at_its_defaults(id):
    assert_holds(id, {})


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["gaussian", "sparse", "rademacher", "complex_gaussian"])
def test_the_limit_holds_for_every_distribution_of_the_assumption(distribution):
    several = ({"d": 3, "T": 12, "sigma": 0.7}, {"d": 5, "T": 60, "sigma": 2.0, "a0": 1.5, "b0": 0.3}, {"d": 1, "T": 3})
    assert_holds("zheng2024.thm4.1", *({"distribution": distribution} | changes for changes in several))


@pytest.mark.slow
@pytest.mark.parametrize("id", SETTINGS)
def test_the_claim_holds_away_from_its_defaults(id):
    overrides = {"d": 3, "T": 12, "sigma": 0.7, "seed": 5, "t": 9, "time": 0.02, "samples": 20_000}
    accepted = registry.all_claims()[id].parameters
    assert_holds(id, {name: value for name, value in overrides.items() if name in accepted})
