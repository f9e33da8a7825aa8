"""A progress line on stderr for anything that takes more than two seconds, silent where stderr is not a terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

PATIENCE = 2.0
"""Seconds before the line appears."""

Report = Callable[[float, int, float, float], None]
"""Called with (time, steps, loss, gradient norm)."""


@contextlib.contextmanager
def progress_reporter(enabled: bool, label: str = "gradient flow", total: int | None = None) -> Iterator[Report]:
    """A `Report` that draws a line with steps, time, loss and gradient norm, once two seconds have passed.

    Args:
      enabled: False gives a report that does nothing.
      label: what is being run.
      total: number of steps, for a bar; a spinner without it.
    """
    console = Console(stderr=True)
    if not (enabled and console.is_terminal):
        yield lambda time, steps, loss, gradient_norm: None
        return
    started = time.monotonic()
    columns = [BarColumn(), MofNCompleteColumn()] if total else [SpinnerColumn(), TextColumn("{task.completed} steps")]
    bar = Progress(TextColumn(label), *columns, TextColumn("{task.description}"), TimeElapsedColumn(), console=console)
    task = bar.add_task("", total=total)

    def report(flow_time: float, steps: int, loss: float, gradient_norm: float) -> None:
        if time.monotonic() - started > PATIENCE:
            bar.start()
        bar.update(task, completed=steps, description=f"t = {flow_time:.4g}  loss = {loss:.6g}  |grad| = {gradient_norm:.2g}")

    try:
        yield report
    finally:
        bar.stop()
