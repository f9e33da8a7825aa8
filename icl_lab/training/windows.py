r"""Training a forecaster on every window of one long series, in shuffled batches with early stopping.

A window is N + p consecutive values, the value after it is the target, and the loss is the mean squared error (no half). One
linear layer is trained on the features of `objectives.moments`, computed once: the same function of the weights, at a cost per
window that does not grow with N. Other models read the windows themselves.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from icl_lab.core import compiled, precision
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array, Key, Weights
from icl_lab.models.attention import SelfAttention
from icl_lab.models.linear_attention import LinearSelfAttention
from icl_lab.objectives.exact.series import hankel_features
from icl_lab.tasks.prompt import check_count
from icl_lab.tasks.series.forecasting import forecast_prompt


class WindowTraining(eqx.Module):
    """The outcome of `train_on_windows`.

    Attributes:
      weights: those of the epoch of smallest validation loss.
      train_losses: (epochs,) mean of the batches' losses, each before its update.
      validation_losses: (epochs,) mean squared error after each epoch.
      epochs: how many were made.
    """

    weights: Weights
    train_losses: Float[Array, "E"]
    validation_losses: Float[Array, "E"]
    epochs: int = eqx.field(static=True)


def train_on_windows(
    model: SelfAttention,
    weights: Weights,
    train_series: Float[Array, "T"],
    validation_series: Float[Array, "V"],
    order: int,
    context_length: int,
    optimiser: optax.GradientTransformation,
    *,
    key: Key,
    batch: int = 512,
    epochs: int = 100,
    patience: int = 8,
    dtype: Any = np.float32,
) -> WindowTraining:
    """The weights with the smallest validation loss among those after each epoch.

    Every epoch shuffles the windows; those that do not fill a last batch are left out of it. Multiply both series by one number
    to train on standardised data. Runs that share model, optimiser and shapes share the compiled program.

    Args:
      model: on "hankel" tokens.
      weights: initial weights, one layer or a tuple of layers.
      train_series: (T,), in time order.
      validation_series: (V,), the same.
      order: p, length of a lag window.
      context_length: N complete columns in a window of N + p values.
      optimiser: an optax gradient transformation.
      key: of the shuffles.
      batch: windows in an update.
      epochs: most epochs.
      patience: epochs without a new smallest validation loss after which training stops.
      dtype: of weights and data.

    Raises:
      InvalidValueError: counts below 1, or a series shorter than a batch (one window, for validation).
    """
    for name, value in (("batch", batch), ("epochs", epochs), ("patience", patience)):
        check_count(value, name, 1, "Training makes at least one update.")
    with precision.float64():
        examples = _examples(model, weights, train_series, order, context_length, dtype)
        held_out = _examples(model, weights, validation_series, order, context_length, dtype)
        if len(examples[1]) < batch:
            raise InvalidValueError(f"`batch` = {batch} is larger than the number of training windows, {len(examples[1])}.")
        weights = jax.tree.map(lambda w: jnp.asarray(w, dtype), weights)
        state, best = (weights, optimiser.init(weights)), weights
        train_losses, validation_losses = [], []
        best_epoch = 0
        for epoch in range(epochs):
            state, train_loss, loss = _epoch(
                model, optimiser, state, jax.random.fold_in(key, epoch), examples, held_out, order, batch
            )
            train_losses.append(float(train_loss))
            validation_losses.append(float(loss))
            if validation_losses[-1] <= min(validation_losses):
                best, best_epoch = state[0], epoch
            elif epoch - best_epoch >= patience:
                break
        return precision.to_numpy(
            WindowTraining(best, np.array(train_losses), np.array(validation_losses), len(validation_losses))
        )


def windows_mse(model: SelfAttention, weights: Weights, series: Float[Array, "T"], order: int, context_length: int) -> float:
    """The mean squared error on all windows of a series, in float64; arguments as `train_on_windows`."""
    with precision.float64():
        examples = _examples(model, weights, series, order, context_length, np.float64)
        return float(_mse(model, jax.tree.map(lambda w: jnp.asarray(w, np.float64), weights), examples, order))


def window_features(series: Float[Array, "T"], order: int, context_length: int) -> Float[np.ndarray, "B F"]:
    """The features of one layer on every window that a value follows: sums over N columns as differences of running sums."""
    columns = np.lib.stride_tricks.sliding_window_view(np.asarray(series, dtype=np.float64)[:-1], order + 1)
    features = hankel_features(order)
    products = columns[:, features.rows] * columns[:, features.columns]
    running = np.cumsum(np.pad(products, ((1, 0), (0, 0))), axis=0)
    gram = (running[context_length:] - running[:-context_length]) / context_length
    queries = columns[context_length - 1 :, 1:]
    return (gram[:, :, None] * queries[:, None, :]).reshape(len(gram), -1)


def _reads_features(model: SelfAttention, weights: Weights) -> bool:
    layers = len(weights) if isinstance(weights, tuple) else 1
    return isinstance(model, LinearSelfAttention) and layers == 1 and model.is_single_pass and not model.query_in_sum


def _examples(model, weights, series, order: int, context_length: int, dtype) -> tuple[Array, Array]:
    """What the model reads of each window (B, .), and the targets (B,)."""
    length = context_length + order
    check_count(len(series), "length of the series", length + 1, "A window needs N + p values and the next one.")
    series = np.asarray(series, dtype=np.float64)
    if _reads_features(model, weights):
        inputs = window_features(series, order, context_length) / (model.normaliser_at(context_length + 1) / context_length)
    else:
        inputs = np.lib.stride_tricks.sliding_window_view(series[:-1], length)
    return jnp.asarray(inputs, dtype), jnp.asarray(series[length:], dtype)


def _squared_error(model, weights, inputs, targets, order: int):
    if _reads_features(model, weights):
        layer = weights[0] if isinstance(weights, tuple) else weights
        predictions = model.readout_sign * (inputs @ hankel_features(order).coefficients(layer)[0])
    else:
        predictions = jax.vmap(lambda values: model(weights, forecast_prompt(values, order))[0])(inputs)
    return jnp.mean((predictions - targets) ** 2)


@compiled.jit
def _mse(model, weights, examples, order: int):
    inputs, targets = examples
    return _squared_error(model, weights, inputs, targets, order)


@compiled.jit
def _epoch(model, optimiser, state, key: Key, examples, held_out, order: int, batch: int):
    """One pass over shuffled batches; the new state, the mean training loss, and the validation loss."""
    inputs, targets = examples
    count = targets.shape[0] // batch
    chosen = jax.random.permutation(key, targets.shape[0])[: count * batch].reshape(count, batch)

    def update(state, rows):
        weights, moments = state
        loss, gradient = jax.value_and_grad(lambda w: _squared_error(model, w, inputs[rows], targets[rows], order))(weights)
        with jax.numpy_dtype_promotion("standard"):
            updates, moments = optimiser.update(gradient, moments, weights)
        return (optax.apply_updates(weights, updates), moments), loss

    state, losses = jax.lax.scan(update, state, chosen)
    return state, jnp.mean(losses), _mse(model, state[0], held_out, order)
