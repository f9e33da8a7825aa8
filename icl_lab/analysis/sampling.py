"""Means over fresh prompts of a task, streamed in chunks, each with its standard error.

Memory depends on the chunk, not on the number of prompts, and one compilation serves any number of prompts and any
values of the arrays inside the statistic: hand a trained model over as `equinox.Partial(model, weights)`, not as a
lambda, and the next weights reuse the compiled program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from icl_lab.core import compiled, precision
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.prompt import Prompt, Task, check_count
from icl_lab.tasks.sharing import sharing

Predictor = Callable[[Prompt], Array]
"""An estimator or a model with its weights: prompt -> prediction (k,)."""


class Estimate(eqx.Module):
    """A sample mean (or a smooth function of one) and its standard error.

    Attributes:
      mean: a number or an array.
      standard_error: of the same shape.
    """

    mean: Any
    standard_error: Any

    def __str__(self) -> str:
        return f"{float(self.mean):.6g} ± {float(self.standard_error):.2g}"


@precision.in_float64
def sample_mean(statistic: Callable[[Prompt], Any], task: Task, key: Key, prompts: int, chunk: int = 1024) -> tuple[Any, int]:
    """Means of every number that a statistic computes from one prompt, in float64.

    Args:
      statistic: one prompt -> a pytree of real arrays. NaN or infinity on one prompt makes the mean so.
      task: distribution of the prompts.
      key: random key; chunk i draws from `fold_in(key, i)`, so more prompts extend the same sample.
      prompts: at least so many prompts, >= 2; rounded up to whole chunks.
      chunk: prompts held in memory at once.

    Returns:
      The statistic's pytree with an `Estimate` in place of every array, and the number of prompts drawn.

    Raises:
      InvalidValueError: `prompts` below 2 or `chunk` below 1.
    """
    check_count(prompts, "prompts", 2, "A standard error needs two prompts at least.")
    check_count(chunk, "chunk", 1, "It is the number of prompts held in memory at once.")
    task = sharing(task)
    chunk = min(chunk, prompts)
    chunks = -(-prompts // chunk)
    count = chunks * chunk
    mean, squares = _stream(statistic, task, key, jnp.asarray(chunks), chunk)
    errors = jax.tree.map(lambda m: jnp.sqrt(m / (count - 1) / count), squares)
    return jax.tree.map(Estimate, mean, errors), count


@compiled.jit
def _stream(statistic, task: Task, key: Key, chunks: Array, chunk: int) -> tuple[Any, Any]:
    """Mean and summed squared deviations over `chunks` chunks, merged pairwise so that nothing cancels."""

    def values(i):
        return jax.vmap(statistic)(task.sample_batch(jax.random.fold_in(key, i), chunk))

    def merge(i, state):
        means, squares = state
        batch = values(i)
        batch_means = jax.tree.map(lambda v: jnp.mean(v, axis=0), batch)
        weight = 1 / (i + 1.0)  # share of this chunk among all so far
        shifts = jax.tree.map(lambda b, m: b - m, batch_means, means)
        squares = jax.tree.map(
            lambda s, v, b, shift: s + jnp.sum((v - b[None]) ** 2, axis=0) + shift**2 * (chunk * i * weight),
            squares,
            batch,
            batch_means,
            shifts,
        )
        return jax.tree.map(lambda m, shift: m + shift * weight, means, shifts), squares

    shapes = jax.eval_shape(values, 0)
    zeros = jax.tree.map(lambda v: jnp.zeros(v.shape[1:], v.dtype), shapes)
    return jax.lax.fori_loop(0, chunks, merge, (zeros, zeros))
