"""The report as one HTML page: plain data in, text out. Style and script are put into the page, which asks for nothing else."""

from __future__ import annotations

import base64
import collections
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from icl_lab.report import margins
from icl_lab.report.results import UNTESTED
from icl_lab.report.tables import Entry, share_of_tolerance, short, verdict, verdict_of

LISTED = 24
"""Entries of a vector that can be unfolded; the results' file has all of them."""
LONGEST = 200
"""Characters of a parameter's value."""
OWN = "icl_lab: beyond the papers"
"""The group of the claims whose `paper` begins with the name of the package."""


@dataclasses.dataclass(frozen=True)
class Results:
    """A file of `icl-lab verify --json`.

    Attributes:
      name: of the file.
      date: of the file, in words.
      entries: as `results.validated` returns them.
    """

    name: str
    date: str
    entries: Sequence[Entry]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure of a run: a `data:` address, its size in pixels, and what it shows in words, for those who do not see it."""

    name: str
    text: str
    source: str
    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class Run:
    """One run in full.

    Attributes:
      title: the hash, and what tells it from the others.
      status, sentence: how it ended and why.
      failed, converged: whether it raised, and whether it came to an end as it should.
      remarks: further sentences, on the closed form and on assumptions that do not hold.
      comparison: rows under the columns of the comparison; empty for a run that failed.
      pictures: its figures.
      left_out: names of figures that the page has no room for.
    """

    title: str
    status: str
    sentence: str
    failed: bool
    converged: bool
    remarks: Sequence[str]
    comparison: Sequence[Sequence[str]]
    pictures: Sequence[Picture]
    left_out: Sequence[str]


@dataclasses.dataclass(frozen=True)
class RunRoot:
    """A folder of runs.

    Attributes:
      name, date: of the folder, and of its newest run.
      machine: device, precision and versions.
      columns, rows: the table of its runs.
      rows_in_all, failures: how many runs there are, and how many raised.
      comparison_columns: of each run's comparison.
      runs: those shown in full.
    """

    name: str
    date: str
    machine: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    rows_in_all: int
    failures: int
    comparison_columns: Sequence[str]
    runs: Sequence[Run]


@dataclasses.dataclass(frozen=True)
class _Check:
    """A row of a claim's table: a check with its numbers as text, `pairs` listing the entries of a vector."""

    name: str
    numbers: Sequence[tuple[str, str]]
    share: str
    place: float
    passed: bool
    pairs: str
    pairs_title: str


@dataclasses.dataclass(frozen=True)
class _Claim:
    """A claim's section: its entry of the results, and what the page says and draws of it."""

    entry: Entry
    anchor: str
    group: str
    file: str
    failure: str
    share: str
    place: float
    parameters: Sequence[tuple[str, str]]
    checks: Sequence[_Check]

    @property
    def status(self) -> str:
        """The part of the page that the claim stands in."""
        if self.entry["passed"]:
            return "passed"
        return "untested" if self.entry.get("verdict") in UNTESTED else "failed"


def render(results: Sequence[Results], roots: Sequence[RunRoot]) -> str:
    """The page.

    Args:
      results: files of verified claims; claims that failed come first, by how far they are off, then those that were not
        tested, then those that passed by paper, in the order given.
      roots: folders of runs.

    Returns:
      HTML. All that comes from files is escaped.
    """
    claims = _claims(results)
    untested = [claim for claim in claims if claim.status == "untested"]
    failed = [claim for claim in claims if claim.status == "failed"]
    failed.sort(key=lambda claim: -margins.worst(claim.entry))
    passed = [claim for claim in claims if claim.status == "passed"]
    groups: dict[str, list[_Claim]] = {claim.group: [] for claim in claims}
    for claim in passed:
        groups[claim.group].append(claim)
    strips = [
        margins.strip(group, [(claim.anchor, claim.entry) for claim in claims if claim.group == group]) for group in groups
    ]
    script, style = _text("page.js"), _text("page.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _environment().get_template("page.html").render(
        style=Markup(style),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        results=results,
        roots=roots,
        claims=claims,
        failed=failed,
        untested=untested,
        passed=passed,
        groups={group: members for group, members in groups.items() if members},
        papers=collections.Counter(claim.group for claim in claims),
        strips=strips,
        checks=sum(len(claim.checks) for claim in claims),
        duration=_duration(float(sum(claim.entry["seconds"] for claim in claims))),
        machines=sorted({f"{claim.entry['device']}, {claim.entry['precision']}" for claim in claims}),
        scale=[(margins.position(10.0**power), power) for power in range(margins.LOWEST, margins.HIGHEST + 1, 2)],
        limit=margins.position(1.0),
    )  # fmt: skip


