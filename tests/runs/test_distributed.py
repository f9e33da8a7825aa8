"""Several processes as one machine: the environment says so, all of them compute, the first one writes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import icl_lab
from icl_lab.core.errors import InvalidValueError
from icl_lab.runs import distributed

MAIN = "import sys; from icl_lab.cli import main; sys.exit(main())"
SAMPLED = ("run", "objective=sampled", "objective.prompts=4000", "task.dim=2", "analysis.prompts=200", "analysis.figures=false")


def test_alone_without_the_variables(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")  # a job of one task
    distributed.join()
    assert distributed.is_first()
    assert distributed.as_first_says(True) is True


@pytest.mark.parametrize(("count", "index"), [("", ""), ("two", "0"), ("2", "2"), ("2", "-1")])
def test_an_address_needs_a_count_and_an_index_below_it(monkeypatch, count, index):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", count)
    monkeypatch.setenv("JAX_PROCESS_ID", index)
    with pytest.raises(InvalidValueError, match=f"`JAX_PROCESS_ID` .* got '{count}' and '{index}'"):
        distributed.join()


def start(folder, index, port):
    """One of two processes of the command, from a folder that both share."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(icl_lab.__file__).parents[1]),
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(index),
    }
    command = [sys.executable, "-c", MAIN, *SAMPLED]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def run_together(folder):
    """What both printed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [start(folder, index, port) for index in (0, 1)]
    printed = [process.communicate(timeout=500) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    return [out for out, _ in printed]


@pytest.mark.slow
def test_two_processes_share_a_run_which_the_first_writes(tmp_path):
    first, second = run_together(tmp_path)
    assert "CONVERGED" in first
    assert "CONVERGED" not in second
    (status,) = (tmp_path / "runs").rglob("status.json")
    assert json.loads(status.read_text())["provenance"]["device"]["count"] == 2

    alone = tmp_path / "alone"
    alone.mkdir()
    subprocess.run([sys.executable, "-c", MAIN, *SAMPLED], cwd=alone, check=True, capture_output=True)
    (expected,) = (alone / "runs").rglob("weights.npz")
    weights, found = np.load(expected), np.load(status.with_name("weights.npz"))
    for name in weights.files:
        np.testing.assert_allclose(found[name], weights[name], rtol=1e-9, atol=1e-9)

    assert "done already" in run_together(tmp_path)[0]
