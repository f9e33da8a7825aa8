"""The ladder of a drifting task: what each mixer loses by what its gates do not say of the drift."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from mixer_figures.answers import drawn
from omegaconf import DictConfig
from rich.progress import track

from icl_lab import estimators, mixers, tasks, theory
from icl_lab.claims.mixers.prompts import distance, wide_steps
from icl_lab.claims.simulation import mean_with_error
from icl_lab.core import compiled
from icl_lab.core.prng import stream
from icl_lab.core.typing import Array
from icl_lab.report.style import save
from icl_lab.tasks.prompt import Prompt

RUNGS = (
    *("linear attention", "its best window", "retention", "DeltaNet", "gated DeltaNet"),
    *("step of the variance", "mesa", "Kalman filter"),
)
"""From no account of the drift to the best possible one."""
GRID = np.stack(np.meshgrid([0.3, 0.5, 0.65, 0.8, 0.9, 0.97], [0.3, 1.0, 3.0, 10.0]), -1).reshape(-1, 2)
"""Decays of mesa that are tried, and its penalties over the variance of the noise."""


def ladder(config: DictConfig, folder: Path) -> None:
    """Risks on a task that drifts, against how fast it does, and one drift as a ladder."""
    sizes = config.ladder
    found = np.array([rungs(config, a) for a in track(sizes.correlations, "drift ladder")]) / sizes.dim
    shown, speeds = list(sizes.correlations).index(sizes.shown), [1 - a for a in sizes.correlations]
    figure = Figure(figsize=(11.5, 4.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    numbers: dict[str, Any] = {"correlation": list(sizes.correlations)}
    for i, (name, (values, errors, exact)) in enumerate(zip(RUNGS, found.transpose(1, 2, 0), strict=True)):
        known, colour = bool(np.all(np.isfinite(exact))), f"C{i}" if i < len(RUNGS) - 1 else "0.45"
        style = {"color": colour, "markersize": 4.5, "capsize": 2, "elinewidth": 1}
        left.errorbar(speeds, values, 2 * errors, fmt="o" if known else "o:", linewidth=0.8, label=name, **style)
        if known:
            left.plot(speeds, exact, color=colour, linestyle="--" if name == RUNGS[-1] else "-")
            right.plot([exact[shown]] * 2, [i - 0.36, i + 0.36], color=colour, linewidth=2.2)
        right.errorbar(values[shown], i, xerr=2 * errors[shown], fmt="o", **style)
        text = f"{values[shown]:.3f}" + (f"  ({exact[shown]:.3f})" if known else "")
        right.text(values[shown] + 2 * errors[shown] + 0.02, i, text, va="center", fontsize="small", color="0.2")
        numbers |= {name: values, f"{name} error": errors, f"{name} exact": exact}
    left.set(xscale="log", yscale="log", xlabel="drift of the task at each example, 1 - a", ylabel="risk / d")
    left.set_xticks(speeds, labels=[f"{speed:.3g}" for speed in speeds])
    left.set_yticks([0.05, 0.1, 0.2, 0.5, 1.0], labels=["0.05", "0.1", "0.2", "0.5", "1"])
    left.minorticks_off()
    left.legend(fontsize="small", loc="lower right")
    right.set(title=f"one drift, a = {sizes.shown:g}", xlabel="risk / d, measured (closed form)", xlim=(0, 1.22))
    right.set_yticks(range(len(RUNGS)), labels=RUNGS)
    right.invert_yaxis()
    right.grid(False, axis="y")
    save(
        figure,
        folder / "ladder.png",
        f"A task vector of correlation a from one example to the next (d = {sizes.dim}, {sizes.context_length} examples, noise "
        f"{sizes.noise_variance:g}), asked for one step later; no answer at all has risk / d = 1. Lines: closed forms at the "
        "best constant gates; dashed the posterior variance, over drawn inputs. Points: simulated prompts with intervals of "
        "two standard errors, joined by dots where there is no closed form. Every rung knows more of the drift: a window, a "
        "decay, a correction, both, a step that follows the variance, ridge regression that forgets. Nothing is below the "
        "Kalman filter.",
        numbers,
    )


def rungs(config: DictConfig, correlation: float) -> list[tuple[float, float, float]]:
    """Of every rung the simulated risk, its standard error and the closed form, which is NaN where there is none."""
    sizes, a, key = config.ladder, correlation, jax.random.key(config.seed)
    d, n, s2 = sizes.dim, sizes.context_length, sizes.noise_variance
    task = tasks.DriftingRegression(d, n, a, np.sqrt(s2))
    problem = theory.MixerProblem(theory.KeyMoments.gaussian(d), n, s2)
    prompts, pilot = (drawn(task, stream(key, f"{use} at {a:g}"), sizes[use]) for use in ("prompts", "pilot"))
    contexts = [np.asarray(drawn(task, stream(key, f"keys at {a:g}"), sizes.prompts).inputs)]

    scales, windows = theory.retention.window_risks(problem, a)
    width = int(np.argmin(windows)) + 1
    # A window is a gate that forgets everything once.
    closed = np.where(np.arange(n) == n - width, -1e3, 0.0)
    head = theory.retention.best_head(problem, a)
    delta = theory.gated_delta.best_gates(problem, a, "deltanet", ahead=1)
    gated = theory.gated_delta.best_gates(problem, a, "gated_deltanet", ahead=1, readout=a)
    grid = GRID * [1, s2]
    forgets, penalty = grid[int(np.argmin(_mesa_risks(grid, np.asarray(a), pilot)))]
    steps = theory.kalman.scalar_steps(np.sum(np.asarray(prompts.inputs) ** 2, axis=2).T, d, s2, a).T

    squares = [
        distances("linear", prompts, scale=scales[-1]),
        distances("simple_gla", prompts, scale=scales[width - 1], log_decay=closed),
        distances("retention", prompts, scale=head.scale, log_decay=math.log(head.decay)),
        distances("deltanet", prompts, scale=1.0, write_strength=delta.step),
        distances("gated_deltanet", prompts, scale=a, write_strength=gated.step, log_decay=math.log(gated.decays[0])),
        _following(np.asarray(a), np.asarray(s2), *wide_steps(prompts, steps, 1 / s2)),
        distances("mesa", prompts, scale=a, penalty=penalty, write_strength=1.0, log_decay=math.log(forgets)),
        _filtered(np.asarray(a), np.asarray(s2), prompts),
    ]
    exact = [
        float(windows[-1]),
        float(windows[width - 1]),
        theory.retention.head_risk(problem, a, head.decay, head.scale),
        delta.risk,
        gated.risk,
        math.nan,
        math.nan,
        theory.kalman.risks(contexts, s2, a)[0],
    ]
    return [(*mean_with_error(np.asarray(square)), known) for square, known in zip(squares, exact, strict=True)]


def distances(mixer: str, prompts: Prompt, **settings: Any) -> Float[Array, "S"]:
    """|S - w|^2 of a mixer's state and the query's task, for each prompt. One program serves all numbers."""
    return _distances(mixer, {name: np.asarray(value, dtype=np.float64) for name, value in settings.items()}, prompts)


@compiled.jit
def _distances(mixer: str, settings: dict[str, Array], prompts: Prompt) -> Float[Array, "S"]:
    answer = mixers.predictor(mixer, **settings)
    return jax.vmap(lambda prompt: distance(answer, prompt, prompt.latent[-1]))(prompts)


@compiled.jit
def _mesa_risks(grid: Float[Array, "G 2"], correlation: Array, prompts: Prompt) -> Float[Array, "G"]:
    """Risks of mesa at decays and penalties."""

    def one(point):
        settings = {"scale": correlation, "penalty": point[1], "write_strength": 1.0, "log_decay": jnp.log(point[0])}
        return jnp.mean(_distances("mesa", settings, prompts))

    return jax.lax.map(one, jnp.asarray(grid))


@compiled.jit
def _following(correlation: Array, noise: Array, wide: Prompt, strengths: Float[Array, "S n"]) -> Float[Array, "S"]:
    """The distances of gated DeltaNet with a step for each example, from prompts whose keys are wider by noise^(-1/2)."""
    scale = correlation / jnp.sqrt(jnp.minimum(noise, 1.0))

    def one(prompt, steps):
        follow = mixers.predictor("gated_deltanet", scale=scale, write_strength=steps, log_decay=jnp.log(correlation))
        return distance(follow, prompt, prompt.latent[-1])

    return jax.vmap(one)(wide, strengths)


@compiled.jit
def _filtered(correlation: Array, noise: Array, prompts: Prompt) -> Float[Array, "S"]:
    """The distances of the Kalman filter."""
    weights = jax.vmap(lambda prompt: estimators.kalman_weights(prompt, correlation, noise)[0])(prompts)
    return jnp.sum((weights - prompts.latent[:, -1]) ** 2, axis=1)