def within(largest: int, results: Sequence[Results], roots: Sequence[RunRoot]) -> list[RunRoot]:
    """The roots with as many of their figures, from the first on, as a page of `largest` bytes has room for."""
    bare = [_with_pictures(root, lambda _: False) for root in roots]
    room = largest - len(render(results, bare).encode())

    def fits(picture: Picture) -> bool:
        nonlocal room
        room -= len(picture.source) + len(picture.text.encode()) + 100
        return room >= 0

    return [_with_pictures(root, fits) for root in roots]


def _with_pictures(root: RunRoot, keep: Callable[[Picture], bool]) -> RunRoot:
    runs = []
    for run in root.runs:
        kept = [picture for picture in run.pictures if keep(picture)]
        left_out = [picture.name for picture in run.pictures if picture not in kept]
        runs.append(dataclasses.replace(run, pictures=kept, left_out=left_out))
    return dataclasses.replace(root, runs=runs)


def _claims(results: Sequence[Results]) -> list[_Claim]:
    claims: list[_Claim] = []
    seen: collections.Counter[str] = collections.Counter()
    for file in results:
        for entry in file.entries:
            name = "claim-" + re.sub(r"[^\w.-]+", "-", entry["id"])
            seen[name] += 1
            share = max(entry["checks"], key=share_of_tolerance, default=None)
            claims.append(
                _Claim(
                    entry=entry,
                    anchor=name if seen[name] == 1 else f"{name}--{seen[name]}",
                    group=OWN if entry["paper"].startswith("icl_lab") else entry["paper"],
                    file=file.name if len(results) > 1 else "",
                    failure="" if entry["passed"] else margins.failure(entry),
                    share="" if share is None else margins.share_in_words(share),
                    place=0.0 if share is None else margins.position(share_of_tolerance(share)),
                    parameters=[(name, _value(value)) for name, value in entry["parameters"].items()],
                    # Those that failed first, else in the order given.
                    checks=[_check(check) for check in sorted(entry["checks"], key=lambda check: check["passed"])],
                )
            )
    return claims


def _check(check: Entry) -> _Check:
    measured, expected = check["measured"], check["expected"]
    size = len(measured) if isinstance(measured, Sequence) and isinstance(expected, Sequence) else 1
    numbers = [("measured", short(measured)), ("expected", short(expected))]
    numbers += [(name, margins.brief(check[name])) for name in ("error", "tolerance")]
    error = check["standard_error"]
    return _Check(
        name=check["name"],
        numbers=[*numbers, ("standard error", "" if error is None else margins.brief(error))],
        share=margins.share_in_words(check),
        place=margins.position(share_of_tolerance(check)),
        passed=check["passed"],
        pairs=_pairs(measured, expected) if size > 4 else "",
        pairs_title=f"All {size} entries" if size <= LISTED else f"First {LISTED} of {size} entries",
    )


def _pairs(measured: Sequence[float | None], expected: Sequence[float | None]) -> str:
    """The first entries of two vectors in full precision, side by side."""
    left = ["measured", *(_full(x) for x in measured[:LISTED])]
    right = ["expected", *(_full(x) for x in expected[:LISTED])]
    width = max(map(len, left))
    return "\n".join(f"{a:<{width}}  {b}" for a, b in zip(left, right, strict=False))


def _full(value: float | None) -> str:
    return "not finite" if value is None else repr(value)


def _value(value: Any) -> str:
    """The value of a parameter: a text without quotes, anything else as JSON; the beginning of a long one."""
    if value is None:
        return "default"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({len(text)} characters)"


def _duration(seconds: float) -> str:
    if seconds < 0.1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _text(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": _duration, "verdict": verdict, "verdict_of": verdict_of}
    return environment
