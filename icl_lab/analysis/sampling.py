"""Means over fresh prompts of a task, streamed in chunks, each with its standard error.

Memory depends on the chunk, not on the number of prompts, and one compilation serves any number of prompts and any
values of the arrays inside the statistic: hand a trained model over as `equinox.Partial(model, weights)`, not as a
lambda, and the next weights reuse the compiled program.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from icl_lab.core import compiled, precision
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.blocks import drawn_apart, prompts_in_blocks
from icl_lab.tasks.prompt import Prompt, Task, check_count
from icl_lab.tasks.sharing import sharing

Predictor = Callable[[Prompt], Array]
"""An estimator or a model with its weights: prompt -> prediction (k,)."""


HEAVY = 0.25
"""Largest share of one prompt in the variance above which a standard error is doubted: the half of samples of infinite variance
(tails of index 1.5) and one in ten of those whose error is right (squares of products of three normal numbers) exceed it."""
HOPELESS = 0.5
"""The share above which a mean of many prompts has no standard error. Of few prompts, one may make up most without harm."""


class Estimate(eqx.Module):
    """A sample mean (or a smooth function of one) and its standard error.

    Attributes:
      mean: a number or an array.
      standard_error: of the same shape; infinite where `largest_share` leaves nothing of it.
      largest_share: of one prompt in the variance behind the standard error, of the same shape; 0 where that is not known.
    """

    mean: Any
    standard_error: Any
    largest_share: Any = 0.0

    def __str__(self) -> str:
        share = float(self.largest_share)
        tail = f" (heavy tails: one prompt makes up {100 * share:.0f} % of the variance)" if share > HEAVY else ""
        return f"{float(self.mean):.6g} ± {float(self.standard_error):.2g}{tail}"


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
    if drawn_apart(task):
        batches = prompts_in_blocks(task, key, itertools.repeat(chunk, chunks))
        first = next(batches)
        state = _merged(statistic, first, jnp.asarray(0), _empty(statistic, first))
        for i, batch in enumerate(batches, 1):
            state = _merged(statistic, batch, jnp.asarray(i), state)
    else:
        state = _stream(statistic, task, key, jnp.asarray(chunks), chunk)
    return jax.tree.map(lambda *numbers: _estimate(count, *numbers), *state), count


def _estimate(count: int, mean: Array, squares: Array, lowest: Array, highest: Array) -> Estimate:
    largest = jnp.maximum(highest - mean, mean - lowest) ** 2
    share = jnp.where(squares > 0, largest / jnp.where(squares > 0, squares, 1.0), 0.0)
    error = jnp.sqrt(squares / (count - 1) / count)
    return Estimate(mean, jnp.where(share > hopeless(count), jnp.inf, error), share)


def hopeless(count: int) -> float:
    """The largest share of one of so many prompts in the variance with which a mean has a standard error."""
    return max(HOPELESS, 40 / math.sqrt(count))


State = tuple[Any, Any, Any, Any]
"""Of each number of a statistic over the prompts so far: the mean, the summed squared deviations, the least and the largest."""


@compiled.jit
def _stream(statistic, task: Task, key: Key, chunks: Array, chunk: int) -> State:
    """The state after `chunks` chunks."""

    def batch(i):
        return task.sample_batch(jax.random.fold_in(key, i), chunk)

    empty = _empty(statistic, jax.eval_shape(batch, 0))
    return jax.lax.fori_loop(0, chunks, lambda i, state: _merged(statistic, batch(i), i, state), empty)


def _empty(statistic, batch: Prompt) -> State:
    """The state of no prompt; of `batch` only the shapes matter."""
    shapes = eqx.filter_eval_shape(jax.vmap(statistic), batch)
    fills = (0.0, 0.0, jnp.inf, -jnp.inf)
    return tuple(jax.tree.map(lambda v, fill=fill: jnp.full(v.shape[1:], fill, v.dtype), shapes) for fill in fills)  # pyright: ignore[reportReturnType]


@compiled.jit
def _merged(statistic, batch: Prompt, i: Array, state: State) -> State:
    """A state with chunk i added, pairwise so that nothing cancels."""
    values = jax.vmap(statistic)(batch)

    def merge(v, mean, squares, lowest, highest):
        own = jnp.mean(v, axis=0)
        weight, shift = 1 / (i + 1.0), own - mean  # the share of this chunk among all so far
        squares = squares + jnp.sum((v - own[None]) ** 2, axis=0) + shift**2 * (len(v) * i * weight)
        return mean + shift * weight, squares, jnp.minimum(lowest, v.min(0)), jnp.maximum(highest, v.max(0))

    merged = jax.tree.map(merge, values, *state)
    return jax.tree.transpose(jax.tree.structure(values), None, merged)
