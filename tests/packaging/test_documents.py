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
PAGES = ("README.md", "CONTRIBUTING.md", "icl_lab/README.md", "icl_lab/runs/README.md", "icl_lab/analysis/identify/README.md")
ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")


def blocks_of(name):
    """The Python examples of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") < 200
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    assert len(links) > 8
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("name", PAGES)
def test_paths_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    paths = set(re.findall(r"\b((?:icl_lab|configs|experiments|notebooks|tests)/[\w/.-]*\w)", text)) - {
        "notebooks/X.py",
        "notebooks/X.ipynb",
    }
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert missing == []


def test_citation_names_every_paper_of_a_claim():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    cited = {one["value"].removeprefix("arXiv:") for work in citation["references"] for one in work["identifiers"]}
    claimed = {id for claim in registry.all_claims().values() for id in ARXIV.findall(claim.source.paper)}
    assert len(claimed) > 5
    assert claimed <= cited
    assert citation["version"] == __import__("icl_lab").__version__


def test_examples_are_python():
    blocks = [(name, block) for name in PAGES for block in blocks_of(name)]
    assert len(blocks) >= 6
    for name, block in blocks:
        compile(block, name, "exec")


@pytest.mark.slow
@pytest.mark.default_precision
@pytest.mark.parametrize("name", [name for name in PAGES if blocks_of(name)])
def test_examples_run(name, capsys):
    """In the order of the page, in one namespace, as a reader pastes them."""
    namespace = {}
    for block in blocks_of(name):
        exec(compile(block, name, "exec"), namespace)
    assert capsys.readouterr().out


def test_readme_shows_the_hash_of_the_run_that_a_reader_gets():
    schema.register()
    with hydra.initialize_config_dir(str(paths.config_dir()), version_base="1.3"):
        default = store.config_hash(execute.resolve(hydra.compose("run")))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"runs/default/([0-9a-f]{16})", text)) == {default}
