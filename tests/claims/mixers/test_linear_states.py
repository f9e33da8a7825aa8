"""Claims about mixers without a correction: they hold away from the defaults, and planted errors are caught."""

import dataclasses

import pytest

from icl_lab import estimators, mixers
from icl_lab.claims import registry
from icl_lab.claims.mixers import ground
from icl_lab.core.errors import InvalidValueError
from icl_lab.mixers.recurrent.linear import LinearAttention, Retention
from icl_lab.theory.mixers import linear_attention, retention
from tests.claims.claim_runs import failed_checks, run_claim, runs_of, with_slow

pytestmark = pytest.mark.claims

SMALL = {"d": 3, "N": 7, "seed": 3}
DRAWN = SMALL | {"samples": 4_000}
SETTINGS = {
    "mixers.query-token": SMALL | {"beta": 0.4},
    "mixers.degree": {"d": 1, "N": 2, "s2": 0.3, "samples": 20_000, "seed": 3},
    "mixers.homogeneity": SMALL | {"c": 1.7},
    "mixers.signature": SMALL,
    "mixers.linear.gd1": SMALL | {"eta": 0.7},
    "mixers.linear.risk": DRAWN | {"keys": "sphere", "s2": 0.4},
    "mixers.initial-state": DRAWN | {"w0": 0.6, "s2": 0.2},
    "mixers.prefix": SMALL | {"r": 2},
    "mixers.retention.weighted-gd": SMALL | {"lam": 0.6},
    "mixers.retention.chunk": SMALL | {"lam": 0.6, "chunk": 3},
    "mixers.mamba2": SMALL,
    "mixers.gla": SMALL,
    "mixers.hgrn2": SMALL | {"low": 0.4},
    "mixers.mamba.stick-breaking": SMALL,
    "mixers.mamba.fixed-step": DRAWN | {"s2": 0.3},
    "mixers.hgrn.construct": SMALL | {"eps": 1e-4},
    "mixers.rwkv4.query-free": DRAWN,
    "mixers.rwkv4.regress": DRAWN | {"s2": 0.6},
    "mixers.forms": {"N": 7, "d": 3, "m": 2, "chunk": 3},
    "mixers.retention.optimal": {"d": 2, "N": 60, "a": 0.85, "s2": 0.3, "n": 20, "steps": 400, "seed": 3},
}
SLOW = {"mixers.forms", "mixers.retention.optimal"}

run = runs_of(SETTINGS)


@pytest.mark.parametrize("id", with_slow(SETTINGS, SLOW))
def test_the_claim_holds(id):
    assert not failed_checks(run(id))


@pytest.mark.slow
@pytest.mark.parametrize("id", SETTINGS)
def test_the_claim_holds_at_its_defaults(id):
    assert not failed_checks(run_claim(id, {}))


def test_a_scale_without_its_noise_is_caught(monkeypatch):
    right = linear_attention.best_scale

    def silent(problem, *mean):
        return right(dataclasses.replace(problem, noise_variance=0.0), *mean)

    monkeypatch.setattr(linear_attention, "best_scale", silent)
    assert {"scale", "risk"} & failed_checks(run("mixers.linear.risk", s2=3.0))


def test_a_tuned_start_that_is_the_mean_is_caught(monkeypatch):
    right = linear_attention.tuned_start
    monkeypatch.setattr(linear_attention, "tuned_start", lambda *setting: right(*setting)._replace(share=1.0))
    assert {"risk_of_the_best_start", "slopes_abs"} <= failed_checks(run("mixers.initial-state"))


def test_linear_attention_that_is_a_mean_is_caught(monkeypatch):
    right = LinearAttention.updates

    def averaged(self, keys, values, gates):
        return right(self, keys, values / keys.shape[0], gates)

    monkeypatch.setattr(LinearAttention, "updates", averaged)
    assert {"recurrent", "read"} <= failed_checks(run("mixers.linear.gd1"))
    assert {"linear"} <= failed_checks(run("mixers.query-token"))
    assert {"linear"} <= failed_checks(run("mixers.prefix"))


def test_a_retention_that_forgets_nothing_is_caught(monkeypatch):
    right = Retention.updates
    monkeypatch.setattr(Retention, "updates", lambda self, *tokens: right(self, *tokens)._replace(log_decay=None))
    assert {"recurrent", "chunk", "parallel", "read"} <= failed_checks(run("mixers.retention.weighted-gd"))
    assert {"outputs", "state"} <= failed_checks(run("mixers.retention.chunk"))
    assert "retention" in failed_checks(run("mixers.signature"))


def test_weights_that_decay_one_token_too_often_are_caught(monkeypatch):
    right = estimators.discounted_gradient_step_weights
    monkeypatch.setattr(
        estimators, "discounted_gradient_step_weights", lambda prompt, step, decay: right(prompt, step, decay) * decay[-1][None]
    )
    assert {"recurrent", "read"} <= failed_checks(run("mixers.gla"))
    assert {"recurrent", "read"} <= failed_checks(run("mixers.hgrn2"))
    assert {"recurrent", "read"} <= failed_checks(run("mixers.mamba2"))


def test_a_fixed_step_whose_query_is_not_written_is_caught(monkeypatch):
    right = retention.fixed_step_weights
    monkeypatch.setattr(retention, "fixed_step_weights", lambda n: right(n) * 2 ** (1 / n))
    assert "weights" in failed_checks(run("mixers.mamba.fixed-step"))


def test_a_regression_of_vectors_that_is_not_centred_is_caught(monkeypatch):
    right = linear_attention.minimum_risk

    def uncentred(problem):
        return right(dataclasses.replace(problem, context_length=problem.context_length + 3))

    monkeypatch.setattr(linear_attention, "minimum_risk", uncentred)
    assert "risk" in failed_checks(run("mixers.rwkv4.regress", samples=40_000))


def test_symmetries_of_another_mixer_are_caught(monkeypatch):
    monkeypatch.setitem(ground.SIGNATURES, "softmax", ground.SIGNATURES["linear"])
    assert failed_checks(run("mixers.signature")) == {"softmax"}


def test_a_degree_that_a_gate_changes_is_caught(monkeypatch):
    monkeypatch.setitem(ground.DEGREES, "mamba", 4)
    assert failed_checks(run("mixers.homogeneity")) == {"mamba"}


@pytest.mark.parametrize(
    ("id", "wrong"),
    [
        ("mixers.query-token", {"beta": 1.2}),
        ("mixers.degree", {"d": 5, "N": 5}),
        ("mixers.homogeneity", {"c": 1.0}),
        ("mixers.signature", {"N": 3, "d": 4}),
        ("mixers.retention.optimal", {"a": 1.0}),
        ("mixers.hgrn2", {"low": 1.0}),
        ("mixers.hgrn.construct", {"kappa": 2.0}),
        ("mixers.hgrn.construct", {"eps": 0.1}),
    ],
)
def test_settings_out_of_range_are_refused(id, wrong):
    with pytest.raises(InvalidValueError):
        registry.all_claims()[id].resolve(wrong)


def test_every_mixer_of_a_claim_is_one_of_the_registry():
    assert set(ground.DEGREES) <= set(mixers.MIXERS)
