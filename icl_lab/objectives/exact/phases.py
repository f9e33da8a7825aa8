r"""Exact loss of one linear attention layer on x_{t+1} = W x_t, W a diagonal of independent uniform phases.

With x_{t,m} = λ_m^{t-1} x_{1,m} every product of features is a monomial in the phases and in the start vector. Its mean over
the phases is 1 if, for every coordinate that occurs, the exponents of its λ add up to zero, and 0 otherwise; what is left is
a moment of x_1, which depends only on *which* of the (at most six) coordinate indices are equal. So E[phi phi^*] needs, for
every pattern of equal indices, the number of position pairs (i, i') in the two attention sums for which the exponents cancel:
a count, made once for all features. Start distributions enter through `StartDistribution.mixed_moment`, and weights are
arbitrary complex ones.

A slot below is (lag s of its token block, starred): the block x_{j-s} of token j holds λ^{j-1-s} x_1.

Source: the setting of Zheng et al. (arXiv 2405.16845).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Float, Int

from icl_lab.core.errors import MemoryBudgetError, UnsupportedProblemError
from icl_lab.core.typing import Array
from icl_lab.models.linear_attention import LinearSelfAttention
from icl_lab.objectives.exact.moments import Features, MomentLoss, Moments
from icl_lab.objectives.objective import Objective
from icl_lab.objectives.sampled import MEMORY_LIMIT
from icl_lab.tasks.distributions.starts import StartDistribution
from icl_lab.tasks.dynamics.linear import DiagonalUnitary, LinearDynamics
from icl_lab.tasks.prompt import Task, check_count

ACTIVE = ((0, 1, 0),)
"""Lags of the key's two slots and of the query in the features of the two active blocks: x_i x_{i-1}^* x_t."""
ALL = tuple(itertools.product((0, 1), repeat=3))
# Position pairs whose counts are held in memory at once.
CHUNK = 2**20


def _supports(task: object, model: object) -> bool:
    """Whether `phase_loss` exists for a task and a model."""
    return (
        isinstance(task, LinearDynamics)
        and isinstance(task.transition, DiagonalUnitary)
        and float(task.noise_std) == 0.0
        and isinstance(model, LinearSelfAttention)
        and model.is_single_pass
        and model.embedding == "paired"
    )


def try_build(task: Task, model: eqx.Module) -> Objective | None:
    """`phase_loss` at the length of the task alone, or None for a task or model whose loss is not known."""
    return phase_loss(task, model, lengths=[task.context_length]) if _supports(task, model) else None  # pyright: ignore[reportArgumentType]


def phase_loss(
    task: LinearDynamics, model: LinearSelfAttention, lengths: Sequence[int] | None = None, active: bool = False
) -> MomentLoss:
    """The exact half loss, summed over positions of the sequence.

    Args:
      task: noiseless, with `DiagonalUnitary` transitions and any start distribution.
      model: one layer on "paired" tokens.
      lengths: context lengths (position t has t - 1) whose losses are added; by default 1 .. N, so that T = N + 2 gives the
        paper's sum over t = 2 .. T - 1.
      active: only the features of `PairedWeights`, d^3 of them instead of (2d)^3; the loss is then that of its two blocks.

    Raises:
      UnsupportedProblemError: another task or model.
      InvalidValueError: a length below 1.
      MemoryBudgetError: too many features.
    """
    if not _supports(task, model):
        raise UnsupportedProblemError(
            "the exact phase loss needs noiseless `LinearDynamics` with `DiagonalUnitary` transitions and one linear attention "
            f'layer on "paired" tokens; got {type(task).__name__} and {model}. Use `objectives.SampledLoss`.'
        )
    lengths = range(1, task.context_length + 1) if lengths is None else lengths
    for length in lengths:
        check_count(length, "lengths", 1, "A context holds at least one pair of states.")
    kinds = ACTIVE if active else ALL
    dim = task.dim
    features = len(kinds) * dim**3
    if 8 * features**2 > MEMORY_LIMIT:
        raise MemoryBudgetError(
            f"the Gram of {features} features needs {8 * features**2 / 2**30:.3g} GiB, and {MEMORY_LIMIT / 2**30:.3g} GiB are "
            "allowed. Use a smaller d, or `active=True`, whose features are an eighth as many."
        )
    pairs, singles = _patterns(dim, 6), _patterns(dim, 4)
    gram = _assemble(_second_counts(kinds, lengths, model, pairs), task.start, dim, pairs)
    cross = _assemble(_first_counts(kinds, lengths, model, singles), task.start, dim, singles)
    variance = len(lengths) * dim * float(task.start.mixed_moment([(1, 1)], dim))
    return MomentLoss(
        task=task,
        model=model,
        features=phase_features(dim, active),
        moments=Moments(gram=_by_feature(gram, dim, 2), cross=_by_feature(cross, dim, 1), variance=np.asarray(variance)),
    )


def phase_features(dim: int, active: bool) -> Features:
    """The features of tokens (0, x_t, x_{t-1}): of both blocks, or (`active`) those of `PairedWeights` alone."""
    now, before = range(dim, 2 * dim), range(2 * dim, 3 * dim)
    both = [*now, *before]
    pairs = list(itertools.product(now if active else both, before if active else both))
    return Features(
        rows=tuple(a for a, _ in pairs),
        columns=tuple(b for _, b in pairs),
        queries=tuple(now if active else both),
        outputs=tuple(range(dim)),
        symmetric=False,
    )


class _Patterns(NamedTuple):
    """The patterns of equal indices among some slots, each as groups of slots, and the pattern of every index tuple."""

    groups: list[list[list[int]]]
    which: Int[np.ndarray, "tuples"]


