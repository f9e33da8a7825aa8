"""The mechanisms of experiments/mixers.py: their names and groups, and their answers to many prompts at many settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from icl_lab import mixers
from icl_lab.claims.simulation import mean_with_error
from icl_lab.core import compiled
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.prompt import Prompt, Task

GROUPS = {
    "one gradient step": {
        "linear": "linear attention",
        "retention": "retention",
        "mamba": "Mamba",
        "simple_gla": "simple GLA, Mamba-2",
        "gla": "GLA",
        "rwkv6": "RWKV-6",
        "hgrn2": "HGRN-2",
    },
    "online descent": {
        "deltanet": "DeltaNet",
        "longhorn": "Longhorn",
        "gated_deltanet": "gated DeltaNet",
        "kda": "KDA",
        "momentum_delta": "momentum (Titans)",
        "ttt": "TTT, batches of 4",
        "dplr": "RWKV-7",
    },
    "linear equations": {"preconditioned_delta": "preconditioned delta", "mesa": "mesa"},
    "smoothing": {"softmax": "softmax attention"},
}
"""Names of mechanisms by what they do. Mixers of a vector state answer with as many numbers as an input has."""
NAMES = {name: words for group in GROUPS.values() for name, words in group.items()}
COUNTING = ("softmax", "rwkv4")
"""Means, in which an example of zeros counts."""

MARKERS = "osD^vPX"

Settings = dict[str, Any]
"""Parameters and gates of a mechanism: numbers, an array an example, or one an example and channel."""


def predictor(name: str, settings: Settings) -> Callable[[Prompt], Array]:
    """A mechanism as a function of a prompt; RWKV-7, whose gates follow from the keys, takes a share of what it removes."""
    return eqx.Partial(_removing, settings) if name == "dplr" else mixers.predictor(name, **settings)


def _removing(settings: Settings, prompt: Prompt) -> Array:
    """RWKV-7: a share of what the state says at a key is removed along the key, whatever is written."""
    norms = jnp.linalg.norm(prompt.inputs, axis=1, keepdims=True)
    units = prompt.inputs / jnp.where(norms > 0, norms, 1)
    rest = {name: value for name, value in settings.items() if name != "removed"}
    return mixers.predictor("dplr", probe=-units, feedback=settings["removed"] * units, **rest)(prompt)


@compiled.jit
def drawn(task: Task, key: Key, count: int) -> Prompt:
    """Some prompts, with a leading axis; one program serves all numbers in the task."""
    return task.sample_batch(key, count)


def last_examples(prompts: Prompt, count: int, length: int, name: str) -> Prompt:
    """The last `count` examples of prompts, and before them as many of zeros as make `length`, so that one program serves all.

    An example of zeros writes nothing, but into a mean it counts: there are none where the mechanism is one.
    """
    missing = 0 if name in COUNTING else length - count
    filled = [np.pad(np.asarray(rows)[:, -count:], [(0, 0), (missing, 0), (0, 0)]) for rows in (prompts.inputs, prompts.labels)]
    return dataclasses.replace(prompts, inputs=filled[0], labels=filled[1])


@compiled.jit
def answers(name: str, settings: Settings, prompts: Prompt) -> Float[Array, "G S m"]:
    """The answers to S prompts at each of G settings, along the first axis of their arrays."""
    return jax.lax.map(lambda one: jax.vmap(predictor(name, one))(prompts), settings)


def risk(name: str, settings: Settings, prompts: Prompt) -> tuple[float, float]:
    """Mean squared error of a mechanism over prompts at one setting, and its standard error."""
    one = jax.tree.map(lambda value: np.asarray(value)[None], settings)
    return mean_with_error(np.sum((np.asarray(answers(name, one, prompts))[0] - prompts.target) ** 2, axis=1))


def tuned_risk(name: str, settings: Settings, prompts: Prompt) -> tuple[float, float]:
    """The same at the best of several settings and scales of the answers; one half of the prompts chooses, the other counts."""
    found, targets = np.asarray(answers(name, settings, prompts)), np.asarray(prompts.target)[None]
    half = found.shape[1] // 2
    products = np.sum(found[:, :half] * targets[:, :half], axis=(1, 2))
    squares = np.sum(found[:, :half] ** 2, axis=(1, 2))
    best = int(np.argmax(products**2 / squares))
    left = products[best] / squares[best] * found[best, half:] - targets[0, half:]
    return mean_with_error(np.sum(left**2, axis=1))


def curves(
    axes: Axes,
    lengths: list[int],
    measured: Mapping[str, Float[np.ndarray, "L 2"]],
    names: Mapping[str, str],
    exact: Mapping[str, list[float]],
) -> None:
    """Means with intervals of two standard errors against lengths; a line where there is a closed form, else dots between."""
    for i, (name, words) in enumerate(names.items()):
        values, errors = measured[name].T
        # Those that come later are drawn smaller, so that equal ones are seen inside each other.
        style = {"color": f"C{i}", "marker": MARKERS[i], "markersize": 8 - 0.7 * i, "markerfacecolor": "none", "elinewidth": 1}
        dots = {"linestyle": "none" if name in exact else ":", "linewidth": 0.9}
        axes.errorbar(lengths, values, 2 * errors, label=words, **style, **dots)
        if name in exact:
            axes.plot(lengths, exact[name], color=f"C{i}", linewidth=3.4 - 0.4 * i)
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(lengths, labels=[str(n) for n in lengths])
    axes.minorticks_off()
