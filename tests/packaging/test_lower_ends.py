"""The package with the oldest releases that its ranges allow, in an environment of its own, outside the source tree."""

import os
import re
import shutil
import subprocess
import tomllib
import venv
from pathlib import Path

import pytest

import icl_lab

CHECKOUT = Path(icl_lab.__file__).parent.parent
TESTING = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "beartype")
TESTS = (
    "tests/core/test_compiled.py",
    "tests/claims/test_claim.py",
    "tests/models/test_flax.py",
    "tests/training/test_gradient_flow.py",
)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_lower_ends_of_the_ranges_run_and_pass(tmp_path):
    if not (CHECKOUT / "pyproject.toml").is_file():
        pytest.skip("needs the checkout")
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + [x for x in project["optional-dependencies"]["test"] if x.startswith(TESTING)]
    oldest = [re.sub(r">=([\d.]+).*", r"==\1", requirement) for requirement in wanted]
    venv.create(tmp_path / "env", with_pip=True)
    python = str(tmp_path / "env" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", *oldest], check=True, timeout=900)
    for name in ("icl_lab", "configs", "tests", "pyproject.toml"):
        copy = shutil.copytree if (CHECKOUT / name).is_dir() else shutil.copy
        copy(CHECKOUT / name, tmp_path / name)
    clean = {**os.environ, "PYTHONPATH": str(tmp_path), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    small = ["analysis.prompts=100", "analysis.figures=false", "task.dim=2", "task.context_length=5"]
    commands = (["-m", "icl_lab.cli", "run", *small], ["-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS])
    for command in commands:
        done = subprocess.run([python, *command], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
