"""Training a decoder on every prefix of fresh prompts, with a curriculum of growing dimension and length.

The loss of a prompt of N examples and a query is the mean squared error of the answers to all of its N + 1 inputs, each given
the examples before it (Garg et al., arXiv 2208.01066, as in arXiv 2306.09927, Section 5). Training is in float32 whatever the
scope: nothing here is compared with theory beyond two digits.
"""

from __future__ import annotations

import dataclasses
import time as clock

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Bool, Float, Int

from icl_lab.core import compiled, precision
from icl_lab.core.errors import InvalidValueError, NonFiniteError
from icl_lab.core.typing import Array, Key, Weights
from icl_lab.models.decoder import Decoder
from icl_lab.tasks.prompt import check_count
from icl_lab.tasks.regression.linear import LinearRegression
from icl_lab.training.descent import last_batches, step_numbers, updates
from icl_lab.training.progress import progress_reporter
from icl_lab.training.result import TrainingResult

CHUNK = 50
"""Steps between two progress reports."""


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """Coordinates and examples in use at a step: `first` ones at the start, more of them every `every` steps.

    Attributes:
      first_dim, first_examples: at step 0.
      more_examples: examples added whenever one coordinate is.
      every: steps between two additions.
    """

    first_dim: int = 1
    first_examples: int = 3
    more_examples: int = 2
    every: int = 200

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check_count(getattr(self, field.name), field.name, 1, "It is a size of the curriculum.")


def train_decoder(
    decoder: Decoder,
    task: LinearRegression,
    *,
    steps: int,
    key: Key,
    batch: int = 64,
    learning_rate: float = 1e-3,
    curriculum: Curriculum | None = None,
    progress: bool = False,
) -> TrainingResult:
    """Train `decoder` in place with Adam on fresh prompts.

    Args:
      decoder: positions for at least N + 1 examples.
      task: N examples and a query a prompt.
      steps: updates.
      key: random key; the prompts of step k depend on k alone.
      batch: prompts a step.
      learning_rate: of Adam.
      curriculum: None shows all coordinates and examples from the start.
      progress: show on stderr how far it is, once it takes more than a few seconds.

    Returns:
      The result: the state of the decoder at both ends, and the loss of each step over the coordinates and examples in use.

    Raises:
      InvalidValueError: a size below 1, or a decoder of another dimension or with too few positions.
      NonFiniteError: the loss stopped being finite; says at which step.
    """
    check_count(steps, "steps", 1, "Training makes at least one update.")
    check_count(batch, "batch", 1, "A step needs prompts.")
    _check_fit(decoder, task)
    curriculum = curriculum or Curriculum(first_dim=task.dim, first_examples=task.context_length + 1)
    started = clock.perf_counter()
    graph, weights = nnx.split(decoder)
    optimiser, loss = optax.adam(learning_rate), PrefixLoss(task, curriculum, key, graph, batch)
    state, losses, done = (weights, optimiser.init(weights)), [], 0
    with progress_reporter(progress, "decoder", steps) as report:
        for chunk in updates(loss, optimiser, state, step_numbers(0, steps, CHUNK)):
            if not np.isfinite(chunk.losses).all():
                at = done + int(np.argmin(np.isfinite(chunk.losses)))
                raise NonFiniteError(
                    f"the loss became non-finite at step {at}; use a smaller learning rate than {learning_rate:g}."
                )
            state, done = chunk.state, done + len(chunk.losses)
            losses.append(chunk.losses)
            report(float(done), done, float(chunk.losses[-1]), float("nan"))
    nnx.update(decoder, state[0])
    ends = precision.to_numpy((weights, state[0]))
    return last_batches(*ends, np.concatenate(losses), clock.perf_counter() - started)


def prefix_risk(
    decoder: Decoder, task: LinearRegression, key: Key, prompts: int = 2_000
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """E(answer - w.x)^2 after 0, 1, .. N examples, and its standard error.

    Args:
      decoder: positions for at least N + 1 examples.
      task: test distribution, N examples and a query a prompt.
      key: random key.
      prompts: at least 2; processed in chunks.

    Raises:
      InvalidValueError: as `train_decoder`.
    """
    check_count(prompts, "prompts", 2, "A standard error needs at least two prompts.")
    _check_fit(decoder, task)
    graph, weights = nnx.split(decoder)
    chunk = min(prompts, 250)
    errors = [
        np.asarray(_squared_errors(graph, weights, task, jax.random.fold_in(key, i), chunk))
        for i in range(-(-prompts // chunk))
    ]
    values = np.concatenate(errors).astype(np.float64)
    return values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))


def _check_fit(decoder: Decoder, task: LinearRegression) -> None:
    if decoder.dim != task.dim or decoder.examples < task.context_length + 1:
        raise InvalidValueError(
            f"the decoder is for d = {decoder.dim} and at most {decoder.examples} examples, the query included; the task has "
            f"d = {task.dim} and {task.context_length + 1}."
        )


def _sequence(task: LinearRegression, key: Key, mask: Bool[Array, "d"] | None = None):
    """Inputs (N+1, d), labels (N+1,) and noiseless responses of one prompt in float32; coordinates outside `mask` are zero."""
    prompt = task.sample(key)
    inputs = jnp.concatenate([prompt.inputs, prompt.query[None]])
    labels = jnp.concatenate([prompt.labels[:, 0], prompt.target])
    responses = jnp.sum(inputs * prompt.latent[None], axis=1)
    if mask is not None:
        kept = inputs * mask.astype(inputs.dtype)[None]
        seen = jnp.sum(kept * prompt.latent[None], axis=1)
        inputs, labels, responses = kept, labels - responses + seen, seen
    return inputs.astype(jnp.float32), labels.astype(jnp.float32), responses.astype(jnp.float32)


class PrefixLoss(eqx.Module):
    """The loss of a decoder's state at a step, on fresh prompts over the coordinates and examples that the curriculum shows."""

    task: LinearRegression
    curriculum: Curriculum = eqx.field(static=True)
    key: Key
    graph: nnx.GraphDef = eqx.field(static=True)
    batch: int = eqx.field(static=True)

    def __call__(self, weights: Weights, step: Int[Array, ""]) -> Float[Array, ""]:
        decoder, curriculum = nnx.merge(self.graph, weights), self.curriculum
        count = self.task.context_length + 1
        stage = step // curriculum.every
        mask = jnp.arange(self.task.dim) < curriculum.first_dim + stage
        shown = (jnp.arange(count) < curriculum.first_examples + curriculum.more_examples * stage).astype(jnp.float32)

        def error(one):
            inputs, labels, _ = _sequence(self.task, one, mask)
            return (decoder(inputs, labels) - labels) ** 2

        keys = jax.random.split(jax.random.fold_in(self.key, step), self.batch)
        return jnp.sum(jnp.mean(jax.vmap(error)(keys), axis=0) * shown) / jnp.sum(shown)


@compiled.jit
def _squared_errors(graph, weights, task, key, count: int):
    decoder = nnx.merge(graph, weights)

    def error(one):
        inputs, labels, responses = _sequence(task, one)
        return (decoder(inputs, labels) - responses) ** 2

    return jax.vmap(error)(jax.random.split(key, count))
