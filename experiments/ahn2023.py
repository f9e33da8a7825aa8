"""Figures of Ahn et al. 2023 (arXiv 2306.00297): layers of linear attention that learn preconditioned gradient descent.

python experiments/ahn2023.py                   two minutes on two cores
python experiments/ahn2023.py 'spectrum=[1,1,0.25,0.0625,1]' batch=20000 steps=100000 decay=false     the paper's size, hours

Losses have no factor 1/2, as in the paper. Layers are the paper's sparse ones, Q_l = -diag(A_l, 0) and P_l = diag(B_l, 1);
"B = 0" keeps the inputs where they are. With w ~ N(0, Sigma^{-1}) exact optima do not depend on the covariance Sigma.
"""

from __future__ import annotations

from pathlib import Path

import common
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
from icl_lab.core.linalg import psd_root
from icl_lab.models import LSAWeights
from icl_lab.report.figures import heat_maps
from icl_lab.report.style import save

MODEL = models.LinearSelfAttention(query_in_sum=False, readout_sign=-1.0)


def answer(weights: dict, prompt: tasks.Prompt):
    """The prediction of the layers A (L, d, d) and, if there, B (L, d, d)."""
    moves = weights.get("B", jnp.zeros_like(weights["A"]))
    corner = jnp.zeros((prompt.inputs.shape[1] + 1,) * 2, moves.dtype).at[-1, -1].set(1)
    stack = tuple(
        LSAWeights(w_pv=corner + jnp.pad(b, (0, 1)), w_kq=-jnp.pad(a, (0, 1))) for a, b in zip(weights["A"], moves, strict=True)
    )
    return MODEL(stack, prompt)


def clip_matrices(largest: float) -> optax.GradientTransformation:
    """Every matrix of the gradient by itself scaled down to a norm."""

    def clipped(gradient):
        norms = jnp.linalg.norm(gradient, axis=(1, 2), keepdims=True)
        return gradient * jnp.minimum(1, largest / jnp.maximum(norms, jnp.finfo(norms.dtype).tiny))

    return optax.stateless(lambda updates, _: jax.tree.map(clipped, updates))


def trained(config: DictConfig, task: tasks.LinearRegression, depth: int, corrected: bool) -> training.TrainingResult:
    """Layers after Adam on fresh prompts."""
    key = prng.stream(jax.random.key(config.seed), f"{depth} {corrected}")
    names = ("A", "B") if corrected else ("A",)
    start = {
        name: config.init_std
        * np.asarray(jax.random.normal(prng.stream(key, name), (depth, config.dim, config.dim)), np.float32)
        for name in names
    }
    halving = optax.exponential_decay(config.learning_rate, config.halve_every, 0.5, staircase=True)
    rate = optax.cosine_decay_schedule(config.learning_rate, config.steps) if config.decay else halving
    optimiser = optax.chain(clip_matrices(config.clip), optax.adam(rate, b1=config.b1, b2=config.b2))
    fresh = objectives.StreamedLoss.build(task, answer, key, config.batch, config.batch)
    return training.descend(fresh, start, optimiser, config.steps, key=prng.stream(key, "prompts"))


def losses(config: DictConfig, task: tasks.LinearRegression, runs: dict, optima: dict, folder: Path) -> None:
    """Figure 7 and losses along training: trained layers beside the exact optima."""
    figure = Figure(figsize=(10.5, 4.3), layout="constrained")
    (left, right), numbers = figure.subplots(1, 2), {"layers": list(config.layers)}
    key = prng.stream(jax.random.key(config.seed), "test")
    test = objectives.StreamedLoss.build(task, answer, key, config.test_prompts, min(4000, config.test_prompts))
    for corrected, style in ((False, "-"), (True, "--"))[: min(max(config.layers), 2)]:
        name, points = "B free" if corrected else "B = 0", []
        depths = [depth for depth in config.layers if (depth, corrected) in runs]
        for colour, depth in enumerate(depths, start=len(config.layers) - len(depths)):
            path, limit = runs[depth, corrected].trajectory, jax.tree.map(np.float64, runs[depth, corrected].limit)
            left.plot(path.times, 2 * path.losses, style, color=f"C{colour}", label=f"{depth} layer{'s' * (depth > 1)}, {name}")
            left.axhline(optima[depth, corrected][2], color=f"C{colour}", linestyle=":", linewidth=1)
            points.append((test.risk(limit), test.standard_error(limit)))
            numbers |= {f"step {depth} {name}": path.times, f"loss {depth} {name}": 2 * path.losses}
            print(
                f"{depth} layers, {name}: {points[-1][0]:.5f} +- {points[-1][1]:.5f}, exact {optima[depth, corrected][2]:.5f}"
            )
        values, errors = np.array(points).T
        exact = [optima[depth, corrected][2] for depth in depths]
        mark = "s" if corrected else "o"
        colour = "C1" if corrected else "C0"
        right.errorbar(depths, values, 2 * errors, fmt=mark, capsize=3, color=colour, label=f"trained, {name}")
        right.plot(depths, exact, style, color=colour, label=f"exact optimum, {name}")
        numbers |= {f"test {name}": values, f"error {name}": errors, f"exact {name}": exact}
    shared = [
        2
        * theory.descent_steps.best_shared_step(
            theory.ahn2023.stack_rule(config.dim, config.context_length, depth, False), depth
        ).loss
        for depth in config.layers
    ]
    right.plot(config.layers, shared, "-.", color="0.4", label="preconditioned GD, one step size")
    numbers["exact shared step"] = shared
    left.set(xlabel="step of Adam", ylabel="loss", yscale="log")
    right.set(xlabel="layers", ylabel="loss on fresh prompts", yscale="log")
    right.set_xticks(list(config.layers))
    for axes in (left, right):
        axes.legend(fontsize="x-small")
    save(
        figure,
        folder / "losses.png",
        "Trained layers come to the exact optima (dotted left). Where B is free the loss of three layers is a polynomial "
        "of degree 26 in the inputs: its mean over any sample misses rare tasks and may lie below the optimum.",
        numbers,
    )


