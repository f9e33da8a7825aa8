"""The claims about random covariances hold at values of one's own, and a planted error makes the right checks fail."""

import numpy as np
import pytest

from icl_lab.claims import verify
from icl_lab.core.errors import AssumptionError, InvalidValueError
from icl_lab.theory.regression import random_covariance
from tests.claims.claim_runs import assert_holds, failed_checks, runs_of

pytestmark = pytest.mark.claims

DISTRIBUTION = {
    "d": 2,
    "N": 5,
    "values": [[0.5, 1.0, 2.0], [0.3, 0.6, 3.0]],
    "probabilities": [[0.2, 0.3, 0.5], [0.5, 0.5, 0.0]],
    "seed": 2,
}
START = DISTRIBUTION | {"sigma": 0.2, "theta": "random"}
SETTINGS = {
    "zhang2023.lemC.1": DISTRIBUTION,
    "zhang2023.corC.2": DISTRIBUTION,
    "zhang2023.lemC.4": START,
    "zhang2023.thm4.5": START,
    "zhang2023.lemC.5-C.8": START,
    "zhang2023.residual": {"d": 2, "N": 5, "M": 7, "c": 1.5, "samples": 40_000, "seed": 1},
    "lab.rotated-covariance": DISTRIBUTION | {"s2": 0.2, "Om": [1.5, 0.4], "samples": 40_000},
}

run = runs_of(SETTINGS)


@pytest.mark.parametrize("id", SETTINGS)
def test_the_claim_holds(id):
    assert_holds(id, SETTINGS[id])


def test_gamma_without_the_eigenvalue_itself_is_caught(monkeypatch):
    right = random_covariance.diagonal_moments

    def others_only(values, probabilities, length):
        made = right(values, probabilities, length)
        curve = made.gamma - np.sum(probabilities * values**3, axis=1) / length
        zeta = made.zeta.copy()
        np.fill_diagonal(zeta, curve)
        return made._replace(gamma=curve, zeta=zeta)

    monkeypatch.setattr(random_covariance, "diagonal_moments", others_only)
    assert failed_checks(run("zhang2023.corC.2")) == {"du", "dU", "gamma", "zeta"}
    assert {"smallest_reduced_loss", "gap"} <= failed_checks(run("zhang2023.lemC.4"))
    assert {"w_pv", "w_kq", "preconditioner", "risk", "prediction_abs"} <= failed_checks(run("zhang2023.thm4.5"))
    assert failed_checks(run("lab.rotated-covariance")) == {"beta", "gradient_at_beta_abs"}


def test_expectations_taken_before_products_are_caught(monkeypatch):
    right = random_covariance.velocity

    def of_the_mean(u, inner, covariances, probabilities, length):
        mean = np.einsum("s,sij->ij", probabilities, covariances)
        return right(u, inner, mean[None], np.ones(1), length)

    monkeypatch.setattr(random_covariance, "velocity", of_the_mean)
    assert failed_checks(run("zhang2023.lemC.1")) == {"du", "dU"}


def test_a_limit_scaled_by_the_norm_without_its_root_is_caught(monkeypatch):
    right = random_covariance.limit

    def unsquared(moments):
        w_pv, w_kq = right(moments)
        scale = np.sum(moments.xi / moments.gamma) ** 0.25 / w_pv[-1, -1]
        return scale * w_pv, w_kq / scale

    monkeypatch.setattr(random_covariance, "limit", unsquared)
    assert failed_checks(run("zhang2023.thm4.5")) == {"w_pv", "w_kq"}


def test_bounds_beyond_the_path_are_caught(monkeypatch):
    for name in ("scale_lower_bound", "pl_constant"):
        right = getattr(random_covariance, name)
        monkeypatch.setattr(random_covariance, name, lambda *start, right=right: 1e4 * right(*start))
    assert failed_checks(run("zhang2023.lemC.5-C.8")) == {
        "smallest_u",
        "smallest_gradient_over_gap",
        "largest_log_gap_plus_mu_t_abs",
    }


def test_a_preconditioner_that_tends_to_a_half_is_caught(monkeypatch):
    monkeypatch.setattr(random_covariance, "exponential_preconditioner", lambda dim, length: 1 / (2 + (dim + 5) / length))
    wrong = failed_checks(run("zhang2023.residual"))
    assert {"preconditioner", "risk", "simulated_risk", "risk_on_identity", "limits_per_coordinate_c_1_4_9"} <= wrong
    assert not {name for name in wrong if name.startswith("fixed")}


def test_a_risk_without_the_fourth_pairing_is_caught(monkeypatch):
    right = random_covariance.exponential_risk

    def incomplete(step, dim, length, factor=1.0):
        return right(step, dim, length, factor) - dim * step**2 * factor**3 * 2 / length

    monkeypatch.setattr(random_covariance, "exponential_risk", incomplete)
    assert {"risk", "risk_at_4M", "risk_at_2c", "fixed_risk"} <= failed_checks(run("zhang2023.residual"))


def test_the_transposed_system_is_caught(monkeypatch):
    right = random_covariance.optimal_preconditioner
    monkeypatch.setattr(random_covariance, "optimal_preconditioner", lambda *distribution: right(*distribution).T)
    assert failed_checks(run("lab.rotated-covariance")) == {"preconditioner"}


def test_bad_distributions_and_starts_are_refused():
    with pytest.raises(AssumptionError, match=r"Theorem 4\.5"):
        verify.run(["zhang2023.thm4.5"], {"sigma": 1.0})
    for id in ("zhang2023.corC.2", "lab.rotated-covariance"):
        with pytest.raises(InvalidValueError, match="d = 3 lists; got 1"):
            verify.run([id], {"values": [[1.0, 2.0]]})
        with pytest.raises(InvalidValueError, match="sum to 1"):
            verify.run([id], {"probabilities": [[0.5, 0.4]] * 3})
        with pytest.raises(InvalidValueError, match="1048576 covariances"):
            verify.run([id], {"d": 20})


@pytest.mark.slow
@pytest.mark.parametrize("id", SETTINGS)
def test_the_claim_holds_at_its_defaults_and_away_from_them(id):
    assert_holds(id, {}, {"d": 4, "N": 13, "seed": 3})
