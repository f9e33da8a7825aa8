r"""Which in-context algorithm a model runs: families of algorithms fitted to its answers and ranked on fresh prompts.

A family is fitted to the *answers* of the model, never to targets, and judged on prompts it was not fitted on by the relative
distance :math:`\sqrt{E\lVert f - m \rVert^2 / E\lVert m \rVert^2}` of its answers f from those of the model m. The verdict is

1. the simplest family within `resolution`, which as far as one can tell computes the same function;
2. if there is none, the simplest family within `close` that no richer one beats clearly;
3. if there is none, "none of these".

From simple to rich: zero, OLS, gradient descent, ridge, online SGD, implicit online SGD, kernel smoothers, GD++, preconditioned
gradient descent.
A richer family beats a simpler one clearly if it divides the distance by `discrimination.FACTOR` at least and the paired
difference of their squared distances is more than `discrimination.SIGMAS` standard errors; for the families of `NO_RICHER`,
which contain no simpler one, the latter is enough.
Where a family has heavy tails (steps that diverge on some prompts) a few prompts make up its distance and its standard error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, Inexact

from icl_lab.analysis.identify import discrimination as telling
from icl_lab.analysis.identify import families
from icl_lab.analysis.identify.discrimination import Count
from icl_lab.analysis.identify.families import Candidate
from icl_lab.analysis.identify.features import features
from icl_lab.analysis.sampling import Estimate, Predictor
from icl_lab.core import compiled, precision
from icl_lab.core.errors import InvalidValueError, NonFiniteError
from icl_lab.core.prng import stream
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.prompt import Prompt, Task, check_count

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
NO_RICHER = frozenset({"kernel_smoother", "implicit_online_sgd"})
"""Estimators that stand after others and contain none of them: implicit and online SGD have one step size each."""
CHUNK = 1024
"""Prompts answered at once, and fitted on at least; every number of prompts is a multiple of it."""


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
    """

    verdict: str
    reason: str
    ranked: tuple[Ranked, ...]
    identified: Candidate | None
    scale: Estimate
    prompts: int

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
        return "\n".join([*text, f"{self.verdict.upper()}: {self.reason}"])

    def plain(self) -> dict[str, Any]:
        """Everything as dicts, lists, numbers and strings, for JSON."""
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "prompts": self.prompts,
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
    steps: int = 10,
    layers: int = 3,
) -> Identification:
    """Fit the families to the answers of a model and say which of them it is.

    Args:
      predictor: function of one prompt that returns (k,), such as `equinox.Partial(model, weights)`.
      task: distribution of the prompts, real or complex.
      key: random key; that of seed 0 if omitted.
      prompts: number of prompts to judge on, rounded up to whole chunks. Those to fit on are others: `CHUNK` of them, or more
        where a (d, d) preconditioner needs them.
      resolution: relative distance within which two functions are the same.
      close: relative distance within which a family describes the model.
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
    # Eight equations an entry of a preconditioner.
    seen, answers = _observe(predictor, task, stream(key, "fit"), -(-8 * task.dim**2 // task.label_dim))
    fresh, truth = _observe(predictor, task, stream(key, "judge"), prompts)
    norms = np.sum(np.abs(truth) ** 2, axis=1)
    scale = telling.relative_root(norms, np.ones_like(norms))
    if max(_rms(answers), _rms(truth)) <= resolution * _rms(np.asarray(fresh.labels)):
        zero = Ranked(Candidate("zero", "zero", {}), Estimate(0.0, 0.0), None, None)
        reason = f"its answers are zero to {resolution:g} of the labels on every prompt"
        return Identification("zero", reason, (zero,), zero.candidate, scale, len(norms))
    data = precision.to_numpy(features(seen))
    candidates = families.fitted(data, answers, steps, layers, resolution)
    responses = [_answers(candidate.predictor, fresh) for candidate in candidates]
    squares = np.stack([np.sum(np.abs(response - truth) ** 2, axis=1) for response in responses])
    target = np.asarray(fresh.target)
    errors = np.stack([np.sum(np.abs(response - target) ** 2, axis=1) for response in responses])
    return _judged(candidates, squares, errors, norms, scale, resolution, close)


def _judged(
    candidates: Sequence[Candidate],
    squares: Float[np.ndarray, "F M"],
    errors: Float[np.ndarray, "F M"],
    norms: Float[np.ndarray, "M"],
    scale: Estimate,
    resolution: float,
    close: float,
) -> Identification:
    """The verdict on families from simple to rich, by squared distances to the model and squared errors on M prompts."""
    distances = [telling.relative_root(square, norms) for square in squares]
    near = [i for i, distance in enumerate(distances) if distance.mean <= close]
    same = [i for i in near if distances[i].mean <= resolution]
    nearest = int(np.argmin([distance.mean for distance in distances]))
    factors = [1.0 if candidates[i].estimator in NO_RICHER else telling.FACTOR for i in near]
    chosen = near[telling.simplest(squares[near], norms, resolution, factors)] if near else None
    reference = nearest if chosen is None else chosen
    shown = candidates[reference]
    name = shown.family + (f" ({shown.words})" if shown.words else "")
    at = f"at relative distance {distances[reference].mean:.2g}"
    if chosen is None:
        reason = f"the nearest, {name}, is {at} ± {distances[reference].standard_error:.1g}, above {close:g}"
    elif chosen in same:
        others = "" if len(same) == 1 else f", the simplest of {len(same)} families"
        reason = f"{name} computes the same function, {at}, within the resolution {resolution:g}{others}"
    else:
        reason = f"{name} is the simplest family within {close:g} that no richer one beats clearly, {at}"
        reason += f" ± {distances[reference].standard_error:.1g}"
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
    return Identification(verdict, reason + note, tuple(ranked), identified, scale, squares.shape[1])


def _observe(predictor: Predictor, task: Task, key: Key, count: int) -> tuple[Prompt, Inexact[np.ndarray, "M k"]]:
    """Prompts, at least so many, and what the model answers, in one dtype."""
    chunks = [_sample(task, jax.random.fold_in(key, i)) for i in range(-(-count // CHUNK))]
    prompts = jax.tree.map(lambda *leaves: np.concatenate(leaves), *chunks)
    answers = _answers(predictor, prompts)
    if answers.shape != prompts.labels.shape[::2]:
        raise InvalidValueError(
            f"`predictor` must answer a prompt with an array of the shape of a label, {prompts.labels.shape[2:]}; got shape "
            f"{answers.shape[1:]}."
        )
    broken = int(np.sum(~np.all(np.isfinite(answers), axis=1)))
    if broken:
        raise NonFiniteError(
            f"the predictor answers {broken} of {len(answers)} prompts with NaN or infinity; an algorithm can be fitted to "
            "finite answers only. Check that its training did not diverge."
        )
    dtype = np.result_type(answers, prompts.labels)
    return eqx.tree_at(lambda p: p.labels, prompts, prompts.labels.astype(dtype)), answers.astype(dtype)


@compiled.jit
def _sample(task: Task, key: Key) -> Prompt:
    return eqx.tree_at(lambda p: p.latent, task.sample_batch(key, CHUNK), None, is_leaf=lambda x: x is None)


def _answers(predictor: Predictor, prompts: Prompt) -> Inexact[np.ndarray, "M k"]:
    chunks = [jax.tree.map(lambda leaf, i=i: leaf[i : i + CHUNK], prompts) for i in range(0, len(prompts.query), CHUNK)]
    return np.concatenate([np.asarray(_answer_all(predictor, chunk)) for chunk in chunks])


@compiled.jit
def _answer_all(predictor: Predictor, prompts: Prompt) -> Inexact[Array, "M k"]:
    return jax.vmap(predictor)(prompts)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.abs(values) ** 2)))
