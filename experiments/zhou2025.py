"""Figures of Zhou et al. 2025 (arXiv 2510.09776): linear attention on AR(p) series, beside the prediction of every curve.

python experiments/zhou2025.py                                                 about ten minutes on two cores
python experiments/zhou2025.py 'scaling.orders=[3,5,7]' 'seeds=[100,101,102,103,104,105,106]'     the paper's size
"""

from __future__ import annotations

from pathlib import Path

import common
import equinox as eqx
import hydra
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.progress import track

from icl_lab import analysis, models, objectives, tasks, theory, training
from icl_lab.core import prng
from icl_lab.core.typing import Weights
from icl_lab.models import initializers
from icl_lab.report.style import save
from icl_lab.tasks.series.forecasting import PublishedSeries, forecast_prompt, published_series
from icl_lab.training.windows import train_on_windows

LINEAR = models.LinearSelfAttention(embedding="hankel", query_in_sum=False)
SOFTMAX = models.SoftmaxSelfAttention(embedding="hankel", query_in_sum=False)
ADAM = optax.adam(1e-3)
PATIENCE = 8
# Overlapping windows are not independent; means over long stretches of the series nearly are.
BLOCKS = 20


@eqx.filter_jit
def answers(model, weights: Weights, windows, order: int):
    """The model's predictions on every row of values."""
    return jax.vmap(lambda values: model(weights, forecast_prompt(values, order))[0])(windows)


def excess(model, weights: Weights, series: PublishedSeries, values: np.ndarray, length: int) -> tuple[float, float]:
    """Mean squared distance to the best p-lag prediction over the windows of a series, and its standard error."""
    order = len(series.coefficients)
    windows = np.lib.stride_tricks.sliding_window_view(values[:-1], length + order)
    best = windows[:, -order:] @ series.coefficients[::-1]
    gaps = (np.asarray(answers(model, weights, jnp.asarray(windows), order)) - best) ** 2
    blocks = [block.mean() for block in np.array_split(gaps, BLOCKS)]
    return float(gaps.mean()), float(np.std(blocks, ddof=1) / np.sqrt(BLOCKS))


def fit(model, series: PublishedSeries, length: int, unit: float, epochs: int, patience: int, seed: int):
    """One layer trained on four fifths of a series divided by `unit`, and the rest of the series in that unit."""
    order, key = len(series.coefficients), jax.random.key(seed)
    train, held_out = np.split(series.values / unit, [round(0.8 * len(series.values))])
    start = initializers.gaussian(prng.stream(key, "init"), order + 1, 0.01)
    trained = train_on_windows(
        model, start, train, held_out, order, length, ADAM, key=prng.stream(key, "shuffles"), epochs=epochs, patience=patience
    )
    return trained.limit, held_out


def context_scaling(config: DictConfig, folder: Path) -> None:
    """Excess error of one trained layer against the length of the context: published run, mended run, prediction."""
    sizes, unit = config.scaling, config.noise_std
    runs = {"published": (1.0, sizes.epochs, PATIENCE), "divided by σ": (unit, 3 * sizes.epochs, 5 * PATIENCE)}
    cases = [(p, seed, N) for p in sizes.orders for seed in config.seeds for N in sizes.lengths]
    shares: dict[tuple, list[float]] = {}
    for order, seed, length in track(cases, "context scaling"):
        series = published_series(order, seed, unit, config.series_length)
        signal = theory.zhou2025.signal_variance(series.coefficients, unit)
        for name, (scale, epochs, patience) in runs.items():
            weights, held_out = fit(LINEAR, series, length, scale, epochs, patience, seed)
            error, _ = excess(LINEAR, weights, series, held_out, length)
            shares.setdefault((name, order, length), []).append(error * scale**2 / signal)
    figure = Figure(figsize=(4.2 * len(sizes.orders), 3.9), layout="constrained")
    lengths, numbers = np.array(sizes.lengths), {"N": list(sizes.lengths)}
    for axes, order in zip(figure.subplots(1, len(sizes.orders), squeeze=False)[0], sizes.orders, strict=True):
        fine = np.geomspace(lengths[0], lengths[-1], 60)
        axes.plot(fine, 2 / (fine + 4), color="black", label="prediction, 2/(N+4)")
        for colour, name in enumerate(runs):
            values = np.array([shares[name, order, length] for length in sizes.lengths])
            axes.plot(lengths, values, ".", color=f"C{colour}", alpha=0.4)
            axes.plot(lengths, np.median(values, axis=1), "o-", color=f"C{colour}", label=f"{name}, median", linewidth=1)
            numbers |= {f"p={order} {name} seed {seed}": values[:, i] for i, seed in enumerate(config.seeds)}
        axes.axhline(order / (0.8 * config.series_length), color="0.4", linestyle=":", label="OLS on all the training data")
        axes.set(title=f"p = {order}", xlabel="windows of the context N", xscale="log", yscale="log")
        axes.set_xticks(lengths, labels=[str(n) for n in lengths])
        axes.minorticks_off()
    axes = figure.axes[0]
    axes.set_ylabel("excess error / V")
    axes.legend(fontsize="x-small")
    save(
        figure,
        folder / "context_scaling.png",
        "Excess over the best p-lag prediction as a share of V = E(w.h)^2, for which theory has one line for every series. At "
        "the published scale of the data the optimum needs weights of order 1/σ², and training stops short of it; longer "
        "training on the series divided by σ follows the line, but for starts that end in another local minimum. The layer "
        "never reaches the linear regression, whose excess is σ² p over the number of training values (dotted, for V = σ²).",
        numbers,
    )


