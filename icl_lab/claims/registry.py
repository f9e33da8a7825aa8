"""The table of claims: each module of `MODULES` adds its own when it is imported, at the first look-up."""

from __future__ import annotations

import difflib
import fnmatch
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from icl_lab.claims.check import Check
from icl_lab.claims.claim import Claim, Parameter
from icl_lab.errors import InvalidValueError

MODULES = (
    "icl_lab.claims.zhang2023",
    "icl_lab.claims.zhang2023_loss",
    "icl_lab.claims.zhang2023_flow",
    "icl_lab.claims.zhang2023_risk",
    "icl_lab.claims.zhang2023_shift",
    "icl_lab.claims.zhang2023_random",
    "icl_lab.claims.zhang2023_residual",
    "icl_lab.claims.zhang2023_fig1",
    "icl_lab.claims.mahankali2023",
    "icl_lab.claims.mahankali2023_proof",
    "icl_lab.claims.mahankali2023_gauge",
    "icl_lab.claims.mahankali2023_nonlinear",
    "icl_lab.claims.oswald2022",
    "icl_lab.claims.oswald2022_constructions",
    "icl_lab.claims.oswald2022_gdpp",
    "icl_lab.claims.oswald2022_steps",
    "icl_lab.claims.oswald2022_depth",
    "icl_lab.claims.oswald2022_fits",
    "icl_lab.claims.oswald2022_landscape",
    "icl_lab.claims.oswald2022_plateau",
    "icl_lab.claims.oswald2022_training",
    "icl_lab.claims.oswald2022_softmax",
    "icl_lab.claims.oswald2022_sine",
    "icl_lab.claims.ahn2023",
    "icl_lab.claims.ahn2023_layers",
    "icl_lab.claims.layers",
    "icl_lab.claims.zhangsaxe2025",
    "icl_lab.claims.lab",
    "icl_lab.claims.lab_minima",
    "icl_lab.claims.lab_risks",
    "icl_lab.claims.lab_least_squares",
    "icl_lab.claims.lab_dynamics",
    "icl_lab.claims.lab_timescales",
    "icl_lab.claims.lab_training",
    "icl_lab.claims.zheng2024",
    "icl_lab.claims.zheng2024_loss",
    "icl_lab.claims.zheng2024_ones",
    "icl_lab.claims.zheng2024_capability",
    "icl_lab.claims.zheng2024_sims",
    "icl_lab.claims.zhou2025",
    "icl_lab.claims.zhou2025_training",
    "icl_lab.claims.zhou2025_noise",
    "icl_lab.claims.zhou2025_depth",
    "icl_lab.claims.zhou2025_rollout",
    "icl_lab.claims.zhou2025_published",
    "icl_lab.claims.lab_autoregressive",
    "icl_lab.claims.lab_random_autoregressive",
    "icl_lab.claims.lab_rotations",
    "icl_lab.claims.vonoswald2023",
)

Run = Callable[..., Sequence[Check]]
_CLAIMS: dict[str, Claim] = {}


def claim(
    id: str,
    *,
    paper: str,
    statement: str,
    source: str,
    parameters: Mapping[str, Parameter],
    validate: Callable[..., None] | None = None,
    long: bool = False,
    also: Sequence[Mapping[str, Any]] = (),
) -> Callable[[Run], Run]:
    """Decorator that registers a function of the parameters (as keywords) as the claim `id`; see `Claim` for the rest.

    Raises:
      InvalidValueError: the id is taken by another function; a cell of a notebook may run again.
    """

    def register(run: Run) -> Run:
        taken = _CLAIMS.get(id)
        if taken is not None and (taken.run.__module__, taken.run.__qualname__) != (run.__module__, run.__qualname__):
            raise InvalidValueError(f"claim id {id!r} is taken; ids are unique, since results are looked up by them.")
        _CLAIMS[id] = Claim(id, paper, statement, source, dict(parameters), run, validate, long, also)
        return run

    return register


def all_claims() -> dict[str, Claim]:
    """Every claim by id, in the order of `MODULES`, whichever was imported first; those of users last."""
    for module in MODULES:
        importlib.import_module(module)
    place = {module: index for index, module in enumerate(MODULES)}
    return dict(sorted(_CLAIMS.items(), key=lambda one: place.get(one[1].run.__module__, len(MODULES))))


def select(patterns: Iterable[str] = ()) -> list[Claim]:
    """The claims whose id equals or matches (glob) one of `patterns`; all of them for no pattern.

    A long claim runs only if its full id is one of the patterns.

    Raises:
      InvalidValueError: a pattern matches nothing, which suggests the closest ids, or all of them match long claims only.
    """
    claims = all_claims()
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in patterns:
        if not fnmatch.filter(claims, pattern):
            close = difflib.get_close_matches(pattern, claims, n=3, cutoff=0.4) or list(claims)
            raise InvalidValueError(
                f"no claim matches {pattern!r}; did you mean {', '.join(close)}? `icl-lab claims` lists all."
            )

    def wanted(one: Claim) -> bool:
        if one.long:
            return one.id in patterns
        return not patterns or any(fnmatch.fnmatchcase(one.id, pattern) for pattern in patterns)

    selected = [one for one in claims.values() if wanted(one)]
    if not selected:
        long = [one.id for one in claims.values() if any(fnmatch.fnmatchcase(one.id, pattern) for pattern in patterns)]
        raise InvalidValueError(
            f"{', '.join(map(repr, patterns)) or 'no pattern'} matches only claims that take minutes and run by their full id: "
            f"{', '.join(long) or 'every claim is one'}."
        )
    return selected


def listing() -> list[dict[str, Any]]:
    """Every claim as JSON types: id, paper, statement, source, long, parameters (default, accepts, meaning)."""
    return [
        {
            "id": one.id,
            "paper": one.paper,
            "statement": one.statement,
            "source": one.source,
            "long": one.long,
            "parameters": {
                name: {"default": parameter.default, "accepts": parameter.accepts, "meaning": parameter.meaning}
                for name, parameter in one.parameters.items()
            },
        }
        for one in all_claims().values()
    ]
