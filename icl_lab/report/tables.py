"""Tables for people: results of `claims.verify` and the list of claims, as Markdown that notebooks and README render."""

from __future__ import annotations

import collections
import dataclasses
import html
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Entry = Mapping[str, Any]
"""A claim as JSON types: one of `claims.verify.run` or, without results, of `claims.registry.listing`."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns and rows of text; prints, and renders in a notebook, as a Markdown table.

    Attributes:
      columns: their names.
      rows: as many cells each.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        lines = (self.columns, ["---"] * len(self.columns), *self.rows)
        return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)

    def _repr_markdown_(self) -> str:
        return str(self)


def check_table(entries: Iterable[Entry]) -> Table:
    """Every check of some claims: measured beside expected, and by what it is decided.

    Args:
      entries: what `claims.verify.run` returns.

    Examples:
      >>> from icl_lab import report
      >>> from icl_lab.claims import verify
      >>> entries = verify.run(["zhang2023.setup"])
      >>> print(report.verified_table(entries))
      | claim | statement | checks | largest error, of its tolerance | verdict |
      | --- | --- | --- | --- | --- |
      | `zhang2023.setup` | The prediction is ... matters. | 5 | 0.0% | passed |
      >>> report.check_table(entries).columns
      ('claim', 'check', 'measured', 'expected', 'error', 'tolerance', 'verdict')
    """
    numbers = ("measured", "expected", "error", "tolerance")
    rows = [
        (f"`{entry['id']}`", check["name"], *(short(check[name]) for name in numbers), verdict(check["passed"]))
        for entry in entries
        for check in entry["checks"]
    ]
    failures = [
        (f"`{entry['id']}`", entry["reason"], "", "", "", "", verdict_of(entry)) for entry in entries if "reason" in entry
    ]
    return Table(("claim", "check", *numbers, "verdict"), rows + failures)


def verified_table(entries: Iterable[Entry]) -> Table:
    """A row a claim: its statement, how many checks it made, the largest share of a tolerance used, and the verdict.

    Args:
      entries: what `claims.verify.run` returns.
    """
    rows = []
    for entry in entries:
        shares = [share_of_tolerance(check) for check in entry["checks"]]
        largest = f"{max(shares):.1%}" if shares else ""
        rows.append((f"`{entry['id']}`", entry["statement"], str(len(shares)), largest, verdict_of(entry)))
    return Table(("claim", "statement", "checks", "largest error, of its tolerance", "verdict"), rows)


def claim_sections(listing: Iterable[Entry]) -> str:
    """The claims of `claims.registry.listing()` in Markdown: for each prefix of ids a folded table of them."""
    sections = []
    for prefix, group in itertools.groupby(sorted(listing, key=_prefix), key=_prefix):
        claims = list(group)
        papers = [paper for paper, _ in collections.Counter(claim["paper"] for claim in claims).most_common()]
        table = Table(
            ("claim", "statement", "source", "status"),
            [(f"`{claim['id']}`", claim["statement"], claim["source"], claim["status"]) for claim in claims],
        )
        title = f"<b>{prefix}</b>, {len(claims)} claims: {html.escape(papers[0])}" + (" and others" if papers[1:] else "")
        sections.append(f"<details><summary>{title}</summary>\n\n{table}\n\n</details>")
    return "\n".join(sections)


def share_of_tolerance(check: Entry) -> float:
    """Error over tolerance of a check: at most 1 if it passed; infinity for what is not finite, or has no room and is off."""
    error, tolerance = check["error"], check["tolerance"]
    if error is None or tolerance is None:
        return float("inf")
    return error / tolerance if tolerance else 0.0 if error == 0 else float("inf")


def verdict(passed: bool) -> str:
    """How a verdict is spelled."""
    return "passed" if passed else "FAILED"


def verdict_of(entry: Entry) -> str:
    """The verdict of a claim, in capitals unless it passed; results of earlier versions know two."""
    said = entry.get("verdict", "failed")
    return verdict(True) if entry["passed"] else said.replace("_", " ").upper()


def short(value: float | Sequence[float | None] | None) -> str:
    """A number to six digits; the first entries of a list; None (in JSON: no finite number) in words."""
    if value is None:
        return "not finite"
    if isinstance(value, Sequence):
        return ", ".join(short(x) for x in value[:4]) + (f", ... ({len(value)})" if len(value) > 4 else "")
    return f"{value:.6g}"


def _prefix(claim: Entry) -> str:
    return claim["id"].split(".")[0]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", r"\|").split())
