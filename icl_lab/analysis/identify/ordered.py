r"""Families that read the examples in their order, and their fits: weights that fall with age, and one pass of descent.

Both are linear in the labels, :math:`\hat y = \sum_i w_i\, y_i`. The weights of a gradient step are
:math:`c_i\, x_i^* x_q`, so that free ones are found by linear least squares. A pass is read from its end: with :math:`u = x_q`
and :math:`v = 0`, and from the last example to the first,

.. math:: s = u + v, \qquad w_i = \eta_i\, x_i^* s, \qquad u \leftarrow \alpha\, (u - w_i\, x_i), \qquad v \leftarrow \mu\, s ,

with a decay alpha of the matrix before each step and a share mu of the last step that is taken again. So a pass costs O(N d) a
prompt and an iteration, like a weighted step; weighted ridge regression costs O(N d^2 + d^3).

Decays and shares are fitted by their logit, so that they stay between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Float, Inexact

from icl_lab.analysis.identify.candidate import FEW, MANY, Candidate, Fit, fit, number
from icl_lab.analysis.identify.features import Answered, Features, eigenvalue, online_unit
from icl_lab.analysis.identify.search import reals
from icl_lab.core import compiled
from icl_lab.core.typing import Array

_STEPS = np.geomspace(1e-4, 10.0, 31)[:, None]
# An implicit step has a limit, and is closer to it than the resolution from here on.
_IMPLICIT_STEPS = np.geomspace(1e-4, 1e8, 49)[:, None]
_LOGITS = np.array([-2.0, 0.0, 1.0, 2.0, 4.0])
# Steps and penalties that go with a decay or a share, and the logits of that.
_STEPS_AND_LOGITS = np.stack(np.meshgrid(np.geomspace(1e-3, 3.0, 8), _LOGITS), -1).reshape(-1, 2)
_PENALTIES = np.log([1e-10, 1e6])
_PENALTIES_AND_LOGITS = np.stack(np.meshgrid(np.log(np.geomspace(1e-6, 1e2, 9)), _LOGITS), -1).reshape(-1, 2)


def online_descent(seen: Answered, held: Answered) -> Fit:
    """One pass of stochastic gradient descent at the best step size."""
    unit = online_unit(seen.data)
    (size,), squares = fit(_online_descent, _STEPS, (unit, np.asarray(0.0)), seen, held, FEW)
    parameters = {"step_size": np.asarray(size * unit)}
    return Fit(Candidate("online SGD", "online_sgd", parameters, f"step {number(size * unit)}"), squares)


def normalised_online_descent(seen: Answered, held: Answered) -> Fit:
    """The same with steps over the squared norm of their input."""
    (size,), squares = fit(_online_descent, _STEPS, (online_unit(seen.data), np.asarray(1.0)), seen, held, FEW)
    parameters = {"step_size": np.asarray(size), "normalised": True}
    return Fit(Candidate("normalised online SGD", "online_sgd", parameters, f"step {number(size)} / |x|²"), squares)


def implicit_online_descent(seen: Answered, held: Answered) -> Fit:
    """One pass of implicit stochastic gradient descent at the best step size."""
    unit = online_unit(seen.data)
    (logarithm,), squares = fit(_implicit_online_descent, np.log(_IMPLICIT_STEPS), unit, seen, held, FEW)
    highest = np.log(_IMPLICIT_STEPS[-1, 0])
    size = unit * np.exp(min(logarithm, highest))
    end = "its step went to the upper end of what was tried, where it fits every example when it comes (Kaczmarz)"
    note = end if logarithm >= highest else ""
    parameters = {"step_size": np.asarray(size)}
    return Fit(Candidate("implicit online SGD", "implicit_online_sgd", parameters, f"step {number(size)}", note), squares)


def discounted_descent(seen: Answered, held: Answered) -> Fit:
    """One gradient step in which examples fade geometrically, at the best step size and decay."""
    return _with_share(_discounted_descent, "discounted gradient step", "discounted_gradient_step", "decay", seen, held)


def decayed_descent(seen: Answered, held: Answered) -> Fit:
    """One pass of stochastic gradient descent with weight decay before each step, at the best step size and decay."""
    return _with_share(_decayed_descent, "online SGD with decay", "online_sgd", "decay", seen, held)


def momentum_descent(seen: Answered, held: Answered) -> Fit:
    """One pass of stochastic gradient descent with momentum, at the best step size and momentum."""
    return _with_share(_momentum_descent, "online SGD with momentum", "momentum_sgd", "momentum", seen, held)


def discounted_ridge(seen: Answered, held: Answered) -> Fit:
    """Ridge regression in which examples fade geometrically and the penalty does not, at the best penalty and decay."""
    unit = eigenvalue(seen.data)
    (logarithm, logit), squares = fit(_discounted_ridge, _PENALTIES_AND_LOGITS, unit, seen, held, MANY)
    penalty, decay = unit * np.exp(np.clip(logarithm, *_PENALTIES)), _share(logit)
    words = f"penalty {number(penalty)}, decay {number(decay)}"
    parameters = {"penalty": np.asarray(penalty), "decay": np.asarray(decay)}
    return Fit(Candidate("discounted ridge", "discounted_ridge", parameters, words), squares)


FAMILIES = (
    *(online_descent, implicit_online_descent, normalised_online_descent),
    *(discounted_descent, decayed_descent, momentum_descent, discounted_ridge),
)
"""Of one parameter and of two, from simple to rich."""


def weighted_descent(seen: Answered) -> Candidate:
    """One gradient step that weighs each example by its age, its N weights by linear least squares."""
    weights = np.asarray(_example_weights(seen))
    words = f"weights {number(weights[0])} (oldest) to {number(weights[-1])}"
    return Candidate("weighted gradient step", "weighted_gradient_step", {"example_weights": weights}, words)


def _with_share(answer: Callable, family: str, estimator: str, name: str, seen: Answered, held: Answered) -> Fit:
    unit = online_unit(seen.data)
    (size, logit), squares = fit(answer, _STEPS_AND_LOGITS, unit, seen, held, MANY)
    parameters = {"step_size": np.asarray(size * unit), name: np.asarray(_share(logit))}
    words = f"step {number(size * unit)}, {name} {number(_share(logit))}"
    return Fit(Candidate(family, estimator, parameters, words), squares)


def _share(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))


def _online_descent(point: Array, extra: Any, data: Features) -> Array:
    unit, normalised = extra
    squares = jnp.sum(jnp.abs(data.inputs) ** 2, axis=2)
    return _taken_back(point[0] * jnp.where(normalised > 0, 1 / jnp.where(squares > 0, squares, jnp.inf), unit), data)


def _implicit_online_descent(point: Array, unit: Any, data: Features) -> Array:
    size = unit * jnp.exp(point[0])
    return _taken_back(size / (1 + size * jnp.sum(jnp.abs(data.inputs) ** 2, axis=2)), data)


def _decayed_descent(point: Array, unit: Any, data: Features) -> Array:
    return _taken_back(jnp.broadcast_to(point[0] * unit, data.inputs.shape[:2]), data, decay=jax.nn.sigmoid(point[1]))


def _momentum_descent(point: Array, unit: Any, data: Features) -> Array:
    return _taken_back(jnp.broadcast_to(point[0] * unit, data.inputs.shape[:2]), data, momentum=jax.nn.sigmoid(point[1]))


def _taken_back(
    sizes: Float[Array, "M N"], data: Features, decay: float | Array = 1.0, momentum: float | Array = 0.0
) -> Inexact[Array, "M k"]:
    """The query is taken back through the examples, the last one first: what is left of it meets the labels before."""
    kept, again = (jnp.asarray(share, data.queries.dtype) for share in (decay, momentum))

    def back(state, example):
        query, move, answer = state
        inputs, labels, size = example
        read = query + move
        weight = (size.astype(inputs.dtype) * jnp.sum(jnp.conj(inputs) * read, axis=1))[:, None]
        return (kept * (query - weight * inputs), again * read, answer + weight * labels), None

    examples = jnp.swapaxes(data.inputs, 0, 1), jnp.swapaxes(data.labels, 0, 1), sizes.T
    start = data.queries, jnp.zeros_like(data.queries), jnp.zeros_like(data.labels[:, 0])
    return jax.lax.scan(back, start, examples, reverse=True)[0][2]


def _left(logit: Array, data: Features) -> Inexact[Array, "N"]:
    """What a decay leaves of each example, 1 of the last."""
    ages = jnp.arange(data.inputs.shape[1] - 1, -1, -1, dtype=logit.dtype)
    return jnp.exp(ages * jax.nn.log_sigmoid(logit)).astype(data.inputs.dtype)


def _discounted_descent(point: Array, unit: Any, data: Features) -> Array:
    weights = (point[0] * unit).astype(data.inputs.dtype) * _left(point[1], data)
    return jnp.einsum("n,mnd,md,mnk->mk", weights, jnp.conj(data.inputs), data.queries, data.labels)


def _discounted_ridge(point: Array, unit: Any, data: Features) -> Array:
    left, dim = _left(point[1], data), data.queries.shape[1]
    penalty = (unit * jnp.exp(jnp.clip(point[0], *_PENALTIES))).astype(left.dtype) * jnp.eye(dim, dtype=left.dtype)
    gram = jnp.einsum("n,mni,mnj->mij", left, data.inputs, jnp.conj(data.inputs)) + penalty[None]
    solved = jax.vmap(lambda matrix, query: cho_solve(cho_factor(matrix), query))(gram, data.queries)
    return jnp.einsum("n,mnd,md,mnk->mk", left, jnp.conj(data.inputs), solved, data.labels)


@compiled.jit
def _example_weights(seen: Answered) -> Array:
    data, roots = seen.data, jnp.sqrt(seen.weights)
    met = jnp.einsum("mnd,md->mn", jnp.conj(data.inputs), data.queries)
    roots = roots.astype(met.dtype)
    design = jnp.swapaxes((roots[:, None] * met)[:, :, None] * data.labels, 1, 2).reshape(-1, met.shape[1])
    return jnp.linalg.lstsq(reals(design), reals((roots[:, None] * seen.answers).reshape(-1)))[0]
