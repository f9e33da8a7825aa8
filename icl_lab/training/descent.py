"""Discrete training: any optax optimiser on any loss of batches, in compiled chunks of updates.

`updates` is the one loop. What it trains on is a loss, a callable of (weights, batch), and an iterator over chunks of batches:
step numbers, from which fresh prompts are drawn (here and in `training.prefixes`), or rows of a data set (`training.windows`).

Plain gradient descent with step size h follows gradient flow at time h k up to O(h); unlike the flow it does not keep the
balancedness of the factors (see the invariants in `analysis`), so compare products of factors with theory, not factors.
"""

from __future__ import annotations

import contextlib
import time as clock
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from icl_lab.core import compiled, precision
from icl_lab.core.errors import NonFiniteError
from icl_lab.core.typing import Array, Key, Weights
from icl_lab.objectives.curvature import loss_and_norm, norm
from icl_lab.objectives.objective import Objective, unchanged
from icl_lab.tasks.prompt import check_count
from icl_lab.training import checkpoints
from icl_lab.training.progress import progress_reporter
from icl_lab.training.recorder import Recorder
from icl_lab.training.result import Ensemble, TrainingResult, Trajectory, check_starts
from icl_lab.training.stopping import Evidence, Verdict

MAX_CHUNK = 256
"""Updates between two progress reports."""


def descend(
    objective: Objective,
    weights: Weights,
    optimiser: optax.GradientTransformation,
    steps: int,
    *,
    key: Key | None = None,
    progress: bool = False,
    checkpoint: Path | str | None = None,
) -> TrainingResult:
    """Weights after `steps` updates of an optax optimiser.

    Args:
      objective: any objective; streamed prompts are drawn afresh at every step if `key` is given.
      weights: initial weights; their dtype is the dtype of the training.
      optimiser: an optax gradient transformation, e.g. `optax.sgd(0.05)`.
      steps: number of updates, at least 1.
      key: random key for fresh prompts; the key of step k depends on k alone.
      progress: show on stderr how far it is, once it takes more than a few seconds.
      checkpoint: .npz file written after every chunk, from which an interrupted run goes on exactly.

    Returns:
      The result; its times are step numbers. The verdict is MAX_STEPS (discrete training has no stopping rule) or DIVERGED,
      with the step at which the loss stopped being finite.

    Raises:
      InvalidValueError: steps < 1.
      NonFiniteError: initial weights or loss that are NaN or infinite.
    """
    check_count(steps, "steps", 1, "Training makes at least one update.")
    started = clock.perf_counter()
    with precision.float64(), contextlib.ExitStack() as stack:
        report = stack.enter_context(progress_reporter(progress, "descent", steps))
        loss = PromptLoss(objective, key)
        weights = jax.tree.map(jnp.asarray, weights)
        initial_loss, first_norm = map(float, loss_and_norm(loss, weights, jnp.asarray(0)))
        if not (np.isfinite(initial_loss) and np.isfinite(first_norm)):
            raise NonFiniteError(f"the loss at the initial weights is {initial_loss}; it must be finite.")
        state, done, resumed = (weights, optimiser.init(weights)), 0, False
        if checkpoint is not None and Path(checkpoint).exists():
            state, header = checkpoints.load(checkpoint, precision.to_numpy(state))
            state, done, initial_loss, resumed = jax.tree.map(jnp.asarray, state), header["steps"], header["initial_loss"], True
        recorder, losses = Recorder(), []
        recorder.add_always(float(done), state[0])
        for chunk in updates(loss, optimiser, state, step_numbers(done, steps, min(MAX_CHUNK, steps)), keep_path=True):
            size, state = len(chunk.losses), chunk.state
            recorder.add(np.arange(done + 1, done + size + 1, dtype=float), precision.to_numpy(chunk.path))
            losses.append(chunk.losses)
            done += size
            report(float(done), done, float(chunk.losses[-1]), float("nan"))
            if not np.all(np.isfinite(chunk.losses)):
                break
            if checkpoint is not None:
                checkpoints.save(checkpoint, precision.to_numpy(state), {"steps": done, "initial_loss": initial_loss})
        recorder.add_always(float(done), state[0])
        last_loss, gradient_norm = map(float, loss_and_norm(loss, state[0], jnp.asarray(done)))
        result = descended(
            state[0],
            recorder.trajectory(loss, unchanged, jnp.asarray(0)),
            np.concatenate(losses) if losses else np.zeros(0),
            Evidence(last_loss, initial_loss, gradient_norm, norm(state[0])),
            done,
            clock.perf_counter() - started,
            resumed=resumed,
        )
    if checkpoint is not None:
        Path(checkpoint).unlink(missing_ok=True)
    return result


