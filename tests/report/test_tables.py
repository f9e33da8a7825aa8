"""Tables for people: Markdown that renders, and the README's list of claims in step with the registry."""

from pathlib import Path

from icl_lab import report
from icl_lab.claims import registry
from icl_lab.claims.check import exact, holds
from icl_lab.report.tables import share_of_tolerance, short

ROOT = Path(__file__).parents[2]


def entry(*checks, **more):
    checks = [check.to_json() for check in checks]
    return {"id": "paper.claim", "statement": "A | B", "checks": checks, "passed": all(c["passed"] for c in checks), **more}


def test_a_cell_cannot_end_its_row():
    table = report.Table(("a", "b"), [("x | y", "two\nlines")])
    assert str(table).splitlines() == ["| a | b |", "| --- | --- |", r"| x \| y | two lines |"]
    assert table._repr_markdown_() == str(table)


def test_a_failure_is_seen_in_both_tables():
    entries = [entry(exact("w", 1.5, 1.0, 0.1), holds("ok_abs", True)), entry(passed=False, reason="ValueError: no")]
    checks = str(report.check_table(entries)).splitlines()
    assert checks[2] == "| `paper.claim` | w | 1.5 | 1 | 0.5 | 0.1 | FAILED |"
    assert checks[3].endswith("| passed |")
    assert "ValueError: no" in checks[4]
    assert checks[4].endswith("| FAILED |")
    claims = str(report.verified_table(entries)).splitlines()
    assert claims[2] == r"| `paper.claim` | A \| B | 2 | 500.0% | FAILED |"
    assert claims[3].endswith("| 0 |  | FAILED |")


def test_share_of_tolerance_decides_as_the_check_does():
    assert share_of_tolerance(exact("w", 1.05, 1.0, 0.1).to_json()) < 1
    assert share_of_tolerance(exact("w", 1.2, 1.0, 0.1).to_json()) > 1
    assert share_of_tolerance(holds("h_abs", True).to_json()) == 0
    assert share_of_tolerance(holds("h_abs", False).to_json()) == float("inf")
    assert share_of_tolerance(exact("w", float("nan"), 1.0, 0.1).to_json()) == float("inf")


def test_short_numbers():
    assert short(0.123456789) == "0.123457"
    assert short([1.0, 2.0, None, 4.0, 5.0]) == "1, 2, not finite, 4, ... (5)"


def test_the_list_of_claims_is_that_of_the_registry():
    page = (ROOT / "icl_lab" / "claims" / "README.md").read_text(encoding="utf-8")
    sections = report.claim_sections(registry.listing())
    assert sections.count("<details>") == len({one.split(".")[0] for one in registry.all_claims()})
    assert all(sections.count(f"| `{one}` |") == 1 for one in registry.all_claims())
    assert sections in page, "the list of claims is out of date: run `python experiments/readme.py`"
