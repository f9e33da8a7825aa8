"""One head of a mixer on random tokens, as a program to be timed."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import mixers

WIDTH = 32
GATES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "log_decay": lambda rng, count: -0.1 * rng.random(count),
    "write_strength": lambda rng, count: rng.random(count),
}


def program(
    name: str, form: str, length: int, width: int = WIDTH, dtype: type = np.float32, gradients: bool = False
) -> Callable[[], object]:
    """The outputs of one head of `length` random tokens, compiled; or the gradients of their squares in tokens and gates."""
    rng, mixer = np.random.default_rng(0), mixers.named(name)
    queries, keys, values = rng.normal(size=(3, length, width)).astype(dtype)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    gates = {}
    for gate in mixer.description.gates:
        drawn = GATES[gate.name](rng, length).astype(dtype)
        gates[gate.name] = np.repeat(drawn[:, None], width, axis=1) if gate.per_channel else drawn

    def outputs(arrays):
        return mixer.outputs(*arrays[0], form=form, **arrays[1])

    compiled = eqx.filter_jit(jax.grad(lambda arrays: jnp.sum(outputs(arrays) ** 2)) if gradients else outputs)
    return lambda: jax.block_until_ready(compiled(((queries, keys, values), gates)))
