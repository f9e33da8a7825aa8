"""The claims on softmax heads and sine waves hold at small settings, and planted errors make the right checks fail."""

import numpy as np
import pytest

from icl_lab.claims import verify
from icl_lab.core.errors import InvalidValueError
from icl_lab.theory.descent import sine_regression, softmax_heads
from tests.claims.claim_runs import failed

pytestmark = pytest.mark.claims

CENTRED = {"d": 3, "N": 4, "samples": 20_000, "seed": 1}
HEADS = {"d": 3, "N": 4, "distribution": "gaussian", "sigma": 0.7, "samples": 4_000, "seed": 2}
SINE = {"N": 3, "waves": "published", "sigma": 2.0, "samples": 50_000, "seed": 3}


@pytest.mark.parametrize("distribution", ["gaussian", "uniform"])
def test_centred_descent(distribution):
    assert failed("vonoswald2022.softmax.centred", CENTRED | {"distribution": distribution}) == set()


@pytest.mark.parametrize("settings", [SINE, SINE | {"waves": "independent"}, {"N": 1, "a": [1.0, 2.0], "rho": [0.0, 1.0]}])
def test_sine_waves(settings):
    assert failed("vonoswald2022.sine.refs", settings) == set()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [HEADS, HEADS | {"distribution": "uniform", "d": 2, "N": 6}])
def test_scalar_heads(settings):
    assert failed("vonoswald2022.softmax.heads", settings) == set()


def test_a_limit_that_is_plain_descent_is_caught(monkeypatch):
    monkeypatch.setattr(softmax_heads, "spread", lambda d, N, kurtosis: N + d + kurtosis - 2)
    assert {"eta_c", "L_c", "L_c_over_L"} <= failed("vonoswald2022.softmax.centred", CENTRED | {"distribution": "uniform"})


@pytest.mark.slow
def test_a_second_head_of_the_same_sign_is_caught(monkeypatch):
    right = softmax_heads.best_heads
    monkeypatch.setattr(softmax_heads, "best_heads", lambda *args: right(*args[:4], False))
    wrong = failed("vonoswald2022.softmax.heads", HEADS)
    assert "loss_of_two_heads" in wrong
    assert not {"loss_of_one_head", "loss_of_descent"} & wrong


def test_independent_amplitudes_in_place_of_shared_ones_are_caught(monkeypatch):
    right = sine_regression.coefficient_moments
    monkeypatch.setattr(sine_regression, "coefficient_moments", lambda a, rho, shared: right(a, rho, False))
    assert {"best_fixed_function", "one_step_from_the_mean"} <= failed("vonoswald2022.sine.refs", SINE)


def test_a_curvature_without_its_fourth_moment_is_caught(monkeypatch):
    right = sine_regression.feature_moments

    def gaussian(half_width):
        second, _ = right(half_width)
        pairs = (np.einsum(index, second, second) for index in ("ij,kl->ijkl", "ik,jl->ijkl", "il,jk->ijkl"))
        return second, sum(pairs)

    monkeypatch.setattr(sine_regression, "feature_moments", gaussian)
    wrong = failed("vonoswald2022.sine.refs", SINE)
    assert {"eta_from_0", "eta_from_the_mean"} <= wrong
    assert not {"predict_0", "best_fixed_function"} & wrong


def test_an_interval_in_the_wrong_order_is_refused():
    with pytest.raises(InvalidValueError, match="amplitude"):
        verify.run(["vonoswald2022.sine.refs"], {"a": [2.0, 1.0]})


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 3])
def test_layer_norm(seed):
    settings = {"d": 2, "N": 5, "distribution": "gaussian", "sigma": 0.3, "starts": 4, "steps": 400, "seed": seed}
    assert failed("vonoswald2022.layernorm", settings) == set()
