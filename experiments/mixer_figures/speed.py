"""Wall time of the forms of a mixer against the number of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.common import medians_in_turns
from benchmarks.one_head import WIDTH, program
from matplotlib.figure import Figure
from mixer_figures.answers import NAMES
from omegaconf import DictConfig
from rich.progress import track

from icl_lab.mixers import FORMS
from icl_lab.report.style import save

WORDS = {"recurrent": "token after token", "chunk": "blocks of 64", "parallel": "all tokens at once"}


def speed(config: DictConfig, folder: Path) -> None:
    """Medians of the seconds of one head in each form."""
    sizes = config.speed
    cases = [(name, form, int(T)) for name in sizes.mechanisms for form in FORMS for T in sizes.lengths]
    programs = [program(*case) for case in track(cases, "programs to time")]
    seconds = dict(zip(cases, medians_in_turns(programs, sizes.repeats), strict=True))
    figure = Figure(figsize=(11.5, 3.9), layout="constrained")
    numbers: dict[str, Any] = {"T": list(sizes.lengths)}
    for axes, name in zip(
        figure.subplots(1, len(sizes.mechanisms), sharey=True, squeeze=False)[0], sizes.mechanisms, strict=True
    ):
        for form in FORMS:
            taken = [seconds[name, form, int(T)] for T in sizes.lengths]
            power = np.polyfit(np.log(sizes.lengths[-2:]), np.log(taken[-2:]), 1)[0]
            axes.plot(sizes.lengths, taken, "o-", label=f"{WORDS[form]}: T^{power:.1f}")
            numbers |= {f"{NAMES[name]}, {form}": taken}
        axes.set(title=NAMES[name], xscale="log", yscale="log", xlabel="tokens T")
        axes.set_xticks(sizes.lengths, labels=[str(T) for T in sizes.lengths])
        axes.minorticks_off()
        axes.legend(fontsize="x-small")
    figure.axes[0].set_ylabel("seconds of one head")
    save(
        figure,
        folder / "speed.png",
        f"Medians of {sizes.repeats} turns on this machine, keys and values of width {WIDTH}, float32; the powers are those "
        "between the last two lengths. All forms are one function. A matrix of all tokens costs the square of their number; "
        "token after token or in blocks a state costs time linear in it, and softmax attention, which reads all of the past, "
        "the square.",
        numbers,
    )
