"""Random sequences for any mixer of the registry, drawn from what its description says of its gates."""

import jax
import numpy as np

from icl_lab import mixers
from icl_lab.tasks.prompt import Prompt

K, V = 6, 3
ALL = {name: mixers.named(name) for name in mixers.MIXERS} | {
    "kda, other parameters": mixers.named("kda", scale=1.0, negative_eigenvalues=True, normalised_step=True),
    "mesa, 3 steps": mixers.named("mesa", steps=3, penalty=np.linspace(0.5, 2.0, K)),
    "hgrn2, other parameters": mixers.named("hgrn2", lower_bound=0.3),
    "rwkv6, other parameters": mixers.named("rwkv6", bonus=np.linspace(-1.0, 2.0, K)),
    "softmax, key norm": mixers.named("softmax", key_norm=True, scale=0.7),
    "ttt, other parameters": mixers.named("ttt", batch=5, normalised_step=True),
}
"""Every mixer at its defaults, and some at other parameters."""


def value_width(mixer):
    """How wide values are: V, or K where every channel is on its own."""
    return K if mixer.description.channelwise else V


def finite_range(gate):
    """The range of a gate, of an infinite one a part."""
    if np.isinf(gate.lowest) and np.isinf(gate.highest):
        return -0.5, 0.5
    return max(gate.lowest, -1.0), gate.lowest + 3.0 if np.isinf(gate.highest) else gate.highest


def draw_gates(mixer, rng, length, dtype=np.float64):
    """Gates well inside their ranges; a log decay lies in (-1, 0), one without a largest value at most 3 above its smallest."""
    gates = {}
    for gate in mixer.description.gates:
        lowest, highest = finite_range(gate)
        low, high = lowest + 0.1 * (highest - lowest), highest - 0.1 * (highest - lowest)
        gates[gate.name] = rng.uniform(low, high, (length, K) if gate.per_channel else length).astype(dtype)
    return gates


def draw(mixer, length, seed=0, dtype=np.float64):
    """Queries, keys of norm near 1, values, and gates."""
    rng = np.random.default_rng(seed)
    arrays = (
        rng.normal(size=(length, K)),
        rng.normal(size=(length, K)) / np.sqrt(K),
        rng.normal(size=(length, value_width(mixer))),
    )
    return tuple(array.astype(dtype) for array in arrays), draw_gates(mixer, rng, length, dtype)


def constant_gates(mixer):
    """Gates that are one number for all tokens."""
    ranges = {gate.name: finite_range(gate) for gate in mixer.description.gates}
    return {name: 0.4 * highest + 0.6 * lowest for name, (lowest, highest) in ranges.items()}


def draw_prompt(seed=0, count=7, complex_data=False, width=V):
    """Keys and values as inputs and labels of a prompt."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape) + (1j * rng.normal(size=shape) if complex_data else 0.0)

    return Prompt(normal(count, K) / np.sqrt(K), normal(count, width), normal(K), normal(width))


def error(got, expected):
    """Largest difference over all leaves, relative to each one's largest entry; infinite if one is not finite."""
    worst = 0.0
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape, (a.shape, b.shape)
        if not (np.all(np.isfinite(a)) and np.all(np.isfinite(b))):
            return np.inf
        worst = max(worst, np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-300))
    return worst
