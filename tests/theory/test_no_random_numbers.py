"""A closed form draws no random number: what has to be sampled is an argument, drawn where it is compared."""

import ast
from pathlib import Path

import pytest

from icl_lab import theory

FOLDER = Path(theory.__file__).parent
DRAWS = {"random", "prng", "default_rng", "Generator"}


def names(source: str) -> set[str]:
    """Every name, attribute and part of an import of a module."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            parts = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found.update(part for name in parts for part in name.split("."))
    return found


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: str(path.relative_to(FOLDER)))
def test_no_module_of_theory_draws(path):
    assert not names(path.read_text(encoding="utf-8")) & DRAWS


@pytest.mark.parametrize(
    "source",
    [
        "import numpy as np\nnp.random.default_rng(0)",
        "from jax import random",
        "import numpy.random",
        "from icl_lab.core import prng",
    ],
)
def test_a_draw_is_seen(source):
    assert names(source) & DRAWS
