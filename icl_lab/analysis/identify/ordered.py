r"""Families that read the examples in their order, and their fits: weights that fall with age, and one pass of descent.

Both are linear in the labels, :math:`\hat y = \sum_i w_i\, y_i`. The weights of a gradient step are
:math:`c_i\, x_i^* x_q`, so that free ones are found by linear least squares. A pass is read from its end: with :math:`u = x_q`
and :math:`v = 0`, and from the last example to the first,

.. math:: s = u + v, \qquad w_i = \eta_i\, x_i^* s, \qquad u \leftarrow \alpha\, (u - w_i\, x_i), \qquad v \leftarrow \mu\, s ,

with a decay alpha of the matrix before each step and a share mu of the last step that is taken again. Without the correction
:math:`w_i x_i` the weights are those of a gradient step in which examples fade. So a pass costs O(N d) a prompt and an
iteration, and all families but one share a program; ridge regression in which examples fade costs O(N d^2 + d^3).

Decays and shares are fitted by their logit, so that they stay between 0 and 1. So is the step of implicit descent: with q the
sigmoid of the logarithm of eta in units of :math:`1/r`, its step :math:`\eta / (1 + \eta\, |x_i|^2)` is
:math:`q / ((1 - q)\, r + q\, |x_i|^2)`, where an infinite eta is q = 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Inexact

from icl_lab.analysis.identify.candidate import Candidate, Fit, fit, number
from icl_lab.analysis.identify.features import Answered, Features, eigenvalue, online_unit
from icl_lab.analysis.identify.search import reals
from icl_lab.core import compiled
from icl_lab.core.typing import Array

# An exact family has converged by then; a share whose best value is 0 or 1 is never reached by its logit.
_ITERATIONS = 25
_LOGITS = np.array([-2.0, 0.0, 1.0, 2.0, 4.0])
_STEPS_AND_LOGITS = np.stack(np.meshgrid(np.geomspace(1e-3, 3.0, 8), _LOGITS), -1).reshape(-1, 2)
# As many points, so that all passes share a program: steps without a logit, and logarithms of implicit steps, which have a
# limit and are closer to it than the resolution from the last one on.
_STEPS = np.pad(np.geomspace(1e-4, 10.0, len(_STEPS_AND_LOGITS))[:, None], [(0, 0), (0, 1)])
_IMPLICIT_STEPS = np.pad(np.linspace(np.log(1e-4), np.log(1e8), len(_STEPS_AND_LOGITS))[:, None], [(0, 0), (0, 1)])
_PENALTIES = np.log([1e-10, 1e6])
_PENALTIES_AND_LOGITS = np.stack(np.meshgrid(np.log(np.geomspace(1e-6, 1e2, 9)), _LOGITS), -1).reshape(-1, 2)


class _Pass(NamedTuple):
    """What makes a pass over the examples one of a family, as arrays, so that all families share a program."""

    corrected: Any = np.asarray(True)
    normalised: Any = np.asarray(False)
    implicit: Any = np.asarray(False)
    decays: Any = np.asarray(False)
    moves: Any = np.asarray(False)


def online_descent(seen: Answered, held: Answered) -> Fit:
    """One pass of stochastic gradient descent at the best step size."""
    unit = online_unit(seen.data)
    (size, _), squares = fit(_passed, _STEPS, (unit, _Pass()), seen, held, _ITERATIONS)
    parameters = {"step_size": np.asarray(size * unit)}
    return Fit(Candidate("online SGD", "online_sgd", parameters, f"step {number(size * unit)}"), squares)


def normalised_online_descent(seen: Answered, held: Answered) -> Fit:
    """The same with steps over the squared norm of their input."""
    extra = online_unit(seen.data), _Pass(normalised=np.asarray(True))
    (size, _), squares = fit(_passed, _STEPS, extra, seen, held, _ITERATIONS)
    parameters = {"step_size": np.asarray(size), "normalised": True}
    return Fit(Candidate("normalised online SGD", "online_sgd", parameters, f"step {number(size)} / |x|²"), squares)


def implicit_online_descent(seen: Answered, held: Answered) -> Fit:
    """One pass of implicit stochastic gradient descent at the best step size."""
    unit, highest = online_unit(seen.data), _IMPLICIT_STEPS[-1, 0]
    extra = unit, _Pass(implicit=np.asarray(True))
    (logarithm, _), squares = fit(_passed, _IMPLICIT_STEPS, extra, seen, held, _ITERATIONS)
    size = unit * np.exp(min(logarithm, highest))
    end = "its step went to the upper end of what was tried, where it fits every example when it comes (Kaczmarz)"
    note = end if logarithm >= highest else ""
    parameters = {"step_size": np.asarray(size)}
    return Fit(Candidate("implicit online SGD", "implicit_online_sgd", parameters, f"step {number(size)}", note), squares)


def discounted_descent(seen: Answered, held: Answered) -> Fit:
    """One gradient step in which examples fade geometrically, at the best step size and decay."""
    kind = _Pass(corrected=np.asarray(False), decays=np.asarray(True))
    return _with_share(kind, "discounted gradient step", "discounted_gradient_step", "decay", seen, held)


def decayed_descent(seen: Answered, held: Answered) -> Fit:
    """One pass of stochastic gradient descent with weight decay before each step, at the best step size and decay."""
    return _with_share(_Pass(decays=np.asarray(True)), "online SGD with decay", "online_sgd", "decay", seen, held)


def momentum_descent(seen: Answered, held: Answered) -> Fit:
    """One pass of stochastic gradient descent with momentum, at the best step size and momentum."""
    return _with_share(_Pass(moves=np.asarray(True)), "online SGD with momentum", "momentum_sgd", "momentum", seen, held)


def discounted_ridge(seen: Answered, held: Answered) -> Fit:
    """Ridge regression in which examples fade geometrically and the penalty does not, at the best penalty and decay."""
    unit = eigenvalue(seen.data)
    (logarithm, logit), squares = fit(_discounted_ridge, _PENALTIES_AND_LOGITS, unit, seen, held, _ITERATIONS)
    penalty, decay = unit * np.exp(np.clip(logarithm, *_PENALTIES)), _share(logit)
    words = f"penalty {number(penalty)}, decay {number(decay)}"
    parameters = {"penalty": np.asarray(penalty), "decay": np.asarray(decay)}
    note = ""
    if logarithm <= _PENALTIES[0]:
        note = "its penalty went to the lower end of what was tried, where it is least squares in which examples fade"
    elif logarithm >= _PENALTIES[1]:
        note = "its penalty went to the upper end of what was tried, where it is a small gradient step in which examples fade"
    return Fit(Candidate("discounted ridge", "discounted_ridge", parameters, words, note), squares)


FAMILIES = (
    *(online_descent, normalised_online_descent, implicit_online_descent),
    *(discounted_descent, decayed_descent, momentum_descent, discounted_ridge),
)
"""Of one parameter and of two, from simple to rich."""


def weighted_descent(seen: Answered) -> Candidate:
    """One gradient step that weighs each example by its age, its N weights by linear least squares."""
    weights = np.asarray(_example_weights(seen))
    words = f"weights {number(weights[0])} (oldest) to {number(weights[-1])}"
    return Candidate("weighted gradient step", "weighted_gradient_step", {"example_weights": weights}, words)


def _with_share(kind: _Pass, family: str, estimator: str, name: str, seen: Answered, held: Answered) -> Fit:
    unit = online_unit(seen.data)
    (size, logit), squares = fit(_passed, _STEPS_AND_LOGITS, (unit, kind), seen, held, _ITERATIONS)
    parameters = {"step_size": np.asarray(size * unit), name: np.asarray(_share(logit))}
    words = f"step {number(size * unit)}, {name} {number(_share(logit))}"
    return Fit(Candidate(family, estimator, parameters, words), squares)


def _share(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))


def _passed(point: Float[Array, "2"], extra: tuple[Array, _Pass], data: Features) -> Inexact[Array, "M k"]:
    """The query is taken back through the examples, the last one first: what is left of it meets the labels before."""
    unit, kind = extra
    shares = jax.nn.sigmoid(point)
    squares = jnp.sum(jnp.abs(data.inputs) ** 2, axis=2)
    constant = jnp.where(kind.implicit, jax.nn.sigmoid(-point[0]), jnp.where(kind.normalised, 0.0, 1.0)) / unit
    below = constant + jnp.where(kind.implicit, shares[0], jnp.where(kind.normalised, 1.0, 0.0)) * squares
    # An input that is zero takes no step.
    sizes = jnp.where(kind.implicit, shares[0], point[0]) / jnp.where(below > 0, below, jnp.inf)
    dtype = data.queries.dtype
    kept = jnp.where(kind.decays, shares[1], 1.0).astype(dtype)
    again = jnp.where(kind.moves, shares[1], 0.0).astype(dtype)

    def back(state, example):
        query, move, answer = state
        inputs, labels, size = example
        read = query + move
        weight = (size.astype(dtype) * jnp.sum(jnp.conj(inputs) * read, axis=1))[:, None]
        left = query - jnp.where(kind.corrected, weight, 0.0) * inputs
        return (kept * left, again * read, answer + weight * labels), None

    examples = jnp.swapaxes(data.inputs, 0, 1), jnp.swapaxes(data.labels, 0, 1), sizes.T
    start = data.queries, jnp.zeros_like(data.queries), jnp.zeros_like(data.labels[:, 0])
    return jax.lax.scan(back, start, examples, reverse=True)[0][2]


def _discounted_ridge(point: Float[Array, "2"], unit: Array, data: Features) -> Inexact[Array, "M k"]:
    dtype, dim = data.queries.dtype, data.queries.shape[1]
    ages = jnp.arange(data.inputs.shape[1] - 1, -1, -1, dtype=point.dtype)
    left = jnp.exp(ages * jax.nn.log_sigmoid(point[1])).astype(dtype)
    penalty = (unit * jnp.exp(jnp.clip(point[0], *_PENALTIES))).astype(dtype) * jnp.eye(dim, dtype=dtype)

    def answer(inputs, labels, query):
        faded = left[:, None] * inputs
        # A derivative costs one more solve with the same factors.
        solved = jax.scipy.linalg.solve(faded.T @ jnp.conj(inputs) + penalty, query, assume_a="pos")
        return (jnp.conj(faded) @ solved) @ labels

    return jax.vmap(answer)(data.inputs, data.labels, data.queries)


@compiled.jit
def _example_weights(seen: Answered) -> Array:
    data, roots = seen.data, jnp.sqrt(seen.weights)
    met = jnp.einsum("mnd,md->mn", jnp.conj(data.inputs), data.queries)
    roots = roots.astype(met.dtype)
    design = jnp.swapaxes((roots[:, None] * met)[:, :, None] * data.labels, 1, 2).reshape(-1, met.shape[1])
    return jnp.linalg.lstsq(reals(design), reals((roots[:, None] * seen.answers).reshape(-1)))[0]
