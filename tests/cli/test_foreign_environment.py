"""The user's matplotlib, locale, terminal and JAX settings change no number, lose no run and end in no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import icl_lab
from icl_lab.runs import records, store

CHECKOUT = Path(icl_lab.__file__).parent.parent
MAIN = "import sys; from icl_lab.cli import main; sys.exit(main())"
SMALL = ("analysis.prompts=100", "analysis.context_lengths=[]", "task.dim=2", "task.context_length=5")


def icl_lab_in(cwd, *arguments, **variables):
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "JAX_PLATFORMS": "cpu", **variables}
    command = [sys.executable, "-c", MAIN, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, timeout=300, errors="replace")


@pytest.mark.parametrize(
    ("variable", "value"), [("JAX_PLATFORMS", "cuda"), ("JAX_PLATFORMS", "nonsense"), ("XLA_FLAGS", "--xla_nonsense=1")]
)
@pytest.mark.parametrize("verb", [("doctor",), ("verify", "zhang2023.setup", "--json", "-")])
def test_settings_without_a_device_are_one_sentence(verb, variable, value, tmp_path):
    done = icl_lab_in(tmp_path, *verb, **{variable: value})
    assert done.returncode == 2
    assert f"`{variable}` must" in done.stderr
    assert value in done.stderr
    # On a busy machine the lines of the display stand before it.
    assert all(line.startswith("icl-lab: ") for line in done.stderr.splitlines())
    assert sum(f"`{variable}` must" in line for line in done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_run_without_a_device_leaves_no_record(tmp_path):
    done = icl_lab_in(tmp_path, "run", *SMALL, JAX_PLATFORMS="cuda")
    assert done.returncode == 2
    assert "`JAX_PLATFORMS` must" in done.stderr
    assert store.run_folders(tmp_path) == []


@pytest.mark.slow
def test_jax_settings_change_no_number(tmp_path):
    foreign = {
        "JAX_DEFAULT_PRNG_IMPL": "rbg",
        "JAX_THREEFRY_PARTITIONABLE": "0",
        "JAX_RANDOM_SEED_OFFSET": "7",
        "JAX_ENABLE_X64": "perhaps",
        "JAX_DEBUG_NANS": "1",
        "JAX_DISABLE_JIT": "1",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_TRANSFER_GUARD": "disallow",
    }
    found = []
    for root, variables in (("plain", {}), ("foreign", foreign)):
        done = icl_lab_in(tmp_path, "run", *SMALL, "analysis.figures=false", f"run_root={root}", **variables)
        assert done.returncode == 0, done.stderr
        (folder,) = store.run_folders(tmp_path / root)
        metrics = records.read_json(folder / "metrics.json")
        metrics["training"].pop("seconds", None)
        found.append((folder.name, metrics))
    assert found[0] == found[1]


@pytest.mark.slow
def test_foreign_backend_style_and_locale_do_no_harm(tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nsavefig.format: pdf\naxes.prop_cycle: nonsense\n")
    foreign = {
        "MPLBACKEND": "module://not_installed.backend",
        "MPLCONFIGDIR": "/dev/null/nowhere",
        "LC_ALL": "POSIX",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii",
        "TERM": "dumb",
        "COLUMNS": "1",
        "NO_COLOR": "1",
    }
    done = icl_lab_in(tmp_path, "run", *SMALL, **foreign)
    assert done.returncode == 0, done.stderr
    assert "font cache" not in done.stdout + done.stderr
    (folder,) = store.run_folders(tmp_path / "runs")
    assert (folder / "figures" / "weights.png").is_file()
    for verb in (("verify", "zhang2023.setup"), ("report", "runs", "-o", "page")):
        done = icl_lab_in(tmp_path, *verb, **foreign)
        assert done.returncode == 0, done.stderr
