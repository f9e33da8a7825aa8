"""Files of a user's own, in a folder given with `--config-dir`."""

import pytest
from hydra import compose, initialize_config_dir

from icl_lab import cli
from icl_lab.config import paths, yaml12
from icl_lab.config.compose import checked, register

MINE = """
kind: linear_regression
dim: 2
context_length: 1e1
noise_std: 0
covariance: {condition_number: 4}
rotate: null
task_covariance: null
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A function: group/name -> text of a file below `own`; commands run beside that folder."""
    monkeypatch.chdir(tmp_path)

    def write(**files):
        for name, text in files.items():
            path = tmp_path / "own" / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".yaml").write_text(text)

    return write


def composed(capsys, *arguments):
    assert cli.main(["run", *arguments, "--cfg", "job"]) == 0
    return yaml12.load(capsys.readouterr().out)


def test_options_may_follow_overrides_and_a_command_line_replaces_a_mapping_of_a_file(folder, capsys):
    folder(task__mine=MINE, experiment__over="# @package _global_\ntask:\n  covariance: {power_law: 2}\n")
    at = ("--config-dir", "own")
    assert composed(capsys, "task=mine", *at)["task"]["covariance"] == {"condition_number": 4}
    assert composed(capsys, "task=mine", "experiment=over", *at)["task"]["covariance"] == {"power_law": 2}
    assert composed(capsys, "task=mine", "task.covariance=[2,1]", *at)["task"]["covariance"] == [2, 1]
    assert composed(capsys, "experiment=over", *at, "task.covariance={condition_number: 3}")["task"]["covariance"] == {
        "condition_number": 3
    }


def test_a_task_without_a_schema_gets_the_types_of_its_kind(folder):
    folder(task__mine=MINE)
    register()
    with initialize_config_dir(str(paths.config_dir()), version_base="1.3"):
        config = compose("run", overrides=["task=mine", "hydra.searchpath=[own]"])
    task = checked(config).task
    assert (task.context_length, task.noise_std) == (10, 0.0)
    assert type(task.context_length) is int


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: linear_regression\n\tdim: 2\n", "bad.yaml, line 2, column 1: a tab stands where YAML takes spaces only."),
        ("kind: sphere\nkind: sine\n", "bad.yaml, line 2, column 1: the key `kind` stands twice."),
        ("- 1\n", "bad.yaml must hold `key: value` lines; got list [1]."),
        ("", "`task.kind` must say what is described: linear_regression"),
        ("kind: linear\n", "`task.kind` must be one of linear_regression"),
        ("kind: linear_regression\ndim: 2\n", "`task.context_length` has no value."),
        (MINE + "fun: 1\n", "Unknown configuration key `task.fun`; accepted here: context_length"),
        (MINE.replace("dim: 2", "dim: two"), "`task.dim`: Value 'two' of type 'str' could not be converted to Integer."),
        (MINE.replace("dim: 2", "dim: 1:30"), "`task.dim`: Value '1:30' of type 'str'"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(folder, capsys, text, message):
    folder(task__bad=text)
    assert cli.main(["run", "task=bad", "--config-dir", "own"]) == cli.MISUSE
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("icl-lab: ")
    assert error.count("\n") == 1
