"""What the benchmarks share: medians, memory, growth exponents, and one command line that prints, draws and writes JSON.

Machines are noisy, so every time is a median of several, and what matters is a ratio or an exponent within one run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from icl_lab import report

REPEATS = 5
Rows = list[dict[str, Any]]


def median_seconds(function: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median wall time of `function` after one call that compiles."""
    return medians_in_turns([function], repeats)[0]


def medians_in_turns(functions: Sequence[Callable[[], object]], repeats: int = REPEATS) -> list[float]:
    """Median wall times of several functions that have their turns in every round, so that all of them see the same load."""
    for function in functions:
        function()
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, times in zip(functions, seconds, strict=True):
            started = time.perf_counter()
            function()
            times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in seconds]


def peak_megabytes() -> float:
    """Peak resident memory of this process so far."""
    # What `getrusage` says of a process that was started from a larger one is the larger one's.
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def in_fresh_process(function: Callable[..., Any], *arguments: Any, environment: Mapping[str, str] | None = None) -> Any:
    """`function(*arguments)` in a process of its own, which has a peak of memory and devices of its own."""
    before = dict(os.environ)
    os.environ.update(environment or {})
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    finally:
        os.environ.clear()
        os.environ.update(before)


def exponent(rows: Rows, size: str, quantity: str) -> float:
    """Slope of log(quantity) against log(size)."""
    return float(np.polyfit(np.log([row[size] for row in rows]), np.log([row[quantity] for row in rows]), 1)[0])


def growth(axes: Axes, rows: Rows, size: str, quantities: Mapping[str, str], guides: Sequence[float]) -> None:
    """Quantities (name: label) against a size on logarithmic axes, with dotted lines of the powers `guides`."""
    sizes = np.asarray([row[size] for row in rows], dtype=np.float64)
    for name, label in quantities.items():
        axes.plot(sizes, [row[name] for row in rows], marker="o", label=label)
    last = max(rows[-1][name] for name in quantities)
    for power, style in zip(guides, (":", "--"), strict=False):
        axes.plot(sizes, last * (sizes / sizes[-1]) ** power, color="0.6", linestyle=style, label=f"power {power:g}")
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(sizes, labels=[f"{size:g}".replace("e+0", "e") for size in sizes])
    axes.xaxis.minorticks_off()
    axes.legend()


def run(
    description: str,
    parts: Mapping[str, Callable[[bool], dict[str, Any]]],
    draw: Callable[[Figure, dict[str, Any]], tuple[str, dict[str, Any]]] | None = None,
) -> None:
    """The command line of a benchmark.

    Args:
      description: the first line of the script's docstring.
      parts: functions of `quick` by their titles; each returns numbers by name, and under "rows" a table of them.
      draw: draws the results (by the name of the function) and returns caption and numbers of the figure.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="smaller sizes")
    parser.add_argument("-o", "--output", type=Path, help="write the numbers to this .json file, and the figure beside it")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"machine": {"cores": os.cpu_count(), "load": os.getloadavg()}}
    for title, part in parts.items():
        results[part.__name__] = part(arguments.quick)
        show(title, results[part.__name__])
    if arguments.output is None:
        return
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if draw is not None:
        with report.house_style():
            figure = Figure(figsize=(9.0, 4.4), layout="constrained")
            caption, numbers = draw(figure, results)
            report.save(figure, arguments.output.with_suffix(".png"), caption, numbers)


def show(title: str, values: Mapping[str, Any]) -> None:
    """Print the table of a part."""
    console = Console(width=140)
    console.print(f"\n[bold]{title}[/]")
    table = Table()
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in values.items():
        if name != "rows":
            table.add_row(_words(name), _short(value))
    if table.row_count:
        console.print(table)
    rows = values.get("rows", [])
    if rows:
        grid = Table()
        for name in rows[0]:
            grid.add_column(_words(name), justify="right")
        for row in rows:
            grid.add_row(*map(_short, row.values()))
        console.print(grid)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
