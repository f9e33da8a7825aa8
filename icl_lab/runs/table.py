"""Many run folders as one table: a row a run, failed runs included, and a type for every column.

Columns are the dotted keys of the configuration, then of the numbers in `metrics.json`, then, under `status.`, how the run came
about: time, memory, versions, machine, whether it was resumed. What is not under `status.` does not depend on when, where and
in how many attempts the runs were done.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from icl_lab.core.errors import DamagedRunError, InvalidValueError
from icl_lab.report.run_table import CIRCUMSTANCES, DAMAGED, Row
from icl_lab.runs import records, store


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