def _patterns(dim: int, slots: int) -> _Patterns:
    """All patterns of `slots` indices below `dim`."""
    indices = np.indices((dim,) * slots).reshape(slots, -1)
    first = np.argmax(indices[:, None, :] == indices[None, :, :], axis=1)
    codes = np.tensordot(slots ** np.arange(slots), first, axes=1)
    _, examples, which = np.unique(codes, return_index=True, return_inverse=True)
    groups = [[np.flatnonzero(first[:, e] == leader).tolist() for leader in np.unique(first[:, e])] for e in examples]
    return _Patterns(groups, which.reshape(-1))


def _count(exponents: list[Array], weights: Array, patterns: _Patterns) -> Float[np.ndarray, "P"]:
    """For each pattern, the weight of the positions at which the signed exponents of every group of slots cancel."""
    sums, cancels = {0: np.zeros((), np.int32)}, {}
    for mask in range(1, 2 ** len(exponents)):
        lowest = (mask & -mask).bit_length() - 1
        sums[mask] = sums[mask & (mask - 1)] + exponents[lowest]
        cancels[mask] = sums[mask] == 0
    totals = []
    for groups in patterns.groups:
        first, *rest = (sum(1 << slot for slot in group) for group in groups)
        together = cancels[first]
        for mask in rest:
            together = together & cancels[mask]
        totals.append(np.sum(weights, where=together))
    return np.array(totals)


def _second_counts(kinds, lengths, model, patterns: _Patterns) -> dict:
    """Counts of E[phi phi^*] by the kinds of the two features."""
    totals = {pair: np.zeros(len(patterns.groups)) for pair in itertools.product(kinds, kinds)}
    for t, i, j, weight in _position_pairs(lengths, model):
        for (s_a, s_b, s_c), (r_a, r_b, r_c) in totals:
            # x_0 = 0: a block of lag 1 starts with the second token.
            seen = weight * ((i > max(s_a, s_b)) & (j > max(r_a, r_b)))
            exponents = [i - 1 - s_a, s_b + 1 - i, t - 1 - s_c, r_a + 1 - j, j - 1 - r_b, r_c + 1 - t]
            totals[(s_a, s_b, s_c), (r_a, r_b, r_c)] += _count(exponents, seen, patterns)
    return totals


def _position_pairs(lengths, model):
    """Arrays of (t, i, j) with weight 1 / rho_t^2 in chunks: all pairs of attended positions at every query position."""
    held, size = [], 0
    for length in lengths:
        attended = np.arange(1, length + 1 + model.query_in_sum, dtype=np.int32)
        i, j = (grid.ravel() for grid in np.meshgrid(attended, attended, indexing="ij"))
        t = np.full(i.shape, length + 1, np.int32)
        held.append((t, i, j, np.full(i.shape, 1.0 / model.normaliser_at(length + 1) ** 2)))
        size += i.size
        if size >= CHUNK or length == lengths[-1]:
            yield tuple(np.concatenate(parts) for parts in zip(*held, strict=True))
            held, size = [], 0


def _first_counts(kinds, lengths, model, patterns: _Patterns) -> dict:
    """Counts of E[phi y^*] by the kind of the feature; the target is x_{t+1}."""
    attended = [np.arange(1, length + 1 + model.query_in_sum, dtype=np.int32) for length in lengths]
    i = np.concatenate(attended)
    t = np.repeat(np.asarray(lengths, np.int32) + 1, [len(a) for a in attended])
    weight = 1.0 / np.repeat([float(model.normaliser_at(length + 1)) for length in lengths], [len(a) for a in attended])
    return {
        (kind,): _count([i - 1 - kind[0], kind[1] + 1 - i, t - 1 - kind[2], -t], weight * (i > max(kind[0], kind[1])), patterns)
        for kind in kinds
    }


def _assemble(counts: dict, start: StartDistribution, dim: int, patterns: _Patterns) -> dict:
    """Moments by kinds, over all index tuples: count times the moment of the start vector for its pattern.

    Plain and starred slots alternate: (x_m, x_l^*, x_k) of a feature, then the conjugates of another's or of the target.
    """
    moments = []
    for groups in patterns.groups:
        starred = [sum(slot % 2 for slot in group) for group in groups]
        powers = [(len(group) - stars, stars) for group, stars in zip(groups, starred, strict=True)]
        moments.append(float(start.mixed_moment(powers, dim)))
    return {kinds: (count * np.array(moments))[patterns.which] for kinds, count in counts.items()}


def _by_feature(values: dict, dim: int, features: int) -> Array:
    """The moments as a matrix over features in the order of `Features`: row slots, column slots, query slots.

    Args:
      values: by kinds, (d^6,) for two features a kind pair or (d^4,) for one feature and an output.
      dim: d.
      features: 2 or 1.
    """
    lags = [sorted({kind[slot] for kinds in values for kind in kinds}) for slot in range(3)]
    sizes = [len(options) for options in lags]
    full = np.empty((*sizes * features, *(dim,) * (3 * features + (features == 1))))
    for kinds, table in values.items():
        where = tuple(lags[slot].index(kind[slot]) for kind in kinds for slot in range(3))
        full[where] = table.reshape(full.shape[3 * features :])
    # (lags of feature 1, lags of feature 2, indices ..) -> each lag axis before its index axis.
    slots = 3 * features
    order = [axis for slot in range(slots) for axis in (slot, slots + slot)] + list(range(2 * slots, full.ndim))
    count = int(np.prod(sizes)) * dim**3
    return full.transpose(order).reshape(count, -1)
