"""Gradient flow as claims use it: one that a theorem's limit is read off must have come to its limit.

A flow that did not converge tests nothing: it is noted, and the claim's verdict is NOT CONVERGED, whatever its checks say.
Where a claim is about the way and not the end (weights at asked times, which starts end where), it calls `training` itself
and says what it needs in a check.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

from icl_lab import training
from icl_lab.core.typing import Weights
from icl_lab.objectives import Objective
from icl_lab.training import Ensemble, TrainingResult

_UNFINISHED: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("unfinished", default=None)


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """Collects what is said of the flows within the block that did not converge."""
    unfinished: list[str] = []
    token = _UNFINISHED.set(unfinished)
    try:
        yield unfinished
    finally:
        _UNFINISHED.reset(token)


def to_limit(objective: Objective, weights: Weights, **settings: Any) -> TrainingResult:
    """`training.gradient_flow`, whose limit the claim rests on."""
    flow = training.gradient_flow(objective, weights, **settings)
    _note(flow)
    return flow


def rest_on(ensemble: Ensemble, *starts: int) -> None:
    """Say that a claim rests on the limits of these starts."""
    for start in starts:
        _note(ensemble.results[start])


def _note(flow: TrainingResult) -> None:
    unfinished = _UNFINISHED.get()
    if not flow.converged and unfinished is not None:
        unfinished.append(f"A gradient flow ended as {flow.verdict.value.upper()}: {flow.reason}")
