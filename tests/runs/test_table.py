"""Many run folders as one table."""

import csv
import math
import sys

import pytest
import yaml
from rich.console import Console

from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.report import run_table
from icl_lab.runs import records, table


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
    records.write_json(failed / "status.json", {"status": "failed", "error": "`dim` must be >= 1", "traceback": "..."})
    for ignored in (root / "a" / ".partial-4444-1-ab@host", root / ".hydra" / "a" / "now"):
        ignored.mkdir(parents=True)
        records.write_json(ignored / "status.json", {"status": "running"})
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
    run_table.write(table.collect(root), path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert float(rows[0]["metrics.comparison.model.risk"]) == 0.1 + 0.2
    assert rows[2]["metrics.comparison.model.risk"] == ""
    assert rows[2]["error"] == "`dim` must be >= 1"


def test_printed_table_shows_what_differs(root):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    run_table.show(table.collect(root), console)
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
        run_table.write(table.collect(root), tmp_path / "out.xlsx")


def test_parquet_without_polars_says_which_extra(root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(UnsupportedProblemError, match=r"icl-lab\[tables\]"):
        run_table.write(table.collect(root), tmp_path / "out.parquet")


def test_parquet_holds_the_same_numbers(root, tmp_path):
    polars = pytest.importorskip("polars")
    path = tmp_path / "out.parquet"
    run_table.write(table.collect(root), path)
    frame = polars.read_parquet(path)
    assert frame["metrics.comparison.model.risk"].to_list() == [0.1 + 0.2, 0.5, None]


def test_a_column_has_one_type_and_what_json_cannot_write_is_a_number_again(tmp_path):
    root = tmp_path / "runs"
    _run(root / "a" / "1111", {"x": 1, "y": True, "z": 3, "empty": None}, {"loss": 1, "where": {"bound": "inf"}})
    _run(root / "a" / "2222", {"x": 2, "y": False, "z": "three", "empty": None}, {"loss": 0.5, "where": {"bound": "nan"}})
    rows = table.collect(root)
    types = {name: {type(row[name]) for row in rows} for name in run_table.columns(rows)}
    expected = {"x": int, "y": bool, "z": str, "metrics.loss": float, "metrics.where.bound": float}
    assert {name: types[name] for name in expected} == {name: {kind} for name, kind in expected.items()}
    assert math.isinf(rows[0]["metrics.where.bound"])
    assert math.isnan(rows[1]["metrics.where.bound"])
    assert rows[0]["empty"] is None


def test_circumstances_are_apart_from_results_and_come_last(tmp_path):
    root = tmp_path / "runs"
    _run(root / "a" / "1111", {"x": 1}, {"training": {"seconds": 3.5, "loss": 0.5}})
    _run(root / "a" / "2222", {"x": 2, "y": 1}, {"training": {"seconds": 2.5, "loss": 0.25}})
    for seconds, name in ((1.0, "1111"), (2.0, "2222")):
        status = records.read_json(root / "a" / name / "status.json")
        records.write_json(root / "a" / name / "status.json", {**status, "seconds": seconds, "provenance": {"cpus": 2}})
    names = run_table.columns(table.collect(root))
    apart = [name for name in names if name.startswith(run_table.CIRCUMSTANCES)]
    assert names[-len(apart) :] == apart
    assert set(apart) == {"status.training_seconds", "status.seconds", "status.provenance.cpus"}
    assert "metrics.training.seconds" not in names
    assert "metrics.training.loss" in names


def test_ten_thousand_configurations_are_parsed_once_where_they_agree(tmp_path, monkeypatch):
    # The time itself depends on the machine; what makes it short is that equal sections are not parsed again.
    root = tmp_path / "runs"
    for seed in range(20):
        _run(root / "a" / f"{seed:04d}", {"task": {"dim": 3, "covariance": [2.0, 1.0]}, "seed": seed}, {"loss": 0.5})
    parsed = []
    load = yaml.load
    monkeypatch.setattr(yaml, "load", lambda text, loader: parsed.append(text) or load(text, loader))
    records._load_entry.cache_clear()
    rows = table.collect(root)
    assert [row["seed"] for row in rows] == list(range(20))
    assert {row["task.covariance"] for row in rows} == {"[2.0, 1.0]"}
    assert sum("covariance" in text for text in parsed) == 1


def test_csv_has_the_same_types_in_polars(root, tmp_path):
    polars = pytest.importorskip("polars")
    run_table.write(table.collect(root), tmp_path / "out.csv")
    frame = polars.read_csv(tmp_path / "out.csv")
    assert frame["task.dim"].to_list() == [3, 4, 0]
    assert frame["metrics.comparison.model.risk"].to_list() == [0.1 + 0.2, 0.5, None]


def _run(folder, config, metrics):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"run_root": "x", "experiment": folder.parent.name, **config}))
    records.write_json(folder / "metrics.json", metrics)
    records.write_json(folder / "status.json", {"status": "done", "verdict": "converged"})
