"""A progress bar on stderr, for work that takes longer than two seconds, where stderr is a terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

PATIENCE = 2.0
"""Seconds after which a bar is shown."""


@contextlib.contextmanager
def progress_bar(description: str, patience: float = PATIENCE) -> Iterator[Callable[[int, int, Any], None]]:
    """A function `advance(done, total, what)` that keeps a bar up to date.

    The bar appears with the first report after `patience` seconds; short work and work without a terminal stay silent.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=console, transient=True)
    task = progress.add_task(description, total=None)
    started = time.monotonic()
    shown = False

    def advance(done: int, total: int, _: Any = None) -> None:
        nonlocal shown
        progress.update(task, completed=done, total=total)
        if not shown and console.is_terminal and time.monotonic() - started > patience:
            progress.start()
            shown = True

    try:
        yield advance
    finally:
        if shown:
            progress.stop()
