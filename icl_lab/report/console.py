"""A run in words: the comparison table and the verdict, from the files of its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

LABELS = {
    "model": "trained model",
    "gradient_descent": "one GD step",
    "preconditioned_gradient_descent": "one preconditioned GD step",
    "ols": "OLS",
    "ridge": "ridge",
    "zero": "zero",
    "last_value": "last value",
}
COLUMNS = ("predictor", "weight distance", "prediction distance", "risk")
"""Of the comparison."""


def wide_console() -> Console:
    """Standard output; where it is no terminal, wide enough for a table instead of rich's 80 columns.

    Names stand as they are: `:x:` in one is no picture.
    """
    console = Console(emoji=False)
    return console if console.is_terminal else Console(width=120, emoji=False)


def print_comparison(metrics: Mapping[str, Any], status: Mapping[str, Any], folder: Path, console: Console) -> None:
    """Print the table of a run, its warnings, its verdict and where it is.

    Args:
      metrics, status: contents of metrics.json and status.json.
      folder: the run folder.
      console: where to print.
    """
    console.print(comparison_table(metrics))
    for warning in metrics["warnings"]:
        console.print(f"[yellow]outside the theorem's assumption:[/] {escape(warning)}", highlight=False)
    if (held_out := metrics["training"]["held_out"]) is not None:
        console.print(f"The loss is sampled, since {escape(held_out['sampled_because'])}: {held_out['said']}", highlight=False)
    colour = "green" if status["status"] == "done" else "red"
    console.print(f"[{colour}]{escape(status['verdict'].upper())}[/]: {escape(status['reason'])}", highlight=False)
    theory = metrics["theory"]
    if theory is not None:
        distance = f"[bold]{_scientific(theory['weight_distance'])}[/]"
        console.print(f"Relative weight distance to the closed form: {distance} ({escape(theory['source'])})", highlight=False)
    console.print(f"Run folder: {escape(str(folder))}", highlight=False, soft_wrap=True)


def remarks(metrics: Mapping[str, Any]) -> list[str]:
    """What a run says beside its comparison: assumptions it is outside of, and the distance to the closed form."""
    said = [f"Outside the theorem's assumption: {warning}" for warning in metrics["warnings"]]
    theory = metrics["theory"]
    if theory is not None:
        distance = _scientific(theory["weight_distance"])
        said.append(f"Relative weight distance to the closed form: {distance} ({theory['source']}).")
    return said


def comparison_table(metrics: Mapping[str, Any]) -> Table:
    """The trained model beside every estimator and the closed form."""
    table = Table(title="Trained model against estimators")
    table.add_column(COLUMNS[0])
    for name in COLUMNS[1:]:
        table.add_column(name, justify="right")
    for row in comparison_rows(metrics):
        table.add_row(*map(escape, row))
    return table


def comparison_rows(metrics: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The cells of the comparison under `COLUMNS`."""
    rows: list[tuple[str, ...]] = [
        (
            LABELS.get(name) or name,
            _scientific(row.get("weight_distance")),
            _scientific(row.get("prediction_distance")),
            f"{float(row['risk']):.6g}" + (f" ± {float(row['standard_error']):.1g}" if row["standard_error"] else ""),
        )
        for name, row in metrics["comparison"].items()
    ]
    theory = metrics["theory"]
    if theory is not None:
        distance = _scientific(theory["weight_distance"])
        rows.append((f"closed form: {theory['name']}", distance, "", f"{float(theory['risk']):.6g}"))
    return rows


def _scientific(value: float | str | None) -> str:
    """A number with three digits; files hold what is not finite as a string."""
    return "" if value is None else f"{float(value):.2e}"
