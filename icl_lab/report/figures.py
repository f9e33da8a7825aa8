"""The kinds of figure: each function takes data and an `Axes` (or a row of them), draws, and returns what it drew on.

Theory is a line, measurement is markers with an interval. Nothing here opens a window or a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from icl_lab.core.typing import Array


def decay(
    axes: Axes, times: Float[Array, "S"], values: Float[Array, "S"], quantity: str, time_unit: str = "flow time t"
) -> Axes:
    """A positive quantity that goes to zero along training, on logarithmic axes.

    Args:
      axes: where to draw.
      times: (S,), increasing from 0; the start is drawn at a tenth of the first later time, as log axes have no 0.
      values: (S,), values <= 0 are left out.
      quantity: label of the vertical axis.
      time_unit: label of the horizontal axis.

    Returns:
      `axes`.
    """
    times, values = np.asarray(times, dtype=np.float64), np.asarray(values, dtype=np.float64)
    later = times[times > 0]
    shown = np.maximum(times, later[0] / 10) if later.size else times
    positive = values > 0
    axes.plot(shown[positive], values[positive], marker=".", markersize=3)
    axes.set(xscale="log", yscale="log", xlabel=time_unit, ylabel=quantity)
    axes.minorticks_off()
    return axes


def heat_maps(row: Sequence[Axes], learned: Float[Array, "D D"], expected: Float[Array, "D D"], name: str) -> Sequence[Axes]:
    """A learned matrix, its closed form on the same colour scale, and their difference on a scale of its own.

    Args:
      row: three axes.
      learned, expected: (D, D), in the same gauge.
      name: the matrix, for the titles.

    Returns:
      `row`.
    """
    largest = float(max(np.max(np.abs(learned)), np.max(np.abs(expected)), 1e-300))
    gap = learned - expected
    panels = (
        (learned, largest, f"{name}, learned"),
        (expected, largest, f"{name}, closed form"),
        (gap, float(max(np.max(np.abs(gap)), 1e-300)), "difference"),
    )
    for axes, (matrix, scale, title) in zip(row, panels, strict=True):
        image = axes.imshow(matrix, vmin=-scale, vmax=scale)
        axes.set(title=title, xticks=[], yticks=[])
        axes.grid(False)
        axes.figure.colorbar(image, ax=axes, fraction=0.046)
    return row


def risk_curves(
    axes: Axes,
    lengths: Sequence[int],
    risks: Mapping[str, Sequence[float]],
    standard_errors: Mapping[str, Sequence[float]],
    closed_form: Sequence[float] | None = None,
    trained_at: int | None = None,
) -> Axes:
    """Risks against the context length, with intervals of two standard errors.

    Args:
      axes: where to draw.
      lengths: context lengths.
      risks, standard_errors: a value a length, by the predictor's name; the first is drawn as a ring round the others.
        Risks of rounding size (below 1e-12 of the largest) are left out.
      closed_form: risk of the closed form at each length, drawn as a line.
      trained_at: length of training, marked by a vertical line.

    Returns:
      `axes`.
    """
    floor = 1e-12 * max(max(values) for values in risks.values())
    for index, (name, values) in enumerate(risks.items()):
        values = np.asarray(values, dtype=np.float64)
        shown = np.where(values > floor, values, np.nan)
        if np.any(np.isfinite(shown)):
            # The first is what the others are compared with: a ring, so that a point inside it stays visible.
            ring = {"markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.6} if index == 0 else {}
            errors = np.asarray(standard_errors[name], dtype=np.float64)
            intervals = 2 * np.where(np.isfinite(errors), errors, np.nan)  # no interval where there is no error
            axes.errorbar(lengths, shown, intervals, fmt="o", capsize=2, label=name, **ring)
    if closed_form is not None:
        axes.plot(lengths, closed_form, color="black", label="closed form")
    if trained_at is not None:
        axes.axvline(trained_at, color="0.6", linestyle=":", label="length of training")
    axes.set(xscale="log", yscale="log", xlabel="context length", ylabel="risk E|yhat - y|²")
    axes.set_xticks(lengths, labels=[str(n) for n in lengths])
    axes.minorticks_off()
    axes.legend()
    return axes


def invariant_drift(
    axes: Axes, times: Float[Array, "S"], drifts: Mapping[str, Float[Array, "S"]], time_unit: str = "flow time t"
) -> Axes:
    """How far each conserved quantity has moved from its start; theory says 0.

    Args:
      axes: where to draw.
      times: (S,).
      drifts: name -> (S,), distances from the start.
      time_unit: label of the horizontal axis.

    Returns:
      `axes`.
    """
    later = np.asarray(times) > 0
    for name, values in drifts.items():
        axes.plot(np.asarray(times)[later], np.maximum(np.asarray(values)[later], 1e-18), marker=".", markersize=3, label=name)
    axes.set(xscale="log", yscale="log", xlabel=time_unit, ylabel="change since the start")
    axes.minorticks_off()
    axes.legend()
    return axes
