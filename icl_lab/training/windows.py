r"""Training a forecaster on every window of one long series, in shuffled batches with early stopping.

A window is N + p consecutive values, the value after it is the target, and the loss is the mean squared error (no half). One
linear layer is trained on the features of `objectives.moments`, computed once: the same function of the weights, at a cost per
window that does not grow with N. Other models read the windows themselves.
"""

from __future__ import annotations

import time as clock
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from icl_lab.core import compiled, precision
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array, Key, Weights
from icl_lab.models.attention import SelfAttention
from icl_lab.models.linear_attention import LinearSelfAttention
from icl_lab.objectives.curvature import norm
from icl_lab.objectives.exact.series import hankel_features
from icl_lab.tasks.prompt import check_count
from icl_lab.tasks.series.forecasting import forecast_prompt
from icl_lab.training.descent import descended, updates
from icl_lab.training.result import TrainingResult, Trajectory
from icl_lab.training.stopping import Evidence


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
) -> TrainingResult:
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

    Returns:
      The result, whose limit is those weights. Its trajectory has a point after each epoch, with the mean squared error on the
      validation series as its loss; the time is counted in updates.

    Raises:
      InvalidValueError: counts below 1, or a series shorter than a batch (one window, for validation).
    """
    for name, value in (("batch", batch), ("epochs", epochs), ("patience", patience)):
        check_count(value, name, 1, "Training makes at least one update.")
    started = clock.perf_counter()
    with precision.float64():
        train = WindowLoss.of(model, weights, train_series, order, context_length, dtype)
        held_out = WindowLoss.of(model, weights, validation_series, order, context_length, dtype)
        if train.count < batch:
            raise InvalidValueError(f"`batch` = {batch} is larger than the number of training windows, {train.count}.")
        weights = jax.tree.map(lambda w: jnp.asarray(w, dtype), weights)
        batch_losses, points, errors, best = [], [], [], 0
        why = None
        for chunk in updates(train, optimiser, (weights, optimiser.init(weights)), _shuffles(key, train.count, batch, epochs)):
            points.append(precision.to_numpy(chunk.state[0]))
            batch_losses.append(chunk.losses)
            errors.append(float(_mse(held_out, chunk.state[0])))
            if errors[-1] <= min(errors):
                best = len(errors) - 1
            elif len(errors) - 1 - best >= patience:
                why = f"the validation loss has not fallen for {patience} epochs"
                break
        losses = np.concatenate(batch_losses)
        trajectory = Trajectory(
            times=float(train.count // batch) * np.arange(1, len(points) + 1),
            weights=jax.tree.map(lambda *leaves: np.stack(leaves), *points),
            losses=np.array(errors),
            gradient_norms=np.full(len(errors), np.nan),
        )
        evidence = Evidence(errors[best], float(losses[0]), float("nan"), norm(points[best]))
        return descended(points[best], trajectory, losses, evidence, len(losses), clock.perf_counter() - started, why=why)


def windows_mse(model: SelfAttention, weights: Weights, series: Float[Array, "T"], order: int, context_length: int) -> float:
    """The mean squared error on all windows of a series, in float64.

    Args:
      model: on "hankel" tokens.
      weights: one layer or a tuple of layers.
      series: (T,), in time order.
      order: p, length of a lag window.
      context_length: N complete columns in a window of N + p values.

    Raises:
      InvalidValueError: a series shorter than a window and the value after it.
    """
    with precision.float64():
        held_out = WindowLoss.of(model, weights, series, order, context_length, np.float64)
        return float(_mse(held_out, precision.to_double(weights)))


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


class WindowLoss(eqx.Module):
    """The mean squared error of a model on some of the windows of a series.

    Attributes:
      inputs: (B, .) what the model reads of each window: features, or the window itself.
      targets: (B,) the values that follow.
    """

    model: SelfAttention
    inputs: Float[Array, "B F"]
    targets: Float[Array, "B"]
    order: int = eqx.field(static=True)

    @staticmethod
    def of(model: SelfAttention, weights: Weights, series: Array, order: int, context_length: int, dtype: Any) -> WindowLoss:
        """The loss on the windows of `series`, read as weights of the form of `weights` read them."""
        length = context_length + order
        check_count(len(series), "length of the series", length + 1, "A window needs N + p values and the next one.")
        series = np.asarray(series, dtype=np.float64)
        if _reads_features(model, weights):
            rho = model.normaliser_at(context_length + 1)  # pyright: ignore[reportAttributeAccessIssue]
            inputs = window_features(series, order, context_length) / (rho / context_length)
        else:
            inputs = np.lib.stride_tricks.sliding_window_view(series[:-1], length)
        return WindowLoss(model, jnp.asarray(inputs, dtype), jnp.asarray(series[length:], dtype), order)

    @property
    def count(self) -> int:
        """Number of windows."""
        return len(self.targets)

    def __call__(self, weights: Weights, rows: Int[Array, "b"] | None = None) -> Float[Array, ""]:
        """The error on the windows `rows`, or on all."""
        inputs, targets = (self.inputs, self.targets) if rows is None else (self.inputs[rows], self.targets[rows])
        if _reads_features(self.model, weights):
            layer = weights[0] if isinstance(weights, tuple) else weights
            predictions = self.model.readout_sign * (inputs @ hankel_features(self.order).coefficients(layer)[0])
        else:
            predictions = jax.vmap(lambda values: self.model(weights, forecast_prompt(values, self.order))[0])(inputs)
        return jnp.mean((predictions - targets) ** 2)


def _shuffles(key: Key, count: int, batch: int, epochs: int) -> Iterator[Int[Array, "n b"]]:
    """For each epoch the rows of its batches: all of `count` in an order of its own, those that fill no batch left out."""
    whole = count // batch
    for epoch in range(epochs):
        order = jax.random.permutation(jax.random.fold_in(key, epoch), count)
        yield order[: whole * batch].reshape(whole, batch)


@compiled.jit
def _mse(loss: WindowLoss, weights: Weights) -> Float[Array, ""]:
    return loss(weights)
