"""The figures of a run folder. Matplotlib is imported when they are drawn, not when the package is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from icl_lab import analysis
from icl_lab.core.progress import phase
from icl_lab.models import Learner
from icl_lab.report.console import LABELS
from icl_lab.theory import Optimum
from icl_lab.training import TrainingResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@phase("figures")
def draw_training(folder: Path, training: TrainingResult, model: Learner, optimum: Optimum | None, context_length: int) -> None:
    """Draw the figures of training that have a meaning for a run, each with its numbers beside it.

    Args:
      folder: where they go; made here.
      training: the path and its limit.
      model: what was trained.
      optimum: the closed form that applies, if one does.
      context_length: N of training.
    """
    from icl_lab.report import house_style

    folder.mkdir(exist_ok=True)
    with house_style():
        _invariants(training, model, folder / "invariants.png")
        _training(training, None if optimum is None else (model, optimum, context_length), folder / "training.png")
        if optimum is not None:
            _weights(training, model, optimum, context_length, folder / "weights.png")


@phase("figures")
def draw_risks(folder: Path, curve: dict[str, Any], context_length: int) -> None:
    """Draw the `risk_curve` of the metrics of a run, with its numbers beside it, into `folder`."""
    from icl_lab.report import house_style

    folder.mkdir(exist_ok=True)
    with house_style():
        _risk_curve(curve, context_length, folder / "risk_curve.png")


def _panels(width: float, height: float, rows: int = 1, columns: int = 1, right: float = 0.25) -> tuple[Figure, Any]:
    """A figure of so many inches and its axes (rows, columns), with room for labels, `right` inches among them, and a caption.

    Margins are the same for all: matplotlib takes longer to find them than to draw.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    space = {"left": 0.8 / width, "right": 1 - right / width, "top": 1 - 0.35 / height, "bottom": 1.15 / height}
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw={**space, "wspace": 0.35, "hspace": 0.25})


def _clock(training: TrainingResult) -> str:
    return "step" if training.method == "optax" else "flow time t"


def _training(training: TrainingResult, closed_form: tuple[Learner, Optimum, int] | None, path: Path) -> None:
    from icl_lab import report

    trajectory, clock = training.trajectory, _clock(training)
    figure, ((left, right),) = _panels(9.0, 4.0, columns=2)
    numbers = {"time": trajectory.times, "loss": trajectory.losses, "gradient_norm": trajectory.gradient_norms}
    if closed_form is None:
        report.decay(left, trajectory.times, trajectory.losses, "half loss", clock)
        report.decay(right, trajectory.times, trajectory.gradient_norms, "norm of the gradient", clock)
        caption = "The loss and the norm of its gradient along training."
    else:
        model, optimum, context_length = closed_form
        # Below rounding of the loss its distance to the minimum is noise.
        gap = trajectory.losses - 0.5 * optimum.risk
        gap = np.where(gap > 1e-15 * trajectory.losses[0], gap, np.nan)
        path_of_weights = [trajectory.at(index) for index in range(len(trajectory.times))]
        learned = [analysis.effective_preconditioner(weights, model, context_length) for weights in path_of_weights]
        expected = np.linalg.norm(optimum.preconditioner)
        distances = np.array([np.linalg.norm(one - optimum.preconditioner) / expected for one in learned])
        report.decay(left, trajectory.times, gap, "half loss above the closed form's", clock)
        report.decay(right, trajectory.times, distances, "relative weight distance", clock)
        numbers |= {"loss_above_closed_form": gap, "weight_distance": distances}
        caption = (
            "The loss falls to the minimum that theory names, and the weights (gauge-invariant product) to the closed "
            "form: after a plateau near the start both fall exponentially, so the curves bend down ever more steeply."
        )
    report.save(figure, path, caption, numbers)


def _risk_curve(curve: dict[str, Any], context_length: int, path: Path) -> None:
    from icl_lab import report

    figure, ((axes,),) = _panels(6.4, 4.6)
    risks = {LABELS[name]: values for name, values in curve["risk"].items()}
    errors = {LABELS[name]: values for name, values in curve["standard_error"].items()}
    lengths = curve["context_lengths"]
    report.risk_curves(axes, lengths, risks, errors, curve["closed_form"], context_length)
    numbers = {"context_length": lengths}
    for name in curve["risk"]:
        numbers |= {name: curve["risk"][name], f"{name}_standard_error": curve["standard_error"][name]}
    if curve["closed_form"] is not None:
        numbers["closed_form"] = curve["closed_form"]
    caption = (
        "Risk against the number of examples in the prompt, intervals of two standard errors. A linear layer trained "
        "to its limit falls on one step of preconditioned gradient descent and, where theory has one, on the line of "
        "the closed form, at other lengths too. Risks of rounding size (OLS without noise) are not drawn."
    )
    report.save(figure, path, caption, numbers)


def _invariants(training: TrainingResult, model: Learner, path: Path) -> None:
    from icl_lab import report

    trajectory = training.trajectory
    drifts = analysis.drift(trajectory.weights, model)
    drifts = {name: np.real(values) for name, values in drifts.items()}
    if not drifts:
        return
    figure, ((axes,),) = _panels(6.4, 4.6)
    report.invariant_drift(axes, trajectory.times, drifts, _clock(training))
    caption = (
        "Quantities that gradient flow conserves exactly: the drift is the integrator's error and should stay near its "
        "tolerance. Discrete training has no such conservation law, and its drift shows the size of its steps."
    )
    report.save(figure, path, caption, {"time": trajectory.times, **drifts})


def _weights(training: TrainingResult, model: Learner, optimum: Optimum, context_length: int, path: Path) -> None:
    from icl_lab import report

    comparison = analysis.compare(training.limit, optimum, model, context_length)
    shown = [row for row in comparison.rows if row.name in ("preconditioner", "w_pv", "w_kq")]
    figure, rows = _panels(9.0, 2.5 * len(shown) + 1.5, len(shown), 3, right=0.8)
    for axes, row in zip(rows, shown, strict=True):
        report.heat_maps(list(axes), np.asarray(row.measured), np.asarray(row.expected), row.name)
    caption = (
        "Learned matrices beside the closed form in the balanced gauge. The first two columns should look the same; "
        "the third has a colour scale of its own, which says how small the difference is."
    )
    numbers = {f"{row.name}_{kind}": getattr(row, kind) for row in shown for kind in ("measured", "expected")}
    report.save(figure, path, caption, numbers)
