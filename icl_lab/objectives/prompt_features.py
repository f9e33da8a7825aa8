"""The features of sampled prompts, chunk by chunk: drawn in the program that uses them, whole or in pieces, or before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeGuard

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Inexact

from icl_lab.core import devices
from icl_lab.core.prng import stream
from icl_lab.core.typing import Array, Key
from icl_lab.models.linear_attention import LinearSelfAttention
from icl_lab.objectives.exact.moments import Features, reads_regression
from icl_lab.tasks.blocks import drawn_apart, padded, prompts_in_blocks
from icl_lab.tasks.prompt import Prompt, Task
from icl_lab.tasks.regression.linear import LinearRegression

PIECE_ELEMENTS = 2**15
"""Numbers in the examples of a prompt above which it is drawn in pieces of that size in all prompts of a chunk."""
PROMPTS_OF_PIECES = 8
"""Prompts of a chunk that are drawn in pieces."""
CHUNKS_AT_ONCE = 8
"""Chunks of prompts that are drawn apart and handed over together."""


def at_padded_length(task: Task, model: LinearSelfAttention) -> tuple[Task, np.ndarray | None]:
    """The task at the length at which its prompts are drawn, and its own length as an array; None if they are the same prompts.

    Of `LinearRegression` a prompt is as good as the beginning of a longer one.
    """
    if not reads_regression(task, model):
        return task, None
    return task.with_context_length(padded(task.context_length)), np.asarray(task.context_length)


class Grams(eqx.Module):
    """Prompts of merged tokens, in what a layer reads of them; their length is no part of a program.

    Attributes:
      grams: (B, D, D) sums over the examples (x_i, y_i) of a prompt, D = d + 1.
      queries: (B, d).
      targets: (B, 1).
    """

    grams: Float[Array, "B D D"]
    queries: Float[Array, "B d"]
    targets: Float[Array, "B 1"]

    @staticmethod
    def of(prompts: Prompt, count: int) -> Grams:
        """Those of at most `count` prompts, filled up with zeros, which add nothing to any moment."""
        examples = np.concatenate([prompts.inputs, prompts.labels], axis=2)
        arrays = np.swapaxes(examples, 1, 2) @ examples, prompts.query, prompts.target
        return Grams(*(np.pad(x, ((0, count - len(x)), *[(0, 0)] * (x.ndim - 1))) for x in arrays))

    def features(self, features: Features, query_in_sum: bool):
        """Features (F, B) without their normaliser, and targets (B, 1)."""
        tokens = jnp.pad(self.queries.T, ((0, 1), (0, 0)))
        sums = self.grams[:, np.asarray(features.rows), np.asarray(features.columns)].T
        if query_in_sum:
            sums = sums + features.pairs(tokens[None])
        return features.products(sums, tokens), self.targets


def sources(
    task: Task, model: LinearSelfAttention, drawn: Task, key: Key, chunks: int, chunk: int
) -> Iterator[tuple[Grams | tuple[Task, Key], np.ndarray]]:
    """Where the chunks of a sample come from, and how many from each: prompts that exist, or a task and a key to draw them.

    `drawn` is the task at the length at which a program draws it.
    """
    if not reads_grams(task, model):
        yield (drawn, key), np.asarray(chunks)
        return
    counts = [min(CHUNKS_AT_ONCE, chunks - done) for done in range(0, chunks, CHUNKS_AT_ONCE)]
    for count, prompts in zip(counts, prompts_in_blocks(task, key, (chunk * count for count in counts)), strict=True):
        yield Grams.of(prompts, CHUNKS_AT_ONCE * chunk), np.asarray(count)


def reads_grams(task: Task, model: LinearSelfAttention) -> TypeGuard[LinearRegression]:
    """Whether prompts are drawn before, by programs of their own: all but Gaussian ones that a layer reads by Gram matrices."""
    return drawn_apart(task) and model.embedding == "merged"


def chunk_features(
    source, index: Array, chunk: int, model: LinearSelfAttention, features: Features, length: Array | None, every_position: bool
):
    """Features (F, B) without their normaliser, and targets (B, k), of one chunk of prompts, laid over all devices."""
    if isinstance(source, Grams):
        rows = jax.tree.map(lambda x: devices.shard(jax.lax.dynamic_slice_in_dim(x, index * chunk, chunk)), source)
        return rows.features(features, model.query_in_sum)
    task, key = source
    keys = devices.shard(jax.random.split(jax.random.fold_in(key, index), chunk))
    if drawn_in_pieces(task, model, features):
        return _from_pieces(task, model, features, keys)
    return _from_whole(task, model, features, keys, length, every_position)


def _from_whole(
    task: Task, model: LinearSelfAttention, features: Features, keys: Key, length: Array | None, every_position: bool
):
    """Features and targets of whole prompts; with `every_position` N of each prompt.

    With a `length` only so many of the examples of a prompt count.
    """
    prompts = jax.vmap(task.sample)(keys)
    tokens = jax.vmap(model.tokens, out_axes=-1)(prompts)
    if every_position:
        return _at_every_position(model, features, tokens, prompts)
    attended = tokens if model.query_in_sum else tokens[:-1]
    if length is not None:
        positions = jnp.arange(attended.shape[0])
        attended = jnp.where(((positions < length) | (positions == task.context_length))[:, None, None], attended, 0.0)
    return features.values(attended, tokens[-1]), prompts.target


def drawn_in_pieces(task: Task, model: LinearSelfAttention, features: Features) -> bool:
    """Whether prompts are too long for the cache, of Gaussian examples, which are independent given the task vector."""
    long = task.context_length * len(features.queries) > PIECE_ELEMENTS
    return long and not reads_grams(task, model) and reads_regression(task, model) and not model.causal


def _from_pieces(task: LinearRegression, model: LinearSelfAttention, features: Features, keys: Key):
    """Features (F, B) and targets (B, 1) of prompts that never exist as a whole: their pieces are drawn, summed and dropped."""
    length = max(1, PIECE_ELEMENTS // (PROMPTS_OF_PIECES * (task.dim + 1)))
    vectors = jax.vmap(task.sample_task)(keys)
    queries = jax.vmap(lambda key: task.covariates.sample(stream(key, "query"), 1)[0])(keys)

    def pairs(piece, count):
        """Of `count` examples of every prompt."""
        draw = jax.vmap(lambda key, vector: task.sample_examples(jax.random.fold_in(key, piece), vector, count), out_axes=-1)
        return features.pairs(draw(keys, vectors))

    whole, rest = divmod(task.context_length, length)
    zeros = jnp.zeros((len(features.rows), keys.shape[0]), queries.dtype)
    sums, _ = jax.lax.scan(lambda s, piece: (s + pairs(piece, length), None), zeros, jnp.arange(whole))
    if rest:
        sums = sums + pairs(whole, rest)
    tokens = jnp.pad(queries.T, ((0, 1), (0, 0)))
    if model.query_in_sum:
        sums = sums + features.pairs(tokens[None])
    target = jnp.sum(queries * vectors, axis=1, keepdims=True)
    return features.products(sums, tokens), target


def _at_every_position(model, features: Features, tokens: Inexact[Array, "T D B"], prompts: Prompt):
    """Features (F, N B) and targets (N B, k) of the queries x_2 .. x_{N+1}, each attending to the tokens up to it."""
    products = tokens[:, np.asarray(features.rows)] * jnp.conj(tokens[:, np.asarray(features.columns)])
    sums = jnp.cumsum(products, axis=0)
    seen = sums[1:] if model.query_in_sum else sums[:-1]
    rho = jnp.asarray([model.normaliser_at(count) for count in range(2, tokens.shape[0] + 1)], tokens.dtype)
    queries = tokens[1:, np.asarray(features.queries)] / rho[:, None, None]
    phi = jnp.moveaxis(seen[:, :, None] * queries[:, None], 0, 2).reshape(features.count, -1)
    targets = jnp.concatenate([prompts.labels[:, 1:], prompts.target[:, None]], axis=1)
    return phi, jnp.moveaxis(targets, 0, 1).reshape(phi.shape[1], -1)
