"""Many run folders as one table: a row a run, failed runs included, and a type for every column.

Columns are the dotted keys of the configuration, then of the numbers in `metrics.json`, then, under `status.`, how the run came
about: time, memory, versions, machine, whether it was resumed. What is not under `status.` does not depend on when, where and
in how many attempts the runs were done.
"""

from __future__ import annotations

import collections
import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from icl_lab.core.errors import DamagedRunError, InvalidValueError, UnsupportedProblemError
from icl_lab.report import outputs
from icl_lab.report.console import wide_console
from icl_lab.runs import records, store

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


def collect(root: Path) -> list[Row]:
    """One row for every finished or failed run below `root`; runs in progress are not read, and damaged ones have a row too.

    A column holds values of one type in all rows (bool, int, float or str), or None where a run has no such value.

    Raises:
      InvalidValueError: `root` is no folder, or holds no run.
    """
    if not root.is_dir():
        raise InvalidValueError(f"RUN_ROOT must be an existing folder; got {str(root)!r}.")
    rows = [_row(folder, root) for folder in store.run_folders(root)]
    if not rows:
        raise InvalidValueError(f"{str(root)!r} holds no run; a run is a folder <experiment>/<hash> with a status.json.")
    _unify(rows)
    return rows


def columns(rows: Sequence[Row]) -> list[str]:
    """Every column of the rows in the order in which they first appear, those of the circumstances last."""
    names = dict.fromkeys(column for row in rows for column in row)
    return sorted(names, key=lambda name: name.startswith(CIRCUMSTANCES))


def write(rows: Sequence[Row], path: Path) -> None:
    """Write the table to `path`, by its ending: .csv (standard library) or .parquet (the `tables` extra).

    In a .csv, what is missing is empty, booleans are true and false, and floats have all their digits.

    Raises:
      InvalidValueError: as `check_file`.
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


def _row(folder: Path, root: Path) -> Row:
    place: Row = {"experiment": folder.parent.name, "hash": folder.name.removesuffix(".failed")}
    try:
        return place | _content(folder, root)
    except DamagedRunError as error:
        return place | {"status": DAMAGED, "verdict": None, "error": str(error), "folder": str(folder.relative_to(root))}


def _content(folder: Path, root: Path) -> Row:
    status = records.read_status(folder)
    row: Row = {
        "status": status.pop("status"),
        "verdict": status.pop("verdict", None),
        "error": status.pop("error", None),
        "folder": str(folder.relative_to(root)),
    }
    for name in ("reason", "traceback"):
        status.pop(name, None)
    metrics_file = folder / "metrics.json"
    if (folder / "config.yaml").is_file():
        config = records.read_config(folder)
        flatten({key: value for key, value in config.items() if key not in store.NOT_HASHED}, "", row)
    if metrics_file.is_file():
        metrics = records.mapping(metrics_file, records.read_json(metrics_file))
        training = records.mapping(metrics_file, metrics.get("training", {}), what="`training`")
        seconds = training.pop("seconds", None)
        if seconds is not None:
            status["training_seconds"] = seconds
        flatten(metrics, "metrics.", row)
    flatten(status, CIRCUMSTANCES, row)
    return row


def flatten(tree: Mapping[str, Any], prefix: str, row: Row) -> None:
    """Add the scalars of `tree` to `row` by their dotted key; a list as JSON text, a curve (in metrics) not at all."""
    for key, value in tree.items():
        if isinstance(value, dict):
            flatten(value, f"{prefix}{key}.", row)
        elif not isinstance(value, list):
            # Run folders hold numbers that JSON cannot write as these words.
            row[prefix + key] = float(value) if prefix and value in ("nan", "inf", "-inf") else value
        elif not prefix.startswith("metrics."):
            row[prefix + key] = json.dumps(value)


def _unify(rows: list[Row]) -> None:
    """Bring each column that has values of several types to the narrowest type that holds them all: float or str."""
    types: dict[str, set[type]] = collections.defaultdict(set)
    for row in rows:
        for name, value in row.items():
            types[name].add(type(value))
    for name, found in types.items():
        found.discard(type(None))
        if len(found) > 1:
            common = float if found == {int, float} else str
            for row in rows:
                if row.get(name) is not None:
                    row[name] = common(row[name])


def title(column: str) -> str:
    """The name of a column in a printed table."""
    return column.removeprefix("metrics.").removeprefix(CIRCUMSTANCES)


def cell(value: Any) -> str:
    """A value as a printed table shows it."""
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
