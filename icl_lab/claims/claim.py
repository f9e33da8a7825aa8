"""`Claim`: a theorem as a program, with named parameters that a user may set to anything in their range."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from icl_lab.claims.check import Check
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.prng import check_seed

LARGEST_SIZE = 2**10
"""Rows of the matrices of a claim, which it decomposes more than once, at seconds each."""
_SIZES = frozenset({"d", "p", "k", "K", "H", "L", "width", "heads"})


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of a claim.

    Attributes:
      default: its value unless overridden; JSON types only.
      accepts: the accepted values, in words ("an integer >= 1").
      convert: the value as the claim wants it; raises ValueError, TypeError or OverflowError if it is not accepted.
      meaning: one clause for the listing.
    """

    default: Any
    accepts: str
    convert: Callable[[Any], Any]
    meaning: str = ""


def integer(default: int, minimum: int, meaning: str = "") -> Parameter:
    """An integer of at least `minimum`; 1e5 is one."""

    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float | np.number) or value < minimum:
            raise ValueError
        whole = int(value)
        if whole != value:
            raise ValueError
        return whole

    return Parameter(default, f"an integer >= {minimum}", convert, meaning)


def number(default: float, minimum: float = -math.inf, meaning: str = "", *, positive: bool = False) -> Parameter:
    """A finite number of at least `minimum`, or above 0 if `positive`."""

    def convert(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
            raise ValueError
        if value < minimum or (positive and value <= 0):
            raise ValueError
        return float(value)

    words = "a number > 0" if positive else "a finite number" if minimum == -math.inf else f"a number >= {minimum:g}"
    return Parameter(default, words, convert, meaning)


def flag(default: bool, meaning: str = "") -> Parameter:
    """true or false."""

    def convert(value: Any) -> bool:
        if not isinstance(value, bool | np.bool_):
            raise ValueError
        return bool(value)

    return Parameter(default, "true or false", convert, meaning)


def choice(default: str, options: Sequence[str], meaning: str = "") -> Parameter:
    """One of a few words."""

    def convert(value: Any) -> str:
        if value not in options:
            raise ValueError
        return value

    return Parameter(default, "one of " + ", ".join(options), convert, meaning)


def _entries(value: Any) -> Sequence[Any] | np.ndarray:
    """The entries of a list or an array; a word and a mapping are neither, though Python walks through both."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | np.ndarray) or not len(value):
        raise ValueError
    return value


def spectrum(meaning: str = "") -> Parameter:
    """A list of positive eigenvalues, or null for the claim's own default of the right length."""
    entry = number(1.0, positive=True)

    def convert(value: Any) -> list[float] | None:
        if value is None:
            return None
        return [entry.convert(x) for x in _entries(value)]

    return Parameter(None, "null or a list of d numbers > 0", convert, meaning)


def vector(default: Sequence[float] | None, meaning: str = "") -> Parameter:
    """A list of finite numbers, or null for the claim's own default of the right length."""
    entry = number(0.0)

    def convert(value: Any) -> list[float] | None:
        if value is None:
            return None
        return [entry.convert(x) for x in _entries(value)]

    return Parameter(default, "null or a list of d numbers", convert, meaning)


def table(default: Sequence[Sequence[float]] | None, minimum: float = -math.inf, meaning: str = "") -> Parameter:
    """A list of lists of numbers of at least `minimum`, all of one length, or null for the claim's own default."""
    row = vector(None)

    def convert(value: Any) -> list[list[float]] | None:
        if value is None:
            return None
        rows = [row.convert(x) for x in _entries(value)]
        if any(x is None or len(x) != len(rows[0]) or min(x) < minimum for x in rows):
            raise ValueError
        return rows

    words = "" if minimum == -math.inf else f" >= {minimum:g}"
    return Parameter(default, f"null or a list of d lists of numbers{words}, all of one length", convert, meaning)


STATUSES = {
    "stated": "as the paper has it",
    "corrected": "the paper's sentence fails as it stands; the claim holds, and shows where the two differ",
    "refuted": "the claim is a counterexample to the paper's sentence",
    "extended": "proved or derived here, beyond the paper",
}
"""What a claim may be to its source."""


def check_status(status: str) -> None:
    """Raise `InvalidValueError` unless `status` is one of `STATUSES`."""
    if status not in STATUSES:
        raise InvalidValueError(f"`status` must be one of {', '.join(STATUSES)}; got {status!r}.")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a statement comes from.

    Attributes:
      paper: authors, year, arXiv id.
      item: theorem, proposition, equation or section; where a number cannot be looked up, the result in words.
      status: one of `STATUSES`.
    """

    paper: str
    item: str
    status: str = "stated"

    def __post_init__(self):
        check_status(self.status)


@dataclasses.dataclass(frozen=True)
class Claim:
    """An executable statement.

    Attributes:
      id: unique, "paper.statement".
      statement: one line.
      source: paper and theorem, and what the claim is to them.
      parameters: name -> Parameter; names are the papers' symbols.
      run: parameters as keywords -> checks. Runs in a float64 scope.
      validate: parameters as keywords -> None; raises what no single parameter's range can say (a spectrum of the wrong
        length, a start outside an assumption), before anything runs.
      slow: takes minutes, so that only its full id selects it, and no glob.
      extra_settings: further settings that a run without overrides covers, each a few parameters that differ from the defaults.
    """

    id: str
    statement: str
    source: Source
    parameters: Mapping[str, Parameter]
    run: Callable[..., Sequence[Check]]
    validate: Callable[..., None] | None = None
    slow: bool = False
    extra_settings: Sequence[Mapping[str, Any]] = ()

    def resolve(self, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """All parameters, defaults replaced by `overrides`.

        Raises:
          InvalidValueError: an unknown name, or a value of the wrong type or out of range; names what is accepted.
          AssumptionError: whatever else the claim's own validation refuses.
        """
        overrides = dict(overrides or {})
        unknown = sorted(set(overrides) - set(self.parameters))
        if unknown:
            raise InvalidValueError(
                f"{self.id} has no parameter {', '.join(map(repr, unknown))}; it accepts {', '.join(self.parameters)}."
            )
        resolved = {}
        for name, parameter in self.parameters.items():
            value = overrides.get(name, parameter.default)
            try:
                resolved[name] = parameter.convert(value)
            except (ValueError, TypeError, OverflowError):
                raise InvalidValueError(f"{self.id}: `{name}` must be {parameter.accepts}; got {value!r}.") from None
            if name in _SIZES and (resolved[name] or 0) > LARGEST_SIZE:
                raise InvalidValueError(
                    f"{self.id}: `{name}` must be at most {LARGEST_SIZE}, since matrices of it are decomposed; got {value!r}."
                )
            if name == "seed":
                check_seed(resolved[name], f"{self.id}: seed")
        if self.validate is not None:
            self.validate(**resolved)
        return resolved
