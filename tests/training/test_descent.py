"""Discrete training against the flow, its verdicts and its exact resume; checkpoints."""

import jax
import numpy as np
import optax
import pytest

from icl_lab import objectives, training
from icl_lab.core.errors import InvalidValueError
from icl_lab.models import LinearSelfAttention, LSAWeights, SoftmaxSelfAttention
from icl_lab.models.initializers import gaussian, zhang
from icl_lab.tasks import LinearRegression
from icl_lab.training import Verdict, checkpoints
from icl_lab.training.descent import MAX_CHUNK

SPECTRUM = np.array([2.0, 1.0, 0.5])


@pytest.fixture
def loss():
    return objectives.population(LinearRegression(dim=3, context_length=10, covariance=SPECTRUM), LinearSelfAttention())


def test_gradient_descent_pins_the_product_and_loses_balance_linearly_in_the_step(loss):
    drifts = []
    for step, count in ((0.1, 512), (0.05, 1024), (0.025, 2048)):
        result = training.descend(loss, zhang(3, 0.1), optax.sgd(step), count)
        product = result.limit.w_pv[3, 3] * np.diag(result.limit.w_kq)[:3]
        np.testing.assert_allclose(product, [1 / 2.55, 1 / 1.45, 1 / 0.90], rtol=1e-8)
        drifts.append(abs(result.limit.w_pv[3, 3] ** 2 - np.sum(result.limit.w_kq**2)))
    slope = np.polyfit(np.log([0.1, 0.05, 0.025]), np.log(drifts), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.15)


def test_further_chunks_of_steps_compile_nothing(loss, monkeypatch):
    traced = []
    right = type(loss).__call__

    def counted(self, weights, key=None):
        traced.append(None)
        return right(self, weights, key)

    monkeypatch.setattr(type(loss), "__call__", counted)
    counts = []
    for chunks in (1, 3):
        jax.clear_caches()
        traced.clear()
        training.descend(loss, zhang(3, 0.1), optax.sgd(0.05), chunks * MAX_CHUNK)
        counts.append(len(traced))
    assert counts[0] == counts[1]


def test_a_step_too_large_is_recorded_as_divergence(loss):
    result = training.descend(loss, zhang(3, 0.5), optax.sgd(5.0), 200)
    assert result.verdict is Verdict.DIVERGED
    assert "non-finite at step" in result.reason


def test_adam_on_fresh_prompts_lowers_the_loss_of_softmax_attention(key):
    task = LinearRegression(dim=2, context_length=8)
    objective = objectives.StreamedLoss.build(task, SoftmaxSelfAttention(), key, batch=256)
    start = gaussian(jax.random.key(1), 3, 0.3)
    result = training.descend(objective, start, optax.adam(3e-2), 128, key=key)
    fresh = objectives.StreamedLoss.build(task, SoftmaxSelfAttention(), jax.random.key(2), batch=8192)
    before, after = fresh.risk(start), fresh.risk(result.limit)
    assert after < before - 4 * (fresh.standard_error(start) + fresh.standard_error(result.limit))


def test_an_interrupted_descent_goes_on_exactly(loss, tmp_path, monkeypatch, key):
    from icl_lab.training import descent

    path = tmp_path / "descent.npz"
    start, optimiser = zhang(3, 0.1), optax.adam(1e-2)
    monkeypatch.setattr(descent, "MAX_CHUNK", 20)
    whole = training.descend(loss, start, optimiser, 60, key=key)
    with monkeypatch.context() as patch:
        saves = []

        def killed(*args, original=checkpoints.save):
            original(*args)
            saves.append(1)
            if len(saves) == 2:
                raise KeyboardInterrupt

        patch.setattr(descent.checkpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            training.descend(loss, start, optimiser, 60, key=key, checkpoint=path)
    resumed = training.descend(loss, start, optimiser, 60, key=key, checkpoint=path)
    assert resumed.resumed
    assert np.array_equal(resumed.limit.w_kq, whole.limit.w_kq)
    assert not path.exists()


def test_checkpoints_round_trip_without_pickle_and_name_what_differs(tmp_path, rng):
    weights = LSAWeights(rng.normal(size=(2, 2)), rng.normal(size=(2, 2)))
    checkpoints.save(tmp_path / "w.npz", weights, {"time": 1.5})
    loaded, header = checkpoints.load(tmp_path / "w.npz", weights)
    assert np.array_equal(loaded.w_pv, weights.w_pv)
    assert header == {"time": 1.5}
    with np.load(tmp_path / "w.npz", allow_pickle=False) as file:
        assert sorted(file) == [".w_kq", ".w_pv", "__header__"]
    with pytest.raises(InvalidValueError, match="does not hold the expected tree"):
        checkpoints.load(tmp_path / "w.npz", {"other": weights.w_pv})


def test_bad_arguments_are_refused(loss):
    with pytest.raises(InvalidValueError, match="`steps` must be an integer >= 1"):
        training.descend(loss, zhang(3, 0.1), optax.sgd(0.1), 0)
