"""Results of `icl-lab verify`, as read from JSON: their shape is checked once, and readers rely on it after that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from icl_lab.core.errors import InvalidValueError
from icl_lab.report.tables import Entry

UNTESTED = ("not_converged", "refused")
"""Verdicts of claims whose statements were not tested."""
VERDICTS = {True: ("passed",), False: ("failed", *UNTESTED)}
"""`passed` -> what `verdict` may be beside it."""


def validated(content: Any, name: str) -> list[Entry]:
    """The entries of a file of `icl-lab verify --json`; keys that a report does not know are left alone.

    Args:
      content: the parsed JSON.
      name: what messages call the file.

    Raises:
      InvalidValueError: not a list of entries, an empty one, or an entry without a key or with a value of another type.
    """
    if not isinstance(content, list):
        raise InvalidValueError(f"{name} must hold a list, as `icl-lab verify --json` writes it; got {_kind(content)}.")
    if not content:
        raise InvalidValueError(f"{name} must hold at least one claim; got an empty list.")
    for index, entry in enumerate(content):
        where = f"entry {index} of {name}"
        _check_keys(entry, _ENTRY, where)
        if not all(isinstance(entry.get(key, ""), str) for key in ("source", "status", "reason")):
            raise InvalidValueError(f"`source`, `status` and `reason` of {where} must be texts.")
        if "verdict" in entry and entry["verdict"] not in VERDICTS[entry["passed"]]:
            accepted = " or ".join(map(repr, VERDICTS[entry["passed"]]))
            words = "passed" if entry["passed"] else "did not pass"
            raise InvalidValueError(
                f"`verdict` of {where} must be {accepted}, since the claim {words}; got {_kind(entry['verdict'])}."
            )
        for number, check in enumerate(entry["checks"]):
            _check_keys(check, _CHECK, f"check {number} of {where}")
    return content


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_number_or_null(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_value(value: Any) -> bool:
    return _is_number_or_null(value) or (isinstance(value, list) and all(map(_is_number_or_null, value)))


_ENTRY = {
    "id": (_is_text, "a text"),
    "paper": (_is_text, "a text"),
    "statement": (_is_text, "a text"),
    "parameters": (lambda value: isinstance(value, dict), "an object"),
    "checks": (lambda value: isinstance(value, list), "a list"),
    "passed": (_is_bool, "true or false"),
    "seconds": (_is_number, "a number"),
    "device": (_is_text, "a text"),
    "precision": (_is_text, "a text"),
}
_CHECK = {
    "name": (_is_text, "a text"),
    "measured": (_is_value, "a number, null or a list of them"),
    "expected": (_is_value, "a number, null or a list of them"),
    "error": (_is_number_or_null, "a number or null"),
    "tolerance": (_is_number_or_null, "a number or null"),
    "standard_error": (_is_number_or_null, "a number or null"),
    "passed": (_is_bool, "true or false"),
}


def _check_keys(item: Any, accepted: Mapping[str, Any], where: str) -> None:
    if not isinstance(item, dict):
        raise InvalidValueError(f"{where} must be an object; got {_kind(item)}.")
    missing = [key for key in accepted if key not in item]
    if missing:
        raise InvalidValueError(f"{where} must have the keys {', '.join(accepted)}; it lacks {', '.join(missing)}.")
    for key, (is_accepted, words) in accepted.items():
        if not is_accepted(item[key]):
            raise InvalidValueError(f"`{key}` of {where} must be {words}; got {_kind(item[key])}.")


def _kind(value: Any) -> str:
    """A JSON value in words short enough for a message."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
