"""A statistic of simulated prompts, drawn in chunks so that memory does not grow with their number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab.core import compiled
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.prompt import Prompt, Task

CHUNK = 20_000
BATCH = 2_500
"""Keys of a chunk that are held in memory at once."""
NUMBERS = 2**20
"""Of numpy's draws that are held in memory at once."""


def simulate(statistic: Callable[[Key], Array], key: Key, samples: int) -> np.ndarray:
    """`statistic` of `samples` independent keys, stacked: (samples, ...).

    Args:
      statistic: a function of one key, for instance of the prompt that it draws; traceable.
      key: random key.
      samples: how many, at least 1.
    """
    draw = compiled.jit(lambda keys: jax.vmap(statistic)(keys))
    chunks = []
    for start in range(0, samples, CHUNK):
        keys = jax.random.split(jax.random.fold_in(key, start), CHUNK)
        wanted = range(0, min(CHUNK, samples - start), BATCH)
        chunks.append(np.concatenate([np.asarray(draw(keys[i : i + BATCH])) for i in wanted])[: samples - start])
    return np.concatenate(chunks)


def mean_with_error(values: np.ndarray) -> tuple[float, float]:
    """Mean of a sample and its standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))


def ratio_with_error(numerator: np.ndarray, denominator: np.ndarray) -> tuple[float, float]:
    """The ratio of two means over the same draws, and its standard error, that of its linearisation (delta method)."""
    ratio, mean = np.mean(numerator) / np.mean(denominator), np.mean(denominator)
    return float(ratio), mean_with_error(numerator - ratio * denominator)[1] / float(mean)


def squared_errors(predictor: Callable[[Prompt], Array], task: Task, key: Key, samples: int) -> np.ndarray:
    """Squared errors of a predictor on fresh prompts, (samples,), each summed over the outputs."""

    def squared_error(one):
        prompt = task.sample(one)
        return jnp.sum((predictor(prompt) - prompt.target) ** 2)

    return simulate(squared_error, key, samples)


def simulated_risk(predictor: Callable[[Prompt], Array], task: Task, key: Key, samples: int) -> tuple[float, float]:
    """Mean squared error of a predictor over fresh prompts, and its standard error."""
    return mean_with_error(squared_errors(predictor, task, key, samples))


def normal_batches(samples: int, *shape: int, seed: int) -> Iterator[np.ndarray]:
    """Independent standard normal arrays from numpy, for expectations that have no closed form: streams apart from JAX's.

    Args:
      samples: how many arrays, at least 1.
      shape: of each.
      seed: of the generator.

    Yields:
      Batches (B, *shape) that are `samples` arrays in all.
    """
    generator, most = np.random.default_rng(seed), max(1, NUMBERS // math.prod(shape))
    for start in range(0, samples, most):
        yield generator.standard_normal((min(most, samples - start), *shape))
