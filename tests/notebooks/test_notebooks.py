"""Every notebook as a reader runs it: a fresh kernel, no error, nothing on stderr, the committed cells, within its time."""

import importlib.util
import time
from pathlib import Path

import pytest

pytest.importorskip("jupytext", reason="needs jupytext, of the `notebooks` extra")
pytest.importorskip("nbclient", reason="needs nbclient, of the `notebooks` extra")
pytest.importorskip("ipykernel", reason="needs ipykernel, of the `notebooks` extra")

FOLDER = Path(__file__).parents[2] / "notebooks"
LIMIT = 90
"""Seconds on two cores of a quiet machine; the suite shares them among workers, so the test gives it three times as many."""

spec = importlib.util.spec_from_file_location("build_notebooks", FOLDER / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)

# The libraries of Jupyter warn about themselves, differently in every version.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.claims]

EXPECTED = {"quickstart", "zhang2023", "mahankali2023", "vonoswald2022", "zheng2024", "zhou2025", "conjecture"}


def test_the_notebooks_are_all_there():
    assert set(build.names()) == EXPECTED
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == EXPECTED


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_notebook_runs(name):
    start = time.monotonic()
    notebook = build.execute(name)
    assert build.problems(name, notebook) == []
    assert time.monotonic() - start < 3 * LIMIT


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_committed_notebook_reads_well(name):
    """Outputs are there, with figures, small, and without the traces of the machine that made them."""
    path = FOLDER / f"{name}.ipynb"
    text = path.read_text(encoding="utf-8")
    assert len(text) < 1_000_000
    assert "image/png" in text
    assert "Traceback" not in text
    for trace in ("/home/", "/root/", "/tmp/", "/work"):
        assert trace not in text, f"{path.name} shows a path of the machine that made it"
    cells = build.nbformat.read(path, as_version=4).cells
    assert all(cell.execution_count is not None for cell in cells if cell.cell_type == "code")
    assert not any(output.get("name") == "stderr" for cell in cells for output in cell.get("outputs", ()))
