"""A sweep in one command against the same points as a process each.

    python experiments/benchmarks/sweep.py [--quick] [-o sweep.json]

Seeds by init scales of the default problem (d = 5, N = 20), without figures. A run before fills the compilation cache, for
both sides. A few processes are timed, one after another, and their median is multiplied by the number of points.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
from matplotlib.figure import Figure

from icl_lab.runs import table

MAIN = "import sys; from icl_lab.cli import main; sys.exit(main())"


def seconds_of(folder: Path, *arguments: str) -> float:
    """Wall time of `icl-lab run`."""
    started = time.perf_counter()
    command = [sys.executable, "-c", MAIN, "run", "analysis.figures=false", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[3:])} ended with status {done.returncode}: {done.stderr[-2000:]}")
    return time.perf_counter() - started


def sweep(quick: bool) -> dict[str, Any]:
    """Seconds of one run, of processes, and of sweeps of several sizes."""
    shapes = ((2, 2),) if quick else ((4, 2), (8, 4), (32, 8))
    singles = 1 if quick else 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = seconds_of(folder, "experiment=first")
        one = statistics.median(seconds_of(folder, "experiment=single", f"seed={1000 + seed}") for seed in range(singles))
        rows = []
        for seeds, scales in shapes:
            sweep_name = f"sweep{seeds * scales}"
            values = ",".join(f"{scale:.4f}" for scale in np.geomspace(0.01, 0.4, scales))
            seconds = seconds_of(
                folder, "-m", f"experiment={sweep_name}", f"seed=range({seeds})", f"trainer.init_scale={values}"
            )
            assert len(table.collect(folder / "runs" / sweep_name)) == seeds * scales
            rows.append(
                {
                    "points": seeds * scales,
                    "sweep_seconds": seconds,
                    "processes_seconds": one * seeds * scales,
                    "processes_over_sweep": one * seeds * scales / seconds,
                    "sweep_over_one_run": seconds / one,
                }
            )
    return {
        "seconds_of_the_first_run": first,
        "seconds_of_one_run": one,
        "seconds_per_point_of_the_largest_sweep": rows[-1]["sweep_seconds"] / rows[-1]["points"],
        **({"exponent_seconds": common.exponent(rows, "points", "sweep_seconds")} if len(rows) > 1 else {}),
        "rows": rows,
    }


def draw(figure: Figure, results: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Seconds against the number of points."""
    axes, found = figure.subplots(), results["sweep"]
    rows = found["rows"]
    common.growth(axes, rows, "points", {"processes_seconds": "a process a point", "sweep_seconds": "one sweep"}, ())
    axes.axhline(found["seconds_of_one_run"], color="0.6", linestyle=":", label="one run")
    axes.set(xlabel="points", ylabel="seconds")
    axes.legend()
    caption = (
        f"Seeds by init scales in one command, against the same points as a process each. {rows[-1]['points']} points take "
        f"{rows[-1]['sweep_over_one_run']:.1f} times as long as one run."
    )
    return caption, {name: [row[name] for row in rows] for name in ("points", "sweep_seconds", "processes_seconds")}


if __name__ == "__main__":
    common.run(
        "A sweep in one command against the same points as a process each.",
        {"One sweep against a process a point (d = 5, N = 20)": sweep},
        draw,
    )
