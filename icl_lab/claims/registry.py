"""The table of claims: each module in a folder of this package adds its own when it is imported, at the first look-up."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from icl_lab import claims
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Claim, Source
from icl_lab.claims.setting import Setting
from icl_lab.core.errors import InvalidValueError

S = TypeVar("S", bound=Setting)
_CLAIMS: dict[str, Claim] = {}


def claim(
    id: str,
    setting: type[S],
    source: Source,
    *,
    slow: bool = False,
    extra_settings: Sequence[Mapping[str, Any]] = (),
) -> Callable[[Callable[[S], Sequence[Check]]], Callable[[S], Sequence[Check]]]:
    """Decorator that registers a function of a setting as the claim `id`; see `Claim` for the rest.

    The function's docstring is the statement, and after an empty line how it is measured and what would make it fail.

    Raises:
      InvalidValueError: no such docstring, or the id is taken by another function; a cell of a notebook may run again.
    """

    def register(run: Callable[[S], Sequence[Check]]) -> Callable[[S], Sequence[Check]]:
        taken = _CLAIMS.get(id)
        if taken is not None and (taken.run.__module__, taken.run.__qualname__) != (run.__module__, run.__qualname__):
            raise InvalidValueError(f"claim id {id!r} is taken; ids are unique, since results are looked up by them.")
        _CLAIMS[id] = Claim(id, setting, source, run, slow, extra_settings)
        return run

    return register


@functools.cache
def modules() -> tuple[str, ...]:
    """The modules of claims: folders by year, those without one last; in a folder as its `ORDER` says, then by name."""
    found = []
    for folder in pkgutil.iter_modules(claims.__path__):
        if folder.ispkg:
            package = importlib.import_module(f"{claims.__name__}.{folder.name}")
            year = folder.name[-4:]
            order = getattr(package, "ORDER", ())
            for module in pkgutil.iter_modules(package.__path__):
                place = order.index(module.name) if module.name in order else len(order)
                found.append((not year.isdigit(), year, folder.name, place, f"{package.__name__}.{module.name}"))
    return tuple(name for *_, name in sorted(found))


def all_claims() -> dict[str, Claim]:
    """Every claim by id, in the order of `modules`, whichever was imported first; those of users last."""
    for module in modules():
        importlib.import_module(module)
    place = {module: index for index, module in enumerate(modules())}
    return dict(sorted(_CLAIMS.items(), key=lambda one: place.get(one[1].run.__module__, len(place))))


def select(patterns: Iterable[str] = ()) -> list[Claim]:
    """The claims whose id equals or matches (glob) one of `patterns`; all of them for no pattern.

    A slow claim runs only if its full id is one of the patterns.

    Raises:
      InvalidValueError: a pattern matches nothing, which suggests the closest ids, or all of them match slow claims only.

    Examples:
      >>> from icl_lab.claims import registry
      >>> [claim.id for claim in registry.select(["mahankali2023.thm*"])]
      ['mahankali2023.thm1', 'mahankali2023.thm2', 'mahankali2023.thm3']
    """
    known = all_claims()
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            close = difflib.get_close_matches(pattern, known, n=3, cutoff=0.4) or list(known)
            raise InvalidValueError(
                f"no claim matches {pattern!r}; did you mean {', '.join(close)}? `icl-lab claims` lists all."
            )

    def wanted(one: Claim) -> bool:
        if one.slow:
            return one.id in patterns
        return not patterns or any(fnmatch.fnmatchcase(one.id, pattern) for pattern in patterns)

    selected = [one for one in known.values() if wanted(one)]
    if not selected:
        slow = [one.id for one in known.values() if any(fnmatch.fnmatchcase(one.id, pattern) for pattern in patterns)]
        raise InvalidValueError(
            f"{', '.join(map(repr, patterns)) or 'no pattern'} matches only claims that take minutes and run by their full id: "
            f"{', '.join(slow) or 'every claim is one'}."
        )
    return selected


def listing() -> list[dict[str, Any]]:
    """Every claim as JSON types: id, paper, statement, method, source, status, slow, parameters (default, accepts, meaning)."""
    return [
        {
            "id": one.id,
            "paper": one.source.paper,
            "statement": one.statement,
            "method": one.method,
            "source": one.source.item,
            "status": one.source.status,
            "slow": one.slow,
            "parameters": {
                name: {"default": parameter.default, "accepts": parameter.accepts, "meaning": parameter.meaning}
                for name, parameter in one.parameters.items()
            },
        }
        for one in all_claims().values()
    ]
