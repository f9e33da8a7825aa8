"""A session of the suite ends by itself, as a failure, when the process of a worker dies."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DIE = "os.kill(os.getpid(), 9)"
IN_ONE = f"if os.environ.get('PYTEST_XDIST_WORKER') == 'gw1': {DIE}"


@pytest.fixture
def session(tmp_path):
    """A function: further files by name -> a session of small test files that has the suite's options."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["addopts"]
    (tmp_path / "pytest.ini").write_text(f"[pytest]\naddopts = {options}\nmarkers =\n  slow: -\n  default_precision: -\n")
    for name in "abcdef":
        source = "import pytest\n@pytest.mark.parametrize('i', range(3))\ndef test_it(i): pass\n"
        (tmp_path / f"test_{name}.py").write_text(source)

    def run(**files):
        for name, source in files.items():
            (tmp_path / f"{name}.py").write_text(source)
        plugins = ["-p", "dying"] if "dying" in files else []
        command = [sys.executable, "-m", "pytest", "-n", "2", "-p", "no:cacheprovider", *plugins]
        # Where this suite runs on workers itself, the inner session is none of them.
        outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        return subprocess.run(command, cwd=tmp_path, env=outside, capture_output=True, text=True, timeout=240)

    return run


def test_the_test_that_killed_its_worker_is_named(session):
    done = session(test_d=f"import os\ndef test_before(): pass\ndef test_killer(): {DIE}\ndef test_after(): pass\n")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "crashed while running 'test_d.py::test_killer'" in done.stdout


@pytest.mark.parametrize("when", ["pytest_sessionstart", "pytest_sessionfinish"])
@pytest.mark.slow
def test_a_worker_that_dies_between_tests_is_a_failure(session, when):
    conftest = (ROOT / "tests/conftest.py").read_text()
    done = session(conftest=conftest, dying=f"import os\ndef {when}(session):\n  {IN_ONE}\n")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "[gw1] node down" in done.stdout
