"""The rows of many runs as people see them: printed, with the keys that differ, or written to a file with all of them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.report import outputs
from icl_lab.report.console import wide_console

Row = dict[str, Any]

SHOWN = 4
"""Configuration keys that a printed table has room for."""
DAMAGED = "damaged"
"""Status of a row whose folder has a file that cannot be read; `error` says which."""
META = ("experiment", "hash", "status", "verdict", "error", "folder")
CIRCUMSTANCES = "status."
"""Prefix of the columns that record how a run came about."""
NUMBERS = ("metrics.theory.weight_distance", "metrics.comparison.model.risk")
"""The metrics of a printed table."""


def columns(rows: Sequence[Row]) -> list[str]:
    """Every column of the rows in the order in which they first appear, those of the circumstances last."""
    names = dict.fromkeys(column for row in rows for column in row)
    return sorted(names, key=lambda name: name.startswith(CIRCUMSTANCES))


def write(rows: Sequence[Row], path: Path) -> None:
    """Write the table to `path`, by its ending: .csv (standard library) or .parquet (the `tables` extra).

    In a .csv, what is missing is empty, booleans are true and false, and floats have all their digits.

    Raises:
      InvalidValueError: another ending, or a place that cannot be written to.
      UnsupportedProblemError: .parquet without polars installed.
      OSError: it cannot be written after all.
    """
    check_file(path)
    names = columns(rows)
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(names)
            # Words that pandas and polars both take for booleans.
            lower = {"True": "true", "False": "false"}
            writer.writerows([lower[str(x)] if x is True or x is False else x for x in map(row.get, names)] for row in rows)
        return
    try:
        import polars  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise UnsupportedProblemError(
            "writing .parquet needs polars, which is not installed; `pip install 'icl-lab[tables]'`, or write a .csv."
        ) from None
    polars.DataFrame({name: [row.get(name) for row in rows] for name in names}).write_parquet(path)


def check_file(path: Path) -> None:
    """Raise `InvalidValueError` unless a table can be written to `path`: another ending, or no place that can be written."""
    if path.suffix not in (".csv", ".parquet"):
        raise InvalidValueError(f"the output file must end in .csv or .parquet; got {str(path)!r}.")
    outputs.try_file(path, "-o")


def show(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print the status, the keys that differ between the runs, and the main numbers; at most `SHOWN` of the keys."""
    always = ("experiment", "hash", "status")
    numbers = [name for name in NUMBERS if any(name in row for row in rows)]
    varying = varying_keys(rows)
    table = Table(title=f"{len(rows)} runs")
    shown = [*always, *varying[:SHOWN], *numbers]
    for name in shown:
        table.add_column(escape(title(name)), overflow="fold", no_wrap=name == "hash")
    for row in rows:
        table.add_row(*(escape(cell(row.get(name))) for name in shown))
    console = console or wide_console()
    console.print(table)
    if varying[SHOWN:]:
        more = escape(", ".join(varying[SHOWN:]))
        console.print(f"{len(varying[SHOWN:])} more keys differ: {more}. All are in a file: -o FILE.csv")


def varying_keys(rows: Sequence[Row]) -> list[str]:
    """The configuration keys in which the rows differ, in the order of the columns."""
    configured = [name for name in columns(rows) if not name.startswith(("metrics.", CIRCUMSTANCES)) and name not in META]
    return [name for name in configured if len({repr(row.get(name)) for row in rows}) > 1]


def damaged(rows: Iterable[Row]) -> list[str]:
    """A sentence for each row of a run that could not be read: the file and what is wrong with it."""
    return [row["error"] for row in rows if row["status"] == DAMAGED]


def title(column: str) -> str:
    """The name of a column in a printed table."""
    return column.removeprefix("metrics.").removeprefix(CIRCUMSTANCES)


def cell(value: Any) -> str:
    """A value as a printed table shows it."""
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
