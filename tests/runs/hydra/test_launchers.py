"""Launchers of Hydra's plugins, each with four runs on this machine: local processes, submitit without Slurm, a local Ray."""

import csv
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

import icl_lab

CHECKOUT = Path(icl_lab.__file__).parent.parent
MAIN = "import sys; from icl_lab.cli import main; sys.exit(main())"
SMALL = ("analysis.prompts=200", "analysis.context_lengths=[]", "analysis.figures=false")
EXTRAS = {"joblib": "cluster", "submitit": "cluster", "ray": "ray"}
LAUNCHERS = [
    ("joblib", "joblib"),
    ("joblib", "local"),
    ("submitit", "submitit_local"),
    ("submitit", "slurm_local"),
    ("ray", "ray"),
    ("ray", "ray_tasks"),
]


def icl_lab_command(*arguments, cwd):
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", MAIN, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=500)


def is_installed(plugin):
    return any(importlib.metadata.distributions(name=f"hydra-{plugin}-launcher"))


def need(plugin):
    if not is_installed(plugin):
        pytest.skip(f"hydra-{plugin}-launcher is not installed (pip install 'icl-lab[{EXTRAS[plugin]}]')")


@pytest.mark.slow
@pytest.mark.parametrize(("plugin", "launcher"), LAUNCHERS)
def test_four_runs_and_their_table(plugin, launcher, tmp_path):
    need(plugin)
    sweep = ("run", "-m", f"hydra/launcher={launcher}", "task.dim=2,3", "seed=0,1", *SMALL)
    done = icl_lab_command(*sweep, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert icl_lab_command("table", "runs", "-o", "runs.csv", cwd=tmp_path).returncode == 0
    with (tmp_path / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted((row["task.dim"], row["seed"]) for row in rows) == [("2", "0"), ("2", "1"), ("3", "0"), ("3", "1")]
    assert {row["status"] for row in rows} == {"done"}
    assert max(float(row["metrics.theory.weight_distance"]) for row in rows) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("plugin", "launcher"), [row for row in LAUNCHERS if row[1] in ("local", "slurm_local", "ray_tasks")])
def test_jobs_that_fail_are_named_and_the_others_are_done(plugin, launcher, tmp_path):
    need(plugin)
    # One run cannot be posed, one ends short of convergence, two are well.
    sweep = ("run", "-m", f"hydra/launcher={launcher}", "task.dim=0,2", "trainer.max_steps=1,100000", *SMALL)
    done = icl_lab_command(*sweep, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    failures = [line for line in done.stderr.splitlines() if line.startswith("icl-lab: job ")]
    assert len(failures) == 3
    assert "task.dim=0 trainer.max_steps=1" in failures[0]
    assert "`task.dim` must be" in failures[0]
    assert "task.dim=2 trainer.max_steps=1" in failures[2]
    assert ") ended as plateau: " in failures[2]
    statuses = sorted(path.name.endswith(".failed") for path in (tmp_path / "runs" / "default").iterdir())
    assert statuses == [False, False, True, True]


@pytest.mark.parametrize("plugin", ["joblib", "submitit", "ray"])
def test_missing_plugin_is_one_sentence(plugin, tmp_path):
    if is_installed(plugin):
        pytest.skip("the plugin is installed")
    launcher = {"joblib": "local", "submitit": "slurm", "ray": "ray_tasks"}[plugin]
    done = icl_lab_command("run", "-m", f"hydra/launcher={launcher}", "seed=0,1", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("icl-lab: ")
    assert len(done.stderr.splitlines()) == 1
    assert f"icl-lab[{EXTRAS[plugin]}]" in done.stderr
