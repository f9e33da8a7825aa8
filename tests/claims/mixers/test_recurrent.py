"""Claims about delta rules, mesa and products of steps: they hold away from the defaults, and planted errors are caught."""

import dataclasses

import numpy as np
import pytest

from icl_lab import estimators
from icl_lab.claims import registry
from icl_lab.core.errors import IclLabError
from icl_lab.mixers.recurrent import delta as delta_mixers
from icl_lab.mixers.recurrent import mesa as mesa_mixers
from icl_lab.theory.mixers import delta_rule, gated_delta, kalman, momentum
from icl_lab.theory.mixers.problem import KeyMoments
from tests.claims.claim_runs import assert_holds, failed

pytestmark = pytest.mark.claims

SMALL = {
    "mixers.deltanet.sgd": {"d": 3, "N": 5, "m": 2, "seed": 2},
    "mixers.deltanet.gauss-seidel": {"d": 5, "N": 3, "sweeps": 20, "seed": 2},
    "mixers.deltanet.recall": {"d": 4, "N": 3, "m": 2},
    "mixers.deltanet.risk": {"d": 2, "N": 6, "samples": 20_000, "beta": 0.2},
    "mixers.ttt": {"d": 3, "N": 7, "b": 3, "seed": 2},
    "mixers.longhorn": {"d": 3, "N": 5, "seed": 2},
    "mixers.titans": {"d": 2, "N": 6, "samples": 20_000, "beta": 0.1},
    "mixers.kda.reduce": {"d": 3, "N": 5, "seed": 2},
    "mixers.gated-deltanet.kalman": {"N": 7, "samples": 5},
    "mixers.drift-ladder": {"d": 2, "N": 30, "samples": 4_000},
    "mixers.kda.heterogeneous": {"d": 2, "N": 60, "samples": 10_000},
    "mixers.mesa.ridge": {"d": 3, "N": 5, "seed": 2},
    "mixers.mesa.forget": {"d": 3, "N": 5, "seed": 2},
    "mixers.mesa.cg": {"d": 3, "N": 5, "seed": 2},
    "mixers.mesa.risk": {"d": 2, "N": 8, "samples": 4_000},
    "mixers.delta.preconditioned": {"d": 3, "N": 5, "seed": 2},
    "mixers.parity": {"N": 9},
    "mixers.swaps": {"items": 4, "N": 6},
}


@pytest.mark.parametrize("id", SMALL)
def test_the_claim_holds(id):
    assert_holds(id, SMALL[id])


@pytest.mark.slow
@pytest.mark.parametrize("id", [*SMALL, "mixers.deltanet.beta-star"])
def test_the_claim_holds_at_its_defaults(id):
    assert_holds(id, {})


def failing(id):
    return failed(id, SMALL[id])


def test_the_step_of_the_pair_before_is_caught(monkeypatch):
    right = estimators.online_sgd_path
    monkeypatch.setattr(estimators, "online_sgd_path", lambda prompt, step, **more: right(prompt, np.roll(step, 1), **more))
    assert {"recurrent", "chunk", "parallel", "read"} <= failing("mixers.deltanet.sgd")
    assert "kda: read" in failing("mixers.kda.reduce")


def test_a_normalised_step_without_its_norm_is_caught(monkeypatch):
    monkeypatch.setattr(delta_mixers.ExplicitStep, "steps", lambda self, squares, gates: gates["write_strength"])
    assert {"read", "last_pair"} <= failing("mixers.deltanet.gauss-seidel")


def test_a_contraction_without_the_fourth_moment_is_caught(monkeypatch):
    monkeypatch.setattr(delta_rule, "contraction", lambda keys, step: 1 - 2 * step * keys.second + step**2 * keys.dim)
    assert any(name.startswith("risk_n=") for name in failing("mixers.deltanet.risk"))


def test_an_explicit_step_for_the_implicit_one_is_caught(monkeypatch):
    monkeypatch.setattr(delta_rule, "implicit_step", lambda weight, square: weight)
    assert "explicit: read" in failing("mixers.longhorn")


def test_a_momentum_without_its_cross_term_is_caught(monkeypatch):
    monkeypatch.setattr(momentum, "risk", lambda problem, share, step: delta_rule.risk(problem, step))
    assert "risk" in failing("mixers.titans")


def test_a_gain_of_the_variance_before_is_caught(monkeypatch):
    right = kalman.scalar_steps
    monkeypatch.setattr(kalman, "scalar_steps", lambda squares, *rest: np.roll(right(squares, *rest), 1, axis=0))
    assert "answers" in failing("mixers.gated-deltanet.kalman")
    assert "kalman_filter" in failing("mixers.longhorn")


def test_channels_that_do_not_disturb_each_other_are_caught(monkeypatch):
    right = gated_delta.moments

    def alone(problem, correlation, decay, step):
        one, d = dataclasses.replace(problem, keys=KeyMoments.gaussian(1)), problem.keys.dim
        each = [
            right(one, float(a), float(left), step)
            for a, left in zip(np.broadcast_to(correlation, d), np.broadcast_to(decay, d), strict=True)
        ]
        return tuple(np.concatenate(parts) for parts in zip(*each, strict=True))

    monkeypatch.setattr(gated_delta, "moments", alone)
    assert {"kda", "gated_deltanet"} <= failing("mixers.kda.heterogeneous")


def test_another_risk_of_the_best_gates_is_caught(monkeypatch):
    right = gated_delta.best_gates
    monkeypatch.setattr(gated_delta, "best_gates", lambda *drift, **more: right(*drift, **more)._replace(risk=0.1))
    assert {"deltanet", "gated_deltanet"} <= failing("mixers.drift-ladder")


def test_a_penalty_that_is_forgotten_is_caught(monkeypatch):
    monkeypatch.setattr(mesa_mixers.SolvingMixer, "penalised", lambda self, gram, rows: gram(rows) + 0.1 * rows)
    assert "read" in failing("mixers.mesa.ridge")
    assert "faded_penalty" in failing("mixers.mesa.forget")
    assert "recurrent" in failing("mixers.delta.preconditioned")


def test_steepest_descent_for_conjugate_gradients_is_caught(monkeypatch):
    def steepest(operator, rows, steps):
        x = 0 * rows
        for _ in range(steps):
            residual = rows - operator(x)
            x = x + (residual @ residual) / (residual @ operator(residual)) * residual
        return x

    monkeypatch.setattr(mesa_mixers, "conjugate_gradients", steepest)
    assert "all_steps" in failing("mixers.mesa.cg")


def test_write_strengths_that_reach_one_only_are_caught(monkeypatch):
    right = delta_mixers.ExplicitStep.steps
    monkeypatch.setattr(delta_mixers.ExplicitStep, "steps", lambda self, squares, gates: right(self, squares, gates) / 2)
    assert "parities_recurrent" in failing("mixers.parity")
    assert "swaps_chunk" in failing("mixers.swaps")


@pytest.mark.parametrize(
    ("id", "wrong"),
    [
        ("mixers.deltanet.recall", {"d": 3, "N": 4}),
        ("mixers.deltanet.sgd", {"beta": 1.5}),
        ("mixers.deltanet.gauss-seidel", {"N": 1000, "sweeps": 1000}),
        ("mixers.drift-ladder", {"a": 1.2}),
        ("mixers.gated-deltanet.kalman", {"d": 2}),
        ("mixers.mesa.forget", {"gamma": 0.0}),
    ],
)
def test_settings_out_of_range_are_refused(id, wrong):
    with pytest.raises(IclLabError):
        registry.all_claims()[id].resolve(wrong)
