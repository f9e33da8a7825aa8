"""Each step of the proof of one GD step: it holds away from the defaults, and a wrong formula makes the right check fail."""

import numpy as np
import pytest

from icl_lab.objectives import RegressionLoss
from icl_lab.theory.regression import bayes, exact_loss, lsa, mahankali2023, minima
from icl_lab.theory.regression.problem import Problem
from tests.claims.claim_runs import failed_checks, runs_of

pytestmark = pytest.mark.claims

PAIR = {"d": 2, "N": 4, "Lam": [1.5, 0.6], "rotate": True, "seed": 3}
SETTINGS = {
    "mahankali2023.setting": {"d": 2, "N": 3, "width": 2, "seed": 1},
    "mahankali2023.lem1": {**PAIR, "Om": [0.7, 1.4], "s2": 0.3, "samples": 20_000},
    "mahankali2023.moments": {**PAIR, "Om": [0.7, 1.4], "s2": 0.3, "samples": 20_000},
    "mahankali2023.lem2": {**PAIR, "s2": 0.3},
    "mahankali2023.parity": {**PAIR, "Om": [0.7, 1.4], "s2": 0.3},
    "mahankali2023.gauge": {**PAIR, "s2": 0.3, "starts": 4},
    "mahankali2023.bayes-gap": {"d": 2, "N": 4, "s2": 0.3, "samples": 20_000},
}

run = runs_of(SETTINGS)


@pytest.mark.parametrize("id", [pytest.param(id, marks=pytest.mark.slow) if "gauge" in id else id for id in SETTINGS])
def test_the_claim_holds(id):
    assert not failed_checks(run(id))


@pytest.mark.slow
@pytest.mark.parametrize("id", SETTINGS)
@pytest.mark.parametrize("noise", [0.0, 1.3])
def test_the_claim_holds_with_and_without_noise_and_in_one_dimension(id, noise):
    noise = noise or (0.0 if "gap" not in id else 0.1)
    for more in ({"d": 1, "N": 2, "Lam": [0.8], "Om": [0.7]}, {"d": 4, "N": 3, "Lam": None, "Om": None}):
        accepted = {name: value for name, value in more.items() if name in SETTINGS[id]}
        assert not failed_checks(run(id, s2=noise, **accepted))


def test_a_predictor_without_its_label_square_is_caught(monkeypatch):
    right = mahankali2023.effective_predictor

    def incomplete(values, keys, inputs, labels):
        even, odd = right(values, keys, inputs, labels)
        return even - (labels @ labels) * values[-1] * keys[-1], odd

    monkeypatch.setattr(mahankali2023, "effective_predictor", incomplete)
    assert failed_checks(run("mahankali2023.setting")) == {"prediction"}


def test_a_wrong_bayes_error_is_caught(monkeypatch):
    monkeypatch.setattr(
        bayes, "risk", lambda problem, _: (1.2 * np.trace(problem.covariance @ problem.task_covariance) / 2, 0.0)
    )
    assert failed_checks(run("mahankali2023.lem1")) == {"bayes_error_from_layer_1", "bayes_error_from_layer_2"}


def test_moments_without_the_pair_of_equal_examples_are_caught(monkeypatch):
    def incomplete(problem):
        lam, om, n = problem.covariance, problem.task_covariance, problem.context_length
        return n * n * lam @ om @ lam + n * (np.trace(lam @ om) + problem.noise_variance) * lam

    monkeypatch.setattr(mahankali2023, "context_moment", incomplete)
    assert failed_checks(run("mahankali2023.moments")) == {"b_b", "simulated_b_b"}


def test_a_step_without_its_one_breaks_the_second_lemma(monkeypatch):
    monkeypatch.setattr(mahankali2023, "step_size", lambda dim, length, noise: 1 / (length + dim + noise))
    assert failed_checks(run("mahankali2023.lem2")) == {"excess_risks", "constants_abs"}


def test_a_loss_whose_parts_interact_is_caught(monkeypatch):
    right = RegressionLoss.risk
    monkeypatch.setattr(
        RegressionLoss, "risk", lambda self, weights: right(self, weights) * (1 + 1e-9 * (weights.w_pv.ndim == 2))
    )
    assert failed_checks(run("mahankali2023.parity")) == {"risk_is_the_sum"}


@pytest.mark.slow
def test_another_optimum_is_not_the_trained_one(monkeypatch):
    right, minimum = lsa.optimal_preconditioner, lsa.minimum_risk
    monkeypatch.setattr(lsa, "optimal_preconditioner", lambda problem: 1.001 * right(problem))
    # The minimum itself comes from the same matrix; here it stays right.
    monkeypatch.setattr(lsa, "minimum_risk", lambda problem: minimum(problem) + unwanted(problem))

    def unwanted(problem):
        signal = problem.covariance @ problem.task_covariance
        return 0.001 * np.trace(problem.covariance @ right(problem) @ signal)

    wrong = failed_checks(run("mahankali2023.gauge"))
    assert {"trained_steps_abs", "gauge_orbit_full_risk", "gauge_orbit_full_gradient_abs"} <= wrong


def test_a_ratio_that_tends_to_one_is_caught(monkeypatch):
    monkeypatch.setattr(mahankali2023, "scaled_gap", lambda dim, noise: 1.0)
    assert failed_checks(run("mahankali2023.bayes-gap")) == {"ratio_at_long_contexts"}


def test_the_distance_to_the_step_vanishes_at_the_step_and_is_a_square(rng):
    lam = np.array([[1.3, 0.4], [0.4, 0.7]])
    problem = Problem(lam, np.linalg.inv(lam), 0.3, 5)
    w_pv, w_kq = np.zeros((2, 3, 3))
    w_pv[-1, -1] = 2.0
    w_kq[:2, :2] = mahankali2023.step_size(2, 5, 0.3) * np.linalg.inv(lam) / 2.0
    assert mahankali2023.distance_to_step(problem, w_pv, w_kq) == pytest.approx(0.0, abs=1e-13)
    # Excess of the risk over its minimum, the content of the lemma, at the zero layer: d - d (d + 1 + s2) eta.
    zero = np.zeros((3, 3))
    expected = 2 - mahankali2023.minimum_risk(2, 5, 0.3)
    assert mahankali2023.distance_to_step(problem, zero, zero) == pytest.approx(expected, rel=1e-12)
    assert mahankali2023.minimum_risk(2, 2, 0.3) == pytest.approx(1.2452830189, abs=1e-10)


def test_the_second_branch_is_the_first_with_roles_exchanged():
    problem = Problem(np.eye(2), np.outer([0.6, -1.1], [0.6, -1.1]), 0.2, 4)
    w_pv, w_kq, loss = minima.rank_one_branch(problem)
    assert exact_loss.risk(problem, w_pv, w_kq, query_in_sum=False) == pytest.approx(2 * loss, rel=1e-13)
