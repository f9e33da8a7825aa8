"""The examples in docstrings: each runs by itself, as a reader would type it, and shows what its docstring says it shows."""

import ast
import doctest
from pathlib import Path

import pytest

import icl_lab

FOLDER = Path(icl_lab.__file__).parent
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
# As for a reader, who has opened no float64 scope.
pytestmark = pytest.mark.default_precision


def docstrings(path: Path):
    """(name, docstring with an example, line) of a module, its classes and functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            if text and ">>>" in text:
                name = ".".join([*path.relative_to(FOLDER).with_suffix("").parts, getattr(node, "name", "")])
                yield name.rstrip("."), text, node.body[0].lineno


EXAMPLES = {name: (text, line) for path in sorted(FOLDER.rglob("*.py")) for name, text, line in docstrings(path)}


def report(name: str, text: str, line: int = 1) -> str:
    """What is wrong with the examples of a docstring; empty if nothing is."""
    said: list[str] = []
    test = doctest.DocTestParser().get_doctest(text, {}, name, None, line)
    doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=said.append)
    return "".join(said)


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name):
    assert report(name, *EXAMPLES[name]) == ""


def test_a_wrong_example_is_seen():
    assert "Expected:\n    5\nGot:\n    4\n" in report("planted", ">>> 2 + 2\n5\n")


def test_what_a_newcomer_meets_first_has_an_example():
    first = {
        "__init__",
        "tasks.prompt.Prompt",
        "tasks.regression.linear.LinearRegression",
        "tasks.embeddings.merged",
        "estimators.batch.gradient_descent.gradient_descent_weights",
        "estimators.batch.least_squares.ols_weights",
        "estimators.batch.ridge.ridge",
        "estimators.names.named",
        "mixers.registry.predictor",
        "models.initializers.zhang",
        "models.linear_attention.LinearSelfAttention",
        "objectives.__init__.population",
        "training.flow.gradient_flow",
        "claims.registry.select",
        "claims.verify.run",
        "theory.regression.lsa.optimum",
        "theory.regression.lsa.minimum_risk",
        "analysis.weights.compare",
        "analysis.identify.identification.identify",
        "report.tables.check_table",
        "runs.records.read_json",
    }
    assert first <= set(EXAMPLES)
