"""Claims of Zhou et al. 2025 (arXiv 2510.09776): several layers and softmax heads."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from icl_lab import analysis, models, objectives, theory, training
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, integer, number, vector
from icl_lab.claims.registry import claim
from icl_lab.claims.simulation import mean_with_error, normal_batches, simulate
from icl_lab.claims.zhou2025.rollout import LSA, PAPER, validate
from icl_lab.core import compiled, prng
from icl_lab.core.errors import InvalidValueError
from icl_lab.models import LSAWeights, constructions, initializers
from icl_lab.tasks.series.autoregressive import Autoregressive, check_stationary, series

SOFTMAX = models.SoftmaxSelfAttention(embedding="hankel", query_in_sum=False)

LAYER_TOLERANCE = 1e-10
# A layer without effect may still be compiled with its neighbours in another order.
IDENTITY_TOLERANCE = 1e-14
# Relative size of the O(1/N) correction to the variance of a softmax head, times N.
SOFTMAX_CORRECTION = 20
# Longest correction of the two-layer gap, beside its leading 12: its square is what the expansion leaves out.
LARGEST_CORRECTION = 0.75
DEPTH_CHUNK = 1_000
SHOWN = 5

SERIES = {
    "rho": vector((0.5, -0.3), "coefficients of the series, nearest lag first"),
    "sigma": number(1.0, positive=True, meaning="standard deviation of the innovations"),
}
SEED = {"seed": integer(0, 0, "of weights and series")}


def _best_weights(rho) -> jax.Array:
    """w, oldest lag first."""
    return jnp.asarray(np.asarray(rho)[::-1].copy())


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


@claim(
    "zhou2025.monotone",
    statement="More layers never hurt, since a layer with P = 0 changes no prediction, and no number of layers gets below "
    "sigma^2: the risk is sigma^2 plus the mean squared distance to w.h.",
    source=Source(PAPER, "monotone improvement with depth, and the bound for AR(p)"),
    parameters=SERIES
    | {
        "N": integer(20, 1, "windows of the context"),
        "L": integer(2, 1, "layers before one is added"),
        "samples": integer(20_000, 1_000, "series of a Monte Carlo mean"),
    }
    | SEED,
    validate=validate,
)
def a_layer_more_never_hurts(rho, sigma, N, L, samples, seed) -> list[Check]:
    key = jax.random.key(seed)
    width, task = len(rho) + 1, Autoregressive(rho, N, sigma)
    # Updates of a third of a token; smaller ones in a stack, which cubes rare large prompts again and again.
    scale = math.sqrt(0.3 / (width * float(task.autocovariances(1)[0]))) / L
    layers = tuple(initializers.gaussian(prng.stream(key, f"layer {i}"), width, scale) for i in range(L))
    idle = _without_value(prng.stream(key, "idle"), width, scale)
    prompts = _sample(task, prng.stream(key, "series"), samples)
    before, after, first = (_predict(weights, prompts) for weights in (layers, (*layers, idle), (idle, *layers)))
    # A step so short that descent cannot overshoot.
    slope = jax.tree.map(np.asarray, _risk_gradient((*layers, idle), prompts))
    size = 1e-3 * scale / math.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(slope)))
    moved = _predict(jax.tree.map(lambda w, g: w - size * g, (*layers, idle), slope), prompts)

    target, best = np.asarray(prompts.target)[:, 0], np.asarray(prompts.query) @ np.asarray(rho)[::-1]
    mean, error = mean_with_error((before - target) ** 2 - (before - best) ** 2)
    return [
        check.exact("appended_layer", after[:SHOWN], before[:SHOWN], IDENTITY_TOLERANCE),
        check.exact("prepended_layer", first[:SHOWN], before[:SHOWN], IDENTITY_TOLERANCE),
        check.exact("largest_change_abs", np.max(np.abs(after - before)), 0.0, IDENTITY_TOLERANCE * np.max(np.abs(before))),
        check.at_most("risk_after_a_step_of_training", np.mean((moved - target) ** 2), np.mean((before - target) ** 2)),
        check.sampled("risk_without_distance_to_the_best", mean, sigma**2, error),
    ]


def _validate_signal(rho, **_) -> None:
    validate(rho)
    if not np.any(rho):
        raise InvalidValueError("`rho` must not be zero: white noise has nothing to predict, so its gap is zero.")


@claim(
    "zhou2025.trained-depth",
    statement="Two or more layers trained from random weights get below the best single layer, 2V/(N+4), and closer to the "
    "two-layer construction by hand, 12 V/N^2, than to that.",
    source=Source(PAPER, "depth experiments; the two orders are icl_lab's", "extended"),
    parameters={
        "rho": SERIES["rho"],
        "N": integer(20, 2, "windows of the context"),
        "L": integer(2, 2, "layers"),
        "steps": integer(2_000, 1, "updates of Adam, its rate falling from 0.01 to 0 by a cosine"),
        "batch": integer(128, 1, "fresh prompts an update"),
        "samples": integer(50_000, 1_000, "test prompts"),
    }
    | SEED,
    validate=lambda rho, **_: check_stationary(np.asarray(rho)),
)
def trained_layers_beat_one(rho, N, L, steps, batch, samples, seed) -> list[Check]:
    key, task = jax.random.key(seed), Autoregressive(rho, N)
    starts = jax.random.split(prng.stream(key, "init"), L)
    layers = tuple(jax.tree.map(np.float32, initializers.gaussian(one, len(rho) + 1, 0.2)) for one in starts)
    loss = objectives.StreamedLoss.build(task, LSA, prng.stream(key, "prompts"), batch=batch)
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(0.01, steps)))
    weights = training.descend(loss, layers, adam, steps, key=prng.stream(key, "training")).limit
    found = analysis.lag_excess(eqx.Partial(LSA, weights), task, prng.stream(key, "test"), samples)
    signal = theory.zhou2025.signal_variance(rho, 1.0)
    upper, error = float(found.mean + check.SIGMAS * found.standard_error), float(found.standard_error)
    one_layer, two_layers = 2 * signal / (N + 4), 12 * signal / N**2
    return [
        check.at_most("excess_against_one_layer", upper, one_layer, standard_error=error),
        # Training need not find the construction itself: halfway in the logarithm.
        check.at_most("excess_against_geometric_mean", upper, math.sqrt(one_layer * two_layers), standard_error=error),
    ]


@claim(
    "zhou2025.depth2",
    statement="Two layers reach a gap of 12 V / N^2 (1 + O(1/N)), where one layer has 2 V / N: they predict "
    "w.h [1 - (1 - s)(1 - s')] with two estimates of 1.",
    source=Source("icl_lab, extending arXiv 2510.09776", "icl_lab", "extended"),
    parameters=SERIES
    | {
        "N": integer(640, 2, "windows of the context; the limit is measured where its correction is at most 0.75"),
        "samples": integer(10_000, 1_000, "series of a Monte Carlo mean"),
    }
    | SEED,
    validate=_validate_signal,
)
def two_layers(rho, sigma, N, samples, seed) -> list[Check]:
    key, coefficients = jax.random.key(seed), np.asarray(rho)
    weights = constructions.series.two_layers(coefficients, sigma)
    prompts = _sample(Autoregressive(rho, N, sigma), prng.stream(key, "prompts"), SHOWN)
    answers = _predict(weights, prompts)
    expected, best = theory.rollout.two_layer_prediction(np.asarray(jax.vmap(series)(prompts)), coefficients, sigma)

    length = max(N, math.ceil(theory.rollout.two_layer_correction(coefficients) / LARGEST_CORRECTION))
    task, oldest_first = Autoregressive(rho, length, sigma), _best_weights(rho)
    explained = float(task.autocovariances(1)[0]) - sigma**2

    @compiled.jit
    def gaps(one):
        """The squared distance to the best prediction, and how much of it is not (w.h)^2 (1 - s)^4."""
        prompts = task.sample_batch(one, DEPTH_CHUNK)
        best = prompts.query @ oldest_first
        square = (jax.vmap(lambda prompt: LSA(weights, prompt)[0])(prompts) - best) ** 2
        estimate = jnp.mean((prompts.labels[..., 0] - prompts.inputs @ oldest_first) ** 2, axis=1) / sigma**2
        return jnp.stack([square, square - best**2 * (1 - estimate) ** 4])

    keys = jax.random.split(prng.stream(key, "series"), -(-samples // DEPTH_CHUNK))
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


def _validate_query(rho, q, **_) -> None:
    validate(rho)
    if q is not None and len(q) != len(rho) + 1:
        raise InvalidValueError(f"`q` must have p + 1 = {len(rho) + 1} entries, those of a column; got {len(q)}.")


@claim(
    "zhou2025.softmax-limit",
    statement="In an infinite context a softmax head is linear in its query: sum_i softmax_i(h_i.q) h_i tends to Gam_{p+1} q, "
    "so it too reaches the best linear predictor.",
    source=Source("icl_lab, extending arXiv 2510.09776", "mean of a tilted Gaussian", "extended"),
    parameters=SERIES
    | {
        "q": vector(None, "the query, p + 1 entries; null: 0.3, -0.2, 0.5 in turn, over sigma^2"),
        "N": integer(20_000, 1_000, "windows of the context"),
        "samples": integer(40, 10, "series"),
    }
    | SEED,
    validate=_validate_query,
)
def softmax_in_a_long_context(rho, sigma, q, N, samples, seed) -> list[Check]:
    key, coefficients, width = jax.random.key(seed), np.asarray(rho), len(rho) + 1
    query = np.resize([0.3, -0.2, 0.5], width) / sigma**2 if q is None else np.asarray(q)
    task = Autoregressive(rho, N, sigma)
    # Scores against a query token of one: W_KQ e_1 = q.
    readout = LSAWeights(w_pv=np.eye(width), w_kq=np.outer(query, np.eye(width)[0])).with_head_axis()
    # Scores so small that the variance over queries has no heavy tail.
    scale = 4 * math.sqrt(max(float(task.autocovariances(1)[0]) / sigma**2 - 1, 0.25))
    head = constructions.series.softmax_head(coefficients, sigma, scale)
    best = _best_weights(rho)

    def heads(one):
        prompt = task.sample(one)
        tokens = jnp.concatenate([SOFTMAX.tokens(prompt)[:-1], jnp.eye(1, width)])
        predicted = best @ prompt.query
        return jnp.append(SOFTMAX.query_update(readout, tokens), SOFTMAX(head, prompt)[0] - predicted)

    drawn = np.stack(
        [np.asarray(x) for x in compiled.jit(lambda keys: jax.lax.map(heads, keys))(jax.random.split(key, samples))]
    )
    mean, error = np.mean(drawn, axis=0), np.std(drawn, axis=0, ddof=1) / np.sqrt(samples)
    distance = math.sqrt(float(np.mean(drawn[:, -1] ** 2)))
    limit = theory.softmax_series.readout_limit(coefficients, sigma, query)
    spread = math.sqrt(theory.softmax_series.scaled_gap(coefficients, sigma, scale) / N)
    return [
        check.sampled("readout", mean[:width], limit, error[:width]),
        check.sampled("head_from_the_best_predictor_abs", mean[-1], 0.0, error[-1]),
        check.at_most("root_mean_square_of_it_abs", distance, 2 * spread),
    ]


def _validate_scale(rho, C, **_) -> None:
    validate(rho)
    theory.softmax_series.check_scale(C, float(Autoregressive(rho, 1, 1.0).autocovariances(1)[0]) - 1)


@claim(
    "zhou2025.softmax-var",
    statement="The softmax head pi = C r, q = r (w.h)/(sigma^2 C) has a gap of sigma^2 [C^2 (1 - 2v/C^2)^{-1/2} + "
    "v (1 - 2v/C^2)^{-3/2}] / N in long contexts, v = V/sigma^2, more than the 2 V / N of linear attention.",
    source=Source("icl_lab, extending arXiv 2510.09776", "icl_lab", "extended"),
    parameters=SERIES
    | {
        "rho": vector((0.3,), "coefficients of the series, nearest lag first"),
        "C": number(1.0, positive=True, meaning="scale of the values; C^2 > 2 V/sigma^2"),
        "N": integer(400, 20, "windows of the context"),
        "samples": integer(40_000, 1_000, "series of a Monte Carlo mean"),
    }
    | SEED,
    validate=_validate_scale,
)
def variance_of_a_softmax_head(rho, sigma, C, N, samples, seed) -> list[Check]:
    coefficients = np.asarray(rho)
    task, best = Autoregressive(rho, N, sigma), _best_weights(rho)
    head = constructions.series.softmax_head(coefficients, sigma, C)

    def scaled_gap(one):
        prompt = task.sample(one)
        return N * (SOFTMAX(head, prompt)[0] - best @ prompt.query) ** 2

    mean, error = mean_with_error(simulate(scaled_gap, prng.stream(jax.random.key(seed), "series"), samples))
    noise = normal_batches(samples // 4, N, seed=seed)
    at_length, uncertainty = theory.softmax_series.finite_gap(coefficients, sigma, C, noise)
    explained = float(task.autocovariances(1)[0]) - sigma**2
    allowed = SOFTMAX_CORRECTION / N + check.SIGMAS * math.hypot(error, uncertainty) / at_length
    checks = [check.exact("scaled_gap", mean, at_length, allowed)]
    if theory.softmax_series.saturation(C, explained / sigma**2) < math.log(N):
        limit = theory.softmax_series.scaled_gap(coefficients, sigma, C)
        allowed = SOFTMAX_CORRECTION / N + check.SIGMAS * error / limit
        checks.append(check.exact("limit_of_scaled_gap", mean, limit, allowed))
    # The bound is the leading term; one layer's own correction to it is negative.
    return [*checks, check.at_least("above_linear_attention", mean, 2 * explained, SOFTMAX_CORRECTION / N, error)]
