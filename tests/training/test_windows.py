"""Training on the windows of one series: the same examples and losses as the model itself, and the rule that stops it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from icl_lab.core.errors import InvalidValueError
from icl_lab.models import LinearSelfAttention, constructions, initializers
from icl_lab.objectives import hankel_features
from icl_lab.tasks.series.forecasting import forecast_prompt
from icl_lab.theory.series import rollout
from icl_lab.training import windows
from icl_lab.training.windows import train_on_windows, windows_mse

LSA = LinearSelfAttention(embedding="hankel", query_in_sum=False)
RHO = np.array([0.5, -0.3])


@pytest.fixture
def series():
    generator = np.random.default_rng(0)
    start, noise = (generator.standard_normal((1, count)) for count in (2, 398))
    (values,) = rollout.stationary_series(RHO, 1.0, start, noise)
    return values


def literal_mse(model, weights, series, order, context_length):
    length = order + context_length
    answer = jax.jit(lambda values: model(weights, forecast_prompt(values, order))[0])
    errors = [answer(series[t - length : t]) - series[t] for t in range(length, len(series))]
    return float(np.mean(np.square(errors)))


@pytest.mark.parametrize("normaliser", ["context_length", "none"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_features_give_the_error_of_the_layer(key, series, normaliser, sign):
    model = LinearSelfAttention(embedding="hankel", query_in_sum=False, normaliser=normaliser, readout_sign=sign)
    weights = initializers.gaussian(key, 3, 0.3)
    assert windows_mse(model, weights, series[:60], 2, 7) == pytest.approx(
        literal_mse(model, weights, series[:60], 2, 7), rel=1e-10
    )


def test_several_layers_read_the_windows(key, series):
    weights = (initializers.gaussian(key, 3, 0.2), constructions.series.one_layer(RHO, 1.0))
    assert windows_mse(LSA, weights, series[:60], 2, 7) == pytest.approx(
        literal_mse(LSA, weights, series[:60], 2, 7), rel=1e-10
    )


def test_an_epoch_is_adam_on_shuffled_batches(key, series):
    start, adam = initializers.gaussian(key, 3, 0.1), optax.adam(1e-2)
    trained = train_on_windows(
        LSA, start, series[:60], series[60:90], 2, 7, adam, key=key, batch=10, epochs=1, dtype=np.float64
    )
    inputs, targets = windows.window_features(series[:60], 2, 7), series[9:60]
    rows = np.asarray(jax.random.permutation(jax.random.fold_in(key, 0), 51))[:50].reshape(5, 10)

    def loss(weights, batch):
        predictions = jnp.asarray(inputs[batch]) @ hankel_features(2).coefficients(weights)[0]
        return jnp.mean((predictions - targets[batch]) ** 2)

    weights, losses = jax.tree.map(jnp.asarray, start), []
    state = adam.init(weights)
    for batch in rows:
        value, gradient = jax.value_and_grad(loss)(weights, batch)
        losses.append(value)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = adam.update(gradient, state)
        weights = optax.apply_updates(weights, updates)
    np.testing.assert_allclose(trained.limit.w_kq, weights.w_kq, rtol=1e-9)
    assert float(np.mean(trained.batch_losses)) == pytest.approx(float(np.mean(losses)), rel=1e-10)
    assert trained.trajectory.losses[0] == pytest.approx(windows_mse(LSA, weights, series[60:90], 2, 7), rel=1e-10)


def test_one_layer_alone_or_in_a_tuple_trains_alike(key, series):
    start, adam = initializers.gaussian(key, 3, 0.1), optax.adam(1e-2)
    settings = {"key": key, "batch": 50, "epochs": 3}
    alone = train_on_windows(LSA, start, series, series[:90], 2, 7, adam, **settings)
    (layer,) = train_on_windows(LSA, (start,), series, series[:90], 2, 7, adam, **settings).limit
    assert layer.w_kq.dtype == np.float32
    np.testing.assert_allclose(layer.w_kq, alone.limit.w_kq, rtol=1e-5)


def test_two_layers_train(key, series):
    start = tuple(initializers.gaussian(jax.random.fold_in(key, i), 3, 0.3) for i in range(2))
    trained = train_on_windows(LSA, start, series, series[:90], 2, 7, optax.adam(1e-2), key=key, batch=50, epochs=10)
    assert len(trained.trajectory.times) == 10
    first, *_, last = trained.batch_losses.reshape(10, -1).mean(axis=1)
    assert last < first


def test_training_stops_when_validation_no_longer_falls_and_keeps_the_best(key, series):
    start, sgd = initializers.gaussian(key, 3, 0.1), optax.sgd(-1e-2)  # uphill
    trained = train_on_windows(LSA, start, series, series[:90], 2, 7, sgd, key=key, batch=50, epochs=20, patience=3)
    assert len(trained.trajectory.times) == 1 + 3
    best = windows_mse(LSA, trained.limit, series[:90], 2, 7)
    assert best == pytest.approx(trained.trajectory.losses.min(), rel=1e-4)
    assert trained.trajectory.losses[0] == trained.trajectory.losses.min()


def test_too_few_windows_are_refused(key, series):
    start = initializers.gaussian(key, 3, 0.1)
    with pytest.raises(InvalidValueError, match="batch"):
        train_on_windows(LSA, start, series[:40], series, 2, 7, optax.adam(1e-2), key=key, batch=512)
    with pytest.raises(InvalidValueError, match="length of the series"):
        train_on_windows(LSA, start, series, series[:9], 2, 7, optax.adam(1e-2), key=key, batch=50)
