"""Claims of Zhou et al. 2025 (arXiv 2510.09776): several layers."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from icl_lab import analysis, objectives, theory, training
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, vector
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.claims.settings.series import SeriesSetting, check_coefficients
from icl_lab.claims.simulation import mean_with_error
from icl_lab.claims.zhou2025.settings import LSA, PAPER, SignalSetting
from icl_lab.core import compiled, prng
from icl_lab.models import LSAWeights, constructions, initializers
from icl_lab.tasks.series.autoregressive import Autoregressive, series

LAYER_TOLERANCE = 1e-10
# A layer without effect may still be compiled with its neighbours in another order.
IDENTITY_TOLERANCE = 1e-14
# Longest correction of the two-layer gap, beside its leading 12: its square is what the expansion leaves out.
LARGEST_CORRECTION = 0.75
DEPTH_CHUNK = 1_000
SHOWN = 5


class MonotoneSetting(Seeded, SeriesSetting):
    """Random layers, and one more that writes nothing."""

    N: int = integer(20, 1, "context length", ", in windows")
    L: int = integer(2, 1, "number of layers", "before one is added")
    samples: int = integer(20_000, 1_000, "number of draws", "of series")


def _without_value(key, width: int, scale: float) -> LSAWeights:
    """A layer of random keys and queries that writes nothing."""
    return LSAWeights(w_pv=np.zeros((width, width)), w_kq=initializers.gaussian(key, width, scale).w_kq)


@compiled.jit
def _sample(task, key, count: int):
    return task.sample_batch(key, count)


@compiled.jit
def _answers(weights, prompts):
    return jax.vmap(lambda prompt: LSA(weights, prompt)[0])(prompts)


def _predict(weights, prompts) -> np.ndarray:
    return np.asarray(_answers(jax.tree.map(jnp.asarray, weights), prompts))


@compiled.jit
def _risk_gradient(weights, prompts):
    return jax.grad(lambda w: jnp.mean((_answers(w, prompts) - prompts.target[:, 0]) ** 2))(jax.tree.map(jnp.asarray, weights))


@claim("zhou2025.monotone", MonotoneSetting, Source(PAPER, "monotone improvement with depth, and the bound for AR(p)"))
def a_layer_more_never_hurts(setting: MonotoneSetting) -> list[Check]:
    """More layers never hurt, since a layer with P = 0 changes no prediction, and no number of layers gets below sigma^2: the
    risk is sigma^2 plus the mean squared distance to w.h.

    Layers of random weights, whose updates are about a third of a token, are run on simulated series alone, with a layer of P =
    0 before or behind them, and after one short step of gradient descent from there. A layer that writes anything, a step that
    raises the risk, or answers correlated with the innovation would make it fail.
    """
    key, L, sigma, task = setting.key, setting.L, setting.sigma, setting.task(setting.N)
    width = setting.order + 1
    # Updates of a third of a token; smaller ones in a stack, which cubes rare large prompts again and again.
    scale = math.sqrt(0.3 / (width * float(task.autocovariances(1)[0]))) / L
    layers = tuple(initializers.gaussian(prng.stream(key, f"layer {i}"), width, scale) for i in range(L))
    idle = _without_value(prng.stream(key, "idle"), width, scale)
    prompts = _sample(task, prng.stream(key, "series"), setting.samples)
    before, after, first = (_predict(weights, prompts) for weights in (layers, (*layers, idle), (idle, *layers)))
    # A step so short that descent cannot overshoot.
    slope = jax.tree.map(np.asarray, _risk_gradient((*layers, idle), prompts))
    size = 1e-3 * scale / math.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(slope)))
    moved = _predict(jax.tree.map(lambda w, g: w - size * g, (*layers, idle), slope), prompts)

    target, best = np.asarray(prompts.target)[:, 0], np.asarray(prompts.query) @ setting.best_weights
    mean, error = mean_with_error((before - target) ** 2 - (before - best) ** 2)
    return [
        check.exact("appended_layer", after[:SHOWN], before[:SHOWN], IDENTITY_TOLERANCE),
        check.exact("prepended_layer", first[:SHOWN], before[:SHOWN], IDENTITY_TOLERANCE),
        check.exact("largest_change_abs", np.max(np.abs(after - before)), 0.0, IDENTITY_TOLERANCE * np.max(np.abs(before))),
        check.at_most("risk_after_a_step_of_training", np.mean((moved - target) ** 2), np.mean((before - target) ** 2)),
        check.sampled("risk_without_distance_to_the_best", mean, sigma**2, error),
    ]


class TrainedDepth(Seeded):
    """Layers trained on a series of unit noise by Adam."""

    rho: list[float] | None = vector((0.5, -0.3), "autoregressive coefficients", ", nearest lag first")
    N: int = integer(20, 2, "context length", ", in windows")
    L: int = integer(2, 2, "number of layers")
    steps: int = integer(2_000, 1, "number of updates", "of Adam, its rate falling from 0.01 to 0 by a cosine")
    batch: int = integer(128, 1, "prompts in a batch", ", fresh ones at each update")
    samples: int = integer(50_000, 1_000, "number of draws", "of test prompts")

    def validate(self) -> None:
        super().validate()
        check_coefficients(np.asarray(self.rho or ()))


@claim("zhou2025.trained-depth", TrainedDepth, Source(PAPER, "depth experiments; the two orders are icl_lab's", "extended"))
def trained_layers_beat_one(setting: TrainedDepth) -> list[Check]:
    """Two or more layers trained from random weights get below the best single layer, 2V/(N+4), and closer to the two-layer
    construction by hand, 12 V/N^2, than to that.

    All weights of the layers, Gaussian of scale 0.2 at the start, are trained by Adam on fresh prompts in float32, and the
    excess is a mean over other prompts. Training that stops at what one layer can do would make it fail.
    """
    rho, N, steps = setting.rho or (), setting.N, setting.steps
    key, task = setting.key, Autoregressive(rho, N)
    starts = jax.random.split(prng.stream(key, "init"), setting.L)
    layers = tuple(jax.tree.map(np.float32, initializers.gaussian(one, len(rho) + 1, 0.2)) for one in starts)
    loss = objectives.StreamedLoss.build(task, LSA, prng.stream(key, "prompts"), batch=setting.batch)
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(0.01, steps)))
    weights = training.descend(loss, layers, adam, steps, key=prng.stream(key, "training")).limit
    found = analysis.lag_excess(eqx.Partial(LSA, weights), task, prng.stream(key, "test"), setting.samples)
    signal = theory.zhou2025.signal_variance(rho, 1.0)
    upper, error = float(found.mean + check.SIGMAS * found.standard_error), float(found.standard_error)
    one_layer, two_layers = 2 * signal / (N + 4), 12 * signal / N**2
    return [
        check.at_most("excess_against_one_layer", upper, one_layer, standard_error=error),
        # Training need not find the construction itself: halfway in the logarithm.
        check.at_most("excess_against_geometric_mean", upper, math.sqrt(one_layer * two_layers), standard_error=error),
    ]


class TwoLayers(Seeded, SignalSetting):
    """A long context."""

    N: int = integer(640, 2, "context length", ", in windows; the limit is measured where its correction is at most 0.75")
    samples: int = integer(10_000, 1_000, "number of draws", "of series")


@claim("zhou2025.depth2", TwoLayers, Source("icl_lab, extending arXiv 2510.09776", "icl_lab", "extended"))
def two_layers(setting: TwoLayers) -> list[Check]:
    """Two layers reach a gap of 12 V / N^2 (1 + O(1/N)), where one layer has 2 V / N: they predict w.h [1 - (1 - s)(1 - s')]
    with two estimates of 1.

    The layers have weights built by hand, without training, and are run on simulated series; the part of the gap with heavy
    tails is replaced by its closed form. Two equal estimates of 1, a gap of order 1/N, or a fourth moment to leading order only
    would make it fail.
    """
    N, sigma, coefficients = setting.N, setting.sigma, setting.coefficients
    key, weights = setting.key, constructions.series.two_layers(coefficients, sigma)
    prompts = _sample(setting.task(N), prng.stream(key, "prompts"), SHOWN)
    answers = _predict(weights, prompts)
    expected, best = theory.rollout.two_layer_prediction(np.asarray(jax.vmap(series)(prompts)), coefficients, sigma)

    length = max(N, math.ceil(theory.rollout.two_layer_correction(coefficients) / LARGEST_CORRECTION))
    task, oldest_first, explained = setting.task(length), jnp.asarray(setting.best_weights), setting.explained_variance

    @compiled.jit
    def gaps(one):
        """The squared distance to the best prediction, and how much of it is not (w.h)^2 (1 - s)^4."""
        prompts = task.sample_batch(one, DEPTH_CHUNK)
        best = prompts.query @ oldest_first
        square = (jax.vmap(lambda prompt: LSA(weights, prompt)[0])(prompts) - best) ** 2
        estimate = jnp.mean((prompts.labels[..., 0] - prompts.inputs @ oldest_first) ** 2, axis=1) / sigma**2
        return jnp.stack([square, square - best**2 * (1 - estimate) ** 4])

    keys = jax.random.split(prng.stream(key, "series"), -(-setting.samples // DEPTH_CHUNK))
    squares, rest = length**2 / explained * np.concatenate([np.asarray(gaps(one)) for one in keys], axis=1)
    # Eighth powers of s - 1 have heavy tails; the part that holds them has a closed form.
    mean, error = mean_with_error(rest)
    mean += theory.rollout.equal_estimates_gap(coefficients, length)
    plain, plain_error = mean_with_error(squares)
    return [
        check.exact("prediction", answers, expected, LAYER_TOLERANCE),
        check.exact("correction_to_the_best_abs", answers - best, expected - best, LAYER_TOLERANCE * math.sqrt(explained)),
        check.sampled("scaled_gap", mean, theory.rollout.two_layer_gap(coefficients, length), error),
        check.at_most("below_one_layer", plain / length**2, 2 / (length + 4), standard_error=plain_error / length**2),
    ]
