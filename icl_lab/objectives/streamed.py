"""Loss on sampled prompts, for every model whose loss is no polynomial of its weights (softmax, several layers)."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.core import compiled, devices, precision
from icl_lab.core.typing import Array, Key, Weights
from icl_lab.objectives.objective import Objective
from icl_lab.tasks.prompt import Prompt, Task, check_count


class StreamedLoss(Objective):
    """Half mean squared error over a batch of prompts, drawn afresh from `key` at each call, or from `seed_key` without it.

    Prompts are processed in chunks whose forward pass is recomputed in the backward pass, so memory is that of one chunk; a
    batch of one chunk is drawn once.

    Attributes:
      model: any architecture, a callable of (weights, prompt).
      seed_key: raw key data of the fixed set of prompts.
      batch: prompts per call.
      chunk: prompts in memory at once; divides `batch`.
    """

    task: Task
    model: Any
    seed_key: Array
    batch: int = eqx.field(static=True)
    chunk: int = eqx.field(static=True)

    @staticmethod
    def build(task: Task, model: eqx.Module, key: Key, batch: int = 2048, chunk: int = 1024) -> StreamedLoss:
        """The loss on batches of `batch` prompts, rounded up to whole chunks."""
        check_count(batch, "batch", 2, "A standard error needs at least two prompts.")
        check_count(chunk, "chunk", 1, "A chunk is what is held in memory at once.")
        chunk = min(chunk, batch)
        return StreamedLoss(task, model, np.asarray(jax.random.key_data(key)), -(-batch // chunk) * chunk, chunk)

    def __call__(self, weights: Weights, key: Key | None = None) -> Float[Array, ""]:
        return 0.5 * self._moments(weights, key)[0]

    def risk(self, weights: Weights) -> float:
        return self._estimate(weights)[0]

    def standard_error(self, weights: Weights) -> float:
        mean, square = self._estimate(weights)
        return float(np.sqrt(max(square - mean**2, 0.0) / (self.batch - 1)))

    def _estimate(self, weights: Weights) -> tuple[float, float]:
        with precision.float64():
            mean, square = _evaluate(self, jax.tree.map(jnp.asarray, weights))
            return float(mean), float(square)

    def _moments(self, weights: Weights, key: Key | None):
        """Means of the squared error and of its square over the batch."""
        key = jax.random.wrap_key_data(jnp.asarray(self.seed_key)) if key is None else key
        dtype = jnp.result_type(*jax.tree.leaves(weights))

        def cast(x):
            if not jnp.issubdtype(x.dtype, jnp.inexact):
                return x
            keep_complex = jnp.iscomplexobj(x) and not jnp.issubdtype(dtype, jnp.complexfloating)
            return x.astype(jnp.result_type(dtype, jnp.complex64) if keep_complex else dtype)

        def error(prompt_key):
            prompt: Prompt = jax.tree.map(cast, self.task.sample(prompt_key))
            return jnp.sum(jnp.abs(self.model(weights, prompt) - prompt.target) ** 2)

        def add(sums, keys):
            errors = jax.vmap(error)(devices.shard(keys))
            return (sums[0] + jnp.sum(errors), sums[1] + jnp.sum(errors**2)), None

        keys = jax.random.split(key, (self.batch // self.chunk, self.chunk))
        zero = jnp.zeros((), jnp.zeros((), dtype).real.dtype)
        if self.batch == self.chunk:  # nothing to save, and drawing the prompts twice would be half of the time
            first, second = add((zero, zero), keys[0])[0]
        else:
            (first, second), _ = jax.lax.scan(jax.checkpoint(add), (zero, zero), keys)
        return first / self.batch, second / self.batch


@compiled.jit
def _evaluate(objective: StreamedLoss, weights: Weights):
    return objective._moments(weights, None)
