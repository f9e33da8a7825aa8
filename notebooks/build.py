"""Runs the notebooks: X.py is the source (percent format), X.ipynb the same cells with their outputs, for readers.

    python notebooks/build.py [NAME ...] [--check]

Every script is run cell by cell in a fresh kernel, and the notebook is written with its outputs and without the metadata that
change from run to run. With --check nothing is written. The exit status is 1 if a notebook is not the pair of its script, or
raised, or wrote to stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent
TIMEOUT = 600
"""Seconds for the start of a kernel and for a cell, also on a machine that does much else."""
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def names() -> list[str]:
    """Every notebook, the quickstart first."""
    found = {path.stem for path in FOLDER.glob("*.py")} - {Path(__file__).stem}
    return sorted(found, key=lambda name: (name != "quickstart", name == "conjecture", name))


def execute(name: str) -> NotebookNode:
    """The notebook of a script, its cells run in order in a fresh kernel.

    Raises:
      CellExecutionError: a cell raised.
    """
    notebook = jupytext.read(FOLDER / f"{name}.py")
    # A kernel warns that it talks to us in plain text, which is so on any machine; errors it still tells.
    quiet = ["--log-level=ERROR"]
    place = {"metadata": {"path": str(FOLDER)}}
    limits = {"timeout": TIMEOUT, "startup_timeout": TIMEOUT}
    client = NotebookClient(notebook, kernel_name="python3", resources=place, extra_arguments=quiet, **limits)
    # Figures go into the notebook, whatever backend the shell asks for.
    client.execute(env={name: value for name, value in os.environ.items() if name != "MPLBACKEND"})
    notebook.metadata = NotebookNode(kernelspec=NotebookNode(KERNEL), language_info=NotebookNode(name="python"))
    for index, cell in enumerate(notebook.cells):
        cell.metadata = NotebookNode()
        cell.id = f"cell-{index}"  # else random, and every line of the diff with it
    return notebook


def sources(notebook: NotebookNode) -> list[tuple[str, str]]:
    """Kind and text of every cell: what a script and its notebook have in common."""
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def problems(name: str, notebook: NotebookNode) -> list[str]:
    """What a reader should not meet: a committed notebook that is not the script's, and anything a cell wrote to stderr."""
    found = []
    path = FOLDER / f"{name}.ipynb"
    if not path.exists() or sources(nbformat.read(path, as_version=4)) != sources(notebook):
        found.append(f"{name}.ipynb has other cells than {name}.py: run `python notebooks/build.py {name}`")
    for cell in notebook.cells:
        noise = [output.text for output in cell.get("outputs", ()) if output.get("name") == "stderr"]
        found += [f"{name}: {cell.source.splitlines()[0]!r} wrote to stderr: {text}" for text in noise]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the notebooks and write them with their outputs.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all ({', '.join(names())})")
    parser.add_argument("--check", action="store_true", help="write nothing; fail on what a reader should not meet")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(names()))
    if unknown:
        parser.error(f"no notebook is called {', '.join(unknown)}; there are {', '.join(names())}")
    failures = []
    for name in options.names or names():
        start = time.perf_counter()
        notebook = execute(name)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        if not options.check:
            nbformat.write(notebook, FOLDER / f"{name}.ipynb")
        failures += problems(name, notebook)
    print(*failures, sep="\n", file=sys.stderr, end="\n" if failures else "")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
