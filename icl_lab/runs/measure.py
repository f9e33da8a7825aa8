"""Risks of predictors and their distances from a trained model, at several context lengths, on one set of prompts.

Prompts are drawn once at the largest length; a shorter prompt is the beginning of a longer one. So the numbers are
paired over predictors and lengths, and drawing compiles once. Prompts pass in chunks: memory does not grow with them.

A risk is E|yhat - target|^2. A prediction distance is relative: sqrt(E|yhat - yhat_model|^2 / E|yhat_model|^2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from icl_lab.analysis import Predictor
from icl_lab.tasks.prompt import Prompt, Task, check_count, check_finite
from icl_lab.typing import Array, Key

CHUNK_ELEMENTS = 2**22
"""Numbers in the inputs of a chunk, 32 MB in float64."""


def measure(
    task: Task,
    model: Predictor,
    others: Mapping[str, Predictor],
    lengths: Sequence[int],
    key: Key,
    prompts: int,
    *,
    sequence: bool,
) -> dict[int, dict[str, dict[str, float]]]:
    """Risks and prediction distances at every length.

    Args:
      task: law of the prompts at the largest of the lengths.
      model: the trained model as a function of one prompt.
      others: the estimators, by name.
      lengths: context lengths, at most that of `task`; each compiles its own program.
      key: random key.
      prompts: at least 2, rounded up to whole chunks.
      sequence: see `prefix`.

    Returns:
      length -> name -> {"risk", "standard_error", "prediction_distance", "prediction_distance_error"}; the model is
      called "model" and has no distance.

    Raises:
      InvalidValueError: fewer than two prompts.
      NonFiniteError: a sampled prompt holds a NaN or an infinity.
    """
    check_count(prompts, "analysis.prompts", 2, "A standard error needs two prompts at least.")
    answers = (model, *others.values())
    size = int(np.clip(CHUNK_ELEMENTS // (task.context_length * task.dim), 1, prompts))
    chunks = -(-prompts // size)
    totals: dict[int, np.ndarray] = {}
    for index in range(chunks):
        batch = jax.tree.map(np.asarray, _draw(task, jax.random.fold_in(key, index), size))
        check_finite(batch)
        for length in lengths:
            sums = np.stack([np.asarray(x) for x in _sums(answers, batch, length, sequence)])
            totals[length] = totals.get(length, np.zeros_like(sums)) + sums
    names = ("model", *others)
    return {length: _summary(names, totals[length], chunks * size) for length in lengths}


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


@eqx.filter_jit
def _draw(task: Task, key: Key, size: int) -> Prompt:
    def one(key: Key) -> Prompt:
        return prefix(task.sample(key), task.context_length, False)

    return jax.vmap(one)(jax.random.split(key, size))


@eqx.filter_jit
def _sums(answers: tuple[Predictor, ...], batch: Prompt, length: int, sequence: bool) -> tuple[Array, ...]:
    """Sums over a batch cut to a length, one entry a predictor: squared error, its square, squared gap to the first
    predictor, its square, squared answer of the first."""

    def one(prompt: Prompt):
        prompt = prefix(prompt, length, sequence)
        given = jnp.stack([answer(prompt) for answer in answers])
        error = jnp.sum(jnp.abs(given - prompt.target[None, :]) ** 2, axis=1)
        gap = jnp.sum(jnp.abs(given - given[:1]) ** 2, axis=1)
        scale = jnp.sum(jnp.abs(given[0]) ** 2)
        return error, error**2, gap, gap**2, jnp.broadcast_to(scale, error.shape)

    return jax.tree.map(lambda x: jnp.sum(x, axis=0), jax.vmap(one)(batch))


def _summary(names: Sequence[str], sums: np.ndarray, count: int) -> dict[str, dict[str, float]]:
    risk, risk_square, gap, gap_square, scale = sums / count
    risk_error, gap_error = (
        np.sqrt(np.maximum(square - mean**2, 0.0) / (count - 1)) for mean, square in ((risk, risk_square), (gap, gap_square))
    )
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
