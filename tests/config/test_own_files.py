"""Files of a user's own, in a folder given with `--config-dir`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import icl_lab
from icl_lab.config import paths, yaml12
from icl_lab.config.compose import checked, register
from icl_lab.core.errors import InvalidValueError
from icl_lab.runs.hydra.launch import one_sentence

CHECKOUT = Path(icl_lab.__file__).parent.parent
MINE = """
kind: linear_regression
dim: 2
context_length: 1e1
noise_std: 0
covariance: {condition_number: 4}
rotate: null
task_covariance: null
"""
OVER = "# @package _global_\ntask:\n  covariance: {power_law: 2}\n"


@pytest.fixture
def composed(tmp_path):
    """A function: overrides and the texts of files -> the configuration that they give."""

    def compose_with(*overrides, **files):
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        register()
        with initialize_config_dir(str(paths.config_dir()), version_base="1.3"):
            return checked(compose("run", overrides=[*overrides, f"hydra.searchpath=['{tmp_path}']"]))

    return compose_with


def test_a_later_file_and_the_command_line_replace_a_mapping_of_a_file(composed):
    files = {"task__mine": MINE, "experiment__over": OVER}
    assert composed("task=mine", **files).task.covariance == {"condition_number": 4}
    assert composed("task=mine", "experiment=over", **files).task.covariance == {"power_law": 2}
    assert composed("task=mine", "task.covariance=[2,1]", **files).task.covariance == [2, 1]
    overridden = composed("experiment=over", "task.covariance={condition_number: 3}", **files)
    assert overridden.task.covariance == {"condition_number": 3}


def test_a_task_without_a_schema_gets_the_types_of_its_kind(composed):
    task = composed("task=mine", task__mine=MINE).task
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
def test_what_is_wrong_with_a_file_is_one_sentence(composed, text, message):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        composed("task=bad", task__bad=text)
    sentence = one_sentence(caught.value)
    assert message in sentence
    assert "\n" not in sentence


def run(*arguments, cwd):
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-m", "icl_lab.cli", "run", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def test_options_may_follow_overrides(tmp_path):
    (tmp_path / "own" / "task").mkdir(parents=True)
    (tmp_path / "own" / "task" / "mine.yaml").write_text(MINE)
    done = run("task=mine", "--config-dir", "own", "seed=3", "--cfg", "job", "experiment=1e5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = yaml12.load(done.stdout)
    assert (config["task"]["dim"], config["seed"], config["experiment"]) == (2, 3, "1e5")


def test_a_broken_file_ends_the_command_in_misuse(tmp_path):
    (tmp_path / "own" / "task").mkdir(parents=True)
    (tmp_path / "own" / "task" / "bad.yaml").write_text("kind: sine\n\tx: 1\n")
    done = run("task=bad", "--config-dir", "own", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("icl-lab: ")
    assert "Traceback" not in done.stderr
    assert "bad.yaml, line 2" in done.stderr


@pytest.mark.parametrize("name", ["2024", "1e5", "true", "null", "nan", "007", "1_0", "'2024'", "'null'", "1.5", "10-11"])
def test_a_plain_name_of_a_series_may_look_like_anything(composed, name):
    assert composed(f"experiment={name}").experiment == name.strip("'")


@pytest.mark.parametrize("name", ["-1", "", "'a b'", "../x", "'a/b'"])
def test_a_name_that_is_no_folder_is_refused(composed, name):
    with pytest.raises(InvalidValueError, match="`experiment` must be a name of letters"):
        composed(f"experiment={name}")
