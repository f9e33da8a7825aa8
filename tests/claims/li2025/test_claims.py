"""Claims about weighted gradient steps: they hold away from the defaults, and planted errors are caught."""

import dataclasses

import numpy as np
import pytest

from icl_lab.claims import registry
from icl_lab.core.errors import InvalidValueError
from icl_lab.theory.descent import li2025
from tests.claims.claim_runs import failed_checks, runs_of, with_slow

pytestmark = pytest.mark.claims

SMALL = {"d": 2, "N": 3, "seed": 3}
IDS = ("wpgd", "preconditioner", "permuted", "noise", "equal", "groups", "one-task", "uncorrelated", "length", "trained")
SETTINGS = {f"li2025.{name}": SMALL for name in IDS}
SETTINGS["li2025.wpgd"] = SETTINGS["li2025.equal"] = SMALL | {"samples": 40_000}

run = runs_of(SETTINGS)


@pytest.mark.parametrize("id", with_slow(SETTINGS, {"li2025.trained"}))
def test_the_claim_holds(id):
    assert not failed_checks(run(id))


def test_a_penalty_without_its_one_is_caught(monkeypatch):
    monkeypatch.setattr(li2025.CorrelatedTasks, "penalty", property(lambda self: self.dim + self.noise_variance))
    assert {"weights", "minimum"} <= failed_checks(run("li2025.wpgd", kind="random"))
    assert "weights" in failed_checks(run("li2025.permuted"))
    assert {"weight", "risk"} <= failed_checks(run("li2025.equal"))
    assert {"lengths"} <= failed_checks(run("li2025.noise"))
    assert {"risks", "gain_of_the_oldest"} <= failed_checks(run("li2025.length"))


def test_weights_in_the_other_order_are_caught(monkeypatch):
    right = li2025.best_weights
    monkeypatch.setattr(li2025, "best_weights", lambda problem: right(problem)[::-1])
    assert {"weights", "risk"} <= failed_checks(run("li2025.preconditioner"))


def test_uncorrelated_groups_are_caught(monkeypatch):
    right = li2025.group_weights
    monkeypatch.setattr(li2025, "group_weights", lambda sizes, r, between, d, s2: right(sizes, r, 0.0, d, s2))
    assert {"weights", "risk_of_one_gate"} <= failed_checks(run("li2025.groups"))


def test_a_decay_as_good_as_free_weights_is_caught(monkeypatch):
    monkeypatch.setattr(li2025, "best_decay", lambda problem: (1.0, li2025.minimum_risk(problem)))
    assert "risk_of_one_decay" in failed_checks(run("li2025.groups"))


def test_weights_for_the_mean_of_the_context_are_caught(monkeypatch):
    right = li2025.best_weights
    monkeypatch.setattr(li2025, "best_weights", lambda problem: right(problem) * len(problem.query))
    assert {"step_of_the_layer", "risk_of_the_layer"} <= failed_checks(run("li2025.one-task"))


def test_a_query_like_its_context_is_caught(monkeypatch):
    right = li2025.CorrelatedTasks.of
    wrong = lambda task: dataclasses.replace(right(task), query=np.full(task.context_length, 0.1))  # noqa: E731
    monkeypatch.setattr(li2025.CorrelatedTasks, "of", wrong)
    assert {"weights_abs", "risk"} <= failed_checks(run("li2025.uncorrelated"))


@pytest.mark.parametrize(
    ("id", "wrong"),
    [
        ("li2025.wpgd", {"a": 0.0}),
        ("li2025.wpgd", {"kind": "other"}),
        ("li2025.groups", {"rho1": 0.9, "rho2": 0.3}),
        ("li2025.length", {"N": 1}),
        ("li2025.trained", {"a": 0.01}),
    ],
)
def test_settings_out_of_range_are_refused(id, wrong):
    with pytest.raises(InvalidValueError):
        registry.all_claims()[id].resolve(wrong)
