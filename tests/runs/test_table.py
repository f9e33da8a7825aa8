"""Many run folders as one table."""

import csv
import sys

import pytest
import yaml
from rich.console import Console

from icl_lab.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.runs import store, table


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "runs"
    _run(
        root / "a" / "1111",
        {"task": {"dim": 3, "covariance": [2.0, 1.0]}},
        {"comparison": {"model": {"risk": 0.1 + 0.2, "curve": [1, 2]}}},
    )
    _run(root / "a" / "2222", {"task": {"dim": 4, "covariance": None}}, {"comparison": {"model": {"risk": 0.5}}})
    failed = root / "b" / "3333.failed"
    failed.mkdir(parents=True)
    (failed / "config.yaml").write_text(yaml.safe_dump({"run_root": "x", "experiment": "b", "task": {"dim": 0}}))
    store.write_json(failed / "status.json", {"status": "failed", "error": "`dim` must be >= 1", "traceback": "..."})
    for ignored in (root / "a" / ".partial-4444-1-ab@host", root / ".hydra" / "a" / "now"):
        ignored.mkdir(parents=True)
        store.write_json(ignored / "status.json", {"status": "running"})
    return root


def test_rows_are_finished_and_failed_runs_and_nothing_else(root):
    rows = table.collect(root)
    assert [(row["experiment"], row["hash"], row["status"]) for row in rows] == [
        ("a", "1111", "done"),
        ("a", "2222", "done"),
        ("b", "3333", "failed"),
    ]
    assert rows[2]["error"] == "`dim` must be >= 1"
    assert rows[0]["task.covariance"] == "[2.0, 1.0]"
    assert rows[0]["metrics.comparison.model.risk"] == 0.1 + 0.2
    assert "metrics.comparison.model.curve" not in rows[0]


def test_one_experiment_is_a_table_too(root):
    assert [row["hash"] for row in table.collect(root / "a")] == ["1111", "2222"]


def test_csv_has_every_column_and_full_precision(root, tmp_path):
    path = tmp_path / "out.csv"
    table.write(table.collect(root), path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert float(rows[0]["metrics.comparison.model.risk"]) == 0.1 + 0.2
    assert rows[2]["metrics.comparison.model.risk"] == ""
    assert rows[2]["error"] == "`dim` must be >= 1"


def test_printed_table_shows_what_differs(root):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    table.show(table.collect(root), console)
    text = console.export_text()
    console.file.close()
    for expected in ("task.dim", "model.risk", "0.3", "3333", "failed"):
        assert expected in text


def test_missing_root_and_empty_root_and_other_endings_are_refused(root, tmp_path):
    with pytest.raises(InvalidValueError, match="existing folder"):
        table.collect(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InvalidValueError, match="holds no run"):
        table.collect(empty)
    with pytest.raises(InvalidValueError, match=r"\.csv or \.parquet"):
        table.write(table.collect(root), tmp_path / "out.xlsx")


def test_parquet_without_polars_says_which_extra(root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(UnsupportedProblemError, match=r"icl-lab\[tables\]"):
        table.write(table.collect(root), tmp_path / "out.parquet")


def test_parquet_holds_the_same_numbers(root, tmp_path):
    polars = pytest.importorskip("polars")
    path = tmp_path / "out.parquet"
    table.write(table.collect(root), path)
    frame = polars.read_parquet(path)
    assert frame["metrics.comparison.model.risk"].to_list() == [0.1 + 0.2, 0.5, None]


def _run(folder, config, metrics):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"run_root": "x", "experiment": folder.parent.name, **config}))
    store.write_json(folder / "metrics.json", metrics)
    store.write_json(folder / "status.json", {"status": "done", "verdict": "converged"})
