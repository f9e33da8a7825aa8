"""Time and memory of sampled moments against the context length N and against the number of prompts.

    python experiments/benchmarks/moments.py [--quick] [-o moments.json]

The work is linear in both, but the numbers of a prompt that is too long for the cache come from memory and cost more each.
Memory is that of the moments and of one chunk of prompts, and longer prompts are drawn in pieces, so it is flat in both. Every
point has a process of its own, for a peak of memory of its own. The last part is the throughput against that of drawing the
random numbers alone.
"""

from __future__ import annotations

from typing import Any

import common
import jax
import jax.numpy as jnp
from core import sgd_loop
from matplotlib.figure import Figure

from icl_lab import objectives, tasks
from icl_lab.core import precision
from icl_lab.models import LinearSelfAttention

DIM = 5


def build(length: int, prompts: int) -> objectives.SampledLoss:
    """The sampled loss of linear regression with two groups of prompts."""
    task = tasks.LinearRegression(dim=DIM, context_length=length)
    return objectives.SampledLoss.build(task, LinearSelfAttention(), jax.random.key(0), prompts, groups=2)


def point(length: int, prompts: int, repeats: int) -> dict[str, Any]:
    """Seconds and peak memory at one size; a small size first, for the memory of the libraries and the compiler."""
    build(2, 2)
    base = common.peak_megabytes()
    seconds = common.median_seconds(lambda: build(length, prompts), repeats)
    return {"N": length, "prompts": prompts, "seconds": seconds, "peak_mb": common.peak_megabytes(), "peak_mb_before": base}


def points(sizes: list[tuple[int, int]], repeats: int) -> common.Rows:
    """A point a process."""
    return [common.in_fresh_process(point, *size, repeats) for size in sizes]


def against_length(quick: bool) -> dict[str, Any]:
    """The time of a prompt, ever longer; as many prompts as give every point the same number of examples."""
    lengths, examples = ((100, 1_000, 10_000), 40_000) if quick else ((100, 1_000, 10_000, 100_000, 1_000_000), 4_000_000)
    rows = points([(length, examples // length) for length in lengths], 1 if quick else 3)
    for row in rows:
        row["seconds_per_prompt"] = row["seconds"] / row["prompts"]
    return {"exponent_seconds_per_prompt": common.exponent(rows, "N", "seconds_per_prompt"), **_memory(rows), "rows": rows}


def against_prompts(quick: bool) -> dict[str, Any]:
    """Ever more prompts of the same length."""
    counts = (10_000, 100_000) if quick else (10_000, 100_000, 1_000_000)
    rows = points([(20, count) for count in counts], 1 if quick else 3)
    return {"exponent_seconds": common.exponent(rows, "prompts", "seconds"), **_memory(rows), "rows": rows}


def _memory(rows: common.Rows) -> dict[str, float]:
    """By how much the peak of memory grows with the size, and by how much at most over that of the libraries alone."""
    return {
        "peak_mb_last_over_first": rows[-1]["peak_mb"] / rows[0]["peak_mb"],
        "largest_mb_over_libraries": max(row["peak_mb"] - row["peak_mb_before"] for row in rows),
    }


def throughput(quick: bool) -> dict[str, Any]:
    """Prompts per second (N = 20, float64) against drawing the random numbers alone and against a per-prompt SGD loop."""
    length, prompts, batch = 20, 50_000 if quick else 400_000, 5_000
    numbers = (length + 1) * DIM + DIM

    @jax.jit
    def draw(key):
        def add(total, index):
            return total + jnp.sum(jax.random.normal(jax.random.fold_in(key, index), (batch, numbers))), None

        return jax.lax.scan(add, jnp.zeros(()), jnp.arange(prompts // batch))[0]

    def drawing():
        with precision.float64():
            return draw(jax.random.key(0)).block_until_ready()

    built = build(length, prompts).prompts
    seconds, alone = common.medians_in_turns([lambda: build(length, prompts), drawing])
    per_prompt, _ = sgd_loop(DIM, length, 500, 1e-3)
    return {
        "prompts": built,
        "prompts_per_second": built / seconds,
        "random_numbers_alone_prompts_per_second": prompts / alone,
        "ratio_to_random_numbers": built / seconds / (prompts / alone),
        "ratio_to_sgd_loop": built / seconds * per_prompt,
    }


def draw(figure: Figure, results: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Seconds and memory against both sizes."""
    numbers: dict[str, Any] = {}
    axes = figure.subplots(1, 2)
    for panel, (name, size, quantity) in zip(
        axes,
        (("against_length", "N", "seconds_per_prompt"), ("against_prompts", "prompts", "seconds")),
        strict=True,
    ):
        rows = results[name]["rows"]
        common.growth(panel, rows, size, {quantity: "time"}, (1.0,))
        memory = panel.twinx()
        sizes, peaks = [row[size] for row in rows], [row["peak_mb"] for row in rows]
        memory.plot(sizes, peaks, color="C1", marker="s", linewidth=1)
        memory.set(ylim=(0, 1.6 * max(peaks)), ylabel="peak memory, MB (squares)")
        memory.yaxis.label.set_color("C1")
        memory.spines["right"].set_visible(True)
        memory.grid(False)
        panel.set(ylabel=quantity.replace("_", " "))
        numbers |= {f"{name}_{column}": [row[column] for row in rows] for column in (size, quantity, "peak_mb")}
    axes[0].set(xlabel="context length N", title="time of a prompt")
    axes[1].set(xlabel="prompts", title=f"N = {results['against_prompts']['rows'][0]['N']}")
    caption = (
        "Sampled moments of linear regression, d = 5. "
        f"Time grows as N^{results['against_length']['exponent_seconds_per_prompt']:.2f} "
        f"and as the number of prompts to the power {results['against_prompts']['exponent_seconds']:.2f}. Memory is flat in "
        "both: prompts are drawn in chunks, and long ones in pieces."
    )
    return caption, numbers


if __name__ == "__main__":
    common.run(
        "Time and memory of sampled moments against N and against the number of prompts.",
        {
            "Sampled moments against N": against_length,
            "Sampled moments against the number of prompts (N = 20)": against_prompts,
            "Throughput (N = 20, float64)": throughput,
        },
        draw,
    )
