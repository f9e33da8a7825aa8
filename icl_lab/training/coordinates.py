"""The form of a problem in which its flow is integrated, alone or with others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array, Weights
from icl_lab.objectives.exact.regression import StructuredLoss
from icl_lab.objectives.objective import Objective
from icl_lab.tasks.prompt import check_count
from icl_lab.training.realify import realified
from icl_lab.training.segment import SOLVERS


def coordinates(objective: Objective, weights: Weights) -> tuple[Objective, Weights, Callable[[Weights], Weights]]:
    """An isometric form of the problem with real unknowns: (objective, start, map back to weights).

    On the invariant subspace p1 = k2 = 0 of an exact regression loss it is the structured one, whose flow is elementwise.
    """
    restricted = StructuredLoss.restrict(objective, weights)
    if restricted is not None:
        structured, start = restricted
        return structured, start, structured.embed
    return realified(objective, weights)


def check_flow(solver: str, weight_tolerance: float, max_steps: int, prefix: str = "") -> None:
    """Raise `InvalidValueError` unless a flow can be integrated and judged so; the message has `prefix` before a name."""
    if solver not in SOLVERS:
        raise InvalidValueError(f"`{prefix}solver` must be one of {', '.join(SOLVERS)}; got {solver!r}.")
    if not 0 < weight_tolerance < 1:
        raise InvalidValueError(
            f"`{prefix}weight_tolerance` must be a number between 0 and 1, the relative error of the weights at which the flow "
            f"has converged; got {weight_tolerance!r}."
        )
    check_count(max_steps, f"{prefix}max_steps", 1, "A flow takes at least one step.")


def as_double(leaf: Array) -> np.ndarray:
    """A leaf as numpy in double precision, complex if it is."""
    leaf = np.asarray(leaf)
    return leaf.astype(np.complex128 if np.iscomplexobj(leaf) else np.float64)
