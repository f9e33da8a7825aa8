"""Claims about what products of steps of a delta rule compute that no decay can: parities and permutations."""

from __future__ import annotations

import math

import jax
import numpy as np
from jaxtyping import Float

from icl_lab import mixers
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.mixers.prompts import CHUNK, EXACT
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.core import compiled, precision
from icl_lab.core.typing import Array
from icl_lab.mixers import Mixer

REFLECTING = mixers.named("deltanet", scale=1.0, negative_eigenvalues=True, normalised_step=True)
"""At strength 2 a key reflects the state: what it says along the key changes its sign."""
PLAIN = mixers.named("deltanet", scale=1.0)
GRID = np.linspace(0.0, 1.0, 11)
"""Write strengths that are tried for either bit."""


@compiled.jit
def in_each_form(mixer: Mixer, *tokens: Array, **arguments: Array) -> dict[str, tuple[Array, Array]]:
    """Outputs and last state of every form."""
    forms = mixer.description.forms
    return {form: mixer.outputs_and_state(*tokens, form=form, chunk=CHUNK, **arguments) for form in forms}


class Bits(Seeded):
    """Independent bits, each 0 or 1 with probability 1/2."""

    N: int = integer(50, 2, "context length", ", in bits")


@claim(
    "mixers.parity",
    Bits,
    Source(
        "Grazzi et al. 2024 (arXiv 2411.12537)", "parity needs negative eigenvalues; the best share without them is icl_lab's"
    ),
    extra_settings=({"N": 2}, {"N": 7}, {"N": 200, "seed": 1}),
)
def strength_two_counts_parity(setting: Bits) -> list[Check]:
    """A delta rule that writes a 1 with strength 2 multiplies its state by -1 and so knows the parity of all bits; with
    strengths in [0, 1], one for each bit, no threshold on the state is right more often than 1/2 + C(N-1, floor((N-1)/2)) /
    2^N.

    Random bits in every form; and without sampling, from the state after each number of ones, the best threshold for each
    pair of strengths on a grid. A sign that strengths up to 1 can turn would make it fail.
    """
    N = setting.N
    bits = np.asarray(jax.random.bernoulli(setting.stream("bits"), shape=(N,))).astype(float)
    ones = np.ones((N, 1))
    parity = (-1.0) ** np.cumsum(bits)[:, None]
    answers = in_each_form(REFLECTING, ones, ones, 0 * ones, write_strength=2 * bits, initial=ones[:1])
    counted = (np.arange(N)[None, :] < np.arange(N + 1)[:, None]).astype(float)
    states = np.asarray(_states(counted, np.stack(np.meshgrid(GRID, GRID), axis=-1).reshape(-1, 2)))
    shares = np.array([math.comb(N, ones) / 2**N for ones in range(N + 1)])
    accuracies = [_best_threshold(row, shares) for row in states]
    best = 0.5 + math.comb(N - 1, (N - 1) // 2) / 2**N
    return [
        *(check.exact(f"parities_{form}", outputs, parity, EXACT) for form, (outputs, _) in answers.items()),
        check.at_least("lowest_state_of_strengths_up_to_one_abs", np.min(states), 0.0),
        check.exact("best_accuracy_of_strengths_up_to_one", max(accuracies), best, EXACT),
    ]


@compiled.jit
def _states(bits: Float[Array, "C N"], strengths: Float[Array, "G 2"]) -> Float[Array, "G C"]:
    """The state that starts at 1, after the bits of each row, for each pair of strengths of a 0 and of a 1."""
    ones = np.ones((bits.shape[1], 1))

    def last(row, pair):
        steps = pair[0] + (pair[1] - pair[0]) * row
        return PLAIN.read(ones[0], ones, 0 * ones, write_strength=steps, initial=ones[:1])[0]

    return jax.vmap(lambda pair: jax.vmap(lambda row: last(row, pair))(bits))(strengths)


def _best_threshold(states: Float[np.ndarray, "C"], shares: Float[np.ndarray, "C"]) -> float:
    """The largest probability with which a threshold on the state after c ones, either way round, tells the parity of c."""
    signs = np.where(np.arange(len(states)) % 2 == 0, shares, -shares)
    # Equal states are on the same side of any threshold.
    levels, place = np.unique(states, return_inverse=True)
    below = np.cumsum(np.bincount(place, weights=signs, minlength=len(levels)))
    # Both parities are equally likely, so that one more even than odd below the threshold is one more right on each side.
    return float(0.5 + np.max(np.abs(below)))


class Swaps(Seeded):
    """Transpositions of some items, one after the other."""

    items: int = integer(5, 2, "number of items")
    N: int = integer(40, 1, "context length", ", in tokens")


@claim(
    "mixers.swaps",
    Swaps,
    Source("Siems et al. 2025 (arXiv 2502.10297)", "products of Householder steps are permutations"),
    extra_settings=({"items": 2, "N": 9}, {"items": 9, "N": 70}, {"items": 3, "N": 1}),
)
def reflections_are_permutations(setting: Swaps) -> list[Check]:
    """A step of strength 2 along e_i - e_j swaps rows i and j of the state, so that a step a token follows a sequence of
    swaps, and n - 1 steps a token one of any permutations of n items.

    Random swaps, and random permutations written as at most n - 1 swaps each, in every form, from the identity. A reflection
    that does not come out exactly, or factors in the other order, would make it fail.
    """
    n, N = setting.items, setting.N
    generator = np.random.default_rng(setting.seed)
    pairs = np.array([generator.choice(n, 2, replace=False) for _ in range(N)])
    keys = np.eye(n)[pairs[:, 0]] - np.eye(n)[pairs[:, 1]]
    order, first = np.arange(n), []
    for i, j in pairs:
        order[[i, j]] = order[[j, i]]
        first.append(order[0])
    queries = np.broadcast_to(np.eye(n)[0], (N, n))
    swapped = in_each_form(REFLECTING, queries, keys, np.zeros((N, n)), write_strength=np.full(N, 2.0), initial=np.eye(n))
    permutations = [generator.permutation(n) for _ in range(N)]
    composed = np.arange(n)
    for permutation in permutations:
        composed = composed[permutation]
    directions, strengths = map(np.concatenate, zip(*map(_reflections, permutations), strict=True))
    empty = np.zeros((N * (n - 1), n))
    permuted = in_each_form(REFLECTING, queries, directions, empty, write_strength=strengths, initial=np.eye(n))
    checks = []
    for form, (outputs, state) in precision.to_numpy(swapped).items():
        checks.append(check.exact(f"first_item_{form}", outputs, np.eye(n)[first], EXACT))
        checks.append(check.exact(f"swaps_{form}", state, np.eye(n)[order], EXACT))
    return checks + [
        check.exact(f"permutations_{form}", state, np.eye(n)[composed], EXACT) for form, (_, state) in permuted.items()
    ]


def _reflections(permutation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """n - 1 keys and strengths that permute the rows of a state; a strength of 0 does nothing."""
    n, left, keys, strengths = len(permutation), list(permutation), [], []
    for place in range(n - 1):
        other = left.index(place, place)
        left[place], left[other] = left[other], left[place]
        keys.append(np.eye(n)[place] - (np.eye(n)[other] if other != place else 0))
        strengths.append(2.0 if other != place else 0.0)
    # The swaps that sort a permutation make it, the last one first.
    return np.array(keys[::-1]), np.array(strengths[::-1])
