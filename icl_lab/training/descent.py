"""Discrete training: any optax optimiser on any objective, in compiled chunks of steps.

Plain gradient descent with step size h follows gradient flow at time h k up to O(h); unlike the flow it does not keep the
balancedness of the factors (see the invariants in `analysis`), so compare products of factors with theory, not factors.
"""

from __future__ import annotations

import contextlib
import time as clock
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from icl_lab.core import compiled, precision
from icl_lab.core.errors import NonFiniteError
from icl_lab.core.typing import Array, Key, Weights
from icl_lab.objectives.curvature import loss_and_norm, norm
from icl_lab.objectives.objective import Objective
from icl_lab.tasks.prompt import check_count
from icl_lab.training import checkpoints
from icl_lab.training.progress import progress_reporter
from icl_lab.training.realify import unchanged
from icl_lab.training.stopping import Evidence, Verdict
from icl_lab.training.trajectory import Recorder, TrainingResult

MAX_CHUNK = 256
"""Steps between two progress reports."""


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
        weights = jax.tree.map(jnp.asarray, weights)
        initial_loss, first_norm = map(float, loss_and_norm(objective, weights, step_key(key, 0)))
        if not (np.isfinite(initial_loss) and np.isfinite(first_norm)):
            raise NonFiniteError(f"the loss at the initial weights is {initial_loss}; it must be finite.")
        state, done, resumed = (weights, optimiser.init(weights)), 0, False
        if checkpoint is not None and Path(checkpoint).exists():
            state, header = checkpoints.load(checkpoint, precision.to_numpy(state))
            state, done, initial_loss, resumed = jax.tree.map(jnp.asarray, state), header["steps"], header["initial_loss"], True
        recorder = Recorder()
        recorder.add_always(float(done), state[0])
        # Chunks of one size (and one remainder) compile at most twice.
        chunk = min(MAX_CHUNK, steps)
        diverged_at = None
        while done < steps and diverged_at is None:
            size = min(chunk, steps - done)
            # The step as an array: a Python number would be static and compile every chunk anew.
            state, path, losses = _chunk(objective, optimiser, state, key, jnp.asarray(done), size)
            losses, path = np.asarray(losses), precision.to_numpy(path)
            if not np.all(np.isfinite(losses)):
                diverged_at = done + int(np.flatnonzero(~np.isfinite(losses))[0])
            recorder.add(np.arange(done + 1, done + size + 1, dtype=float), path)
            done += size
            report(float(done), done, float(losses[-1]), float("nan"))
            if checkpoint is not None and diverged_at is None:
                checkpoints.save(checkpoint, precision.to_numpy(state), {"steps": done, "initial_loss": initial_loss})
        recorder.add_always(float(done), state[0])
        loss, gradient_norm = map(float, loss_and_norm(objective, state[0], step_key(key, done)))
        evidence = Evidence(
            loss=loss,
            initial_loss=initial_loss,
            gradient_norm=gradient_norm,
            weight_norm=norm(state[0]),
            estimated_weight_error=float("nan"),
            smallest_curvature=float("nan"),
            largest_curvature=float("nan"),
        )
        if diverged_at is not None or not np.isfinite(loss):
            at = done if diverged_at is None else diverged_at
            verdict, reason = Verdict.DIVERGED, f"the loss became non-finite at step {at}; use a smaller learning rate."
        else:
            verdict, reason = Verdict.MAX_STEPS, f"all {steps} steps are done; loss {initial_loss:.6g} to {loss:.6g}."
        result = TrainingResult(
            limit=state[0],
            trajectory=recorder.trajectory(objective, unchanged, step_key(key, 0)),
            verdict=verdict,
            reason=reason,
            time=float(done),
            steps=done,
            evidence=evidence,
            polished=None,
            method="optax",
            seconds=clock.perf_counter() - started,
            resumed=resumed,
        )
        result = precision.to_numpy(result)
    if checkpoint is not None:
        Path(checkpoint).unlink(missing_ok=True)
    return result


def step_key(key: Key | None, step: int | Array) -> Key | None:
    """The key of a step's prompts: of the run's key and the step's number alone, so that a run can go on from any step."""
    return None if key is None else jax.random.fold_in(key, step)


def update(objective: Objective, optimiser: optax.GradientTransformation, state: tuple[Weights, Any], key: Key | None):
    """One update of (weights, optimiser state) on the prompts of `key`, and the loss before it; traceable."""
    weights, moments = state
    loss, gradient = jax.value_and_grad(objective)(weights, key)
    # JAX's gradient in a complex weight is the conjugate of the ascent direction.
    gradient = jax.tree.map(jnp.conj, gradient)
    # Optimisers multiply floats by integer step counts, which a caller may have forbidden as an implicit promotion.
    with jax.numpy_dtype_promotion("standard"):
        # What those that search along a line ask for; the others take no notice.
        extra = {"value": loss, "grad": gradient, "value_fn": lambda moved: objective(moved, key)}
        updates, moments = optax.with_extra_args_support(optimiser).update(gradient, moments, weights, **extra)
    return (optax.apply_updates(weights, updates), moments), loss


@compiled.jit
def _chunk(objective, optimiser, state, key, first_step, size: int):
    """`size` updates; also the weights after each and the losses before each."""

    def recorded(state, step):
        after, loss = update(objective, optimiser, state, step_key(key, step))
        return after, (state[0], loss)

    state, (before, losses) = jax.lax.scan(recorded, state, first_step + jnp.arange(size))
    after = jax.tree.map(lambda b, last: jnp.concatenate([b[1:], last[None]]), before, state[0])
    return state, after, losses
