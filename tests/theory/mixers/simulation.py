"""Delta rules on drifting tasks by simulation in numpy, for the closed forms of the folder; shares no code with them."""

from typing import NamedTuple

import numpy as np


class Run(NamedTuple):
    """State after n examples, the task of the last one and that of the query, (B, d) each."""

    state: np.ndarray
    task: np.ndarray
    next_task: np.ndarray


def draw_keys(rng, count, dim, law):
    """(count, dim) keys: N(0, I), or uniform on the unit sphere."""
    keys = rng.normal(size=(count, dim))
    return keys / np.linalg.norm(keys, axis=1, keepdims=True) if law == "sphere" else keys


def run(rng, count, dim, length, noise_variance, *, rule, correlation=1.0, law="gaussian", start=0.0, mean=0.0, keys=None):
    """Read `length` examples of `count` prompts by a rule, (state, keys, values, place) -> new state.

    Keys are drawn from the law, unless they are given as (length, count, dim).
    """
    task = mean + rng.normal(size=(count, dim))
    state = np.zeros((count, dim)) + start
    for t in range(length):
        if t > 0:
            task = drift(rng, task, correlation)
        k = draw_keys(rng, count, dim, law) if keys is None else keys[t]
        values = np.sum(k * task, axis=1) + np.sqrt(noise_variance) * rng.normal(size=count)
        state = rule(state, k, values, t)
    return Run(state, task, drift(rng, task, correlation))


def drift(rng, task, correlation):
    return correlation * task + np.sqrt(1 - correlation**2) * rng.normal(size=task.shape)


def delta_rule(step, decay=1.0):
    """Decay, then write the error of what is left."""

    def rule(state, keys, values, _):
        state = decay * state
        error = values - np.sum(keys * state, axis=1)
        return state + step * (error[:, None] * keys)

    return rule


def deviation(state, task, expected):
    """By how many standard errors the mean squared distance of a state from a task misses `expected`; the error is honest."""
    squares = np.sum((state - task) ** 2, axis=1)
    error = np.std(squares, ddof=1) / np.sqrt(len(squares))
    assert error < 0.02 * expected, "too few prompts for a check that means something"
    return (np.mean(squares) - expected) / error
