"""The figures of a run, drawn by a process of their own: most of them show training alone, and evaluation need not wait."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from icl_lab import analysis
from icl_lab.core.errors import in_words
from icl_lab.core.progress import phase
from icl_lab.models import Learner
from icl_lab.report import run_figures
from icl_lab.report.run_figures import TrainingCurves
from icl_lab.runs import painter
from icl_lab.runs.simulate import Prepared, Simulation
from icl_lab.theory import Optimum
from icl_lab.training import TrainingResult


class Drawing:
    """Draws into one folder, a figure after another; `drawing` makes one.

    Attributes:
      folder: where the figures go; made by the first.
      enabled: False to draw nothing.
    """

    def __init__(self, folder: Path, enabled: bool):
        self.folder, self.enabled = folder, enabled
        self.begun = 0

    def trained(self, prepared: Prepared, training: TrainingResult) -> None:
        """Begin with the figures of training."""
        if self.enabled:
            length = prepared.task.context_length
            with contextlib.suppress(Exception):  # raised again by `finish`, which says it and keeps the run
                self._begin(run_figures.draw_training, training_curves(training, prepared.model, prepared.optimum, length))

    def finish(self, run: Simulation) -> str | None:
        """Draw what is not drawn yet, and wait for the last figure.

        Returns:
          Why there are no figures if drawing fails, which is no reason to lose the training, else None.
        """
        if not self.enabled:
            return None
        length = run.task.context_length
        problem = None
        try:
            if not self.begun:
                self._begin(run_figures.draw_training, training_curves(run.training, run.model, run.optimum, length))
            self._begin(run_figures.draw_risks, run.metrics["risk_curve"], length)
            with phase("figures"):
                for _ in range(self.begun):
                    problem = problem or painter.painter().wait()
        except Exception as error:
            problem = in_words(error)
        if problem is None:
            return None
        self.abandon()
        print(f"icl-lab: the run is kept without its figures (not drawn: {problem})", file=sys.stderr)
        return f"not drawn: {problem}"

    def abandon(self) -> None:
        """Stop drawing and leave nothing."""
        if self.enabled:
            painter.stop()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _begin(self, draw: Callable[..., None], *arguments: Any) -> None:
        painter.painter().begin(draw, self.folder, *arguments)
        self.begun += 1


@contextlib.contextmanager
def drawing(folder: Path, enabled: bool) -> Iterator[Drawing]:
    """A `Drawing` for the length of the block, which draws nothing unless `enabled`; a block that fails leaves no figures."""
    figures = Drawing(folder, enabled)
    if enabled:
        with contextlib.suppress(OSError):  # raised again by `finish`
            painter.painter()
    try:
        yield figures
    except BaseException:
        figures.abandon()
        raise


def training_curves(training: TrainingResult, model: Learner, optimum: Optimum | None, context_length: int) -> TrainingCurves:
    """What the figures of a training show.

    Args:
      training: the path and its limit.
      model: what was trained.
      optimum: the closed form that applies, if one does.
      context_length: N of training.
    """
    trajectory = training.trajectory
    gaps = distances = None
    matrices = {}
    if optimum is not None:
        # Below rounding of the loss its distance to the minimum is noise.
        gaps = trajectory.losses - 0.5 * optimum.risk
        gaps = np.where(gaps > 1e-15 * trajectory.losses[0], gaps, np.nan)
        path = [trajectory.at(index) for index in range(len(trajectory.times))]
        learned = [analysis.effective_preconditioner(weights, model, context_length) for weights in path]
        expected = np.linalg.norm(optimum.preconditioner)
        distances = np.array([np.linalg.norm(one - optimum.preconditioner) / expected for one in learned])
        for row in analysis.compare(training.limit, optimum, model, context_length).rows:
            if row.name in ("preconditioner", "w_pv", "w_kq"):
                matrices[row.name] = np.asarray(row.measured), np.asarray(row.expected)
    return TrainingCurves(
        clock="step" if training.method == "optax" else "flow time t",
        times=np.asarray(trajectory.times),
        losses=np.asarray(trajectory.losses),
        gradient_norms=np.asarray(trajectory.gradient_norms),
        gaps=gaps,
        distances=distances,
        drifts={name: np.real(values) for name, values in analysis.drift(trajectory.weights, model).items()},
        matrices=matrices,
    )
