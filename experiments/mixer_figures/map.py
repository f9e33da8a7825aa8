"""The map: which algorithm each mechanism runs on a prompt, and how far its answers are from those of the others.

A mechanism reads a prompt of linear regression: inputs are its keys, labels its values. Its gates are generic numbers, one an
example and channel where they may be, and the families of `analysis.identify` are fitted to its answers.
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mixer_figures.answers import GROUPS, NAMES, Settings, predictor
from omegaconf import DictConfig
from rich.progress import track

from icl_lab import analysis, tasks
from icl_lab.analysis.identify.identification import CLOSE, NONE, RESOLUTION, Identification
from icl_lab.report.style import save

FAMILIES = {
    "steps on all examples": {
        "gradient descent": "gradient descent",
        "discounted gradient step": "discounted step",
        "weighted gradient step": "weighted step",
        "preconditioned GD": "preconditioned step",
        "GD++": "GD++",
    },
    "one pass, example by example": {
        "online SGD": "online SGD",
        "implicit online SGD": "implicit steps",
        "normalised online SGD": "normalised steps",
        "online SGD with momentum": "with momentum",
        "online SGD with decay": "with decay",
    },
    "least squares": {"OLS": "OLS", "ridge": "ridge", "discounted ridge": "discounted ridge"},
    "smoothers": {"kernel smoother, softmax": "softmax kernel", "kernel smoother, gaussian": "Gaussian kernel"},
}
"""Names of the families on the map, in the order of the mechanisms that may be one of them."""
COLUMNS = {family: words for group in FAMILIES.values() for family, words in group.items()}
NEAREST = 0.01
"""The distance from which on shades tell families apart; below it, but above the resolution, all are as dark."""
SAME = "#00694C"
SHADES = LinearSegmentedColormap.from_list("near is dark", colormaps["Blues_r"](np.linspace(0.08, 0.97, 64)))


def map_of_algorithms(config: DictConfig, folder: Path) -> None:
    """Identify every mechanism, and draw the map."""
    sizes = config.map
    task, settings = tasks.LinearRegression(sizes.dim, sizes.context_length, noise_std=sizes.noise_std), generic(config)
    names = [name for name in NAMES if sizes.mechanisms is None or name in sizes.mechanisms]
    found = {}
    for name in track(names, "identifying"):
        key, mechanism = jax.random.key(config.seed), predictor(name, settings[name])
        found[name] = analysis.identify(mechanism, task, key, sizes.prompts, steps=sizes.steps, layers=sizes.layers)
        print(f"{NAMES[name]}: {found[name].verdict}; {found[name].reason}")
    table = np.stack([distances(found[name]) for name in names])
    figure = Figure(figsize=(12.0, 3.4 + 0.37 * len(names)), layout="constrained")
    axes = figure.subplots()
    draw(axes, table, names, [place(found[name].verdict) for name in names])
    save(
        figure,
        folder / "map.png",
        "Rows: mechanisms at generic gates. Columns: algorithms, each fitted to the answers of the mechanism. Numbers: how far "
        f"the answers are apart on fresh prompts, relative to their size; = is the same function, within {RESOLUTION:g}. "
        f"Framed: the simplest algorithm within {CLOSE:g} that no richer one beats; with a dashed frame the nearest, where "
        "none is as close. Hatched: not fitted, the algorithm depends on the order of the examples and the mechanism does not.",
        {"distance to": np.array(list(COLUMNS))} | {NAMES[name]: row for name, row in zip(names, table, strict=True)},
    )


def generic(config: DictConfig) -> dict[str, Settings]:
    """Parameters and gates of every mechanism: numbers, an array an example, or one an example and channel."""
    rng, size = np.random.default_rng(config.seed), (config.map.context_length, config.map.dim)
    step = 1 / (sum(size) + 1)
    decays = np.log(rng.uniform(0.7, 1.0, size))
    faded = {"scale": 2 * step, "log_decay": decays}
    return {
        "linear": {"scale": step},
        "retention": {"scale": 2 * step, "log_decay": np.log(0.85)},
        "simple_gla": {"scale": 2 * step, "log_decay": decays[:, 0]},
        "mamba": {"scale": 0.5, "step": rng.uniform(0.05, 0.4, size[0])},
        "gla": faded,
        "rwkv6": faded,
        "hgrn2": {"scale": 0.5, "lower_bound": 0.5},
        "dplr": {**faded, "removed": 0.3},
        "deltanet": {"scale": 1.0, "write_strength": 0.1},
        "longhorn": {"scale": 1.0, "error_weight": 0.3},
        "gated_deltanet": {"scale": 1.0, "write_strength": 0.1, "log_decay": np.log(0.85)},
        "kda": {"scale": 1.0, "write_strength": 0.1, "log_decay": decays},
        "momentum_delta": {"scale": 1.0, "write_strength": 0.05, "log_momentum": np.log(0.5)},
        "ttt": {"scale": 1.0, "write_strength": 0.05, "batch": 4},
        "preconditioned_delta": {"scale": 1.0, "penalty": 0.5},
        "mesa": {"scale": 1.0, "penalty": 0.5, "write_strength": 1.0, "log_decay": np.log(0.85)},
        "softmax": {"scale": 0.5},
    }


def softmax_kernel(family: str) -> str:
    """The column of a family: smoothers with an exponential kernel, of either sign, share one."""
    kernel = family.startswith("kernel smoother") and "gaussian" not in family
    return "kernel smoother, softmax" if kernel else family


def distances(found: Identification) -> Float[np.ndarray, "F"]:
    """The relative distance of every family of the map; NaN of one that was not fitted."""
    near: dict[str, float] = {}
    for row in reversed(found.ranked):
        near[softmax_kernel(row.candidate.family)] = row.distance.mean
    return np.array([near.get(family, np.nan) for family in COLUMNS])


def place(verdict: str) -> int | None:
    """The column of a verdict, if it names a family."""
    return None if verdict == NONE else list(COLUMNS).index(softmax_kernel(verdict))


def draw(axes: Axes, table: Float[np.ndarray, "M F"], names: list[str], named: list[int | None]) -> None:
    """Distances as shades and numbers, the named or nearest family of each row framed, groups apart."""
    rows, columns = table.shape
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    image = axes.imshow(np.clip(table, NEAREST, 1), norm=LogNorm(NEAREST, 1), cmap=SHADES, aspect="auto")
    for (i, j), distance in np.ndenumerate(table):
        text, colour = f"{distance:.{1 if distance < NEAREST else 2}g}", "white" if distance < 0.07 else "0.1"
        if np.isnan(distance):
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor="0.96", edgecolor="0.82", hatch="////", linewidth=0))
            continue
        if distance <= RESOLUTION:
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=SAME))
            text, colour = "=", "white"
        weight = "bold" if distance <= RESOLUTION else "normal"
        axes.text(j, i, text, ha="center", va="center", fontsize=10, color=colour, fontweight=weight)
    # Thin lines between cells, so that a row is followed by eye.
    axes.hlines(np.arange(rows + 1) - 0.5, -0.5, columns - 0.5, color="white", linewidth=1)
    axes.vlines(np.arange(columns + 1) - 0.5, -0.5, rows - 0.5, color="white", linewidth=1)
    for i, (row, j) in enumerate(zip(table, named, strict=True)):
        nearest, style = (int(np.nanargmin(row)), (0, (2, 1.2))) if j is None else (j, "solid")
        frame = Rectangle((nearest - 0.46, i - 0.46), 0.92, 0.92, fill=False, edgecolor="#D55E00", linewidth=2.4, zorder=5)
        frame.set_linestyle(style)
        axes.add_patch(frame)
    grouped = [[name for name in group if name in names] for group in GROUPS.values()]
    for end in accumulate(map(len, grouped)):
        axes.axhline(end - 0.5, xmin=-0.22, color="0.35", linewidth=1, clip_on=False) if 0 < end < rows else None
    start = 0
    for kind, group in FAMILIES.items():
        middle, end = start + len(group) / 2 - 0.5, start + len(group)
        axes.text(middle, rows - 0.3, kind, ha="center", va="top", fontsize=11, fontweight="bold", color="0.25")
        if end < columns:
            axes.axvline(end - 0.5, color="0.35", linewidth=1)
        start = end
    question = "Which algorithm does\na mechanism run?"
    style = {"fontsize": 13, "fontweight": "bold", "color": "0.25"}
    # Its place is above the names of the rows, which leave it enough.
    axes.annotate(question, (0, 1), (-128, 36), "axes fraction", "offset points", **style).set_in_layout(False)
    axes.set_xticks(range(columns), labels=list(COLUMNS.values()), rotation=38, ha="left", rotation_mode="anchor")
    axes.tick_params(axis="x", top=False, labeltop=True, bottom=False, labelbottom=False, labelsize=11, pad=2)
    axes.tick_params(axis="y", left=False, labelsize=11)
    axes.set_yticks(range(rows), labels=[NAMES[name] for name in names])
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.025, pad=0.02, aspect=28)
    bar.set_ticks([0.01, 0.03, 0.1, 0.3, 1.0], labels=["≤ 0.01", "0.03", "0.1", "0.3", "≥ 1"])
    bar.set_label("relative distance of the answers: dark is near")
    bar.ax.minorticks_off()
    bar.ax.add_patch(Rectangle((0, -0.09), 1, 0.045, transform=bar.ax.transAxes, facecolor=SAME, clip_on=False))
    bar.ax.text(0.5, -0.0675, "=", transform=bar.ax.transAxes, ha="center", va="center", color="white", fontweight="bold")
    bar.ax.text(1.45, -0.0675, "the same", transform=bar.ax.transAxes, va="center")
