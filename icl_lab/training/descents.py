"""Discrete training from many starts at once: one vectorised optimiser on prompts that all starts share.

At every step the prompts are drawn once, whatever the number of starts; what does not depend on the weights (the Gram
matrix of a first layer) is computed once too, so that eight starts of one linear layer cost little more than one.
"""

from __future__ import annotations

import contextlib
import time as clock

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from icl_lab.core import compiled, precision
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array, Key, Weights
from icl_lab.objectives.objective import Objective
from icl_lab.tasks.prompt import check_count
from icl_lab.training.descent import MAX_CHUNK, step_key, update
from icl_lab.training.progress import progress_reporter


class Descents(eqx.Module):
    """Where the starts ended, as numpy.

    Attributes:
      weights: those after the last step, with a leading axis S.
      losses: (S, steps) loss of each start before each update, on that step's prompts; NaN or infinite after a divergence.
      seconds: wall time, compilation included.
    """

    weights: Weights
    losses: Float[Array, "S steps"]
    seconds: float = eqx.field(static=True)

    def __getitem__(self, start: int) -> Weights:
        """The weights of one start."""
        return jax.tree.map(lambda w: w[start], self.weights)


def descend_all(
    objective: Objective,
    starts: Weights,
    optimiser: optax.GradientTransformation,
    steps: int,
    *,
    key: Key | None = None,
    progress: bool = False,
) -> Descents:
    """Weights after `steps` updates of an optax optimiser from each of S starts.

    Args:
      objective: any objective; streamed prompts are drawn afresh at every step if `key` is given, the same for all starts.
      starts: weights with a leading axis S on every array; their dtype is that of the training.
      optimiser: an optax gradient transformation; each start has its own state.
      steps: number of updates, at least 1.
      key: random key for fresh prompts; the key of step k depends on k alone.
      progress: show on stderr how far it is, once it takes more than a few seconds.

    Returns:
      The ends. A start that diverges does not disturb the others.

    Raises:
      InvalidValueError: steps < 1, or arrays whose leading axes differ.
    """
    check_count(steps, "steps", 1, "Training makes at least one update.")
    counts = {np.shape(w)[:1] for w in jax.tree.leaves(starts)}
    if len(counts) != 1 or counts == {()}:
        raise InvalidValueError(f"`starts` must have one leading axis of the same length on every array; got {counts}.")
    started = clock.perf_counter()
    with precision.float64(), contextlib.ExitStack() as stack:
        report = stack.enter_context(progress_reporter(progress, "descents", steps))
        weights = jax.tree.map(jnp.asarray, starts)
        state, losses = (weights, jax.vmap(optimiser.init)(weights)), []
        for done in range(0, steps, MAX_CHUNK):
            size = min(MAX_CHUNK, steps - done)
            # The step as an array: a Python number would be static and compile every chunk anew.
            state, path = _chunk(objective, optimiser, state, key, jnp.asarray(done), size)
            losses.append(np.asarray(path))
            report(float(done + size), done + size, float(np.median(losses[-1][-1])), float("nan"))
        return Descents(
            weights=precision.to_numpy(state[0]),
            losses=np.concatenate(losses).T,
            seconds=clock.perf_counter() - started,
        )


@compiled.jit
def _chunk(objective, optimiser, state, key, first_step, size: int):
    """`size` updates of all starts, and the (size, S) losses before each."""

    def step_of_all(state, step):
        of_step = step_key(key, step)  # outside of the map over starts, so that its prompts are drawn once
        return jax.vmap(lambda one: update(objective, optimiser, one, of_step))(state)

    return jax.lax.scan(step_of_all, state, first_step + jnp.arange(size))
