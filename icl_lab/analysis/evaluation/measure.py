"""Risks of predictors and their distances from a trained model, at several context lengths, on one set of prompts.

Prompts are drawn once at the largest length; a shorter prompt is the beginning of a longer one. So the numbers are
paired over predictors and lengths, and drawing compiles once. Only of a task that is not `nested` each length is drawn by
itself. Prompts pass in chunks: memory does not grow with them.

A risk is E|yhat - target|^2. A prediction distance is relative: sqrt(E|yhat - yhat_model|^2 / E|yhat_model|^2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.analysis import Predictor
from icl_lab.analysis.sampling import hopeless
from icl_lab.core import compiled
from icl_lab.core.progress import each
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.prompt import Prompt, Task, check_count, check_finite

CHUNK_ELEMENTS = 2**22
"""Numbers in the inputs of a chunk, 32 MB in float64."""

Tables = list[dict[int, dict[str, dict[str, float]]]]
"""For each model, length -> name of a predictor -> its numbers by their names, see `measure`."""


def measure(
    task: Task,
    models: Sequence[Predictor],
    others: Mapping[str, Predictor],
    lengths: Sequence[int],
    key: Key,
    prompts: int,
    *,
    sequence: bool,
    together: int = 1,
) -> Tables:
    """Risks and prediction distances of each model and of the estimators, at every length.

    Args:
      task: distribution of the prompts at the largest of the lengths.
      models: trained models as functions of one prompt, equal but for their arrays; each has a table of its own.
      others: the estimators, by name.
      lengths: context lengths, at most that of `task`; each compiles its own program.
      key: random key.
      prompts: at least 2, rounded up to whole chunks.
      sequence: whether the examples of a prompt follow each other in time, see `prefix`.
      together: number of models whose answers are in memory at once.

    Returns:
      For each model: length -> name -> {"risk", "standard_error", "prediction_distance", "prediction_distance_error"}; the
      model is called "model" and has no distance. A standard error is infinite if one prompt makes up most of the variance.

    Raises:
      InvalidValueError: fewer than two prompts.
      NonFiniteError: a sampled prompt holds a NaN or an infinity.
    """
    size, number = chunks(task.context_length * task.dim, prompts)
    totals: dict[int, np.ndarray] = {}
    for index in each("prompts in chunks", range(number)):
        batch = None
        for length in lengths:
            if batch is None or not task.nested:
                drawn = task if task.nested else task.with_context_length(length)
                batch = jax.tree.map(np.asarray, _draw(drawn, jax.random.fold_in(key, index), size))
                check_finite(batch)
            found = sums(models, others, batch, length, sequence=sequence, together=together)
            totals[length] = added(totals.get(length), found)
    return summaries(("model", *others), totals, size * number)


def chunks(elements: int, prompts: int) -> tuple[int, int]:
    """Size and number of the chunks in which at least `prompts` prompts of so many `elements` pass.

    Raises:
      InvalidValueError: fewer than two prompts.
    """
    check_count(prompts, "analysis.prompts", 2, "A standard error needs two prompts at least.")
    size = int(np.clip(CHUNK_ELEMENTS // elements, 1, prompts))
    return size, -(-prompts // size)


def sums(
    models: Sequence[Predictor], others: Mapping[str, Predictor], batch: Prompt, length: int, *, sequence: bool, together: int
) -> Float[np.ndarray, "M 6 P"]:
    """Sums over a batch cut to a length, for each of M models one entry a predictor, the model first.

    They are the squared error, its square, the squared gap to the model, its square, the squared answer of the model; and the
    largest squared error.
    """
    arrays, rest = zip(*(eqx.partition(model, eqx.is_array) for model in models), strict=True)
    stacked = eqx.combine(jax.tree.map(lambda *leaves: np.stack(leaves), *arrays), rest[0])
    return np.asarray(_sums(stacked, len(models), tuple(others.values()), batch, length, sequence, together))


def added(total: Float[np.ndarray, "M 6 P"] | None, more: Float[np.ndarray, "M 6 P"]) -> Float[np.ndarray, "M 6 P"]:
    """The `sums` over two batches; None for no batch."""
    if total is None:
        return more
    return np.concatenate([total[:, :5] + more[:, :5], np.maximum(total[:, 5:], more[:, 5:])], axis=1)


def summaries(names: Sequence[str], totals: Mapping[int, Float[np.ndarray, "M 6 P"]], count: int) -> Tables:
    """The tables of M models from the `sums` over `count` prompts at each length; `names` are those of the P predictors."""
    models = len(next(iter(totals.values())))
    return [{length: _summary(names, found[i], count) for length, found in totals.items()} for i in range(models)]


def prefix(prompt: Prompt, length: int, sequence: bool) -> Prompt:
    """The first `length` examples of a prompt as a prompt of their own, without its latent.

    Args:
      prompt: one prompt.
      length: at most the number of examples.
      sequence: True if example i + 1 follows example i in time; then the query is the input after the last example and
        the target its label. Otherwise query and target stay.
    """
    follows = sequence and length < prompt.inputs.shape[0]
    return Prompt(
        inputs=prompt.inputs[:length],
        labels=prompt.labels[:length],
        query=prompt.inputs[length] if follows else prompt.query,
        target=prompt.labels[length] if follows else prompt.target,
    )


@compiled.jit
def _draw(task: Task, key: Key, size: int) -> Prompt:
    def one(key: Key) -> Prompt:
        return prefix(task.sample(key), task.context_length, False)

    return jax.vmap(one)(jax.random.split(key, size))


@compiled.jit
def _sums(
    models: Predictor,
    count: int,
    others: tuple[Predictor, ...],
    batch: Prompt,
    length: int,
    sequence: bool,
    together: int,
) -> Float[Array, "M 6 P"]:
    """`sums` of a stack of `count` models."""
    batch = jax.vmap(lambda prompt: prefix(prompt, length, sequence))(batch)
    arrays, rest = eqx.partition(models, eqx.is_array)
    # Their answers are the same for every model that is compared.
    given = [jax.vmap(other)(batch) for other in others]

    def of_model(numbered):
        model = eqx.combine(numbered[1], rest)
        answers = jnp.stack([jax.vmap(model)(batch), *given], axis=1)
        error = jnp.sum(jnp.abs(answers - batch.target[:, None, :]) ** 2, axis=2)
        gap = jnp.sum(jnp.abs(answers - answers[:, :1]) ** 2, axis=2)
        scale = jnp.broadcast_to(jnp.sum(jnp.abs(answers[:, :1]) ** 2, axis=2), error.shape)
        totals = [jnp.sum(x, axis=0) for x in (error, error**2, gap, gap**2, scale)]
        return jnp.stack([*totals, jnp.max(error, axis=0)])

    # Numbered, since a model need not have arrays.
    return jax.lax.map(of_model, (jnp.arange(count), arrays), batch_size=together)


def _summary(names: Sequence[str], sums: np.ndarray, count: int) -> dict[str, dict[str, float]]:
    risk, risk_square, gap, gap_square, scale = sums[:5] / count
    risk_error, gap_error = (
        np.sqrt(np.maximum(square - mean**2, 0.0) / (count - 1)) for mean, square in ((risk, risk_square), (gap, gap_square))
    )
    variance = count * np.maximum(risk_square - risk**2, 0.0)
    share = np.divide((sums[5] - risk) ** 2, variance, out=np.zeros_like(risk), where=variance > 0)
    # A risk of rounding size (OLS without noise) is an exact zero to whoever looks at it, whatever its distribution.
    above_rounding = risk > (100 * np.finfo(np.float64).eps) ** 2 * scale[0]
    risk_error = np.where(above_rounding & (share > hopeless(count)), np.inf, risk_error)
    table = {}
    for i, name in enumerate(names):
        table[name] = {"risk": float(risk[i]), "standard_error": float(risk_error[i])}
        if i > 0:
            distance = float(np.sqrt(gap[i] / scale[0])) if scale[0] > 0 else float("nan")
            table[name]["prediction_distance"] = distance
            # The standard error of a root is that of its square over twice the root.
            error = float(gap_error[i] / scale[0] / (2 * distance)) if distance > 0 else 0.0
            table[name]["prediction_distance_error"] = error
    return table
