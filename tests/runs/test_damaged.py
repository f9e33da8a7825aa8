"""Folders with files that are empty, cut or somebody else's: named with the reason, and the rest is shown."""

import shutil

import pytest
import yaml
from omegaconf import OmegaConf

from icl_lab import cli
from icl_lab.core.errors import DamagedRunError, InvalidValueError
from icl_lab.report import run_table
from icl_lab.runs import drawing, execute, identify, records, store, sweep, table

FILES = ("status.json", "metrics.json", "config.yaml", "weights.npz")
DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "foreign": lambda content: b'["somebody", "else\'s"]\n',
    "binary": lambda content: b"\x89PNG\xff\x00" * 7,
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A root with a run that has been done, and its configuration."""
    from hydra import compose, initialize_config_dir

    from icl_lab.config import paths, schema

    schema.register()
    root = tmp_path_factory.mktemp("published") / "runs"
    small = ("analysis.prompts=100", "analysis.figures=false", "analysis.context_lengths=[]", "task.dim=2")
    with initialize_config_dir(str(paths.config_dir()), version_base="1.3"):
        config = compose("run", [f"run_root={root}", "task.context_length=5", *small])
    folder = execute.execute(config).folder
    return root, folder, config


@pytest.fixture
def runs(published, tmp_path):
    """A copy of that root, with the run twice: one to be damaged, and `other`."""
    root, folder, config = published
    shutil.copytree(root, tmp_path / "runs")
    copy = tmp_path / "runs" / folder.relative_to(root)
    shutil.copytree(copy, copy.with_name("other"))
    return copy, OmegaConf.merge(config, {"run_root": str(tmp_path / "runs")})


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_every_reader_names_the_damaged_file(file, damage, runs, tmp_path, capsys):
    folder, config = runs
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(DAMAGES[damage](whole))
    if damage == "cut" and file == "config.yaml":
        (folder / file).write_bytes(b"task: {dim: [2")
    read_by_table = file != "weights.npz"
    assert cli.main(["table", str(tmp_path / "runs")]) == (1 if read_by_table else 0)
    output = capsys.readouterr()
    assert "other" in output.out
    assert (str(folder / file) in output.err) is read_by_table
    assert cli.main(["report", str(tmp_path / "runs"), "-o", str(tmp_path / "page")]) == (1 if read_by_table else 0)
    assert (str(folder / file) in capsys.readouterr().err) is read_by_table
    if file != "metrics.json":
        with pytest.raises(DamagedRunError, match=f"{file} is damaged"):
            identify.load(folder)
    with pytest.raises(DamagedRunError, match=f"{file} is damaged"):
        execute.execute(config)
    (point,) = sweep.execute_all([execute.resolve(config)])
    assert isinstance(point.error, DamagedRunError)
    assert "damaged" in capsys.readouterr().out


def test_damaged_run_is_a_row_that_says_so(runs, tmp_path):
    folder, _ = runs
    (folder / "status.json").write_text("{}")
    rows = {row["hash"]: row for row in table.collect(tmp_path / "runs")}
    assert rows["other"]["status"] == "done"
    assert rows[folder.name]["status"] == run_table.DAMAGED
    assert "lacks status" in rows[folder.name]["error"]


@pytest.mark.parametrize(
    ("group", "key"), [("model", "layer_norm"), ("model", "clip"), ("task", "rotate"), ("analysis", "seed"), (None, "seed")]
)
def test_record_of_an_earlier_version_is_completed_with_defaults(group, key, runs):
    folder, _ = runs
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del (config if group is None else config[group])[key]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert identify.load(folder).model == identify.load(folder.with_name("other")).model


def test_record_without_a_kind_is_refused_in_a_sentence(runs):
    folder, _ = runs
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["model"]["kind"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InvalidValueError, match=r"`model\.kind` of .* one of linear_attention, mixer, softmax_attention"):
        identify.load(folder)


def test_training_is_kept_without_its_figures_if_drawing_fails(published, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(drawing, "training_curves", lambda *_: "no curves")
    config = OmegaConf.merge(published[2], {"run_root": str(tmp_path / "new"), "analysis": {"figures": True}})
    outcome = execute.execute(config)
    assert outcome.status == "done"
    assert "has no attribute 'drifts'" in records.read_json(outcome.folder / "status.json")["figures"]
    assert "kept without its figures" in capsys.readouterr().err


def test_names_are_printed_as_they_are(published, tmp_path, capsys):
    for name in ("runs[old]", "a[/b]", "x:smile:[red]"):
        config = OmegaConf.merge(published[2], {"run_root": str(tmp_path / name), "analysis": {"figures": False}})
        folder = execute.execute(config).folder
        assert str(folder) in capsys.readouterr().out.replace("\n", "")
        execute.execute(config)
        assert str(folder) in capsys.readouterr().out.replace("\n", "")
        sweep.execute_all([execute.resolve(config)])
        assert name in capsys.readouterr().out.replace("\n", "")


def test_markup_in_values_of_a_table_is_text(tmp_path, capsys):
    for index, value in enumerate(("[/a]", "[red]b", ":smile:")):
        folder = tmp_path / "a" / f"{index}.failed"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump({"task": {"kind": value, f"k{value}": index}}))
        records.write_json(folder / "status.json", {"status": "failed", "error": value})
    assert cli.main(["table", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(value in printed for value in ("[/a]", "[red]b", ":smile:"))


def test_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store.run_folder({"run_root": "~/runs", "experiment": "e"}).is_relative_to(tmp_path / "runs")