def depth(config: DictConfig, folder: Path) -> None:
    """Excess error of one to five trained layers on fresh prompts."""
    sizes = config.depth
    signal = theory.zhou2025.signal_variance(sizes.coefficients, 1.0)
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(sizes.learning_rate, sizes.steps))
    )
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes, numbers, measured = figure.subplots(), {"layers": list(sizes.layers)}, {}
    for length, layers in track([(N, L) for N in sizes.lengths for L in sizes.layers], "depth"):
        measured[length, layers] = trained_depth(config, length, layers, optimiser)
    for colour, length in enumerate(sizes.lengths):
        points = np.array([measured[length, layers] for layers in sizes.layers])
        axes.errorbar(sizes.layers, points[:, 0], 2 * points[:, 1], fmt="o", color=f"C{colour}", label=f"trained, N = {length}")
        axes.axhline(2 * signal / (length + 4), color=f"C{colour}", label=f"one layer, 2V/(N+4), N = {length}")
        axes.axhline(
            12 * signal / length**2, color=f"C{colour}", linestyle=":", label=f"two layers by hand, 12V/N², N = {length}"
        )
        numbers |= {f"excess N={length}": points[:, 0], f"error N={length}": points[:, 1]}
        numbers |= {f"one layer N={length}": [2 * signal / (length + 4)], f"two layers N={length}": [12 * signal / length**2]}
    axes.set(xlabel="layers", ylabel="excess error", yscale="log", xticks=list(sizes.layers))
    axes.legend(fontsize="x-small")
    save(
        figure,
        folder / "depth.png",
        "Adam on fresh prompts from one random start a point. One layer cannot go below 2V/(N+4), and a single start may end "
        "in a local minimum just above it. Two trained layers reach the order 1/N² of the construction by hand, or less.",
        numbers,
    )


def trained_depth(config: DictConfig, length: int, layers: int, optimiser) -> tuple[float, float]:
    """Excess error of trained layers on fresh prompts, with its standard error."""
    sizes, key = config.depth, jax.random.key(config.seed)
    task = tasks.Autoregressive(sizes.coefficients, length)
    keys = jax.random.split(prng.stream(key, "init"), layers)
    start = tuple(jax.tree.map(np.float32, initializers.gaussian(k, task.dim + 1, sizes.init_scale)) for k in keys)
    loss = objectives.StreamedLoss.build(task, LINEAR, prng.stream(key, "data"), batch=sizes.batch)
    weights = training.descend(loss, start, optimiser, sizes.steps, key=prng.stream(key, "training")).limit
    found = analysis.lag_excess(eqx.Partial(LINEAR, weights), task, prng.stream(key, "test"), 50_000)
    return float(found.mean), float(found.standard_error)


