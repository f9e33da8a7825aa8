"""Figures of Zheng et al. 2024 (arXiv 2405.16845): one layer trained on x_{t+1} = W x_t, beside its exact prediction.

python experiments/zheng2024.py                              the paper's size, about three minutes on two cores
python experiments/zheng2024.py dim=2 length=12 sequences=2000   seconds
"""

from __future__ import annotations

from pathlib import Path

import common
import equinox as eqx
import hydra
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.progress import track

from icl_lab import models, objectives, tasks, theory, training
from icl_lab.core import prng
from icl_lab.models import PairedWeights
from icl_lab.report.figures import heat_maps
from icl_lab.report.style import save

MODEL = models.LinearSelfAttention(causal=True, embedding="paired")
STARTS = {
    "gaussian": tasks.GaussianStart,
    "sparse": tasks.SparseStart,
    "rademacher": tasks.RademacherStart,
    "constant": tasks.ConstantStart,
}
NAMES = {"gaussian": "Gaussian, σ", "sparse": "sparse, c", "constant": "all ones, c"}


def distribution(config: DictConfig, start: str, scale: float, length: int | None = None) -> tasks.LinearDynamics:
    """The sequences x_1 .. x_T, T the configured length or another."""
    length = config.length if length is None else length
    return tasks.LinearDynamics(config.dim, length - 2, tasks.DiagonalUnitary(), STARTS[start](scale))


@eqx.filter_jit
def descend(objective: objectives.Objective, inits, step_size, steps: int) -> PairedWeights:
    """The weights along plain gradient descent from every a0 I, b0 I; leaves (inits, steps + 1, d, d)."""

    def step(weights, _):
        # JAX's gradient in a complex weight is the conjugate of the direction of ascent.
        return jax.tree.map(lambda w, g: w - step_size * jnp.conj(g), weights, jax.grad(objective)(weights)), weights

    def path(init):
        identity = jnp.eye(objective.task.dim, dtype=complex)
        return jax.lax.scan(step, PairedWeights(init[1] * identity, init[0] * identity), length=steps + 1)[1]

    return jax.vmap(path)(inits)


def predicted(config: DictConfig, curve: DictConfig, init) -> np.ndarray:
    """The product a b at every step of gradient descent on the exact loss."""
    if curve.distribution == "constant":
        form = theory.all_ones.quadratic(config.dim, config.length, curve.scale)
        path = theory.all_ones.descent(form, config.dim, *init, curve.step_size, curve.steps)
        return path[:, 0] * path[:, 2]
    a, b = theory.zheng2024.descent(constants(config, curve), config.length, *init, curve.step_size, curve.steps)
    return a * b


def constants(config: DictConfig, curve: DictConfig) -> theory.zheng2024.Constants:
    """Moments of the start distribution of a curve."""
    return theory.zheng2024.constants(curve.distribution, config.dim, curve.scale)


def trained(config: DictConfig) -> list[PairedWeights]:
    """The descents on sampled sequences, one entry a curve."""
    features = objectives.phase_features(config.dim, active=True)
    paths = []
    for number, curve in enumerate(track(config.curves, "training")):
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        task = distribution(config, curve.distribution, curve.scale)
        loss = objectives.SampledLoss.build(task, MODEL, key, config.sequences, features=features, every_position=True)
        path = descend(loss, jnp.asarray(np.array(config.inits)), jnp.asarray(curve.step_size), curve.steps)
        paths.append(jax.tree.map(np.asarray, path))
    return paths


