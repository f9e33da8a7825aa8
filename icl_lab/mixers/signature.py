"""Exact invariances of a predictor: which changes of a prompt leave its answer alone, or change it by a known rule.

    name                   change of the prompt                        answer
    permute_pairs          another order of the pairs                  the same
    duplicate_prompt       every pair twice                            the same
    shift_values           v -> v + c                                  + c
    scale_values           v -> a v                                    times a
    shift_keys_and_query   k -> k + c, q -> q + c                      the same
    shift_keys             k -> k + c                                  the same
    scale_query            q -> 3 q                                    the same
    scale_keys             k -> 3 k                                    the same
    linear_map             k -> A k, q -> A q, A invertible            the same

Keys are a prompt's inputs, values its labels. A signature is a set of names; it tells predictors apart without any fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Inexact

from icl_lab.core.typing import Array, Key
from icl_lab.tasks.prompt import Prompt

SCALE = 3.0


def _changed(prompt: Prompt, **arrays: Array) -> Prompt:
    return dataclasses.replace(prompt, **arrays)


def _draw(key: Key, like: Array, shape: tuple[int, ...]) -> Array:
    return jax.random.normal(key, shape, like.dtype)


def permute_pairs(prompt: Prompt, key: Key) -> Prompt:
    """The pairs in a random order."""
    order = jax.random.permutation(key, prompt.inputs.shape[0])
    return _changed(prompt, inputs=prompt.inputs[order], labels=prompt.labels[order])


def duplicate_prompt(prompt: Prompt, key: Key) -> Prompt:
    """Every pair twice: the pairs in their order, and then once more."""
    doubled = {name: jnp.concatenate([getattr(prompt, name)] * 2) for name in ("inputs", "labels")}
    return _changed(prompt, **doubled)


def shift_values(prompt: Prompt, key: Key) -> Prompt:
    """The same random vector added to every label."""
    return _changed(prompt, labels=prompt.labels + _draw(key, prompt.labels, prompt.labels.shape[1:])[None, :])


def scale_values(prompt: Prompt, key: Key) -> Prompt:
    """Labels times 3."""
    return _changed(prompt, labels=SCALE * prompt.labels)


def shift_keys_and_query(prompt: Prompt, key: Key) -> Prompt:
    """The same random vector added to every input and to the query."""
    return _changed(shift_keys(prompt, key), query=prompt.query + _draw(key, prompt.query, prompt.query.shape))


def shift_keys(prompt: Prompt, key: Key) -> Prompt:
    """The same random vector added to every input."""
    return _changed(prompt, inputs=prompt.inputs + _draw(key, prompt.query, prompt.query.shape)[None, :])


def scale_query(prompt: Prompt, key: Key) -> Prompt:
    """The query times 3."""
    return _changed(prompt, query=SCALE * prompt.query)


def scale_keys(prompt: Prompt, key: Key) -> Prompt:
    """Inputs times 3."""
    return _changed(prompt, inputs=SCALE * prompt.inputs)


def linear_map(prompt: Prompt, key: Key) -> Prompt:
    """Inputs and query times the same random matrix."""
    matrix = _draw(key, prompt.query, prompt.query.shape * 2)
    return _changed(prompt, inputs=prompt.inputs @ matrix.T, query=matrix @ prompt.query)


SYMMETRIES: dict[str, Callable[[Prompt, Key], Prompt]] = {
    change.__name__: change
    for change in (
        permute_pairs,
        duplicate_prompt,
        shift_values,
        scale_values,
        shift_keys_and_query,
        shift_keys,
        scale_query,
        scale_keys,
        linear_map,
    )
}
"""The changes of a prompt, by name, each a function of a prompt and of a random key."""


def signature(
    predict: Callable[[Prompt], Inexact[Array, "V"]], prompt: Prompt, key: Key, tolerance: float = 1e-8
) -> frozenset[str]:
    """The invariances that a predictor has at a prompt, found by trying.

    Args:
      predict: a function of one prompt, an estimator or a mixer's predictor; parameters that belong to single pairs would not
        follow the changes, so it should have none.
      prompt: a generic one, real, with N >= 2 pairs.
      key: draws the order, the shifts and the matrix.
      tolerance: largest difference that counts as none, relative to the largest entry of the answer.

    Returns:
      Names in `SYMMETRIES`.
    """
    answer = predict(prompt)
    expected = {
        "shift_values": answer + shift_values(prompt, key).labels[0] - prompt.labels[0],
        "scale_values": SCALE * answer,
    }

    def holds(name: str) -> bool:
        there = expected.get(name, answer)
        difference = predict(SYMMETRIES[name](prompt, key)) - there
        return bool(jnp.max(jnp.abs(difference)) <= tolerance * jnp.max(jnp.abs(there)))

    return frozenset(filter(holds, SYMMETRIES))
