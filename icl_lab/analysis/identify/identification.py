r"""Which in-context algorithm a model runs: families of algorithms fitted to its answers and ranked on fresh prompts.

A family is fitted to the *answers* of the model, never to targets, and judged on prompts it was not fitted on by the relative
distance :math:`\sqrt{E\lVert f - m \rVert^2 / E\lVert m \rVert^2}` of its answers f from those of the model m. The verdict is

1. the simplest family within `resolution`, which as far as one can tell computes the same function;
2. if there is none, the simplest family within `close` that no richer one beats clearly;
3. if there is none, "none of these".

From simple to rich: zero, OLS, gradient descent, ridge; online SGD, normalised and implicit; a discounted gradient step, online
SGD with decay and with momentum, discounted ridge; kernel smoothers, GD++, a gradient step with a weight for each example, and
preconditioned gradient descent. Families that read the examples in their order are fitted only to a model whose answers change
by more than `resolution` when every example takes the place of the next and the last one the first.
A richer family beats a simpler one clearly if the prompts can tell them apart, the paired difference of their squared
distances being more than `discrimination.SIGMAS` standard errors, and if its distance is smaller by more than the share
`tolerance` of the simpler one's. Both numbers, and how the families next to the verdict fared, are printed with it.
Where a family has heavy tails (steps that diverge on some prompts) a few prompts make up its distance and its standard error;
for how fits find them see `observations`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from icl_lab.analysis.identify import certainty, families
from icl_lab.analysis.identify import discrimination as telling
from icl_lab.analysis.identify.candidate import Candidate
from icl_lab.analysis.identify.discrimination import Count
from icl_lab.analysis.identify.features import Answered, features
from icl_lab.analysis.identify.observations import Observed, answers_of, observe, observe_rare, order_effect
from icl_lab.analysis.sampling import Estimate, Predictor
from icl_lab.core import precision
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.prng import stream
from icl_lab.core.typing import Key
from icl_lab.tasks.prompt import Task, check_count

NONE = "none of these"
"""The verdict where no family is close."""
RESOLUTION = 1e-6
"""Relative distance within which two functions are the same: a flow trained to its default tolerance ends within 1e-8."""
CLOSE = 0.05
"""Relative distance within which a family describes a model that it does not equal.

Layers of linear attention after thousands of steps of Adam on fresh prompts are 0.01 to 0.03 from their limit, a trained head
of softmax attention 0.01 to 0.07 from a smoother. The best gradient step is 0.3 or more from one softmax head, and from two it
is 0.36 at d = N = 10, 0.18 at d = 5, N = 20, and 0.10 at d = 5, N = 100.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Ranked:
    """One family beside the model.

    Attributes:
      candidate: the family, its fitted parameters, and its `predictor`.
      distance: root mean square distance to the model, relative to the root mean square of the model's answers.
      by_answers: prompts that it takes to tell the family from the verdict by their distances to the model's answers: the
        mean paired difference of squared distances is then `discrimination.SIGMAS` standard errors. None for the verdict
        itself.
      by_risk: the same for one who sees no answers but two mean squared errors, each on prompts of its own.
    """

    candidate: Candidate
    distance: Estimate
    by_answers: Count | None
    by_risk: Count | None