def descents(
    objective: Objective,
    starts: Weights,
    optimiser: optax.GradientTransformation,
    steps: int,
    *,
    key: Key | None = None,
    progress: bool = False,
) -> Ensemble:
    """Weights after `steps` updates of an optax optimiser from each of S starts, on prompts that all starts share.

    The prompts of a step are drawn once, and what does not depend on the weights (the Gram matrix of a first layer) is
    computed once too, so that eight starts of one linear layer cost little more than one.

    Args:
      objective: any objective; streamed prompts are drawn afresh at every step if `key` is given, the same for all starts.
      starts: weights with a leading axis S on every array; their dtype is that of the training.
      optimiser: an optax gradient transformation; each start has its own state.
      steps: number of updates, at least 1.
      key: random key for fresh prompts; the key of step k depends on k alone.
      progress: show on stderr how far it is, once it takes more than a few seconds.

    Returns:
      The results, each with the losses of its updates; the loss of a start and of an end are those of the first and of the last
      update. A start that diverges does not disturb the others.

    Raises:
      InvalidValueError: steps < 1, or arrays whose leading axes differ.
    """
    check_count(steps, "steps", 1, "Training makes at least one update.")
    count = check_starts(starts)
    started = clock.perf_counter()
    with precision.float64(), contextlib.ExitStack() as stack:
        report = stack.enter_context(progress_reporter(progress, "descents", steps))
        weights = jax.tree.map(jnp.asarray, starts)
        state, losses, done = (weights, jax.vmap(optimiser.init)(weights)), [], 0
        for chunk in updates(PromptLoss(objective, key), optimiser, state, step_numbers(0, steps, MAX_CHUNK), starts=True):
            state, done = chunk.state, done + len(chunk.losses)
            losses.append(chunk.losses)
            report(float(done), done, float(np.median(chunk.losses[-1])), float("nan"))
        ends = precision.to_numpy((weights, state[0]))
    share = (clock.perf_counter() - started) / count
    pairs = [jax.tree.map(lambda w, i=i: w[i], ends) for i in range(count)]
    of_each = zip(pairs, np.concatenate(losses).T, strict=True)
    return Ensemble(tuple(last_batches(start, end, batch_losses, share) for (start, end), batch_losses in of_each))


class PromptLoss(eqx.Module):
    """An objective on the prompts of a step, which are drawn from `key` and the number of the step; on fixed ones without."""

    objective: Objective
    key: Key | None

    def __call__(self, weights: Weights, step: Array) -> Float[Array, ""]:
        return self.objective(weights, step_key(self.key, step))


def step_key(key: Key | None, step: int | Array) -> Key | None:
    """The key of a step's prompts: of the run's key and the step's number alone, so that a run can go on from any step."""
    return None if key is None else jax.random.fold_in(key, step)


def step_numbers(first: int, steps: int, chunk: int) -> Iterator[Array]:
    """The numbers of the steps from `first` on, `chunk` at a time; one size and one remainder compile at most twice."""
    for done in range(first, steps, chunk):
        yield jnp.asarray(done) + jnp.arange(min(chunk, steps - done))


class Chunk(NamedTuple):
    """Where a number of updates led.

    Attributes:
      state: (weights, optimiser state) after them.
      path: the weights after each, with a leading axis; None where it is not kept.
      losses: (K,) the loss before each, on its batch; (K, S) for S starts.
    """

    state: tuple[Weights, Any]
    path: Weights | None
    losses: Float[np.ndarray, "K *S"]


