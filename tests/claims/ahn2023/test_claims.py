"""Claims about layers as preconditioned gradient descent: they hold away from the defaults, and planted errors are caught."""

import dataclasses

import numpy as np
import pytest

from icl_lab.claims import registry
from icl_lab.core.errors import InvalidValueError
from icl_lab.theory.descent import ahn2023, descent_steps
from icl_lab.theory.regression import lsa
from tests.claims.claim_runs import failed_checks, runs_of

pytestmark = pytest.mark.claims

SETTINGS = {
    "ahn2023.lemma1": {"d": 3, "N": 4, "L": 2, "seed": 3},
    "ahn2023.thm1": {"d": 2, "N": 4, "Lam": [1.5, 0.6], "starts": 2, "seed": 3},
    "ahn2023.thm1.general": {"d": 2, "N": 4, "starts": 2, "seed": 3},
    "ahn2023.thm2": {"N": 3, "starts": 2, "seed": 3},
    "ahn2023.thm3": {"N": 3, "starts": 2, "seed": 3},
    "ahn2023.thm3.L3": {"d": 3, "N": 6, "L": 2, "starts": 2, "seed": 3},
    "ahn2023.lemma4": {"N": 3, "L": 2, "seed": 3},
    "ahn2023.thm4": {"d": 3, "N": 6, "seed": 3},
    "ahn2023.thm5": {"d": 2, "N": 5, "samples": 40_000, "seed": 3},
    "ahn2023.fig7": {"d": 3, "N": 6, "L": 2, "seed": 3},
    "ahn2023.dist": {"N": 3, "L": 1, "starts": 2, "seed": 3},
}

run = runs_of(SETTINGS)


@pytest.mark.parametrize("id", SETTINGS)
def test_the_claim_holds(id):
    assert not failed_checks(run(id))


@pytest.mark.slow
def test_moving_layers_over_all_entries():
    assert not failed_checks(run("ahn2023.thm4", d=2, N=5, starts=2))


def test_steps_without_the_transpose_are_caught(monkeypatch):
    right = ahn2023.descent_weights
    monkeypatch.setattr(ahn2023, "descent_weights", lambda a, x, y: right(np.swapaxes(a, 1, 2), x, y))
    assert "label_slot_of_the_query" in failed_checks(run("ahn2023.lemma1"))


def test_shrinkage_without_the_trace_is_caught(monkeypatch):
    monkeypatch.setattr(ahn2023, "shrinkage", lambda values, n: n / ((n + 1) * values))
    assert {"risk", "preconditioner"} <= failed_checks(run("ahn2023.thm1"))


def test_a_preconditioner_for_isotropic_tasks_is_caught(monkeypatch):
    right = lsa.optimal_preconditioner
    monkeypatch.setattr(
        lsa, "optimal_preconditioner", lambda problem: right(dataclasses.replace(problem, task_covariance=np.eye(problem.dim)))
    )
    assert {"risk", "preconditioner"} <= failed_checks(run("ahn2023.thm1.general"))


def test_equal_steps_for_all_layers_are_caught(monkeypatch):
    def shared(dim, length, layers, corrected):
        best = descent_steps.best_shared_step(ahn2023.stack_rule(dim, length, layers, corrected=False), layers)
        return best.step_sizes, best.curvatures, 2 * best.loss

    monkeypatch.setattr(ahn2023, "best_stack", shared)
    assert {"risk", "A"} <= failed_checks(run("ahn2023.thm2"))
    assert {"a", "risk", "risk_of_all_A", "whitened_A"} <= failed_checks(run("ahn2023.thm3"))
    assert {"risk", "diagonals"} <= failed_checks(run("ahn2023.thm3.L3"))


def test_slopes_of_the_half_loss_are_caught(monkeypatch):
    right = ahn2023.stack_slopes
    monkeypatch.setattr(ahn2023, "stack_slopes", lambda *a: tuple(slope / 2 for slope in right(*a)))
    assert failed_checks(run("ahn2023.thm3")) == {"slope_in_A"}


def test_half_losses_are_caught(monkeypatch):
    right = ahn2023.stack_risk
    monkeypatch.setattr(ahn2023, "stack_risk", lambda *a: right(*a) / 2)
    assert failed_checks(run("ahn2023.lemma4")) == {"risks"}


def test_a_curvature_with_the_mean_gram_matrix_is_caught(monkeypatch):
    right = ahn2023.best_stack

    def wrong(dim, length, layers, corrected):
        steps, moves, risk = right(dim, length, layers, corrected)
        return steps, moves / length, risk

    monkeypatch.setattr(ahn2023, "best_stack", wrong)
    assert "b" in failed_checks(run("ahn2023.thm4"))


def test_a_relu_step_of_linear_attention_is_caught(monkeypatch):
    monkeypatch.setattr(ahn2023, "relu_step", lambda dim, length: length / (length + dim + 1))
    assert {"best_step", "risk_closed_form", "gradient_abs"} <= failed_checks(run("ahn2023.thm5"))


def test_a_best_step_of_another_depth_is_caught(monkeypatch):
    right = descent_steps.best_shared_step
    monkeypatch.setattr(descent_steps, "best_shared_step", lambda rule, steps: right(rule, max(1, steps - 1)))
    assert {"shared_step", "shared_step_of_n_minus_1"} <= failed_checks(run("ahn2023.fig7"))


def test_a_distance_to_the_unit_matrix_itself_is_caught(monkeypatch):
    monkeypatch.setattr(
        ahn2023, "distance_to_identity", lambda m: float(np.linalg.norm(m - np.eye(len(m))) / np.linalg.norm(m))
    )
    assert failed_checks(run("ahn2023.dist")) == {"random_matrices"}


@pytest.mark.parametrize(
    ("id", "wrong"),
    [
        ("ahn2023.thm1", {"d": 3, "Lam": [1.0]}),
        ("ahn2023.thm3", {"Sig": [[1.0, 0.0], [0.0, -1.0]]}),
        ("ahn2023.thm3", {"d": 3, "Sig": [[1.0, 0.0], [0.0, 1.0]]}),
        ("ahn2023.thm2", {"d": 6}),
        ("ahn2023.thm4", {"L": 4}),
    ],
)
def test_settings_out_of_range_are_refused(id, wrong):
    with pytest.raises(InvalidValueError):
        registry.all_claims()[id].resolve(wrong)
