"""The choice of a builder by a word in the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from icl_lab.core.errors import InvalidValueError

Group = Mapping[str, Any]
"""One configuration group, resolved to plain values."""

T = TypeVar("T")


def choose(table: Mapping[str, T], group: Group, name: str, key: str = "kind") -> T:
    """The entry of `table` under the word that the group `name` has for `key`.

    Raises:
      InvalidValueError: another word; the message lists the accepted ones.
    """
    value = group[key]
    if value not in table:
        raise InvalidValueError(f"`{name}.{key}` must be one of {', '.join(table)}; got {value!r}.")
    return table[value]
