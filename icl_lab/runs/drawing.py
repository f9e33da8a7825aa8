"""The figures of a run, drawn by a thread of their own: most of them show training alone, and evaluation need not wait."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from icl_lab.core.errors import in_words
from icl_lab.report import run_figures
from icl_lab.runs.simulate import Prepared, Simulation
from icl_lab.training import TrainingResult


class Drawing:
    """Draws into one folder, a figure after another; `drawing` makes one.

    Attributes:
      folder: where the figures go; made by the first.
    """

    def __init__(self, folder: Path, pool: ThreadPoolExecutor | None):
        self.folder, self._pool = folder, pool
        self._begun: list[Future[None]] = []

    def trained(self, prepared: Prepared, training: TrainingResult) -> None:
        """Begin with the figures of training."""
        self._begin(run_figures.draw_training, training, prepared.model, prepared.optimum, prepared.task.context_length)

    def finish(self, run: Simulation) -> str | None:
        """Draw what is not drawn yet, and wait for the last figure.

        Returns:
          Why there are no figures if drawing fails, which is no reason to lose the training, else None.
        """
        length = run.task.context_length
        if not self._begun:
            self._begin(run_figures.draw_training, run.training, run.model, run.optimum, length)
        self._begin(run_figures.draw_risks, run.metrics["risk_curve"], length)
        try:
            for figure in self._begun:
                figure.result()
        except Exception as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            problem = f"not drawn: {in_words(error)}"
            print(f"icl-lab: the run is kept without its figures ({problem})", file=sys.stderr)
            return problem
        return None

    def _begin(self, draw: Callable[..., None], *arguments: Any) -> None:
        if self._pool is not None:
            self._begun.append(self._pool.submit(draw, self.folder, *arguments))


@contextlib.contextmanager
def drawing(folder: Path, enabled: bool) -> Iterator[Drawing]:
    """A `Drawing` for the length of the block, which ends after the last figure; one that draws nothing unless `enabled`."""
    with ThreadPoolExecutor(1, "icl_lab figures") if enabled else contextlib.nullcontext() as pool:
        try:
            yield Drawing(folder, pool)
        except BaseException:
            if pool:
                # Of a run that failed no figure is wanted; one that is being drawn would write into its folder.
                pool.shutdown(cancel_futures=True)
                shutil.rmtree(folder, ignore_errors=True)
            raise