@dataclasses.dataclass(frozen=True, eq=False)
class Identification:
    """What `identify` found; prints as a table.

    Attributes:
      verdict: the name of a family, or `NONE`.
      reason: one sentence.
      ranked: the families by distance, the nearest first. Where the verdict is `NONE`, they are told from the nearest.
      identified: the family of the verdict, if it is one.
      scale: root mean square of the model's answers.
      prompts: number that the families were judged on.
      rule: one sentence, by which rule the verdict was found, with its numbers.
      errors: relative standard error of each parameter of a family that is close to the model and does not equal it, by name;
        see `certainty`.
    """

    verdict: str
    reason: str
    ranked: tuple[Ranked, ...]
    identified: Candidate | None
    scale: Estimate
    prompts: int
    rule: str
    errors: dict[str, float] = dataclasses.field(default_factory=dict)

    def distance(self, family: str) -> Estimate:
        """The relative distance of a family, by its name.

        Raises:
          InvalidValueError: no family of that name was fitted.
        """
        for row in self.ranked:
            if row.candidate.family == family:
                return row.distance
        raise InvalidValueError(
            f"No family is called {family!r}; fitted were {', '.join(row.candidate.family for row in self.ranked)}."
        )

    def rows(self) -> list[tuple[str, ...]]:
        """The table as text, a row a family; see `COLUMNS`."""
        return [
            (
                str(rank),
                row.candidate.family,
                row.candidate.words,
                f"{row.distance.mean:.2e} ± {row.distance.standard_error:.0e}",
                *("" if count is None else str(count) for count in (row.by_answers, row.by_risk)),
            )
            for rank, row in enumerate(self.ranked, 1)
        ]

    def __str__(self) -> str:
        lines = [COLUMNS, *self.rows()]
        widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
        text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([*text, f"{self.verdict.upper()}: {self.reason}", f"Rule: {self.rule}"])

    def plain(self) -> dict[str, Any]:
        """Everything as dicts, lists, numbers and strings, for JSON."""
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "rule": self.rule,
            "prompts": self.prompts,
            "errors": {name: error if np.isfinite(error) else "inf" for name, error in self.errors.items()},
            "scale": {"mean": self.scale.mean, "standard_error": self.scale.standard_error},
            "families": [
                {
                    "family": row.candidate.family,
                    "estimator": row.candidate.estimator,
                    "parameters": {name: np.asarray(value).tolist() for name, value in row.candidate.parameters.items()},
                    "note": row.candidate.note,
                    "distance": row.distance.mean,
                    "standard_error": row.distance.standard_error,
                    "tell_by_answers": None if row.by_answers is None else row.by_answers.plain(),
                    "tell_by_risk": None if row.by_risk is None else row.by_risk.plain(),
                }
                for row in self.ranked
            ],
        }


COLUMNS = ("rank", "family", "fitted", "relative distance", "tell by answers", "tell by risk")


