"""How far a check is from failing: its error over its tolerance, in words and as a place on a logarithmic scale."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Sequence

from icl_lab.report.results import UNTESTED
from icl_lab.report.tables import Entry, share_of_tolerance

LOWEST, HIGHEST = -8, 2
"""Powers of ten at the ends of the scale; what lies beyond is drawn at the end."""
BINS = 100
STEP = 5.0
"""Pixels between two dots that are stacked."""
TALLEST = 92.0
"""Pixels that a stack may take; a taller one is pressed together."""


@dataclasses.dataclass(frozen=True)
class Dot:
    """A check in the overview.

    Attributes:
      x: place along the scale in percent.
      y: pixels from the middle of the strip.
      label: claim, check and margin in words.
      anchor: of the claim's section.
      passed: the verdict.
    """

    x: float
    y: float
    label: str
    anchor: str
    passed: bool


@dataclasses.dataclass(frozen=True)
class Strip:
    """The checks of one paper.

    Attributes:
      name: the paper.
      dots: checks with an error above zero, by increasing x.
      exact: how many checks have no error at all, which no logarithmic scale can show.
      height: pixels that the dots take.
    """

    name: str
    dots: Sequence[Dot]
    exact: int
    height: float


def position(share: float) -> float:
    """Place of an error over tolerance on the scale, in percent from its left end; 0 for no error at all."""
    if share <= 0:
        return 0.0
    power = min(max(math.log10(share), LOWEST), HIGHEST) if math.isfinite(share) else HIGHEST
    return round(100 * (power - LOWEST) / (HIGHEST - LOWEST), 2)


def share_in_words(check: Entry) -> str:
    """Error over tolerance as a reader says it: "12% of the tolerance", "31 times the tolerance"."""
    error, tolerance = check["error"], check["tolerance"]
    if error is None or tolerance is None:
        return "not a finite number"
    if error == 0:
        return "no error"
    if tolerance == 0:
        return "no error is allowed"
    share = share_of_tolerance(check)
    if share > 1:
        return f"{_times(share)} times the tolerance"
    return "less than 0.01% of the tolerance" if share < 1e-4 else f"{_percent(share)} of the tolerance"


def failure(entry: Entry) -> str:
    """What went wrong with a claim that failed: the exception, or its worst check and by how much it is off."""
    if "reason" in entry:
        return entry["reason"] if entry.get("verdict") in UNTESTED else f"No verdict: {entry['reason']}"
    failed = sorted((check for check in entry["checks"] if not check["passed"]), key=share_of_tolerance, reverse=True)
    if not failed:
        return "No check failed, yet the results say that the claim did."
    others = len(failed) - 1
    more = "" if not others else f" {others} more {'check' if others == 1 else 'checks'} failed."
    return f"Check “{failed[0]['name']}”: {_gap(failed[0])}.{more}"


def worst(entry: Entry) -> float:
    """The largest error over tolerance among the checks of a claim; infinite for a claim that raised."""
    return math.inf if "reason" in entry else max(map(share_of_tolerance, entry["checks"]), default=0.0)


def strip(name: str, claims: Iterable[tuple[str, Entry]]) -> Strip:
    """The overview of one paper.

    Args:
      name: the paper.
      claims: (anchor, entry) of its claims.
    """
    columns: dict[int, list[Dot]] = collections.defaultdict(list)
    exact = 0
    for anchor, entry in claims:
        for check in entry["checks"]:
            share = share_of_tolerance(check)
            if share == 0 and check["passed"]:
                exact += 1
                continue
            x = position(share)
            label = f"{entry['id']}, {check['name']}: {share_in_words(check)}"
            columns[round(x * BINS / 100)].append(Dot(x, 0.0, label, anchor, check["passed"]))
    dots, height = [], 0.0
    for _, column in sorted(columns.items()):
        step = min(STEP, TALLEST / len(column))
        height = max(height, step * len(column))
        middle = (len(column) - 1) / 2
        dots += [dataclasses.replace(dot, y=round((i - middle) * step, 1)) for i, dot in enumerate(column)]
    return Strip(name, dots, exact, height)


def _gap(check: Entry) -> str:
    error, tolerance = check["error"], check["tolerance"]
    if error is None or tolerance is None:
        return "its error is not a finite number"
    if tolerance == 0 and error > 0:
        return f"error {brief(error)}, where none is allowed"
    share = share_of_tolerance(check)
    if share > 1:
        return f"error {brief(error)}, {_times(share)} times its tolerance of {brief(tolerance)}"
    return f"error {brief(error)} is within {brief(tolerance)}, but that is too wide to tell, or a number is not finite"


def brief(value: float | None) -> str:
    """A number to two digits; None in words."""
    return "not finite" if value is None else f"{value:.2g}"


def _times(share: float) -> str:
    return f"{share:.2g}" if share < 100 else f"{share:.0f}" if share < 1e5 else f"{share:.1e}"


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.2g}%" if percent < 99.5 else f"{percent:.3g}%"
