r"""Prompts of Gaussian regression by their Gram matrices: d + 1 rows whose Gram matrix is distributed as that of n examples.

One linear layer and the estimators beside it read the examples of a prompt through sum_i x_i x_i^T and sum_i x_i y_i alone.
For Gaussian inputs and noise a Gram matrix of n examples can be drawn without them: that of n standard normal rows (z, e) in
D = d + 1 dimensions is R^T R, R upper triangular with

.. math:: R_{ii}^2 \sim \chi^2_{n - i}\ (i = 0, 1, .., d), \qquad R_{ij} \sim N(0, 1)\ (i < j)

and with rows of zeros from row n on (Bartlett's decomposition). So the D rows of R, mapped to inputs and labels as the n rows
would be, stand for n examples, whatever n is: the distribution of every answer is exactly what it was, and one compiled
program serves all context lengths, spectra and noise levels of a dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from icl_lab import tasks
from icl_lab.analysis import Predictor
from icl_lab.analysis.evaluation.measure import Tables, added, chunks, summaries, sums
from icl_lab.core.progress import each
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.prompt import Prompt, Task, check_finite

SMALL = 32
"""Dimensions up to which d + 1 rows cost no more than to compile a program for each length would."""


class Condensed(NamedTuple):
    """Gaussian regression as the numbers that its condensed prompts need.

    Attributes:
      root: (d, d) square root of the covariance of the inputs.
      task_root: (d, d) square root of the covariance of the task vector.
      noise_std: of the labels.
    """

    root: Float[np.ndarray, "d d"]
    task_root: Float[np.ndarray, "d d"]
    noise_std: float

    @property
    def rows(self) -> int:
        """D = d + 1, the rows of every prompt."""
        return len(self.root) + 1

    def draw(self, key: Key, examples: int, count: int) -> Prompt:
        """A batch of `count` prompts of `examples` examples each, in D rows.

        Task vectors and queries of a key are the same at every number of examples. The numbers are numpy's, since a program
        that draws from chi-squared distributions of any degree takes JAX seconds to compile, for each dimension.
        """
        generator, dim = np.random.default_rng(np.asarray(jax.random.key_data(key))), len(self.root)
        vectors = generator.standard_normal((count, dim)) @ self.task_root
        queries = generator.standard_normal((count, dim)) @ self.root
        standard = triangles(generator, examples, count, self.rows)
        inputs = standard[:, :, :-1] @ self.root
        labels = inputs @ vectors[:, :, None] + self.noise_std * standard[:, :, -1:]
        targets = np.sum(queries * vectors, axis=1, keepdims=True)
        return jax.vmap(Prompt)(inputs, labels, queries, targets)


def condensed(task: Task, lengths: Sequence[int]) -> Condensed | None:
    """The `Condensed` prompts of a task, where it is Gaussian regression and its prompts are not much shorter; else None.

    Args:
      task: distribution of the prompts.
      lengths: increasing context lengths.
    """
    if not (isinstance(task, tasks.LinearRegression) and isinstance(task.covariates, tasks.Gaussian)):
        return None
    if task.dim > SMALL and 2 * task.dim > lengths[-1]:
        return None
    return Condensed(_dense(task.covariates.root, task.dim), _dense(task.task_root, task.dim), float(task.noise_std))


def measure_condensed(
    distribution: Condensed,
    models: Sequence[Predictor],
    others: Mapping[str, Predictor],
    lengths: Sequence[int],
    key: Key,
    prompts: int,
    *,
    means: Sequence[str],
    together: int = 1,
) -> Tables:
    """What `measure` returns, from condensed prompts.

    Args:
      distribution: of the prompts.
      models: trained models as functions of one prompt, equal but for their arrays.
      others: the estimators, by name; numbers among their parameters as arrays, so that others need no other program.
      lengths: context lengths.
      key: random key.
      prompts: at least 2, rounded up to whole chunks.
      means: those of "model" and the names of `others` whose answers were divided by the number of examples; all others have to
        be functions of sums over the examples.
      together: number of models whose answers are in memory at once.

    Raises:
      InvalidValueError: fewer than two prompts.
      NonFiniteError: a drawn prompt holds a NaN or an infinity.
    """
    size, number = chunks(distribution.rows**2, prompts)
    totals: dict[int, np.ndarray] = {}
    for index in each("prompts in chunks", range(number)):
        for length in lengths:
            batch = distribution.draw(jax.random.fold_in(key, index), length, size)
            check_finite(batch)
            scale = np.asarray(distribution.rows / length)
            scaled = {name: _rescaled(other, scale) if name in means else other for name, other in others.items()}
            learned = [_rescaled(model, scale) for model in models] if "model" in means else models
            found = sums(learned, scaled, batch, distribution.rows, sequence=False, together=together)
            totals[length] = added(totals.get(length), found)
    return summaries(("model", *others), totals, size * number)


def triangles(generator: np.random.Generator, examples: int, count: int, width: int) -> Float[np.ndarray, "count width width"]:
    """Triangles (count, width, width) whose Gram matrices are distributed as those of `examples` standard normal rows."""
    freedom = examples - np.arange(width)
    drawn = np.triu(generator.standard_normal((count, width, width)), 1)
    diagonal = np.sqrt(generator.chisquare(np.maximum(freedom, 1), (count, width)))
    drawn[:, np.arange(width), np.arange(width)] = diagonal
    return drawn * (freedom > 0)[:, None]


def _dense(root: Array | None, dim: int) -> Float[np.ndarray, "d d"]:
    """A root in any of the forms of `spectra.covariance_root` as a matrix, so that spectra of all kinds share a program."""
    if root is None:
        return np.eye(dim)
    root = np.asarray(root)
    return np.diag(root) if root.ndim == 1 else root


def _rescaled(predictor: Predictor, scale: Float[np.ndarray, ""]) -> Predictor:
    return eqx.Partial(_times, scale, predictor)


def _times(scale: Float[Array, ""], predictor: Predictor, prompt: Prompt) -> Array:
    return scale * predictor(prompt)