@precision.in_float64
def identify(
    predictor: Predictor,
    task: Task,
    key: Key | None = None,
    prompts: int = 4096,
    *,
    resolution: float = RESOLUTION,
    close: float = CLOSE,
    tolerance: float = telling.TOLERANCE,
    steps: int = 10,
    layers: int = 3,
) -> Identification:
    """Fit the families to the answers of a model and say which of them it is.

    The simplest family within `resolution` is the answer. If there is none, a richer family takes the place of a simpler one
    only if it is closer by more than the share `tolerance` of the distance and by more than `discrimination.SIGMAS` standard
    errors of the paired difference of squared distances, on prompts that neither was fitted to: a simpler family stands where
    the prompts cannot tell it from the richer one, or where the difference is below the tolerance. Of the families within
    `close` the simplest that stands is the answer, and if no family is within it, none is. Of an answer that is close and not
    within the resolution the reason also says how well its parameters are known, as relative standard errors.

    Args:
      predictor: function of one prompt that returns (k,), such as `equinox.Partial(model, weights)`.
      task: distribution of the prompts, real or complex.
      key: random key; that of seed 0 if omitted.
      prompts: number of prompts to judge on. Those to fit on and to choose between fits by are others, some 2000 of each: see
        `observations`.
      resolution: relative distance within which two functions are the same.
      close: relative distance within which a family describes the model.
      tolerance: share of the distance, 0 <= tolerance < 1, by which a richer family must be closer than a simpler one.
      steps: most steps of gradient descent that are tried.
      layers: most layers of GD++ that are tried, at least 2.

    Returns:
      The families, ranked, and the verdict.

    Raises:
      InvalidValueError: counts or thresholds outside their range, or answers of another shape than the labels.
      NonFiniteError: answers that are NaN or infinite.

    Examples:
      >>> from icl_lab import analysis, estimators, tasks
      >>> task = tasks.LinearRegression(dim=2, context_length=8)
      >>> step = estimators.named("gradient_descent", step_size=0.5)
      >>> found = analysis.identify(step, task, prompts=1024, steps=2, layers=2)
      >>> found.verdict, found.identified.words
      ('gradient descent', '1 step of 0.5')
    """
    key = jax.random.key(0) if key is None else key
    check_count(prompts, "prompts", 2, "A standard error needs two prompts at least.")
    check_count(steps, "steps", 1, "It is the largest number of gradient steps that is tried.")
    check_count(layers, "layers", 2, "GD++ of one layer is a step of gradient descent.")
    if not 0 < resolution <= close < 1:
        raise InvalidValueError(f"thresholds must be 0 < resolution <= close < 1; got {resolution!r} and {close!r}.")
    if not 0 <= tolerance < 1:
        raise InvalidValueError(f"`tolerance` must be a share of a distance, 0 <= tolerance < 1; got {tolerance!r}.")
    # Eight equations an entry of a preconditioner, and a weight of an example.
    needed = -(-8 * max(task.dim**2, task.context_length) // task.label_dim)
    seen = observe_rare(predictor, task, stream(key, "fit"), needed)
    held = observe_rare(predictor, task, stream(key, "choose"), 0)
    fresh, truth, _ = observe(predictor, task, stream(key, "judge"), prompts)
    norms = np.sum(np.abs(truth) ** 2, axis=1)[:prompts]
    scale = telling.relative_root(norms, np.ones_like(norms))
    if max(_rms(seen.answers), _rms(truth)) <= resolution * _rms(np.asarray(fresh.labels)):
        zero = Ranked(Candidate("zero", "zero", {}), Estimate(0.0, 0.0), None, None)
        reason = f"its answers are zero to {resolution:g} of the labels on every prompt"
        return Identification("zero", reason, (zero,), zero.candidate, scale, len(norms), "nothing was fitted to such answers")
    order_matters = order_effect(predictor, held) > resolution
    candidates = families.fitted(_decomposed(seen), _decomposed(held), steps, layers, resolution, order_matters)
    responses = [answers_of(candidate.predictor, fresh) for candidate in candidates]
    squares = np.stack([np.sum(np.abs(response - truth) ** 2, axis=1)[:prompts] for response in responses])
    target = np.asarray(fresh.target)
    errors = np.stack([np.sum(np.abs(response - target) ** 2, axis=1)[:prompts] for response in responses])
    return _judged(candidates, squares, errors, norms, scale, resolution, close, tolerance, seen)


def _decomposed(observed: Observed) -> Answered:
    return Answered(precision.to_numpy(features(observed.prompts)), observed.answers, observed.weights)


def _judged(
    candidates: Sequence[Candidate],
    squares: Float[np.ndarray, "F M"],
    errors: Float[np.ndarray, "F M"],
    norms: Float[np.ndarray, "M"],
    scale: Estimate,
    resolution: float,
    close: float,
    tolerance: float,
    seen: Observed,
) -> Identification:
    """The verdict on families from simple to rich, by squared distances to the model and squared errors on M prompts."""
    distances = [telling.relative_root(square, norms) for square in squares]
    near = [i for i, distance in enumerate(distances) if distance.mean <= close]
    same = [i for i in near if distances[i].mean <= resolution]
    nearest = int(np.argmin([distance.mean for distance in distances]))
    chosen = near[telling.simplest(squares[near], norms, resolution, tolerance)] if near else None
    reference = nearest if chosen is None else chosen
    shown = candidates[reference]
    name = shown.family + (f" ({shown.words})" if shown.words else "")
    at, known = f"at relative distance {distances[reference].mean:.2g}", {}
    if chosen is None:
        reason = f"the nearest, {name}, is {at} ± {distances[reference].standard_error:.1g}, above {close:g}"
    elif chosen in same:
        others = "" if len(same) == 1 else f", the simplest of {len(same)} families"
        reason = f"{name} computes the same function, {at}, within the resolution {resolution:g}{others}"
    else:
        reason = f"{name} is the simplest family within {close:g} that no richer one beats clearly, {at}"
        known = certainty.standard_errors(shown, seen)
        reason += f" ± {distances[reference].standard_error:.1g}" + (f"; its {certainty.said(known)}" if known else "")
    ranked = []
    for i in np.argsort([distance.mean for distance in distances]):
        if i == reference:
            counts = None, None
        elif i in same and reference in same:
            counts = Count(np.inf), Count(np.inf)
        else:
            spread = np.sqrt(np.var(errors[i], ddof=1) + np.var(errors[reference], ddof=1))
            counts = (
                telling.required_prompts(squares[i] - squares[reference]),
                telling.required_prompts(errors[i] - errors[reference], float(spread)),
            )
        ranked.append(Ranked(candidates[i], distances[i], *counts))
    note = f"; {shown.note}" if shown.note else ""
    identified = None if chosen is None else candidates[chosen]
    verdict = NONE if identified is None else identified.family
    if chosen is None:
        rule = f"a family is named that is within {close:g}, and no family is"
    elif chosen in same:
        rule = f"of the families within the resolution {resolution:g} the simplest is named"
    else:
        rule = telling.rule({candidates[i].family: squares[i] for i in near}, shown.family, tolerance)
    return Identification(verdict, reason + note, tuple(ranked), identified, scale, squares.shape[1], rule, known)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.abs(values) ** 2)))
