"""Telling functions apart on a sample of prompts: relative distances, which is closer, and how many prompts that takes."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from icl_lab.analysis.sampling import Estimate

SIGMAS = 4.0
"""Standard errors that tell two functions apart."""
TOLERANCE = 0.1
"""By which share of its distance a richer function has to be closer than a simpler one: of any smaller difference one says
that the simpler one describes as well, even where the prompts show it."""


@dataclasses.dataclass(frozen=True)
class Count:
    """How many prompts tell two functions apart.

    Attributes:
      prompts: a number >= 2; infinity where no number does.
      at_least: whether it is a lower bound, because the prompts that were drawn show no difference.
    """

    prompts: float
    at_least: bool = False

    def plain(self) -> dict[str, float | str | bool]:
        """For JSON, which has no infinity: that is the string "inf"."""
        return {"prompts": "inf" if np.isinf(self.prompts) else self.prompts, "at_least": self.at_least}

    def __str__(self) -> str:
        number = f"{self.prompts:.0f}" if self.prompts < 1e5 or np.isinf(self.prompts) else f"{self.prompts:.2g}"
        return f"> {number}" if self.at_least else number


def required_prompts(difference: Float[np.ndarray, "M"], deviation: float | None = None) -> Count:
    r"""How many prompts it takes until a mean difference m is `SIGMAS` standard errors from zero, :math:`(4 s / m)^2`.

    Args:
      difference: of M prompts.
      deviation: s, the standard deviation a prompt of the observed difference; by default that of `difference`, for one who
        observes the same prompts.

    Returns:
      At least 2. Where the M prompts do not show the difference, a lower bound from the largest mean that they allow.
    """
    mean, paired = abs(float(np.mean(difference))), float(np.std(difference, ddof=1))
    error = paired / np.sqrt(len(difference))
    shown = mean > SIGMAS * error
    largest = mean if shown else mean + SIGMAS * error
    if largest == 0:
        return Count(np.inf)
    return Count(max(2.0, float(np.ceil((SIGMAS * (paired if deviation is None else deviation) / largest) ** 2))), not shown)


def relative_root(squares: Float[np.ndarray, "M"], norms: Float[np.ndarray, "M"]) -> Estimate:
    """The root of the ratio of two means on the same prompts, its standard error by the delta method."""
    ratio = float(np.mean(squares) / np.mean(norms))
    if ratio == 0:
        return Estimate(0.0, 0.0)
    error = float(np.std(squares - ratio * norms, ddof=1) / np.mean(norms) / np.sqrt(len(squares)))
    return Estimate(np.sqrt(ratio), error / (2 * np.sqrt(ratio)))


class Comparison(NamedTuple):
    """A richer function beside a simpler one, both at distances from a third.

    Attributes:
      gain: share of the simpler one's root mean square distance by which the richer one is closer; negative if it is not.
      errors: mean paired difference of the squared distances, in standard errors.
    """

    gain: float
    errors: float

    def clear(self, tolerance: float) -> bool:
        """Whether the richer one is closer by more than the tolerance and by more than `SIGMAS` standard errors."""
        return self.gain > tolerance and self.errors > SIGMAS

    def __str__(self) -> str:
        return f"{100 * self.gain:.0f}%, {self.errors:.1f} standard errors"


def compare(richer: Float[np.ndarray, "M"], simpler: Float[np.ndarray, "M"]) -> Comparison:
    """How much closer a richer function is than a simpler one, from their squared distances on the same prompts."""
    difference = simpler - richer
    mean, error = float(np.mean(difference)), float(np.std(difference, ddof=1) / np.sqrt(len(difference)))
    # Two functions that are equally far on every prompt are no errors apart, two that differ by a constant any number.
    errors = mean / error if error > 0 else float(np.sign(mean)) * np.inf if mean else 0.0
    far = float(np.mean(simpler))
    return Comparison(1 - float(np.sqrt(np.mean(richer) / far)) if far > 0 else 0.0, errors)


def simplest(
    squares: Float[np.ndarray, "F M"], norms: Float[np.ndarray, "M"], resolution: float, tolerance: float = TOLERANCE
) -> int:
    """Which of F functions, from simple to rich, describes another one best.

    Args:
      squares: squared distances to it on M prompts.
      norms: its squared norms.
      resolution: relative distance within which two functions are the same.
      tolerance: of `Comparison.clear`.

    Returns:
      The first within the resolution; if there is none, the first than which no later one is clearly closer.
    """
    same = np.flatnonzero(np.mean(squares, axis=1) <= resolution**2 * np.mean(norms))
    if len(same):
        return int(same[0])
    count = len(squares)
    return next(
        i for i in range(count) if not any(compare(squares[j], squares[i]).clear(tolerance) for j in range(i + 1, count))
    )


def rule(near: dict[str, Float[np.ndarray, "M"]], chosen: str, tolerance: float) -> str:
    """Why `simplest` chose one of some functions, in a sentence.

    Args:
      near: squared distances on M prompts by name, from simple to rich; none is within the resolution.
      chosen: the name of the one that was chosen.
      tolerance: of `Comparison.clear`.
    """
    names = list(near)
    place = names.index(chosen)
    said = [
        f"a richer family takes the place of a simpler one only if it is closer by more than {100 * tolerance:g}% and by more "
        f"than {SIGMAS:g} standard errors of the paired difference"
    ]
    for simpler in names[:place]:
        winner = next(
            richer
            for richer in [chosen, *names[names.index(simpler) + 1 :]]
            if compare(near[richer], near[simpler]).clear(tolerance)
        )
        said.append(f"{winner} takes that of {simpler} ({compare(near[winner], near[simpler])})")
    for richer in names[place + 1 :]:
        said.append(f"{richer} does not take that of {chosen} ({compare(near[richer], near[chosen])})")
    return "; ".join(said)
