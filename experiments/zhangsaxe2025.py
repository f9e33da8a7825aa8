"""Figure of Zhang, Singh, Latham, Saxe 2025 (arXiv 2501.16265): from saddle to saddle with separate key and query.

python experiments/zhangsaxe2025.py [-o figures/zhangsaxe2025]          about a minute on two cores
"""

from __future__ import annotations

import common
import jax
import numpy as np
from matplotlib.figure import Figure

from icl_lab import objectives, tasks, theory, training
from icl_lab.models import LinearSelfAttention
from icl_lab.models.initializers import gaussian, separate_gaussian
from icl_lab.report.style import save

SPECTRUM, LENGTH, HEADS = np.array([1.0, 0.6, 0.36]), 31, 3
SCALE, END = 2e-2, 3e4


def main() -> None:
    """Loss along the flow of separate and merged heads, with the predicted plateaus."""
    task = tasks.LinearRegression(dim=len(SPECTRUM), context_length=LENGTH, covariance=SPECTRUM)
    objective = objectives.population(task, LinearSelfAttention())
    times = np.geomspace(1.0, END, 300)
    width, key = len(SPECTRUM) + 1, jax.random.key(0)
    starts = {
        "separate, rank-one heads": separate_gaussian(key, width, SCALE, HEADS, rank=1, value_rank=1),
        "merged heads": gaussian(key, width, SCALE, HEADS),
    }
    plateaus = theory.zhangsaxe2025.plateau_risks(SPECTRUM, LENGTH)
    numbers: dict[str, np.ndarray] = {"time": times, "predicted plateau": plateaus}
    with common.figures(common.folder_argument("zhangsaxe2025", __doc__)) as folder:
        figure = Figure(figsize=(6.8, 4.2), layout="constrained")
        axes = figure.subplots()
        for name, start in starts.items():
            path = training.gradient_flow(objective, start, times=times, stop_at_last_time=True, progress=True).trajectory
            numbers[name] = 2 * path.losses
            axes.plot(path.times, 2 * path.losses, label=name)
        for learned, level in enumerate(plateaus):
            axes.axhline(level, color="0.6", linestyle=":", zorder=0)
            axes.annotate(f"{learned} of {len(SPECTRUM)} eigenvectors", (1.0, level), fontsize="small", va="bottom")
        axes.set(xscale="log", xlabel="flow time t", ylabel="risk E|yhat - w.x|²")
        axes.legend()
        save(
            figure,
            folder / "saddle_to_saddle.png",
            "Dotted: predicted risks with the leading 0, 1, 2, 3 eigenvectors learned. Merged heads drop once; separate "
            "rank-one heads rest at every prediction in turn, doing principal component regression in context in between.",
            numbers,
        )


if __name__ == "__main__":
    main()
