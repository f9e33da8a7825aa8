r"""What a model answers: on ordinary prompts, to judge by, and on a sample with many rare prompts, to fit to.

The distance of ten steps of gradient descent from anything is a polynomial of degree 20 in the eigenvalues of X^* X, and its
mean is made by the few prompts in thousands whose largest eigenvalue lets the steps diverge. A fit to a sample that has none
of them ends at too large a step: at d = N = 8, to answers of ridge of penalty 1, at a distance of 0.4 (median of twelve fits to
1024 prompts) where 0.15 can be reached. No loss helps, neither a bounded one nor fourth powers nor an upper confidence bound,
because what matters is not in the sample; more prompts do. Of a pool of those the model need not answer all: of every chunk
the `HEAVY` prompts with the largest Gram matrices are kept and as many of the others, drawn at random, stand for the rest.
Sums over the chunk remain unbiased with the weights 1 and (chunk - heavy) / kept. In the same setting the fit to 2048 of a
pool of 32768 prompts ends where that to all of them does, at 0.15 to 0.2.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Inexact

from icl_lab.analysis.sampling import Predictor
from icl_lab.core import compiled
from icl_lab.core.errors import InvalidValueError, NonFiniteError
from icl_lab.core.typing import Array, Key
from icl_lab.estimators.examples import examples
from icl_lab.tasks.prompt import Prompt, Task

CHUNK = 1024
"""Prompts drawn and answered at once."""
POOL = 32
"""Chunks of which the prompts of a fit are chosen."""
HEAVY = 32
"""Prompts with the largest Gram matrices that are kept of each of them."""


class Observed(NamedTuple):
    """M prompts with a model's answers, in one dtype.

    Attributes:
      prompts: without their latent variables.
      answers: (M, k).
      weights: (M,), with mean 1: averages with them estimate expectations over the task.
    """

    prompts: Prompt
    answers: Inexact[np.ndarray, "M k"]
    weights: Float[np.ndarray, "M"]


def observe(predictor: Predictor, task: Task, key: Key, count: int) -> Observed:
    """Answers on prompts of the task, `count` rounded up to whole chunks.

    Raises:
      InvalidValueError: answers of another shape than the labels.
      NonFiniteError: answers that are NaN or infinite.
    """
    prompts = _joined([_sample(task, jax.random.fold_in(key, i)) for i in range(-(-count // CHUNK))])
    return _observed(predictor, prompts, np.ones(len(prompts.query)))


def observe_rare(predictor: Predictor, task: Task, key: Key, count: int) -> Observed:
    """Answers on the heaviest prompts of a pool and on some of the others, at least `count` of those.

    Raises:
      InvalidValueError: answers of another shape than the labels.
      NonFiniteError: answers that are NaN or infinite.
    """
    others = min(max(HEAVY, -(-count // POOL)), CHUNK - HEAVY)
    chunks = max(POOL, -(-count // others))
    parts = [_sample_rare(task, jax.random.fold_in(key, i), HEAVY + others) for i in range(chunks)]
    weights = np.repeat([1.0, (CHUNK - HEAVY) / others], [HEAVY, others])
    prompts, weights = _joined(parts), np.tile(weights, chunks)
    return _observed(predictor, prompts, weights / np.mean(weights))


def answers_of(predictor: Predictor, prompts: Prompt) -> Inexact[np.ndarray, "M k"]:
    """The answers of a predictor, chunk by chunk."""
    chunks = [jax.tree.map(lambda leaf, i=i: leaf[i : i + CHUNK], prompts) for i in range(0, len(prompts.query), CHUNK)]
    return np.concatenate([np.asarray(_answer_all(predictor, chunk)) for chunk in chunks])


def order_effect(predictor: Predictor, observed: Observed) -> float:
    """By how much, relatively, answers change when every example takes the place of the next and the last one the first.

    A function that does not change then does not change by any number of such turns, so that no weights by age and no pass over
    the examples come to anything but equal weights. Infinity where an answer is not finite.
    """
    turned = eqx.tree_at(
        lambda p: (p.inputs, p.labels),
        observed.prompts,
        tuple(np.roll(x, 1, 1) for x in (observed.prompts.inputs, observed.prompts.labels)),
    )
    norm, change = (
        float(np.sum(observed.weights * np.sum(np.abs(answers) ** 2, axis=1)))
        for answers in (observed.answers, answers_of(predictor, turned) - observed.answers)
    )
    return float(np.sqrt(change / norm)) if np.isfinite(change) else np.inf


def _observed(predictor: Predictor, prompts: Prompt, weights: Float[np.ndarray, "M"]) -> Observed:
    answers = answers_of(predictor, prompts)
    if answers.shape != prompts.labels.shape[::2]:
        raise InvalidValueError(
            f"`predictor` must answer a prompt with an array of the shape of a label, {prompts.labels.shape[2:]}; got shape "
            f"{answers.shape[1:]}."
        )
    broken = int(np.sum(~np.all(np.isfinite(answers), axis=1)))
    if broken:
        raise NonFiniteError(
            f"the predictor answers {broken} of {len(answers)} prompts with NaN or infinity; an algorithm can be fitted to "
            "finite answers only. Check that its training did not diverge."
        )
    dtype = np.result_type(answers, prompts.labels)
    prompts = eqx.tree_at(lambda p: p.labels, prompts, prompts.labels.astype(dtype))
    return Observed(prompts, answers.astype(dtype), weights)


def _joined(chunks: list[Prompt]) -> Prompt:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *chunks)


@compiled.jit
def _sample(task: Task, key: Key) -> Prompt:
    return eqx.tree_at(lambda p: p.latent, task.sample_batch(key, CHUNK), None, is_leaf=lambda x: x is None)


@compiled.jit
def _sample_rare(task: Task, key: Key, kept: int) -> Prompt:
    prompts = _sample(task, key)
    # Draws are independent, so that those after the heaviest, in their order, are a random sample of the rest.
    heaviest = jnp.argsort(-jax.vmap(_weight)(prompts))[:HEAVY]
    rest = jnp.argsort(jnp.zeros(CHUNK, bool).at[heaviest].set(True))[: kept - HEAVY]
    return jax.tree.map(lambda leaf: leaf[jnp.concatenate([heaviest, rest])], prompts)


def _weight(prompt: Prompt) -> Float[Array, ""]:
    """The norm of the eighth powers of the eigenvalues of X X^*: the largest, nearly, and three products of matrices."""
    inputs = examples(prompt)[0]
    few = inputs if inputs.shape[0] <= inputs.shape[1] else inputs.T
    gram = few @ jnp.conj(few.T)
    trace = jnp.maximum(jnp.real(jnp.trace(gram)), jnp.finfo(gram.dtype).tiny)
    scaled = gram / trace.astype(gram.dtype)
    square = scaled @ scaled
    return trace * jnp.sum(jnp.abs(square @ square) ** 2) ** 0.125


@compiled.jit
def _answer_all(predictor: Predictor, prompts: Prompt) -> Inexact[Array, "M k"]:
    return jax.vmap(predictor)(prompts)
