r"""Long prompts of Gaussian regression by their Gram matrices: a few rows whose Gram matrix is distributed as that of many.

One linear layer and the estimators beside it read the examples of a prompt through sum_i x_i x_i^T and sum_i x_i y_i alone.
For Gaussian inputs and noise a Gram matrix of n examples can be drawn without them: that of n standard normal rows (z, e) in
D = d + 1 dimensions is R^T R, R upper triangular with

.. math:: R_{ii}^2 \sim \chi^2_{n - i}\ (i = 0, 1, .., d), \qquad R_{ij} \sim N(0, 1)\ (i < j)

(Bartlett's decomposition). So the D rows of R, mapped to inputs and labels as the n rows would be, stand for n examples, and
a longer prompt has the rows of a shorter one and some more. The distribution of every answer is exactly what it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab import tasks
from icl_lab.analysis import Predictor
from icl_lab.core.prng import stream
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.distributions.covariates import normals
from icl_lab.tasks.distributions.spectra import apply_root
from icl_lab.tasks.prompt import Prompt, Task

LONG = 2**13
"""Numbers in the inputs of a prompt, from which on it is worth while."""
MEANS = ("model", "gradient_descent", "preconditioned_gradient_descent")
"""Predictors that divide by the number of examples; the others take sums."""


class Condensed(Task):
    """A regression task's prompts at several context lengths, each in as few rows as can have its Gram matrix.

    Attributes:
      task: Gaussian regression at the largest length.
      lengths: increasing context lengths n.
      rows: for each of them the number of rows from the beginning that stand for n examples.
    """

    task: tasks.LinearRegression
    lengths: tuple[int, ...] = eqx.field(static=True)
    rows: tuple[int, ...] = eqx.field(static=True)
    dim: int = eqx.field(static=True)
    label_dim: int = eqx.field(static=True)
    context_length: int = eqx.field(static=True)

    def __init__(self, task: tasks.LinearRegression, lengths: Sequence[int]):
        blocks = np.diff(lengths, prepend=0)
        self.task, self.lengths = task, tuple(lengths)
        self.rows = tuple(int(count) for count in np.cumsum(np.minimum(blocks, task.dim + 1)))
        self.dim, self.label_dim, self.context_length = task.dim, 1, self.rows[-1]

    def sample(self, key: Key) -> Prompt:
        """One prompt; at every length its Gram matrix has the distribution of that of a prompt of `task`."""
        blocks = np.diff(self.lengths, prepend=0)
        drawn = [_triangle(jax.random.fold_in(stream(key, "rows"), i), int(n), self.dim + 1) for i, n in enumerate(blocks)]
        standard = jnp.concatenate(drawn)
        covariates = self.task.covariates
        assert isinstance(covariates, tasks.Gaussian)
        inputs = apply_root(covariates.root, standard[:, :-1])
        vector, query = self.task.sample_task(key), covariates.sample(stream(key, "query"), 1)[0]
        labels = inputs @ vector + jnp.asarray(self.task.noise_std, inputs.dtype) * standard[:, -1]
        target = (query[None] @ vector[:, None])[0]
        return Prompt(inputs=inputs, labels=labels[:, None], query=query, target=target, latent=vector)

    def predictors(self, predictors: Mapping[str, Predictor]) -> dict[str, Predictor]:
        """Predictors of condensed prompts from those of prompts, "model" and estimators by their names in tables."""
        examples = dict(zip(self.rows, self.lengths, strict=True))
        return {
            name: eqx.Partial(_Mean(tuple(examples.items())), predictor) if name in MEANS else predictor
            for name, predictor in predictors.items()
        }


class _Mean(eqx.Module):
    """An answer that was divided by the number of rows, divided by the number of examples that they stand for."""

    examples: tuple[tuple[int, int], ...] = eqx.field(static=True)

    def __call__(self, predictor: Predictor, prompt: Prompt) -> Array:
        rows = prompt.inputs.shape[0]
        return predictor(prompt) * (rows / dict(self.examples)[rows])


def condensed(task: Task, lengths: Sequence[int]) -> Condensed | None:
    """The `Condensed` prompts of a task, where it is Gaussian regression with prompts long enough to gain by it; else None."""
    if not (isinstance(task, tasks.LinearRegression) and isinstance(task.covariates, tasks.Gaussian)):
        return None
    distribution = Condensed(task, lengths)
    return distribution if lengths[-1] * task.dim >= LONG and 2 * distribution.context_length <= lengths[-1] else None


def _triangle(key: Key, count: int, width: int) -> Float[Array, "rows width"]:
    """At most `width` rows whose Gram matrix has the distribution of that of `count` standard normal rows."""
    if count <= width:
        return normals(key, count, width)
    entries = normals(stream(key, "normal"), width, width)
    squares = 2.0 * jax.random.gamma(stream(key, "diagonal"), 0.5 * (count - jnp.arange(width, dtype=entries.dtype)))
    return jnp.triu(entries, 1) + jnp.diag(jnp.sqrt(squares))
