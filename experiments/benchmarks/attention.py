"""Training throughput of linear attention against a plain implementation with the N x N scores of every prompt.

    python experiments/benchmarks/attention.py [--quick] [-o results.json]

Both train the same separate matrices W_P, W_V, W_K, W_Q with the same Adam on the same distribution of prompts (x uniform on
(-1/2, 1/2), w standard normal, fresh at every step), in float32, and are measured in turns within one run. The plain one is
written as published code for such layers is (von Oswald et al., arXiv 2212.07677): keys, queries, values and the projection
for every token, scores between tokens, all tokens updated by every layer. The lab's uses the D x D Gram matrix of the tokens
in all layers but the last, which answers one query.

Two ratios: of whole steps, prompts drawn included, and of steps on given prompts (forward, backward and update alone).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import common
import jax
import jax.numpy as jnp
import optax

from icl_lab import objectives, tasks
from icl_lab.models import LinearSelfAttention, SeparateWeights
from icl_lab.models.initializers import separate_gaussian
from icl_lab.tasks import Prompt
from icl_lab.training.descent import update

ADAM = optax.adam(1e-3)
MODEL = LinearSelfAttention(query_in_sum=False, readout_sign=-1.0, normaliser="none")
REQUIRED = 5.0
"""The ratio that steps on given prompts (forward, backward and update) should reach."""


def plain_prompt(key, dim: int, length: int):
    """Tokens (N + 1, d + 1) of one prompt, the query's label zero, and the target."""
    for_inputs, for_task = jax.random.split(key)
    inputs = jax.random.uniform(for_inputs, (length + 1, dim), minval=-0.5, maxval=0.5)
    labels = inputs @ jax.random.normal(for_task, (dim,))
    tokens = jnp.concatenate([inputs, labels[:, None]], axis=1)
    return tokens.at[-1, -1].set(0.0), labels[-1]


def plain_layer(weights: SeparateWeights, tokens):
    """All tokens of one prompt after one layer, through the scores of every token with every example."""
    queries, keys, values = tokens @ weights.w_q.T, tokens[:-1] @ weights.w_k.T, tokens[:-1] @ weights.w_v.T
    scores = queries @ keys.T
    return tokens + (scores @ values) @ weights.w_p.T


def plain_loss(layers, tokens, targets):
    """Half mean squared error over a batch of prompts."""

    def answer(one):
        for weights in layers:
            one = plain_layer(weights, one)
        return -one[-1, -1]

    return 0.5 * jnp.mean((jax.vmap(answer)(tokens) - targets) ** 2)


def lab_loss(layers, prompts: Prompt):
    """The same of the lab's model."""
    errors = jax.vmap(lambda prompt: MODEL(layers, prompt) - prompt.target)(prompts)
    return 0.5 * jnp.mean(errors**2)


def adam_step(loss: Callable, state, *data):
    """One update of (weights, optimiser state)."""
    layers, moments = state
    updates, moments = ADAM.update(jax.grad(loss)(layers, *data), moments)
    return optax.apply_updates(layers, updates), moments


def scanned(step: Callable) -> Callable:
    """Updates over a leading axis of inputs as one compiled program, so that neither side pays for dispatch."""

    @jax.jit
    def run(state, inputs):
        return jax.lax.scan(lambda s, one: (step(s, one), None), state, inputs)[0]

    return run


def compare(dim: int, length: int, depth: int, batch: int, steps: int, repeats: int) -> dict[str, float]:
    """Throughputs of both implementations at one size and their ratios."""
    key = jax.random.key(0)
    layers = tuple(separate_gaussian(jax.random.fold_in(key, i), dim + 1, 0.1) for i in range(depth))
    layers = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), layers)
    state = layers, ADAM.init(layers)
    task = tasks.LinearRegression(dim=dim, context_length=length, covariates=tasks.Uniform(dim, half_width=0.5))
    streamed = objectives.StreamedLoss.build(task, MODEL, key, batch, batch)

    draw = jax.vmap(partial(plain_prompt, dim=dim, length=length))
    # Prompts of every step as arguments: those of one step would let the compiler move work out of the loop.
    tokens, targets = jax.vmap(lambda k: draw(jax.random.split(k, batch)))(jax.random.split(key, steps))
    prompts = Prompt(tokens[..., :-1, :-1], tokens[..., :-1, -1:], tokens[..., -1, :-1], targets[..., None])
    first = jax.tree.map(lambda x: x[0], (tokens, targets, prompts))
    assert jnp.abs(plain_loss(layers, *first[:2]) - lab_loss(layers, first[2])) < 1e-5, "two different functions"

    def plain_whole(state, key):
        return adam_step(plain_loss, state, *draw(jax.random.split(key, batch)))

    def lab_whole(state, key):
        return update(streamed, ADAM, state, key)[0]

    def plain_given(state, data):
        return adam_step(plain_loss, state, *data)

    def lab_given(state, data):
        return adam_step(lab_loss, state, data)

    of_steps = jax.random.split(key, steps)
    plain_run, lab_run = scanned(plain_whole), scanned(lab_whole)
    plain_given_run, lab_given_run = scanned(plain_given), scanned(lab_given)
    runs = {
        "plain": lambda: jax.block_until_ready(plain_run(state, of_steps)),
        "lab": lambda: jax.block_until_ready(lab_run(state, of_steps)),
        "plain_given_prompts": lambda: jax.block_until_ready(plain_given_run(state, (tokens, targets))),
        "lab_given_prompts": lambda: jax.block_until_ready(lab_given_run(state, prompts)),
    }
    seconds = common.medians_in_turns(list(runs.values()), repeats)
    rates = {name: steps * batch / median for name, median in zip(runs, seconds, strict=True)}
    return {
        "d": dim,
        "N": length,
        "layers": depth,
        "batch": batch,
        **rates,
        "ratio": rates["lab"] / rates["plain"],
        "ratio_given_prompts": rates["lab_given_prompts"] / rates["plain_given_prompts"],
    }


SIZES = ((10, 10, 1, 2048), (10, 10, 2, 2048), (10, 40, 1, 1024), (10, 100, 1, 512), (10, 100, 2, 512), (20, 200, 1, 128))


def throughput(quick: bool) -> dict[str, Any]:
    """Prompts per second at every size, and the ratios."""
    steps, repeats, sizes = (5, 3, (SIZES[0], SIZES[3])) if quick else (20, 5, SIZES)
    rows = [compare(*size, steps, repeats) for size in sizes]
    for row in rows:
        verdict = "reached" if row["ratio_given_prompts"] >= REQUIRED else "not reached"
        size = f"d={row['d']} N={row['N']} layers={row['layers']}"
        print(f"{size}: {row['ratio_given_prompts']:.2f} of {REQUIRED:g} {verdict}; {row['ratio']:.2f} with drawing included")
    return {"required": REQUIRED, "rows": rows}


if __name__ == "__main__":
    common.run(
        "Training throughput of linear attention against a plain implementation with the N x N scores of every prompt.",
        {"Prompts per second of training, float32": throughput},
    )
