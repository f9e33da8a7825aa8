"""How much of a stored value the mechanisms return, against the number of pairs that they have read."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from mixer_figures.answers import GROUPS, Settings, curves, drawn, last_examples, tuned_risk
from omegaconf import DictConfig
from rich.progress import track

from icl_lab import tasks
from icl_lab.core.prng import stream
from icl_lab.report.style import save

PANELS = {
    "additive states": GROUPS["one gradient step"],
    "states that are corrected": GROUPS["online descent"],
    "others": {**GROUPS["linear equations"], **GROUPS["smoothing"], "hgrn": "HGRN (a vector)", "rwkv4": "RWKV-4 (a vector)"},
}


def recall(config: DictConfig, folder: Path) -> None:
    """The error of a recalled value against the number of pairs."""
    sizes = config.recall
    d, longest, key = sizes.dim, max(sizes.pairs), jax.random.key(config.seed)
    settings = remembering(d, longest, config.seed)
    names = {name: words for panel in PANELS.values() for name, words in panel.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    task, rng = tasks.AssociativeRecall(d, longest, d), np.random.default_rng(config.seed)
    prompts, each = drawn(task, stream(key, "recall"), sizes.prompts), np.arange(sizes.prompts)
    for n in track(sizes.pairs, "recall"):
        # Any of the last n keys, the only ones that are shown.
        at = rng.integers(longest - n, longest, sizes.prompts)
        asked = dataclasses.replace(prompts, query=prompts.inputs[each, at], target=prompts.labels[each, at], latent=at)
        for name, errors in found.items():
            errors.append(tuned_risk(name, settings[name], last_examples(asked, n, longest, name)))
    points = {name: np.array(errors) / d for name, errors in found.items()}
    figure = Figure(figsize=(11.5, 5.2), layout="constrained")
    for axes, (title, panel) in zip(figure.subplots(1, 3, sharey=True), PANELS.items(), strict=True):
        axes.axvline(d, color="0.6", linestyle="--", linewidth=1, zorder=1)
        if "linear" not in panel:
            axes.plot(sizes.pairs, points["linear"][:, 0], color="0.6", linewidth=1, label="linear attention", zorder=1)
        curves(axes, list(sizes.pairs), points, panel, {})
        axes.set(title=title, xlabel="pairs N", yscale="linear", ylim=(-0.04, 1.12))
        axes.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(0.0, -0.2), ncol=2)
    figure.axes[0].set_ylabel("error of the value, share of its size")
    numbers: dict[str, Any] = {"N": list(sizes.pairs)}
    for name, words in names.items():
        numbers |= {words: points[name][:, 0], f"{words} error": points[name][:, 1]}
    save(
        figure,
        folder / "recall.png",
        f"N pairs of a random unit key and a random value (d = {d} each), asked for any one of the keys; all measured, with "
        "intervals of two standard errors, at constant gates and scales chosen on other prompts. A sum of outer products is "
        "blurred from the second pair on, and a correction helps little as long as keys are drawn at random; equations return "
        "all pairs up to N = d (dashed); softmax attention keeps every pair and reads it by its key. A vector has no keys, and "
        "HGRN-2, whose keys are logits, would need longer ones.",
        numbers,
    )


def remembering(d: int, longest: int, seed: int) -> dict[str, Settings]:
    """Settings that are tried, along the first axis: strong writes, and hardly any decay."""
    decays = np.log(np.random.default_rng(seed).uniform(0.9, 1.0, (1, longest, d)))
    fading, one = np.full(3, math.log(31 / 32)), np.ones(1)
    strengths, weights = np.array([0.5, 0.75, 1.0]), np.array([0.5, 2.0, 10.0, 50.0])
    penalties, bounds = np.array([1e-3, 1e-2, 0.1]), np.array([0.0, 0.5, 0.8, 0.95])
    return {
        "linear": {"scale": one},
        "retention": {"scale": one, "log_decay": fading[:1]},
        "mamba": {"scale": one, "step": -fading[:1]},
        "simple_gla": {"scale": one, "log_decay": decays[:, :, 0]},
        "gla": {"scale": one, "log_decay": decays},
        "rwkv6": {"scale": one, "log_decay": decays},
        "hgrn2": {"scale": np.ones(4), "lower_bound": bounds},
        "deltanet": {"scale": np.ones(3), "write_strength": strengths},
        "longhorn": {"scale": np.ones(4), "error_weight": weights},
        "gated_deltanet": {"scale": np.ones(3), "write_strength": strengths, "log_decay": fading},
        "kda": {"scale": np.ones(3), "write_strength": strengths, "log_decay": np.log(np.linspace([0.94] * 3, 1.0, d, axis=1))},
        "momentum_delta": {
            "scale": np.ones(4),
            "write_strength": np.array([0.25, 0.5, 0.5, 0.75]),
            "log_momentum": np.log([0.5, 0.1, 0.3, 0.1]),
        },
        "ttt": {"scale": np.ones(3), "write_strength": strengths},
        "dplr": {"scale": np.ones(3), "removed": strengths, "log_decay": np.zeros(3)},
        "preconditioned_delta": {"scale": np.ones(3), "penalty": penalties},
        "mesa": {"scale": np.ones(3), "penalty": penalties, "write_strength": np.ones(3), "log_decay": np.zeros(3)},
        "softmax": {"scale": np.array([4.0, 8.0, 16.0, 32.0])},
        "hgrn": {"scale": np.ones(4), "lower_bound": bounds},
        "rwkv4": {"scale": one, "log_decay": fading[:1]},
    }
