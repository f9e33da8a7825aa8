"""`Claim`: a theorem as a program, at a setting that a user may change to anything in its range."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from icl_lab.claims.check import Check
from icl_lab.claims.setting import Parameter, Setting
from icl_lab.core.errors import IclLabError, InvalidValueError

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
      setting: the class of its parameters, whose names are the papers' symbols.
      source: paper and theorem, and what the claim is to them.
      run: a setting -> checks. Runs in a float64 scope.
      slow: takes minutes, so that only its full id selects it, and no glob.
      extra_settings: further settings that a run without overrides covers, each a few parameters that differ from the defaults.
    """

    id: str
    setting: type[Setting]
    source: Source
    run: Callable[[Any], Sequence[Check]]
    slow: bool = False
    extra_settings: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self):
        if not (self.statement and self.method):
            raise InvalidValueError(
                f"{self.id}: its function needs a docstring of two paragraphs: the statement, and how it is measured, from "
                f"what start, and what would make it fail; got {self.run.__doc__!r}."
            )

    @property
    def statement(self) -> str:
        """What is claimed: the first paragraph of the function's docstring, in one line."""
        return _paragraphs(self.run)[0]

    @property
    def method(self) -> str:
        """How it is measured, from what start, and what would make it fail: the rest of the docstring, in one line."""
        return " ".join(_paragraphs(self.run)[1:])

    @property
    def parameters(self) -> dict[str, Parameter]:
        """Those of its setting."""
        return self.setting.parameters()

    def resolve(self, overrides: Mapping[str, Any] | None = None) -> Setting:
        """The setting with defaults replaced by `overrides`.

        Raises:
          InvalidValueError: an unknown name, or a value of the wrong type or out of range; names what is accepted.
          AssumptionError: whatever else the setting's own validation refuses.
        """
        overrides = dict(overrides or {})
        unknown = sorted(set(overrides) - set(self.parameters))
        if unknown:
            raise InvalidValueError(
                f"{self.id} has no parameter {', '.join(map(repr, unknown))}; it accepts {', '.join(self.parameters)}."
            )
        try:
            return self.setting(**overrides)
        except IclLabError as error:
            raise type(error)(f"{self.id}: {error}") from None


def _paragraphs(run: Callable) -> list[str]:
    """The paragraphs of a docstring, each in one line; an empty one where there is none."""
    return [" ".join(part.split()) for part in (run.__doc__ or "").strip().split("\n\n")]
