"""The figures of a run folder. Matplotlib is imported when they are drawn, not when the package is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from icl_lab import analysis
from icl_lab.core.progress import phase
from icl_lab.report.console import LABELS
from icl_lab.runs.simulate import Simulation


@phase("figures")
def draw(result: Simulation, folder: Path) -> None:
    """Draw every figure that has a meaning for the run into `folder`, each with its numbers beside it."""
    from icl_lab.report import house_style

    folder.mkdir()
    with house_style():
        _training(result, folder / "training.png")
        _risk_curve(result, folder / "risk_curve.png")
        _invariants(result, folder / "invariants.png")
        if result.optimum is not None:
            _weights(result, folder / "weights.png")


def _clock(result: Simulation) -> str:
    return "step" if result.training.method == "optax" else "flow time t"


def _training(result: Simulation, path: Path) -> None:
    from matplotlib.figure import Figure

    from icl_lab import report

    trajectory = result.training.trajectory
    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    numbers = {"time": trajectory.times, "loss": trajectory.losses, "gradient_norm": trajectory.gradient_norms}
    if result.optimum is None:
        report.decay(left, trajectory.times, trajectory.losses, "half loss", _clock(result))
        report.decay(right, trajectory.times, trajectory.gradient_norms, "norm of the gradient", _clock(result))
        caption = "The loss and the norm of its gradient along training."
    else:
        # Below rounding of the loss its distance to the minimum is noise.
        gap = trajectory.losses - 0.5 * result.optimum.risk
        gap = np.where(gap > 1e-15 * trajectory.losses[0], gap, np.nan)
        distances = np.asarray(
            [_preconditioner_error(result, index) for index in range(len(trajectory.times))], dtype=np.float64
        )
        report.decay(left, trajectory.times, gap, "half loss above the closed form's", _clock(result))
        report.decay(right, trajectory.times, distances, "relative weight distance", _clock(result))
        numbers |= {"loss_above_closed_form": gap, "weight_distance": distances}
        caption = (
            "The loss falls to the minimum that theory names, and the weights (gauge-invariant product) to the closed "
            "form: after a plateau near the start both fall exponentially, so the curves bend down ever more steeply."
        )
    report.save(figure, path, caption, numbers)


def _preconditioner_error(result: Simulation, index: int) -> float:
    assert result.optimum is not None
    weights = result.training.trajectory.at(index)
    learned = analysis.effective_preconditioner(weights, result.model, result.task.context_length)
    expected = result.optimum.preconditioner
    return float(np.linalg.norm(learned - expected) / np.linalg.norm(expected))


def _risk_curve(result: Simulation, path: Path) -> None:
    from matplotlib.figure import Figure

    from icl_lab import report

    curve = result.metrics["risk_curve"]
    figure = Figure(layout="constrained")
    risks = {LABELS[name]: values for name, values in curve["risk"].items()}
    errors = {LABELS[name]: values for name, values in curve["standard_error"].items()}
    lengths = curve["context_lengths"]
    report.risk_curves(figure.subplots(), lengths, risks, errors, curve["closed_form"], result.task.context_length)
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


def _invariants(result: Simulation, path: Path) -> None:
    from matplotlib.figure import Figure

    from icl_lab import report

    trajectory = result.training.trajectory
    drifts = analysis.drift(trajectory.weights, result.model)
    drifts = {name: np.real(values) for name, values in drifts.items()}
    if not drifts:
        return
    figure = Figure(layout="constrained")
    report.invariant_drift(figure.subplots(), trajectory.times, drifts, _clock(result))
    caption = (
        "Quantities that gradient flow conserves exactly: the drift is the integrator's error and should stay near its "
        "tolerance. Discrete training has no such conservation law, and its drift shows the size of its steps."
    )
    report.save(figure, path, caption, {"time": trajectory.times, **drifts})


def _weights(result: Simulation, path: Path) -> None:
    from matplotlib.figure import Figure

    from icl_lab import report

    assert result.optimum is not None
    comparison = analysis.compare(result.training.limit, result.optimum, result.model, result.task.context_length)
    shown = [row for row in comparison.rows if row.name in ("preconditioner", "w_pv", "w_kq")]
    figure = Figure(figsize=(9.0, 2.8 * len(shown)), layout="constrained")
    rows = figure.subplots(len(shown), 3, squeeze=False)
    for axes, row in zip(rows, shown, strict=True):
        report.heat_maps(list(axes), np.asarray(row.measured), np.asarray(row.expected), row.name)
    caption = (
        "Learned matrices beside the closed form in the balanced gauge. The first two columns should look the same; "
        "the third has a colour scale of its own, which says how small the difference is."
    )
    numbers = {f"{row.name}_{kind}": getattr(row, kind) for row in shown for kind in ("measured", "expected")}
    report.save(figure, path, caption, numbers)