def distances(config: DictConfig, task: tasks.LinearRegression, runs: dict, folder: Path) -> None:
    """Distance to a multiple of the identity of every whitened A_l, and of B_l, along training of the deepest stack."""
    depth = max(config.layers)
    figure = Figure(figsize=(11.5, 3.7), layout="constrained")
    panels = [(False, "A"), (True, "A"), (True, "B")] if depth > 1 else [(False, "A")]
    numbers = {}
    for axes, (corrected, name) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        path = runs[depth, corrected].trajectory
        covariance = np.asarray(task.covariance) if name == "A" else None
        found = analysis.distance_to_identity(path.weights[name], covariance)
        # The last B has no effect, and stays where it began.
        for layer in range(depth if name == "A" else depth - 1):
            axes.plot(path.times, found[:, layer], color=f"C{layer}", label=f"layer {layer}")
            numbers |= {f"{name}{layer} {'B free' if corrected else 'B = 0'}": found[:, layer]}
        numbers |= {f"step {name} {'B free' if corrected else 'B = 0'}": path.times}
        matrix = "Σ$^{1/2}$ A Σ$^{1/2}$" if name == "A" else "B"
        axes.set(title=f"{matrix}, {'B free' if corrected else 'B = 0'}", xlabel="step of Adam", yscale="log")
        axes.legend(fontsize="x-small")
    figure.axes[0].set_ylabel("Dist(·, I)")
    save(
        figure,
        folder / "distances.png",
        "Relative distance to the nearest multiple of the identity, 0 at the exact optimum, which sampled gradients miss.",
        numbers,
    )


def matrices(config: DictConfig, task: tasks.LinearRegression, runs: dict, optima: dict, folder: Path) -> None:
    """The whitened A_l of the deepest stack, and with B free B_l, beside the closed form."""
    depth, root, identity = max(config.layers), np.asarray(psd_root(np.asarray(task.covariance))), np.eye(config.dim)
    rows = []
    for corrected in (False, True)[: min(depth, 2)]:
        limit, (steps, moves, _) = runs[depth, corrected].limit, optima[depth, corrected]
        whitened = root @ np.float64(limit["A"]) @ root
        if not corrected:  # any order is as good
            whitened = whitened[np.argsort(np.trace(whitened, axis1=1, axis2=2))]
        suffix = "B free" if corrected else "B = 0"
        rows += [(f"ΣA{i}, {suffix}", whitened[i], steps[i] * identity) for i in range(depth)]
        if corrected:
            rows += [(f"B{i}", np.float64(limit["B"][i]), moves[i] * identity) for i in range(depth - 1)]
    figure = Figure(figsize=(17.0, 2.4 * -(-len(rows) // 2)), layout="constrained")
    grid, numbers = figure.subplots(-(-len(rows) // 2), 6, squeeze=False), {}
    for axes in grid.ravel()[3 * len(rows) :]:
        axes.set_axis_off()
    for i, (name, learned, exact) in enumerate(rows):
        heat_maps(grid.ravel().tolist()[3 * i : 3 * i + 3], learned, exact, name)
        numbers |= {f"learned {name}": learned, f"exact {name}": exact}
    save(
        figure,
        folder / "matrices.png",
        "Trained matrices beside the multiples of the identity of the exact optimum. ΣA stands for Σ^(1/2) A Σ^(1/2). Without "
        "B the layers are in ascending order, since their order is free.",
        numbers,
    )


@hydra.main(version_base="1.3", config_path="../configs", config_name="ahn2023")
def main(config: DictConfig) -> None:
    """Train every stack, and draw every figure with its numbers beside it."""
    rotation = tasks.random_rotation(config.dim, config.seed)
    spectrum = np.array(config.spectrum, dtype=float)
    task = tasks.LinearRegression(
        dim=config.dim,
        context_length=config.context_length,
        covariance=tasks.from_spectrum(spectrum, rotation),
        task_covariance=tasks.from_spectrum(1 / spectrum, rotation),
    )
    # One layer has nothing to gain from B.
    cases = [(depth, corrected) for depth in config.layers for corrected in (False, True) if depth > 1 or not corrected]
    with common.configured_figures(config) as folder:
        optima = {
            (depth, corrected): theory.ahn2023.best_stack(config.dim, config.context_length, depth, corrected)
            for depth, corrected in cases
        }
        runs = {case: trained(config, task, *case) for case in track(cases, "training")}
        losses(config, task, runs, optima, folder)
        distances(config, task, runs, folder)
        matrices(config, task, runs, optima, folder)


if __name__ == "__main__":
    main()
