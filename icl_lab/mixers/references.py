"""Mixers against outputs that another program computed.

A file of references (`numpy.savez`) holds inputs of shape (B, T, H, ...), and for each case the outputs `<case>/o` (B, T, H, V)
and perhaps the last state `<case>/S` (B, H, K, V):

    q, k, v     queries, keys, values          qn, kn    queries and keys of norm 1
    vK          values as wide as the keys     lamb, u   penalties and bonuses, (H, K)
    g, gk       log decays, (B, T, H) and (B, T, H, K)
    beta        write strengths, (B, T, H)     a, b      probes and feedback of dplr, (B, T, H, K)
    x, f        without heads, (B, T, K): values times the share of the state that they replace, and the logarithm of the rest

Outputs are scaled by K^(-1/2), but for mesa and hgrn. Cases that no mixer of the registry computes yet are listed without a
number.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab.core import compiled
from icl_lab.core.precision import in_float64
from icl_lab.core.typing import Array
from icl_lab.mixers.base import Mixer
from icl_lab.mixers.recurrent.linear import retnet_log_decay
from icl_lab.mixers.registry import named

CHUNKS = (8, 16)
RUNS = [("recurrent", 1), *(("chunk", size) for size in CHUNKS), ("parallel", 1)]
PER_HEAD, WITHOUT_HEADS = ("lamb", "u"), ("x", "f")
"""Inputs that all sequences share, (H, K), and inputs that all heads share, (B, T, K)."""

Head = dict[str, Array]
"""One head of one sequence: inputs without batch and head axes, and `head`, its number."""
Call = tuple[Mixer, tuple[Array, Array, Array], dict[str, Array]]
"""A mixer, its queries, keys and values, and its gates."""


def _retention(head: Head) -> Call:
    """The decays of a RetNet."""
    return named("retention", log_decay=retnet_log_decay(head["head"])), (head["q"], head["k"], head["v"]), {}


def _hgrn2(head: Head) -> Call:
    """The keys are the logits of what is kept; the file's own, 1 - e^gk, follow."""
    return named("hgrn2"), (head["q"], head["gk"] - jnp.log(-jnp.expm1(head["gk"])), head["v"]), {}


def _hgrn(head: Head) -> Call:
    """The key is the logit of the share that is written; queries of 1 put the state out."""
    share = -jnp.expm1(head["f"])
    return named("hgrn"), (jnp.ones_like(share), jnp.log(share) - head["f"], head["x"] / share), {}


CASES: dict[str, Callable[[Head], Call]] = {
    "linear": lambda x: (named("linear"), (x["q"], x["k"], x["v"]), {}),
    "retention": _retention,
    "scalar_decay": lambda x: (named("simple_gla"), (x["q"], x["k"], x["v"]), {"log_decay": x["g"]}),
    "gla": lambda x: (named("gla"), (x["q"], x["k"], x["v"]), {"log_decay": x["gk"]}),
    "hgrn2": _hgrn2,
    "rwkv6": lambda x: (named("rwkv6", bonus=x["u"]), (x["q"], x["k"], x["v"]), {"log_decay": x["gk"]}),
    "deltanet": lambda x: (named("deltanet"), (x["q"], x["kn"], x["v"]), {"write_strength": x["beta"]}),
    "gated_deltanet": lambda x: (
        named("gated_deltanet"),
        (x["q"], x["kn"], x["v"]),
        {"write_strength": x["beta"], "log_decay": x["g"]},
    ),
    "kda": lambda x: (named("kda"), (x["q"], x["kn"], x["v"]), {"write_strength": x["beta"], "log_decay": x["gk"]}),
    "mesa": lambda x: (
        named("mesa", penalty=x["lamb"], scale=1.0),
        (x["qn"], x["kn"], x["vK"]),
        {"write_strength": x["beta"], "log_decay": x["g"]},
    ),
    "hgrn": _hgrn,
    "dplr": lambda x: (
        named("dplr"),
        (x["q"], x["k"], x["v"]),
        {"log_decay": x["gk"], "probe": x["a"], "feedback": x["b"]},
    ),
    "softmax": lambda x: (named("softmax"), (x["q"], x["k"], x["v"]), {}),
    "forgetting": lambda x: (named("forgetting"), (x["q"], x["k"], x["v"]), {"log_decay": x["g"]}),
}
"""How each case is computed: from one head's inputs."""


@in_float64
def compare_references(path: str | Path, dtype: Any = np.float64) -> dict[str, float | None]:
    """The largest error of each case of a file of references, over all forms of the mixer, its last state and its `read`.

    Args:
      path: the file.
      dtype: what the inputs are rounded to before, and what the mixers compute in; float64 or float32.

    Returns:
      Case -> largest difference, relative to the largest entry of the reference; None where there is no such mixer yet.
    """
    with np.load(path) as file:
        stored = {name: file[name] for name in file.files}
    batch, heads = stored["v"].shape[0], stored["v"].shape[2]
    inputs: Head = {name: _heads_first(name, array, batch, heads) for name, array in stored.items() if "/" not in name}
    inputs = {name: array.astype(dtype) for name, array in inputs.items()}
    inputs["head"] = np.broadcast_to(np.arange(heads, dtype=dtype), (batch, heads))
    cases = sorted(name.removesuffix("/o") for name in stored if name.endswith("/o"))
    return {case: _error(CASES[case], inputs, stored, case) if case in CASES else None for case in cases}


def _heads_first(name: str, array: np.ndarray, batch: int, heads: int) -> np.ndarray:
    """An array, or what it has for each sequence and head, as (B, H, ...)."""
    if name in PER_HEAD:
        return np.broadcast_to(array, (batch, *array.shape))
    if name in WITHOUT_HEADS:
        return np.broadcast_to(array[:, None], (batch, heads, *array.shape[1:]))
    return np.moveaxis(array, 2, 1)


def _error(call: Callable[[Head], Call], inputs: Head, stored: dict[str, np.ndarray], case: str) -> float:
    def results(head: Head) -> tuple[list, list, Array]:
        mixer, tokens, gates = call(head)
        runs = [mixer.outputs_and_state(*tokens, form=form, chunk=size, **gates) for form, size in RUNS]
        queries, keys, values = tokens
        return [run[0] for run in runs], [run[1] for run in runs], mixer.read(queries[-1], keys, values, **gates)

    outputs, states, last = compiled.jit(jax.vmap(jax.vmap(results)))(inputs)
    expected = stored[f"{case}/o"]
    expected = np.moveaxis(expected, 2, 1) if expected.ndim == 4 else np.broadcast_to(expected[:, None], outputs[0].shape)
    pairs = [(output, expected) for output in outputs] + [(last, expected[:, :, -1])]
    if f"{case}/S" in stored:
        pairs += [(state, stored[f"{case}/S"]) for state in states]
    # A NaN is the largest error, and not the smallest.
    return float(np.max([np.max(np.abs(np.asarray(got) - want)) / np.max(np.abs(want)) for got, want in pairs]))
