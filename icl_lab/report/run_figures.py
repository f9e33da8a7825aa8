"""The figures of a run folder, from plain arrays. Matplotlib is imported when they are drawn, not when the package is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from icl_lab.report.console import LABELS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class TrainingCurves:
    """What the figures of a training show, at S times.

    Attributes:
      clock: what times count.
      times, losses, gradient_norms: (S,), along training.
      gaps: (S,), losses above the closed form's, NaN where that is rounding; None without a closed form.
      distances: (S,), relative, of the weights from the closed form; None without one.
      drifts: (S,) of each quantity that gradient flow conserves, by its name.
      matrices: those of the limit and of the closed form, by their name; none without a closed form.
    """

    clock: str
    times: Float[np.ndarray, "S"]
    losses: Float[np.ndarray, "S"]
    gradient_norms: Float[np.ndarray, "S"]
    gaps: Float[np.ndarray, "S"] | None
    distances: Float[np.ndarray, "S"] | None
    drifts: Mapping[str, Float[np.ndarray, "S"]]
    matrices: Mapping[str, tuple[np.ndarray, np.ndarray]]


def draw_training(folder: Path, curves: TrainingCurves) -> None:
    """Draw the figures of training that have a meaning for a run, each with its numbers beside it, into `folder`."""
    from icl_lab.report import house_style

    folder.mkdir(exist_ok=True)
    with house_style():
        if curves.drifts:
            _invariants(curves, folder / "invariants.png")
        _training(curves, folder / "training.png")
        if curves.matrices:
            _weights(curves, folder / "weights.png")


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


def _training(curves: TrainingCurves, path: Path) -> None:
    from icl_lab import report

    figure, ((left, right),) = _panels(9.0, 4.0, columns=2)
    numbers = {"time": curves.times, "loss": curves.losses, "gradient_norm": curves.gradient_norms}
    if curves.gaps is None or curves.distances is None:
        report.decay(left, curves.times, curves.losses, "half loss", curves.clock)
        report.decay(right, curves.times, curves.gradient_norms, "norm of the gradient", curves.clock)
        caption = "The loss and the norm of its gradient along training."
    else:
        report.decay(left, curves.times, curves.gaps, "half loss above the closed form's", curves.clock)
        report.decay(right, curves.times, curves.distances, "relative weight distance", curves.clock)
        numbers |= {"loss_above_closed_form": curves.gaps, "weight_distance": curves.distances}
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


def _invariants(curves: TrainingCurves, path: Path) -> None:
    from icl_lab import report

    figure, ((axes,),) = _panels(6.4, 4.6)
    report.invariant_drift(axes, curves.times, curves.drifts, curves.clock)
    caption = (
        "Quantities that gradient flow conserves exactly: the drift is the integrator's error and should stay near its "
        "tolerance. Discrete training has no such conservation law, and its drift shows the size of its steps."
    )
    report.save(figure, path, caption, {"time": curves.times, **curves.drifts})


def _weights(curves: TrainingCurves, path: Path) -> None:
    from icl_lab import report

    shown = curves.matrices
    figure, rows = _panels(9.0, 2.5 * len(shown) + 1.5, len(shown), 3, right=0.8)
    for axes, (name, (learned, expected)) in zip(rows, shown.items(), strict=True):
        report.heat_maps(list(axes), learned, expected, name)
    caption = (
        "Learned matrices beside the closed form in the balanced gauge. The first two columns should look the same; "
        "the third has a colour scale of its own, which says how small the difference is."
    )
    numbers = {}
    for name, (learned, expected) in shown.items():
        numbers |= {f"{name}_measured": learned, f"{name}_expected": expected}
    report.save(figure, path, caption, numbers)
