"""README, CONTRIBUTING and CITATION say what is so: paths exist, papers are cited, the library's examples run."""

import re
from pathlib import Path

import hydra
import pytest
import yaml

from icl_lab.claims import registry
from icl_lab.config import paths, schema
from icl_lab.runs import execute, store

ROOT = Path(__file__).parents[2]
ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_paths_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    paths = set(re.findall(r"\b((?:icl_lab|configs|experiments|notebooks|tests)/[\w/.-]*\w)", text)) - {
        "notebooks/X.py",
        "notebooks/X.ipynb",
    }
    assert len(paths) >= 4
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert missing == []


def test_citation_names_every_paper_of_a_claim():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    cited = {one["value"].removeprefix("arXiv:") for work in citation["references"] for one in work["identifiers"]}
    claimed = {id for claim in registry.all_claims().values() for id in ARXIV.findall(claim.paper)}
    assert len(claimed) > 5
    assert claimed <= cited
    assert citation["version"] == __import__("icl_lab").__version__


def test_readme_examples_are_python():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        compile(block, "README.md", "exec")


@pytest.mark.slow
@pytest.mark.default_precision
def test_readme_examples_run(capsys):
    """In the order of the page, in one namespace, as a reader pastes them."""
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, "README.md", "exec"), namespace)
    assert "converged" in capsys.readouterr().out.lower()


def test_readme_shows_the_hash_of_the_run_that_a_reader_gets():
    schema.register()
    with hydra.initialize_config_dir(str(paths.config_dir()), version_base="1.3"):
        default = store.config_hash(execute.resolve(hydra.compose("run")))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"runs/default/([0-9a-f]{16})", text)) == {default}
