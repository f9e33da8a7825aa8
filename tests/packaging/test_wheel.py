"""The wheel, installed into an environment of its own and run from an empty folder."""

import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import icl_lab

CHECKOUT = Path(icl_lab.__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the tracked parts of the checkout."""
    if not (CHECKOUT / "pyproject.toml").is_file():
        pytest.skip("needs the checkout")
    source = tmp_path_factory.mktemp("source")
    for name in ("icl_lab", "configs"):
        shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(CHECKOUT / name, source)
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)
    (path,) = target.glob("*.whl")
    return path


def test_wheel_holds_every_module_and_every_configuration_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"icl_lab/{path.relative_to(CHECKOUT / 'icl_lab')}" for path in (CHECKOUT / "icl_lab").rglob("*.py")} | {
        f"icl_lab/configs/{path.relative_to(CHECKOUT / 'configs')}" for path in (CHECKOUT / "configs").rglob("*.yaml")
    }
    expected |= {f"icl_lab/{path.relative_to(CHECKOUT / 'icl_lab')}" for path in (CHECKOUT / "icl_lab").rglob("templates/*")}
    expected |= {"icl_lab/py.typed", "icl_lab/report/icl_lab.mplstyle", "icl_lab/report/templates/page.html"}
    assert not expected - names
    assert any(name.endswith("LICENSE") for name in names)


def test_installed_command_runs_from_an_empty_folder(wheel, tmp_path):
    environment = tmp_path / "env"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        "-q",
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    # The dependencies are those of this environment, behind the new one's own packages: installing them takes minutes.
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    where = [str(python), "-c", "import icl_lab, icl_lab.config.paths as p; print(icl_lab.__file__, p.config_dir())"]
    located = subprocess.run(where, cwd=empty, env=clean, capture_output=True, text=True, check=True, timeout=60).stdout
    assert located.split() == [str(packages / "icl_lab" / "__init__.py"), str(packages / "icl_lab" / "configs")]

    quick = ["task.dim=2", "analysis.prompts=200", "analysis.context_lengths=[]"]
    command = [str(environment / "bin" / "icl-lab"), "run", *quick]
    done = subprocess.run(command, cwd=empty, env=clean, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CONVERGED" in done.stdout
    (folder,) = (empty / "runs" / "default").iterdir()
    figures = {path.name for path in (folder / "figures").iterdir()}
    assert figures == {
        f"{name}.{kind}" for name in ("training", "risk_curve", "invariants", "weights") for kind in ("png", "csv")
    }
