"""Prompts in chunks, from laws and tasks whose own programs are compiled by themselves.

A program that draws prompts and works on them is compiled anew for every law of inputs and every length, and a law that is
written with `jax.random.t` alone takes XLA seconds. So all but Gaussian regression is drawn apart: inputs in blocks of one size
whatever the prompt, as rows if they are independent of each other, then task vectors, then the labels. All that works on
prompts shares those programs, and has one of its own that does not know the law.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TypeGuard

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from icl_lab.core import compiled
from icl_lab.core.prng import stream
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.distributions.covariates import CovariateDistribution, Gaussian
from icl_lab.tasks.distributions.independent import IndependentCoordinates
from icl_lab.tasks.prompt import Prompt, Task, check_prompt_fits
from icl_lab.tasks.regression.linear import LinearRegression, is_plain

ROWS = 256
"""Independent inputs of one key; few, since the inputs of a law may be drawn one after the other."""
KEYS = 32
"""Keys of a block of independent inputs: a law that draws until it accepts waits for the slowest of them."""
PROMPTS = 128
"""Prompts of a block whose inputs share something, and task vectors of a block."""


SHORTEST = 32
"""The smallest number that `padded` gives."""


def padded(length: int) -> int:
    """The number of examples that stands for all up to it in compiled programs: two an octave, 32, 48, 64, 96, .."""
    octave = 2 ** int(np.log2(max(length - 1, 1)))
    return max(3 * octave // 2 if length <= 3 * octave // 2 else 2 * octave, SHORTEST)


def is_foreign(owner: eqx.Module) -> bool:
    """Whether a law or a task draws by code that is not the package's own."""
    return type(owner).__module__.split(".")[0] != "icl_lab" or isinstance(owner, IndependentCoordinates)


def drawn_apart(task: Task) -> TypeGuard[LinearRegression]:
    """Whether `prompts_in_blocks` draws a task: by `LinearRegression.sample`, from a law or of a class that is not Gaussian."""
    own = type(task) is LinearRegression and type(task.covariates) is Gaussian
    return isinstance(task, LinearRegression) and type(task).sample is LinearRegression.sample and not own


def inputs(law: CovariateDistribution, key: Key, count: int) -> Iterator[Float[np.ndarray, "n count d"]]:
    """The inputs of prompts of `count` inputs each, without end, in blocks of n prompts."""
    left = np.zeros((0, law.dim))
    for i in itertools.count():
        if law.shared_covariance:
            yield np.asarray(_inputs(law, jax.random.fold_in(key, i), PROMPTS, padded(count)))[:, :count]
            continue
        block = np.asarray(_inputs(law, jax.random.fold_in(key, i), KEYS, ROWS)).reshape(-1, law.dim)
        left = np.concatenate([left, block])
        whole = len(left) // count
        if whole:
            yield left[: whole * count].reshape(whole, count, law.dim)
            left = left[whole * count :]


def prompts_in_blocks(task: LinearRegression, key: Key, sizes: Iterator[int]) -> Iterator[Prompt]:
    """Prompts of a task that is `drawn_apart`, in chunks of the sizes that are asked for, as numpy arrays.

    Prompts of a key do not depend on the sizes.
    """
    check_prompt_fits(task.context_length, task.dim)
    source = _whole_prompts(task, key)
    left = next(source)
    for size in sizes:
        parts, missing = [], size
        while missing > len(left.query):
            parts.append(left)
            missing -= len(left.query)
            left = next(source)
        parts.append(jax.tree.map(lambda leaf, n=missing: leaf[:n], left))
        left = jax.tree.map(lambda leaf, n=missing: leaf[n:], left)
        yield jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _whole_prompts(task: LinearRegression, key: Key) -> Iterator[Prompt]:
    generator = np.random.default_rng(np.asarray(jax.random.key_data(stream(key, "noise"))))
    vectors = np.zeros((0, task.dim))
    # The length of the prompts is no part of the program where the package's own class draws the vectors.
    single = task.with_context_length(1) if is_plain(task) else task
    blocks = (_task_vectors(single, jax.random.fold_in(stream(key, "task"), i)) for i in itertools.count())
    for drawn in inputs(task.covariates, stream(key, "inputs"), task.context_length + 1):
        while len(vectors) < len(drawn):
            vectors = np.concatenate([vectors, np.asarray(next(blocks))])
        vector, vectors = vectors[: len(drawn)], vectors[len(drawn) :]
        responses = drawn @ vector[:, :, None]
        labels = responses[:, :-1]
        if float(task.noise_std) > 0:
            labels = labels + float(task.noise_std) * generator.standard_normal(labels.shape)
        yield jax.tree.map(np.asarray, jax.vmap(Prompt)(drawn[:, :-1], labels, drawn[:, -1], responses[:, -1], vector))


@compiled.jit
def _inputs(law: CovariateDistribution, key: Key, keys: int, count: int) -> Float[Array, "keys count d"]:
    return jax.vmap(lambda key: law.sample(key, count))(jax.random.split(key, keys))


@compiled.jit
def _task_vectors(task: LinearRegression, key: Key) -> Float[Array, "n d"]:
    return jax.vmap(task.sample_task)(jax.random.split(key, PROMPTS))