def updates(
    loss: Callable[[Weights, Any], Float[Array, ""]],
    optimiser: optax.GradientTransformation,
    state: tuple[Weights, Any],
    batches: Iterable[Any],
    *,
    starts: bool = False,
    keep_path: bool = False,
) -> Iterator[Chunk]:
    """The loop of every discrete training: one update for each batch.

    Args:
      loss: of weights and a batch; a pytree, such as an `equinox.Module`.
      optimiser: an optax gradient transformation.
      state: initial weights and optimiser state.
      batches: chunks of batches, each a pytree of arrays whose leading axis counts the batches of the chunk.
      starts: whether the state has a leading axis of starts, which share the batches.
      keep_path: whether to return the weights after each update.

    Yields:
      What each chunk led to, as soon as it is done; a caller that has seen enough stops asking.
    """
    for chunk in batches:
        state, path, losses = _chunk(loss, optimiser, state, chunk, starts, keep_path)
        yield Chunk(state, path, np.asarray(losses))


def update(loss: Callable, optimiser: optax.GradientTransformation, state: tuple[Weights, Any], batch: Any):
    """One update of (weights, optimiser state) on a batch, and the loss before it; traceable."""
    weights, moments = state
    value, gradient = jax.value_and_grad(loss)(weights, batch)
    # JAX's gradient in a complex weight is the conjugate of the ascent direction.
    gradient = jax.tree.map(jnp.conj, gradient)
    # Optimisers multiply floats by integer step counts, which a caller may have forbidden as an implicit promotion.
    with jax.numpy_dtype_promotion("standard"):
        # What those that search along a line ask for; the others take no notice.
        extra = {"value": value, "grad": gradient, "value_fn": lambda moved: loss(moved, batch)}
        changes, moments = optax.with_extra_args_support(optimiser).update(gradient, moments, weights, **extra)
        return (optax.apply_updates(weights, changes), moments), value


@compiled.jit
def _chunk(loss, optimiser, state, batches, starts: bool, keep_path: bool):
    """An update for each of the batches; also the weights after each, if kept, and the losses before each."""

    def recorded(state, batch):
        def one(state):
            return update(loss, optimiser, state, batch)

        # All starts see one batch, so that what the weights do not enter is computed once.
        after, value = jax.vmap(one)(state) if starts else one(state)
        return after, (state[0] if keep_path else None, value)

    state, (before, losses) = jax.lax.scan(recorded, state, batches)
    after = jax.tree.map(lambda b, last: jnp.concatenate([b[1:], last[None]]), before, state[0]) if keep_path else None
    return state, after, losses


def descended(
    limit: Weights,
    trajectory: Trajectory,
    batch_losses: Float[np.ndarray, "K"],
    evidence: Evidence,
    steps: int,
    seconds: float,
    *,
    resumed: bool = False,
    why: str | None = None,
) -> TrainingResult:
    """The result of a descent of `steps` updates, DIVERGED if a loss is not finite; `why` says what else ended it."""
    broken = np.flatnonzero(~np.isfinite(batch_losses))
    if broken.size or not np.isfinite(evidence.loss):
        at = steps - len(batch_losses) + int(broken[0]) if broken.size else steps
        verdict, reason = Verdict.DIVERGED, f"the loss became non-finite at step {at}; use a smaller learning rate."
    else:
        verdict = Verdict.MAX_STEPS
        reason = f"{why or f'all {steps} steps are done'}; loss {evidence.initial_loss:.6g} to {evidence.loss:.6g}."
    return precision.to_numpy(
        TrainingResult(
            limit=limit,
            trajectory=trajectory,
            verdict=verdict,
            reason=reason,
            time=float(steps),
            steps=steps,
            evidence=evidence,
            polished=None,
            method="optax",
            seconds=seconds,
            resumed=resumed,
            batch_losses=batch_losses,
        )
    )


def last_batches(start: Weights, end: Weights, batch_losses: Float[np.ndarray, "K"], seconds: float) -> TrainingResult:
    """The result of a descent of which nothing was measured but the losses of its batches."""
    first, last = float(batch_losses[0]), float(batch_losses[-1])
    unknown = float("nan")
    trajectory = Trajectory.between(start, end, float(len(batch_losses)), (first, last), (unknown, unknown))
    return descended(end, trajectory, batch_losses, Evidence(last, first, unknown, norm(end)), len(batch_losses), seconds)
