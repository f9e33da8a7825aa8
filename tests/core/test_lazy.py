"""Names that packages import when they are asked for: they are those that type checkers see, and are loaded by nobody else."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import icl_lab
from icl_lab.core import lazy

LAZY = ("icl_lab.models", "icl_lab.report", "icl_lab.theory")


@pytest.mark.parametrize("package", LAZY)
def test_names_are_those_that_type_checkers_see(package):
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: statement.module for statement in block.body for alias in statement.names}
    places = ast.literal_eval(tree.body[-1].value.args[1])
    assert places.keys() == seen.keys()
    for name, origin in seen.items():
        expected = getattr(importlib.import_module(origin), name, None) or importlib.import_module(f"{origin}.{name}")
        assert getattr(module, name) is expected


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'icl_lab.theory' has no attribute 'nobody2026'"):
        lazy.names("icl_lab.theory", {})("nobody2026")


def test_a_run_without_figures_loads_neither_matplotlib_nor_flax():
    program = (
        "import sys, icl_lab.runs.execute\n"
        "print([name for name in ('matplotlib', 'flax', 'scipy.optimize', 'scipy.integrate', 'polars') if name in sys.modules])"
    )
    folder = Path(icl_lab.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr
