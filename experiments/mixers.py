"""The map of token mixers: which algorithm each one runs on a prompt, and how far it is from the others.

python experiments/mixers.py                                                  all mechanisms, a few minutes on two cores
python experiments/mixers.py 'mechanisms=[linear,deltanet]' prompts=256       seconds

A mechanism reads a prompt of linear regression: inputs are its keys, labels its values. Its gates are generic numbers, one an
example and channel where they may be, and the families of `analysis.identify` are fitted to its answers.
"""

from __future__ import annotations

from typing import Any

import common
import hydra
import jax
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from omegaconf import DictConfig
from rich.progress import track

from icl_lab import analysis, mixers, tasks
from icl_lab.analysis.identify.identification import NONE, RESOLUTION, Identification
from icl_lab.report.style import save

FAMILIES = (
    *("OLS", "gradient descent", "ridge"),
    *("online SGD", "implicit online SGD", "normalised online SGD"),
    *("discounted gradient step", "online SGD with decay", "online SGD with momentum", "discounted ridge"),
    *("kernel smoother, gaussian", "kernel smoother, softmax"),
    *("GD++", "weighted gradient step", "preconditioned GD"),
)
"""From simple to rich."""
ROWS = {
    "linear": "linear attention",
    "retention": "retention",
    "simple_gla": "simple GLA, Mamba-2",
    "mamba": "Mamba",
    "gla": "GLA",
    "rwkv6": "RWKV-6",
    "hgrn2": "HGRN-2",
    "dplr": "DPLR (RWKV-7)",
    "deltanet": "DeltaNet",
    "longhorn": "Longhorn",
    "gated_deltanet": "gated DeltaNet",
    "kda": "KDA",
    "momentum_delta": "momentum (Titans)",
    "ttt": "TTT, batches of 4",
    "preconditioned_delta": "preconditioned delta",
    "mesa": "mesa",
    "softmax": "softmax attention",
}
"""Names on the map. Mixers of a vector state answer with as many numbers as an input has, and are not on it."""


def generic(config: DictConfig) -> dict[str, dict[str, Any]]:
    """Parameters and gates of every mechanism: numbers, an array an example, or one an example and channel."""
    rng, size = np.random.default_rng(config.seed), (config.context_length, config.dim)
    one_step = 1 / (config.context_length + config.dim + 1)
    decays = np.log(rng.uniform(0.7, 1.0, size))
    probes = rng.normal(size=(2, *size)) / np.sqrt(config.dim)
    faded = {"scale": 2 * one_step, "log_decay": decays}
    return {
        "linear": {"scale": one_step},
        "retention": {"scale": 2 * one_step, "log_decay": np.log(0.85)},
        "simple_gla": {"scale": 2 * one_step, "log_decay": decays[:, 0]},
        "mamba": {"scale": 0.5, "step": rng.uniform(0.05, 0.4, size[0])},
        "gla": faded,
        "rwkv6": faded,
        "hgrn2": {"scale": 0.5, "lower_bound": 0.5},
        "dplr": {**faded, "probe": probes[0], "feedback": 0.3 * probes[1]},
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


def distances(found: Identification) -> np.ndarray:
    """The relative distance of every family of the map; NaN of one that was not fitted."""
    near = {row.candidate.family: row.distance.mean for row in found.ranked}
    softmax = [mean for name, mean in near.items() if name.startswith("kernel smoother") and "gaussian" not in name]
    near["kernel smoother, softmax"] = min(softmax)
    return np.array([near.get(family, np.nan) for family in FAMILIES])


def column(verdict: str) -> str:
    """The column of the map that a verdict is in."""
    return "kernel smoother, softmax" if verdict.startswith("kernel smoother") and "gaussian" not in verdict else verdict


@hydra.main(version_base="1.3", config_path="../configs", config_name="mixers")
def main(config: DictConfig) -> None:
    """Identify every mechanism, and draw the map with its numbers beside it."""
    task = tasks.LinearRegression(config.dim, config.context_length, noise_std=config.noise_std)
    with common.configured_figures(config) as folder:
        parameters = generic(config)
        names = list(ROWS if config.mechanisms is None else config.mechanisms)
        found = {}
        for name in track(names, "identifying"):
            predictor = mixers.predictor(name, **parameters[name])
            key = jax.random.key(config.seed)
            found[name] = analysis.identify(predictor, task, key, config.prompts, steps=config.steps, layers=config.layers)
            print(f"{ROWS[name]}: {found[name].verdict}; {found[name].reason}")
        table = np.stack([distances(found[name]) for name in names])
        figure = Figure(figsize=(11.5, 2.6 + 0.36 * len(names)), layout="constrained")
        axes = figure.subplots()
        # Below the resolution all distances are one colour: the same function.
        image = axes.imshow(
            np.maximum(table, RESOLUTION), norm=LogNorm(RESOLUTION, 1.0), cmap="viridis_r", aspect="auto", zorder=1
        )
        axes.set_facecolor("0.9")
        axes.grid(False)
        for (i, j), distance in np.ndenumerate(table):
            text = "" if np.isnan(distance) else "=" if distance <= RESOLUTION else f"{distance:.2g}"
            axes.text(j, i, text, ha="center", va="center", fontsize="small", color="k" if distance > 3e-2 else "w")
        for i, name in enumerate(names):
            if found[name].verdict != NONE:
                place = FAMILIES.index(column(found[name].verdict))
                axes.add_patch(Rectangle((place - 0.5, i - 0.5), 1, 1, fill=False, edgecolor="C3", linewidth=2, zorder=3))
        axes.set_xticks(range(len(FAMILIES)), labels=FAMILIES, rotation=35, ha="left", rotation_mode="anchor")
        axes.tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False)
        axes.set_yticks(range(len(names)), labels=[ROWS[name] for name in names])
        figure.colorbar(image, ax=axes, label="relative distance of the answers", fraction=0.03)
        save(
            figure,
            folder / "map.png",
            "Rows: mechanisms at generic gates. Columns: algorithms, each fitted to the answers of the mechanism, from simple "
            "to rich. Numbers: how far the answers are apart on fresh prompts, relative to their size; = is the same function, "
            f"within {RESOLUTION:g}. Framed: the algorithm that is named. Grey: not fitted, because the algorithm depends on "
            "the order of the examples and the mechanism does not.",
            {"distance to": np.array(FAMILIES)} | {ROWS[name]: row for name, row in zip(names, table, strict=True)},
        )


if __name__ == "__main__":
    main()
