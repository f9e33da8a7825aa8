"""A family of algorithms with the parameters that fit best, and what all fits share."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from icl_lab import estimators
from icl_lab.analysis.identify.search import least_squares
from icl_lab.analysis.sampling import Predictor

FEW, MANY = 12, 50
"""Most iterations of a fit: an exact family converges quadratically from the grid; of another the last digits do not matter."""


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """One family with the parameters that bring it closest.

    Attributes:
      family: its name.
      estimator: key of `estimators.ESTIMATORS`.
      parameters: of that estimator, as float64 numpy.
      words: the parameters for a table.
      note: what to know about the fit, as a sentence, or nothing.
    """

    family: str
    estimator: str
    parameters: dict[str, Any]
    words: str = ""
    note: str = ""

    @property
    def predictor(self) -> Predictor:
        """The estimator with its parameters filled in: prompt -> answer (k,)."""
        return estimators.named(self.estimator, **self.parameters)


class Fit(NamedTuple):
    """A family at its best, and the squared distances (H,) of its answers from the model's on held-out prompts."""

    candidate: Candidate
    squares: Float[np.ndarray, "H"]


def fit(*arguments) -> tuple[np.ndarray, np.ndarray]:
    """`least_squares` as numpy."""
    point, squares = least_squares(*arguments)
    return np.asarray(point), np.asarray(squares)


def number(value: float) -> str:
    """As tables show it."""
    return f"{float(value):.5g}"


def numbers(values: np.ndarray) -> str:
    """As tables show several."""
    return ", ".join(map(number, values))


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number > 1 else "")
