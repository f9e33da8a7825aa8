"""Many run folders as one table: a row a run, failed runs included.

Columns are the dotted keys of the configuration, then of the status, then of the numbers in `metrics.json`.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from icl_lab.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.runs import store
from icl_lab.runs.present import wide_console

Row = dict[str, Any]

SHOWN = 4
"""Configuration keys that a printed table has room for."""
META = ("verdict", "error", "folder")
NUMBERS = ("metrics.theory.weight_distance", "metrics.comparison.model.risk")
"""The metrics of a printed table."""


def collect(root: Path) -> list[Row]:
    """One row for every finished or failed run below `root`; runs in progress are not read.

    Raises:
      InvalidValueError: `root` is no folder, or holds no run.
    """
    if not root.is_dir():
        raise InvalidValueError(f"RUN_ROOT must be an existing folder; got {str(root)!r}.")
    rows = [_row(folder, root) for folder in store.run_folders(root)]
    if not rows:
        raise InvalidValueError(f"{str(root)!r} holds no run; a run is a folder <experiment>/<hash> with a status.json.")
    return rows


def columns(rows: Sequence[Row]) -> list[str]:
    """Every column of the rows, in the order in which they first appear."""
    return list(dict.fromkeys(column for row in rows for column in row))


def write(rows: Sequence[Row], path: Path) -> None:
    """Write the table to `path`, by its ending: .csv (standard library) or .parquet (the `tables` extra).

    Raises:
      InvalidValueError: another ending, or a folder that does not exist.
      UnsupportedProblemError: .parquet without polars installed.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise InvalidValueError(f"the output file must end in .csv or .parquet; got {str(path)!r}.")
    if not path.absolute().parent.is_dir():
        raise InvalidValueError(f"the folder of the output file must exist; got {str(path)!r}.")
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns(rows), restval="")
            writer.writeheader()
            writer.writerows(rows)
        return
    try:
        import polars  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise UnsupportedProblemError(
            "writing .parquet needs polars, which is not installed; `pip install 'icl-lab[tables]'`, or write a .csv."
        ) from None
    # Every row has every column, so that the type of a column is read off all of its values.
    filled = [{column: row.get(column) for column in columns(rows)} for row in rows]
    polars.DataFrame(filled, infer_schema_length=None, strict=False).write_parquet(path)


def show(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print the status, the keys that differ between the runs, and the main numbers; at most `SHOWN` of the keys."""
    always = ("experiment", "hash", "status")
    numbers = [name for name in NUMBERS if any(name in row for row in rows)]
    configured = [name for name in columns(rows) if not name.startswith("metrics.") and name not in (*always, *META)]
    varying = [name for name in configured if len({repr(row.get(name)) for row in rows}) > 1]
    table = Table(title=f"{len(rows)} runs")
    shown = [*always, *varying[:SHOWN], *numbers]
    for name in shown:
        table.add_column(name.removeprefix("metrics."), overflow="fold", no_wrap=name == "hash")
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in shown))
    console = console or wide_console()
    console.print(table)
    if varying[SHOWN:]:
        console.print(f"{len(varying[SHOWN:])} more keys differ: {', '.join(varying[SHOWN:])}. All are in a file: -o FILE.csv")


def _row(folder: Path, root: Path) -> Row:
    status = store.read_json(folder / "status.json")
    row: Row = {
        "experiment": folder.parent.name,
        "hash": folder.name.removesuffix(".failed"),
        "status": status.get("status"),
        "verdict": status.get("verdict"),
        "error": status.get("error"),
        "folder": str(folder.relative_to(root)),
    }
    config_file, metrics_file = folder / "config.yaml", folder / "metrics.json"
    if config_file.is_file():
        config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
        row |= _flat({key: value for key, value in config.items() if key not in store.NOT_HASHED})
    if metrics_file.is_file():
        row |= _flat(store.read_json(metrics_file), "metrics.")
    return row


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Row:
    """Scalars by their dotted key; a short list as text, a curve (in metrics) not at all."""
    flat: Row = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            flat[prefix + key] = value
        elif not prefix.startswith("metrics."):
            flat[prefix + key] = str(value)
    return flat


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
