"""The command line as a user meets it: processes of their own, started in an empty folder."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import icl_lab

CHECKOUT = Path(icl_lab.__file__).parent.parent
MAIN = "import sys; from icl_lab.cli import main; sys.exit(main())"


def icl_lab_command(*arguments, cwd):
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", MAIN, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def python(program, cwd):
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    return subprocess.run([sys.executable, "-c", program], env=environment, cwd=cwd, capture_output=True, text=True)


def test_help_answers_without_loading_jax(tmp_path):
    program = (
        "import sys\n"
        "from icl_lab.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "heavy = {'jax', 'numpy', 'hydra', 'matplotlib', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = python(program, tmp_path)
    assert done.returncode == 0, done.stderr
    for verb in ("run", "claims", "verify", "table"):
        assert verb in done.stdout


def test_composing_a_configuration_loads_no_jax_and_keeps_a_plain_experiment_name(tmp_path):
    program = (
        "import sys\n"
        "from icl_lab.cli import main\n"
        "status = main(['run', 'experiment=my-series', 'task.dim=7', '--cfg', 'job'])\n"
        "assert status == 0 and 'jax' not in sys.modules\n"
    )
    done = python(program, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "experiment: my-series" in done.stdout
    assert "dim: 7" in done.stdout


def test_sweep_stores_good_runs_records_bad_ones_and_goes_on_where_it_stopped(tmp_path):
    sweep = (
        "run",
        "run_root=store",
        "experiment=sweep",
        "task.dim=2",
        "analysis.prompts=200",
        "analysis.context_lengths=[]",
        "analysis.figures=false",
        "-m",
        "task.covariance=[2.0,1.0],[2.0,-1.0]",
        "task.context_length=0,6",
    )
    first = icl_lab_command(*sweep, cwd=tmp_path)
    assert first.returncode == 2
    assert "its smallest eigenvalue is -1" in first.stderr
    assert "`context_length` must be an integer >= 1; got 0" in first.stderr
    assert "Traceback" not in first.stdout + first.stderr
    assert "4 points, 1 done" in first.stdout
    assert "converged" in first.stdout

    folders = {path.name for path in (tmp_path / "store" / "sweep").iterdir()}
    assert len(folders) == 4
    assert sum(name.endswith(".failed") for name in folders) == 3
    (good,) = (tmp_path / "store" / "sweep" / name for name in folders if not name.endswith(".failed"))
    assert {path.name for path in good.iterdir()} == {
        "config.yaml",
        "metrics.json",
        "status.json",
        "trajectory.npz",
        "weights.npz",
    }
    metrics = json.loads((good / "metrics.json").read_text())
    assert metrics["theory"]["weight_distance"] < 1e-6
    status = json.loads((good / "status.json").read_text())
    assert status["status"] == "done"
    assert status["provenance"]["precision"]["default_float"] == "float64"
    written = (good / "status.json").stat().st_mtime_ns

    second = icl_lab_command(*sweep, cwd=tmp_path)
    assert second.returncode == 2
    assert "4 points, 1 done; 1 in the store already" in second.stdout
    assert "converged" in second.stdout
    assert (good / "status.json").stat().st_mtime_ns == written
    assert {path.name for path in (tmp_path / "store" / "sweep").iterdir()} == folders

    table = icl_lab_command("table", "store", "-o", "runs.csv", cwd=tmp_path)
    assert table.returncode == 0, table.stderr
    with (tmp_path / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["status"] for row in rows) == ["done", "failed", "failed", "failed"]
    assert [row["metrics.theory.weight_distance"] for row in rows if row["status"] == "done"] == [
        repr(metrics["theory"]["weight_distance"])
    ]
    # Hydra's log area is beside the store, and nothing else is left in the folder the user was in.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs.csv", "store"]
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [".hydra", "sweep"]


def test_verify_writes_nothing_but_json_to_standard_output(tmp_path):
    done = icl_lab_command("verify", "vonoswald2022.prop1", "--set", "d=3", "--json", "-", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads(done.stdout)
    assert entry["id"] == "vonoswald2022.prop1"
    assert entry["parameters"]["d"] == 3
    assert entry["passed"] is True
    # A machine so busy that this takes more than six seconds hears which claim is running.
    assert all(line.startswith("icl-lab: ") and line.endswith(" s") for line in done.stderr.splitlines()), done.stderr