def products(config: DictConfig, paths: list[PairedWeights], folder: Path) -> None:
    """The mean diagonal of P K along training, with the exact prediction."""
    rows = -(-len(config.curves) // 4)
    figure = Figure(figsize=(11.5, 2.9 * rows), layout="constrained")
    grid, numbers = np.atleast_2d(figure.subplots(rows, min(4, len(config.curves)))).ravel(), {}
    for axes, curve, path in zip(grid, config.curves, paths, strict=False):
        steps = np.arange(curve.steps + 1)
        shown = steps[:: max(1, curve.steps // 12)]
        measured = np.einsum("isjj->isj", path.value * path.key_query).real.mean(axis=2)
        for colour, init in enumerate(config.inits):
            line, label = predicted(config, curve, init), f"a₀ = {init[0]:g}, b₀ = {init[1]:g}"
            axes.plot(steps, line, color=f"C{colour}", label=label)
            axes.plot(shown, measured[colour, shown], ".", color=f"C{colour}")
            name = f"{curve.distribution} {curve.scale:g} from {init[0]:g},{init[1]:g}"
            numbers |= {f"predicted {name}": line, f"sampled {name}": measured[colour]}
        if curve.distribution != "constant":
            limit = theory.zheng2024.limit_product(constants(config, curve), config.length)
            endless = theory.recovery.long_training_product(constants(config, curve))
            axes.axhline(limit, color="0.4", linewidth=1, label=f"limit at T = {config.length}")
            axes.axhline(endless, color="0.4", linewidth=1, linestyle=":", label="limit at T = ∞")
        axes.set(title=f"{NAMES[curve.distribution]} = {curve.scale:g}", xlabel="step of gradient descent")
        axes.set_ylim(bottom=0)
    for axes in grid[len(config.curves) :]:
        axes.set_axis_off()
    grid[0].set_ylabel("a b, mean diagonal of P K")
    grid[0].legend(fontsize="x-small")
    save(
        figure,
        folder / "products.png",
        f"Points: plain gradient descent on {config.sequences} sampled sequences; lines: the same steps on the exact loss, "
        "computed from four moments of x_1. Gaussian points lie off their line by the sampling error of sixth moments. The "
        "dotted lines are what infinitely long sequences would give; at finite T Gaussian curves end below.",
        numbers,
    )


@eqx.filter_jit
def _tested(task, weights, keys):
    """Mean ratio over coordinates and squared error of the last prediction of each fresh sequence."""

    def one(key):
        prompt = task.sample(key)
        answer = MODEL(weights, prompt)
        present = jnp.abs(prompt.target) > 0
        ratio = jnp.where(present, jnp.real(answer / jnp.where(present, prompt.target, 1)), 0.0)
        return jnp.sum(ratio) / jnp.sum(present), jnp.sum(jnp.abs(answer - prompt.target) ** 2)

    return jax.vmap(one)(keys)


def tested(config: DictConfig, task: tasks.LinearDynamics, weights: PairedWeights) -> np.ndarray:
    """((ratio, its standard error), (squared error, its standard error)) over fresh sequences, drawn in chunks."""
    keys = jax.random.split(prng.stream(jax.random.key(config.seed), "test"), config.sequences)
    parts = [_tested(task, weights, chunk) for chunk in np.array_split(keys, -(-config.sequences // 2000))]
    values = [np.concatenate([np.asarray(part[i]) for part in parts]) for i in range(2)]
    return np.array([(v.mean(), v.std(ddof=1) / np.sqrt(len(v))) for v in values])


def recovery(config: DictConfig, paths: list[PairedWeights], folder: Path) -> None:
    """Ratio of prediction and truth and test error along training, and test error against the length of the context."""
    figure = Figure(figsize=(11.5, 3.6), layout="constrained")
    (left, middle, right), numbers = figure.subplots(1, 3), {}
    for axes, start, quantity in ((left, "gaussian", 0), (middle, "sparse", 1)):
        index = next((i for i, c in enumerate(config.curves) if c.distribution == start and c.scale == 1.0), None)
        if index is None:
            continue
        curve, path, moments = config.curves[index], paths[index], constants(config, config.curves[index])
        shown = np.unique(np.linspace(0, curve.steps, 9).astype(int))
        task = distribution(config, start, curve.scale)
        for colour, init in enumerate(config.inits):
            line = predicted(config, curve, init)
            if quantity == 0:
                line = theory.recovery.mean_ratio(start, 1.0, curve.scale) * line
            else:
                line = np.array([theory.recovery.squared_error(moments, config.dim, s, config.length - 1) for s in line])
            points = np.array(
                [tested(config, task, jax.tree.map(lambda w, c=colour, k=k: w[c, k], path))[quantity] for k in shown]
            )
            axes.plot(line, color=f"C{colour}", label=f"a₀ = {init[0]:g}, b₀ = {init[1]:g}")
            axes.errorbar(shown, points[:, 0], 2 * points[:, 1], fmt=".", capsize=2, color=f"C{colour}")
            name = f"{start} from {init[0]:g},{init[1]:g}"
            numbers |= {f"predicted {name}": line, f"measured {name}": points[:, 0], f"error {name}": points[:, 1]}
        axes.set(xlabel="step of gradient descent")
    left.axhline(0.2, color="0.4", linestyle=":", linewidth=1, label="1/5: T = ∞")
    left.set(title="Gaussian, σ = 1", ylabel="mean of ŷ / x at the last position")
    left.legend(fontsize="x-small")
    middle.set(title="sparse, c = 1", ylabel="test error E‖ŷ - x‖²")
    lengths = np.unique(np.geomspace(3, 2 * config.length, 7).astype(int))
    # The all-ones start has the same errors as +-1 coordinates while the weights are diagonal.
    for colour, start in enumerate(("gaussian", "sparse", "rademacher")):
        moments = theory.zheng2024.constants(start, config.dim, 1.0)
        product = theory.zheng2024.limit_product(moments, config.length)
        weights = PairedWeights(product * np.eye(config.dim), np.eye(config.dim))
        points = np.array([tested(config, distribution(config, start, 1.0, int(t) + 1), weights)[1] for t in lengths])
        fine = np.arange(2, 2 * config.length + 1)
        line = [theory.recovery.squared_error(moments, config.dim, product, t) for t in fine]
        right.plot(fine, line, color=f"C{colour}", label=start)
        right.errorbar(lengths, points[:, 0], 2 * points[:, 1], fmt=".", capsize=2, color=f"C{colour}")
        numbers |= {f"t {start}": fine, f"exact {start}": line, f"tested {start}": points[:, 0]}
    right.set(title="limit of Theorem 4.1 (diagonal)", xlabel="position t", ylabel="test error E‖ŷ - x‖²", xscale="log")
    right.set_xticks(lengths, labels=[str(t) for t in lengths])
    right.minorticks_off()
    right.legend(fontsize="x-small")
    save(
        figure,
        folder / "recovery.png",
        "Lines: exact; points: fresh sequences with intervals of two standard errors. Gaussian starts are recovered to a fifth "
        "only, whatever the length of the context; sparse starts exactly; starts of +-1 coordinates in the limit of long ones.",
        numbers,
    )


def all_ones(config: DictConfig, paths: list[PairedWeights], folder: Path) -> None:
    """The learned blocks for x_1 = (1, .., 1), which are not diagonal, beside the exact two-number form."""
    index = next((i for i, curve in enumerate(config.curves) if curve.distribution == "constant"), None)
    if index is None:
        return
    curve, init = config.curves[index], config.inits[0]
    a, a_off, b, b_off = theory.all_ones.limit(
        theory.all_ones.quadratic(config.dim, config.length, curve.scale), config.dim, *init
    )
    learned, numbers = jax.tree.map(lambda w: w[0, -1].real, paths[index]), {}
    figure = Figure(figsize=(8.4, 5.0), layout="constrained")
    rows = figure.subplots(2, 3)
    for row, name, matrix, on, off in (
        (rows[0], "P", learned.value, b, b_off),
        (rows[1], "K", learned.key_query, a, a_off),
    ):
        exact = off * np.ones((config.dim, config.dim)) + (on - off) * np.eye(config.dim)
        heat_maps(row, matrix, exact, name)
        numbers |= {f"learned {name}": matrix, f"exact {name}": exact}
    save(
        figure,
        folder / "all_ones.png",
        "An all-ones start breaks Assumption 4.1: both blocks learn one negative number off the diagonal, a gradient step "
        "preconditioned from both sides. The last column is the sampling error of the training set.",
        numbers,
    )


def _map(axes: Axes, matrix: np.ndarray, title: str) -> None:
    image = axes.imshow(np.abs(matrix), vmin=0.0, cmap="viridis")
    axes.set(title=title, xticks=[], yticks=[])
    axes.grid(False)
    axes.figure.colorbar(image, ax=axes, fraction=0.046)


def random_starts(config: DictConfig, folder: Path) -> None:
    """Random complex weights flow to P K = s I, both diagonal."""
    loss = objectives.phase_loss(distribution(config, "gaussian", 1.0), MODEL, active=True)
    limit = theory.zheng2024.limit_product(theory.zheng2024.constants("gaussian", config.dim, 1.0), config.length)
    rng, numbers = np.random.default_rng(config.seed), {}
    figure = Figure(figsize=(2.9 * len(config.random_scales), 5.6), layout="constrained")
    grid = figure.subplots(2, len(config.random_scales), squeeze=False)
    for column, scale in zip(grid.T, config.random_scales, strict=True):
        draws = rng.normal(size=(2, 2, config.dim, config.dim))
        start = PairedWeights(*(scale * (re + 1j * im) for re, im in draws))
        end = training.gradient_flow(loss, start).limit
        _map(column[0], start.value @ start.key_query, f"|P K| at the start, std {scale:g}")
        _map(column[1], end.value @ end.key_query, "|P K| at the end")
        gap = np.max(np.abs(end.value @ end.key_query - limit * np.eye(config.dim)))
        column[1].set_xlabel(f"largest distance to s I: {gap:.0e}")
        numbers |= {f"start {scale:g}": np.abs(start.value @ start.key_query)}
        numbers |= {f"end {scale:g}": np.abs(end.value @ end.key_query), f"gap {scale:g}": [gap]}
    save(
        figure,
        folder / "random_starts.png",
        f"Exact gradient flow from random complex weights, Gaussian x_1: the diagonal solution with s = {limit:.6f} is where "
        "every start ends, up to phases that P and K exchange.",
        numbers,
    )


@hydra.main(version_base="1.3", config_path="../configs", config_name="zheng2024")
def main(config: DictConfig) -> None:
    """Train, and draw every figure with its numbers beside it."""
    with common.configured_figures(config) as folder:
        paths = trained(config)
        for figure in track((products, recovery, all_ones), "figures"):
            figure(config, paths, folder)
        random_starts(config, folder)


if __name__ == "__main__":
    main()
