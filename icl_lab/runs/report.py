"""`icl-lab report`: results of `verify` and run folders, read and written as one page."""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from icl_lab.core.errors import DamagedRunError, InvalidValueError
from icl_lab.core.progress import each
from icl_lab.report import console as present
from icl_lab.report import outputs, page, results, run_table
from icl_lab.runs import records, table

LARGEST_PAGE = 5_000_000
"""Bytes of a page; figures are left out from the last run on until it is no larger."""
LISTED = 100
"""Runs of a root that are listed."""
IN_FULL = 12
"""Runs of a root that are shown in full."""


class Written(NamedTuple):
    """A page, and a sentence for each run folder that it could not read in full."""

    path: Path
    damaged: list[str]


def write(inputs: Sequence[Path], folder: Path) -> Written:
    """Write the page of some results and run folders.

    Args:
      inputs: files of `icl-lab verify --json` and folders of runs.
      folder: where `index.html` goes; made if it does not exist.

    Returns:
      The page's path, and what of the runs is damaged, which the page says too.

    Raises:
      InvalidValueError: an input that is neither, or is broken or empty; `folder` cannot be written. Nothing is written then. A
        damaged run in a folder is no error.
    """
    outputs.try_folder(folder, "index.html", "-o")
    verified, roots, damaged = [], [], []
    for path in each("reading", inputs):
        if path.is_dir():
            root, unreadable = _run_root(path)
            roots.append(root)
            damaged += unreadable
        elif path.is_file():
            verified.append(_results(path))
        else:
            raise InvalidValueError(
                f"INPUT must be a file of `icl-lab verify --json` or a folder of runs; {str(path)!r} does not exist."
            )
    text = page.render(verified, page.within(LARGEST_PAGE, verified, roots))
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "index.html"
    target.write_text(text, encoding="utf-8")
    return Written(target, damaged)


def _results(path: Path) -> page.Results:
    try:
        # NaN and infinities are no JSON, and no checks pass with them: they are read as null.
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidValueError(
            f"{path} must be JSON, as `icl-lab verify --json` writes it; reading it says: {error}."
        ) from None
    return page.Results(path.name, _date(path.stat().st_mtime), results.validated(content, str(path)))


def _run_root(root: Path) -> tuple[page.RunRoot, list[str]]:
    rows = table.collect(root)
    varying = run_table.varying_keys(rows)
    rows.sort(key=lambda row: (*_ending(row["status"]), *(_order(row.get(name)) for name in varying)))
    numbers = [name for name in (*run_table.NUMBERS, f"{run_table.CIRCUMSTANCES}seconds") if any(name in row for row in rows)]
    shown = ["hash", "status", *varying[: run_table.SHOWN], *numbers]
    several = len({row["experiment"] for row in rows}) > 1
    shown = ["experiment", *shown] if several else shown
    runs, damaged = [], dict.fromkeys(run_table.damaged(rows))
    for row in rows[:IN_FULL]:
        folder, settings = root / row["folder"], varying[: run_table.SHOWN]
        try:
            if row["status"] == run_table.DAMAGED:
                raise DamagedRunError(row["error"])
            runs.append(_run(folder, row, settings))
        except DamagedRunError as error:
            damaged[str(error)] = None
            runs.append(_unreadable(row, str(error)))
    shown_root = page.RunRoot(
        name=str(root),
        date=_date(max((root / row["folder"] / "status.json").stat().st_mtime for row in rows)),
        machine="; ".join(dict.fromkeys(filter(None, map(_machine, rows)))),
        columns=[run_table.title(name) for name in shown],
        rows=[[run_table.cell(row.get(name)) for name in shown] for row in rows[:LISTED]],
        rows_in_all=len(rows),
        failures=sum(row["status"] in ("failed", run_table.DAMAGED) for row in rows),
        comparison_columns=present.COLUMNS,
        runs=runs,
    )
    return shown_root, list(damaged)


def _ending(status: str | None) -> tuple[bool, bool]:
    """Runs that raised or are damaged come first, then those that did not converge."""
    return status == "done", status not in ("failed", run_table.DAMAGED)


def _order(value: Any) -> tuple[bool, float, str]:
    """Numbers by size, texts by letter, missing values last."""
    number = isinstance(value, int | float)
    return value is None, float(value) if number else 0.0, "" if number else str(value)


def _machine(row: run_table.Row) -> str:
    """Device, precision and version of a run, as far as they are recorded."""
    made = f"{run_table.CIRCUMSTANCES}provenance."
    names = ("device.platform", "precision.default_float")
    words = [str(row[made + name]) for name in names if row.get(made + name) is not None]
    version = row.get(f"{made}icl_lab")
    return ", ".join([*words, *([f"icl_lab {version}"] if version is not None else [])])


def _run(folder: Path, row: run_table.Row, varying: Sequence[str]) -> page.Run:
    status = records.read_status(folder)
    metrics = records.read_metrics(folder) if (folder / "metrics.json").is_file() else None
    failed = row["status"] == "failed"
    settings = ", ".join(f"{name} = {run_table.cell(row.get(name))}" for name in varying)
    return page.Run(
        title=f"{row['hash']}{': ' if settings else ''}{settings}",
        status=str(status.get("verdict") or row["status"]).replace("_", " "),
        sentence=str(status.get("error" if failed else "reason") or ""),
        failed=failed,
        converged=row["status"] == "done",
        remarks=[f"Its record is in {folder}."] if metrics is None else present.remarks(metrics),
        comparison=[] if metrics is None else present.comparison_rows(metrics),
        pictures=[_picture(path) for path in sorted((folder / "figures").glob("*.png"))],
        left_out=[],
    )


def _unreadable(row: run_table.Row, reason: str) -> page.Run:
    """A run with a file that cannot be read, for which the page says that instead."""
    return page.Run(
        title=row["hash"],
        status=run_table.DAMAGED,
        sentence=reason,
        failed=True,
        converged=False,
        remarks=[],
        comparison=[],
        pictures=[],
        left_out=[],
    )


def _picture(path: Path) -> page.Picture:
    from PIL import Image

    try:
        with Image.open(path) as image:
            caption, (width, height) = image.info.get("Description"), image.size
    except OSError as error:
        raise DamagedRunError(f"{path} is damaged: {error}.") from None
    encoded = base64.b64encode(path.read_bytes()).decode()
    text = caption or f"Figure: {path.stem.replace('_', ' ')}"
    return page.Picture(path.stem, text, f"data:image/png;base64,{encoded}", width, height)


def _date(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