def rollouts(config: DictConfig, folder: Path) -> None:
    """How fast rollouts of the trained layer and of the best prediction go to zero."""
    sizes, unit = config.rollout, config.noise_std
    series = published_series(sizes.order, config.seeds[0], unit, config.series_length)
    rho, steps = series.coefficients, np.arange(1, sizes.steps + 1)
    weights, _ = fit(LINEAR, series, sizes.length, unit, 3 * config.scaling.epochs, 5 * PATIENCE, config.seed)
    generator = np.random.default_rng(config.seed)
    start, noise = (generator.standard_normal((sizes.series, count)) for count in (sizes.order, sizes.length))
    observed = theory.rollout.stationary_series(rho, 1.0, start, noise)
    layer = analysis.rollout(LINEAR, weights, observed, sizes.order, sizes.steps)
    predicted = theory.rollout.lsa_rollout(observed, rho, 1.0, sizes.length / (sizes.length + 4), sizes.steps)
    companion = tasks.companion(rho)
    best = np.stack(
        [observed[:, : -sizes.order - 1 : -1] @ np.linalg.matrix_power(companion, int(k))[0] for k in steps], axis=1
    )
    std = float(np.sqrt(1 + theory.zhou2025.signal_variance(rho, 1.0)))
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    median = [np.median(np.abs(values), axis=0) for values in (layer, predicted, best)]
    left.plot(steps, median[0], ".", label="trained layer")
    left.plot(steps, median[1], color="black", label="closed-form layer, exact recursion")
    left.plot(steps, median[2], color="C2", label="best p-lag prediction")
    moment = theory.rollout.bayes_second_moment(rho, 1.0, sizes.steps)
    left.plot(steps, 0.6745 * np.sqrt(moment), ":", color="C2", label="the same, closed form")
    left.set(xlabel="step of the rollout", ylabel="median |prediction| / σ", yscale="log", ylim=(1e-8, None))
    left.legend(fontsize="x-small")
    mse = theory.rollout.bayes_mse(rho, 1.0, sizes.steps)
    right.plot(steps, mse, color="C2", label="best p-lag prediction, closed form")
    right.axhline(std**2, color="0.4", linestyle=":", label="variance of the series")
    collapses = [analysis.collapse_step(path, std) for path in layer]
    reached = [k for k in collapses if k is not None]
    right.hist(
        reached,
        bins=np.arange(0, sizes.steps + 1, 2),
        weights=np.full(len(reached), std**2 / len(collapses)),
        color="C0",
        alpha=0.4,
        label="share of paths collapsed at this step, times the variance",
    )
    right.set(xlabel="step of the rollout", ylabel="mean squared error / σ²")
    right.legend(fontsize="x-small")
    save(
        figure,
        folder / "rollouts.png",
        "Every rollout ends at the mean. The layer's goes there faster than the best prediction's, because the columns that it "
        "appends hold no innovations and shrink its estimate. Medians, since rare rollouts of the layer explode. A path has "
        "collapsed once 20 predictions in a row are below a twentieth of the standard deviation.",
        {
            "step": steps,
            "trained layer": median[0],
            "recursion": median[1],
            "best": median[2],
            "best exact": moment,
            "mse": mse,
            "collapse step": [-1 if k is None else k for k in collapses],
        },
    )


def softmax_comparison(config: DictConfig, folder: Path) -> None:
    """A linear and a softmax layer trained alike."""
    sizes, unit = config.softmax, config.noise_std
    series = published_series(sizes.order, config.seeds[0], unit, config.series_length)
    signal = theory.zhou2025.signal_variance(series.coefficients, 1.0)
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes, numbers = figure.subplots(), {"N": list(sizes.lengths)}
    for colour, (name, model) in enumerate({"linear": LINEAR, "softmax": SOFTMAX}.items()):
        points = []
        for length in track(sizes.lengths, f"{name} layer"):
            weights, held_out = fit(model, series, length, unit, config.scaling.epochs, 3 * PATIENCE, config.seed)
            points.append(excess(model, weights, series, held_out, length))
        values, errors = np.array(points).T / signal
        axes.errorbar(sizes.lengths, values, 2 * errors, fmt="o", capsize=2, color=f"C{colour}", label=f"{name}, trained")
        numbers |= {f"{name}": values, f"{name} error": errors}
    fine = np.geomspace(sizes.lengths[0], sizes.lengths[-1], 60)
    axes.plot(fine, 2 / (fine + 4), color="C0", label="linear: 2/(N+4)")
    scales = np.geomspace(np.sqrt(2 * signal) * 1.01, 10 * np.sqrt(2 * signal), 400)
    best = min(theory.softmax_series.scaled_gap(series.coefficients, 1.0, scale) for scale in scales)
    axes.plot(fine, best / signal / fine, color="C1", label="softmax: 1/N rule of the best constructed head")
    axes.set(xlabel="windows of the context N", ylabel="excess error / V", xscale="log", yscale="log")
    axes.set_xticks(sizes.lengths, labels=[str(n) for n in sizes.lengths])
    axes.minorticks_off()
    axes.legend(fontsize="x-small")
    numbers |= {"length": fine, "linear predicted": 2 / (fine + 4), "softmax predicted": best / signal / fine}
    save(
        figure,
        folder / "softmax.png",
        "In an endless context a softmax head is linear too, but its weights add up to one, so that sampling noise is left "
        "even where there is no signal. In short contexts, beyond the 1/N rule, the trained softmax head is the better one.",
        numbers,
    )


@hydra.main(version_base="1.3", config_path="../configs", config_name="zhou2025")
def main(config: DictConfig) -> None:
    """Draw every figure, with its numbers beside it."""
    with common.configured_figures(config) as folder:
        for figure in (rollouts, softmax_comparison, depth, context_scaling):
            figure(config, folder)


if __name__ == "__main__":
    main()
