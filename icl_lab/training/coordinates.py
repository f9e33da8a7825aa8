"""The form of a problem in which its flow is integrated, alone or with others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from icl_lab.errors import InvalidValueError
from icl_lab.objectives.objective import Objective
from icl_lab.objectives.population import StructuredLoss
from icl_lab.training.realify import realified
from icl_lab.training.segment import SOLVERS
from icl_lab.typing import Array, Weights


def coordinates(objective: Objective, weights: Weights) -> tuple[Objective, Weights, Callable[[Weights], Weights]]:
    """An isometric form of the problem with real unknowns: (objective, start, map back to weights).

    On the invariant subspace p1 = k2 = 0 of an exact regression loss it is the structured one, whose flow is elementwise.
    """
    restricted = StructuredLoss.restrict(objective, weights)
    if restricted is not None:
        structured, start = restricted
        return structured, start, structured.embed
    return realified(objective, weights)


def checked_solver(solver: str) -> str:
    """`solver`, or `InvalidValueError` if there is none of that name."""
    if solver not in SOLVERS:
        raise InvalidValueError(f"`solver` must be one of {SOLVERS}; got {solver!r}.")
    return solver


def as_double(leaf: Array) -> np.ndarray:
    """A leaf as numpy in double precision, complex if it is."""
    leaf = np.asarray(leaf)
    return leaf.astype(np.complex128 if np.iscomplexobj(leaf) else np.float64)
