"""Two processes at one sweep, killed at random moments: nothing is lost, nothing is doubled, and not a bit differs."""

import csv
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import icl_lab
from icl_lab.runs import records, store, table

CHECKOUT = Path(icl_lab.__file__).parent.parent
MAIN = "import sys; from icl_lab.cli import main; sys.exit(main())"
SWEEP = ("-m", "task.dim=2", "analysis.prompts=200", "analysis.context_lengths=[]", "analysis.figures=false")
FLOWS = (*SWEEP, "task.context_length=5,10,20", "trainer.init_scale=0.05,0.1,0.2,0.3", "seed=0,1")
DESCENTS = (
    *SWEEP,
    "trainer=adam",
    "objective=streamed",
    "objective.batch=64",
    "trainer.steps=5000",
    "task.noise_std=0,0.5",
    "seed=0,1",
)


def command(cwd, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(cwd / "cache")}
    return subprocess.Popen([sys.executable, "-c", MAIN, *arguments], cwd=cwd, env=environment, stdout=subprocess.DEVNULL)


def sweep_until_done(cwd, arguments, kills, pauses):
    """Two processes on the root `disturbed`; a random one is killed after each pause, and started anew. The kills made."""
    start = lambda: command(cwd, "run", "run_root=disturbed", *arguments)  # noqa: E731
    processes, killed = [start(), start()], 0
    while killed < kills and any(process.poll() is None for process in processes):
        time.sleep(pauses())
        chosen = random.randrange(2)
        if processes[chosen].poll() is None:
            processes[chosen].kill()
            killed += 1
        processes[chosen].wait()
        processes[chosen] = start()
    assert [process.wait() for process in processes] == [0, 0]
    return killed


def rows_of(cwd, root):
    """The rows of `icl-lab table` as text, without the columns of the circumstances."""
    assert command(cwd, "table", root, "-o", f"{root}.csv").wait() == 0
    with (cwd / f"{root}.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith(table.CIRCUMSTANCES)} for row in csv.DictReader(file)]


def check_a_disturbed_sweep(cwd, arguments, points, kills, pauses):
    undisturbed = command(cwd, "run", "run_root=undisturbed", *arguments)
    assert undisturbed.wait() == 0
    killed = sweep_until_done(cwd, arguments, kills, pauses)
    # A last start finds everything done and clears away what the last kills left.
    assert command(cwd, "run", "run_root=disturbed", *arguments).wait() == 0
    expected, found = rows_of(cwd, "undisturbed"), rows_of(cwd, "disturbed")
    assert len(expected) == points
    assert {row["status"] for row in expected} == {"done"}
    assert found == expected
    runs = cwd / "disturbed" / "default"
    assert sorted(path.name for path in runs.iterdir()) == sorted(row["hash"] for row in expected)
    return killed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_flows_killed_twenty_times(tmp_path):
    """The pauses are those of a random moment, from the import of Python modules to the publishing of the last run."""
    killed = check_a_disturbed_sweep(tmp_path, FLOWS, 24, kills=20, pauses=lambda: random.uniform(1, 12))
    print(f"{killed} kills")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_descents_killed_go_on_from_their_checkpoints(tmp_path):
    check_a_disturbed_sweep(tmp_path, DESCENTS, 4, kills=10, pauses=lambda: random.uniform(4, 12))
    resumed = [records.read_json(folder / "status.json")["resumed"] for folder in store.run_folders(tmp_path / "disturbed")]
    print(f"{sum(resumed)} of {len(resumed)} resumed")
