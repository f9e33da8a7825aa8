"""Risks of the mechanisms on linear regression against the number of examples, beside their closed forms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from mixer_figures.answers import GROUPS, NAMES, Settings, curves, drawn, last_examples, risk, tuned_risk
from omegaconf import DictConfig
from rich.progress import track

from icl_lab import tasks, theory
from icl_lab.core.prng import stream
from icl_lab.report.style import save

PANELS = {
    "one gradient step": GROUPS["one gradient step"],
    "online descent": GROUPS["online descent"],
    "linear equations, smoothing": {**GROUPS["linear equations"], **GROUPS["smoothing"]},
}
FADING = 31 / 32
"""What a head keeps that forgets at a fixed rate, the first one of a RetNet."""
UNEQUAL = (0.98, 1.0)
"""Decays of the first and the last channel of KDA; with equal ones it is gated DeltaNet."""
_STRENGTHS = np.geomspace(0.02, 0.6, 8)


def lengths(config: DictConfig, folder: Path) -> None:
    """Risks on linear regression, every mechanism at constant gates: the best ones by closed form, or by other prompts."""
    sizes = config.lengths
    d, s2, key = sizes.dim, sizes.noise_variance, jax.random.key(config.seed)
    prompts = drawn(tasks.LinearRegression(d, max(sizes.lengths), noise_std=np.sqrt(s2)), stream(key, "lengths"), sizes.prompts)
    measured: dict[str, list] = {name: [] for name in NAMES}
    exact: dict[str, list[float]] = {}
    for n in track(sizes.lengths, "context lengths"):
        best, tried = solved(d, n, s2), generic(d, max(sizes.lengths), config.seed)
        for name in NAMES:
            shown = last_examples(prompts, n, max(sizes.lengths), name)
            if name in best:
                settings, closed = best[name]
                exact.setdefault(name, []).append(closed / d)
                measured[name].append(risk(name, settings, shown))
            else:
                measured[name].append(tuned_risk(name, tried[name], shown))
    points = {name: np.array(found) / d for name, found in measured.items()}
    figure = Figure(figsize=(11.5, 4.6), layout="constrained")
    bayes = [theory.bayes.isotropic_risk(d, n, s2) / d for n in sizes.lengths]
    for axes, (title, names) in zip(figure.subplots(1, 3, sharey=True), PANELS.items(), strict=True):
        axes.plot(sizes.lengths, bayes, color="0.6", linestyle="--", linewidth=1, label="Bayes", zorder=1)
        curves(axes, list(sizes.lengths), points, names, exact)
        axes.set(title=title, xlabel="examples n")
        axes.legend(fontsize="x-small", loc="lower left")
    figure.axes[0].set_ylabel("risk / d")
    figure.axes[0].set_yticks([0.01, 0.1, 1.0], labels=["0.01", "0.1", "1"])
    numbers: dict[str, Any] = {"n": list(sizes.lengths), "Bayes": bayes}
    for name, words in NAMES.items():
        numbers |= {words: points[name][:, 0], f"{words} error": points[name][:, 1]}
        numbers |= {f"{words} exact": exact[name]} if name in exact else {}
    save(
        figure,
        folder / "lengths.png",
        f"Linear regression (d = {d}, noise {s2:g}) at constant gates, the same for every example. Lines: closed forms; "
        "points: simulated prompts with intervals of two standard errors, joined by dots where there is no closed form and "
        f"gates are chosen on other prompts. Retention keeps {FADING:.3g} at an example, channels of KDA {UNEQUAL[0]:g} to "
        f"{UNEQUAL[1]:g}, the two GLA and RWKV-6 a share drawn from 0.9 to 1; others are at their best. A step falls as 1/n, "
        "or to a floor where it forgets; descent falls geometrically to what noise leaves; equations reach the Bayes risk.",
        numbers,
    )


def solved(d: int, n: int, s2: float) -> dict[str, tuple[Settings, float]]:
    """The mechanisms that have a closed form: gates for n examples, and the risk."""
    problem = theory.MixerProblem(theory.KeyMoments.gaussian(d), n, s2)
    noise = theory.retention.reading_variance(problem)
    # The risk of a head is a parabola in its scale, d at zero.
    there, back = (theory.retention.head_risk(problem, 1.0, FADING, scale) for scale in (1.0, -1.0))
    fading = (back - there) / (2 * (there + back - 2 * d))
    weights = theory.retention.fixed_step_weights(n)
    halving = np.sum(weights) / (np.sum(weights) ** 2 + noise * np.sum(weights**2)) * 0.5 ** (1 / n)
    step, delta = theory.delta_rule.best_step(problem)
    gated = theory.gated_delta.best_gates(problem, 1.0, "gated_deltanet")
    channels = np.linspace(*UNEQUAL, d)
    momentum = theory.momentum.best(problem)
    bayes = theory.bayes.isotropic_risk(d, n, s2)
    mesa = {"scale": 1.0, "penalty": s2, "write_strength": 1.0, "log_decay": 0.0}
    scale = theory.linear_attention.best_scale(problem)
    return {
        "linear": (
            {"scale": scale},
            theory.linear_attention.minimum_risk(problem),
        ),
        "retention": (
            {"scale": fading, "log_decay": math.log(FADING)},
            theory.retention.head_risk(problem, 1.0, FADING, fading),
        ),
        "mamba": ({"scale": halving, "step": math.log(2) / n}, theory.retention.fixed_step_risk(problem)),
        "deltanet": ({"scale": 1.0, "write_strength": step}, delta),
        "gated_deltanet": (
            {"scale": 1.0, "write_strength": gated.step, "log_decay": math.log(gated.decays[0])},
            gated.risk,
        ),
        "kda": (
            {"scale": 1.0, "write_strength": step, "log_decay": np.log(channels)},
            theory.gated_delta.risk(problem, 1.0, channels, step),
        ),
        "momentum_delta": (
            {"scale": 1.0, "write_strength": momentum.step, "log_momentum": math.log(momentum.momentum)},
            momentum.risk,
        ),
        "preconditioned_delta": ({"scale": 1.0, "penalty": s2}, bayes),
        "mesa": (mesa, bayes),
    }


def generic(d: int, n: int, seed: int) -> dict[str, Settings]:
    """Settings of the others that are tried, along the first axis; decays are drawn at random."""
    decays = np.log(np.random.default_rng(seed).uniform(0.9, 1.0, (n, d)))
    count = np.arange(len(_STRENGTHS))
    return {
        "simple_gla": {"scale": np.ones(1), "log_decay": decays[None, :, 0]},
        "gla": {"scale": np.ones(1), "log_decay": decays[None]},
        "rwkv6": {"scale": np.ones(1), "log_decay": decays[None]},
        "hgrn2": {"scale": np.ones(5), "lower_bound": np.array([0.0, 0.5, 0.8, 0.9, 0.97])},
        "longhorn": {"scale": np.ones_like(_STRENGTHS), "error_weight": _STRENGTHS},
        "ttt": {"scale": np.ones_like(_STRENGTHS), "write_strength": _STRENGTHS / 2},
        "dplr": {"scale": np.ones_like(_STRENGTHS), "log_decay": 0.0 * count, "removed": _STRENGTHS},
        "softmax": {"scale": np.geomspace(0.1, 1.0, 6)},
    }
