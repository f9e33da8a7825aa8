"""The import arrows of pyproject.toml, and an import that changes nothing."""

import os
import subprocess
import sys
from pathlib import Path

import icl_lab

CHECKOUT = Path(icl_lab.__file__).parent.parent


def test_import_arrows_hold():
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_everything_prints_nothing_and_sets_no_jax_flag():
    program = (
        "import jax\n"
        "before = dict(jax.config.values)\n"
        "import icl_lab.runs.execute, icl_lab.claims.registry, icl_lab.report\n"
        "icl_lab.claims.registry.all_claims()\n"
        "after = dict(jax.config.values)\n"
        "assert before == after, {k: (before.get(k), v) for k, v in after.items() if before.get(k) != v}\n"
        "assert jax.numpy.ones(()).dtype == 'float32'\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
