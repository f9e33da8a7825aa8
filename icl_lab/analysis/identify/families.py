r"""Families of in-context algorithms and their fits: the parameters with which an estimator is closest to given answers.

Steps of gradient descent, GD++ and ridge regression are filters of the Gram matrix: with the singular value decomposition
X = U s V^* of the inputs and Y the labels,

.. math:: \hat y = \sum_j f(s_j^2)\; c_j, \qquad c_j = s_j\, (Y^\top \bar U)_j\, (V^\top x_q)_j ,

and the filter f alone depends on the parameters. So a prompt is decomposed once, and a fit costs O(d) a prompt and an iteration
whatever the length of the prompt. Families that read the examples in their order are in `ordered`. The fitted parameters are
those of `estimators`, which answer on fresh prompts.

Parameters of fits have no scale: step sizes are in units of N over the mean eigenvalue of X^* X, penalties in units of that
eigenvalue, curvatures in units of its inverse, steps of one example in `online_unit`, exponents of kernels in units of their
spread over the examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from icl_lab.analysis.identify import discrimination, ordered
from icl_lab.analysis.identify.candidate import FEW, MANY, Candidate, Fit, count, fit, number, numbers
from icl_lab.analysis.identify.features import Answered, Features, eigenvalue
from icl_lab.analysis.identify.search import reals
from icl_lab.core import compiled
from icl_lab.core.typing import Array

PENALTIES = np.geomspace(1e-10, 1e4, 57)[:, None]
"""Ridge penalties from which fits start; one that ends outside is at the boundary."""
_STEPS = np.geomspace(1e-4, 10.0, 31)[:, None]
_EXPONENTS = np.geomspace(1e-3, 100.0, 31)[:, None]
# GD++: step size of the first layer, ratio of the last to it, curvature.
_LAYERS = np.stack(np.meshgrid(np.geomspace(1e-3, 10.0, 13), [0.3, 1.0, 3.0], [0.0, 0.1, 0.2, 0.4, 0.7]), -1).reshape(-1, 3)


def fitted(seen: Answered, held: Answered, steps: int, layers: int, resolution: float, order_matters: bool) -> list[Candidate]:
    """Every family at its best, from simple to rich; of those that come in sizes the size that fits best.

    Args:
      seen: prompts that parameters are fitted to.
      held: others, which choose between the minima of a fit and between the sizes of a family.
      steps: most steps of gradient descent.
      layers: most layers of GD++.
      resolution: relative distance within which two functions are the same.
      order_matters: whether to fit the families that read the examples in their order.
    """
    norms = held.weights * np.sum(np.abs(held.answers) ** 2, axis=1)

    def nearest(fits: Sequence[Fit]) -> Candidate:
        """Of sizes with as many parameters: the smallest within the resolution, else the one that is nearest on average."""
        distances = np.array([np.mean(held.weights * fit.squares) for fit in fits])
        return fits[int(np.argmin(np.maximum(distances, resolution**2 * np.mean(norms))))].candidate

    def simplest(fits: Sequence[Fit]) -> Candidate:
        squares = np.stack([held.weights * fit.squares for fit in fits])
        return fits[discrimination.simplest(squares, norms, resolution)].candidate

    softmax = [smoother(seen, held, kernel) for kernel in ("exponential", "opposite", "odd")]
    return [
        Candidate("zero", "zero", {}),
        Candidate("OLS", "ols", {}),
        nearest(descents(seen, held, steps)),
        ridge(seen, held).candidate,
        *(family(seen, held).candidate for family in ordered.FAMILIES if order_matters),
        smoother(seen, held, "gaussian").candidate,
        nearest(softmax),
        # Every layer has two parameters more.
        simplest(layered_descents(seen, held, layers)),
        *([ordered.weighted_descent(seen)] if order_matters else []),
        preconditioned(seen),
    ]


def descents(seen: Answered, held: Answered, most: int) -> list[Fit]:
    """Gradient descent of 1 .. `most` equal steps, the best step size of each."""
    unit, length, found = eigenvalue(seen.data), seen.data.inputs.shape[1], []
    for steps in range(1, most + 1):
        taken = np.arange(most) < steps
        point, squares = fit(_descent, _STEPS, (unit, taken), seen, held, FEW)
        size = point[0] * length / unit
        words = f"{count(steps, 'step')} of {number(size)}"
        note = f"{steps} steps are the most that were tried, and more may fit better" if steps == most else ""
        parameters = {"step_size": np.full(steps, size)}
        found.append(Fit(Candidate("gradient descent", "gradient_descent", parameters, words, note), squares))
    return found


def layered_descents(seen: Answered, held: Answered, most: int) -> list[Fit]:
    """GD++ of 2 .. `most` layers, the best step sizes and curvatures of each; the last curvature has no effect and is 0."""
    unit, length, found = eigenvalue(seen.data), seen.data.inputs.shape[1], []
    ramp = np.linspace(0.0, 1.0, most)
    for layers in range(2, most + 1):
        taken = np.arange(most) < layers
        sizes = _LAYERS[:, :1] * _LAYERS[:, 1:2] ** (ramp * (most - 1) / (layers - 1))
        starts = np.concatenate([sizes, np.broadcast_to(_LAYERS[:, 2:], (len(_LAYERS), most - 1))], axis=1)
        point, squares = fit(_layered_descent, starts, (unit, taken), seen, held, MANY)
        steps, bends = point[:layers] * length / unit, np.append(point[most : most + layers - 1], 0.0) / unit
        words = f"{layers} layers, steps {numbers(steps)}, curvatures {numbers(bends[:-1])}"
        note = f"{layers} layers are the most that were tried, and more may fit better" if layers == most else ""
        parameters = {"step_sizes": steps, "curvatures": bends}
        found.append(Fit(Candidate("GD++", "gd_plus_plus", parameters, words, note), squares))
    return found


def ridge(seen: Answered, held: Answered) -> Fit:
    """Ridge regression at the best penalty."""
    unit = eigenvalue(seen.data)
    (logarithm,), squares = fit(_ridge, np.log(PENALTIES), unit, seen, held, FEW)
    low, high = np.log(PENALTIES[[0, -1], 0])
    note = ""
    if logarithm <= low:
        note = "its penalty went to the lower end of what was tried, where ridge is OLS"
    elif logarithm >= high:
        note = "its penalty went to the upper end of what was tried, where ridge is a small step of gradient descent"
    penalty = unit * np.exp(np.clip(logarithm, low, high))
    words = f"penalty {number(penalty)}"
    return Fit(Candidate("ridge", "ridge", {"penalty": np.asarray(penalty)}, words, note), squares)


def smoother(seen: Answered, held: Answered, kernel: str) -> Fit:
    """A kernel smoother with the best bandwidth and scale."""
    seen, held = (_with_scores(part, "exponential" if kernel == "odd" else kernel) for part in (seen, held))
    scores = seen.data.scores[""]
    against = np.asarray(float(kernel == "odd"))
    spread = np.sqrt(np.mean(np.var(scores, axis=1)))
    # Where all examples are equally far every bandwidth is the same.
    unit = np.asarray(spread if spread > 0 else 1.0)
    scales = np.asarray(_scales(_EXPONENTS[:, 0] / unit, against, seen))
    starts = np.concatenate([np.log(_EXPONENTS), scales[:, None]], axis=1)
    (exponent, scale), squares = fit(_smoother, starts, (unit, against), seen, held, FEW)
    bandwidth = np.sqrt(unit / np.exp(exponent))
    parameters = {"bandwidth": np.asarray(bandwidth), "scale": np.asarray(scale)}
    words = f"bandwidth {number(bandwidth)}, scale {number(scale)}"
    name = f"kernel smoother, {kernel}"
    return Fit(Candidate(name, "kernel_smoother", {**parameters, "kernel": kernel}, words), squares)


def preconditioned(seen: Answered) -> Candidate:
    """One step of preconditioned gradient descent, its matrix by linear least squares: the answer is linear in it."""
    matrix = np.asarray(_preconditioner(seen))
    sizes = np.linalg.svd(matrix, compute_uv=False)
    words = f"singular values {number(sizes[0])} to {number(sizes[-1])}"
    return Candidate("preconditioned GD", "preconditioned_gradient_descent", {"preconditioner": matrix}, words)


def _descent(point: Array, extra: Any, data: Features) -> Array:
    taken = extra[1]
    none = jnp.zeros(taken.shape[0] - 1, point.dtype)
    return _layered_descent(jnp.concatenate([jnp.broadcast_to(point, taken.shape), none]), extra, data)


def _layered_descent(point: Array, extra: Any, data: Features) -> Array:
    """GD++ as a filter: the labels' residual and the inputs, label by label a factor in every singular direction."""
    unit, taken = extra
    most = taken.shape[0]
    sizes, bends = jnp.where(taken, point[:most], 0.0), jnp.append(point[most:], 0.0)
    values = data.values / unit

    def layer(state, parameters):
        total, residual, input_ = state
        size, bend = parameters
        moved = values * input_**2
        return (total + size * residual * input_**2, residual * (1 - size * moved), input_ * (1 - bend * moved)), None

    start = (jnp.zeros_like(values), jnp.ones_like(values), jnp.ones_like(values))
    total = jax.lax.scan(layer, start, (sizes, bends))[0][0]
    return _filtered(total / unit, data)


def _ridge(point: Array, unit: Any, data: Features) -> Array:
    return _filtered(1 / (data.values + unit * jnp.exp(point[0])), data)


def _filtered(values: Array, data: Features) -> Array:
    return jnp.einsum("mkr,mr->mk", data.parts, values.astype(data.parts.dtype))


def _smoother(point: Array, extra: Any, data: Features) -> Array:
    unit, against = extra
    return point[1].astype(data.labels.dtype) * _smoothed(jnp.exp(point[0]) / unit, against, data)


def _with_scores(part: Answered, kernel: str) -> Answered:
    """The prompts with the scores of one kernel under one name, so that the kernels share a program."""
    return eqx.tree_at(lambda p: p.data.scores, part, {"": part.data.scores[kernel]})


def _smoothed(exponent: Array, against: Array, data: Features) -> Array:
    """Means of the labels by their scores, less `against` (0 or 1) times those by the opposite scores."""
    scores, labels = data.scores[""], data.labels
    weights = jax.nn.softmax(exponent * scores, axis=1) - against * jax.nn.softmax(-exponent * scores, axis=1)
    return jnp.einsum("mn,mnk->mk", weights.astype(labels.dtype), labels)


@compiled.jit
def _scales(exponents: Array, against: Array, seen: Answered) -> Array:
    """The best scale of a smoother at each exponent."""
    weights = seen.weights[:, None]

    def scale(exponent):
        smooth = _smoothed(exponent, against, seen.data)
        return jnp.sum(weights * jnp.real(jnp.conj(smooth) * seen.answers)) / jnp.sum(weights * jnp.abs(smooth) ** 2)

    return jax.lax.map(scale, jnp.asarray(exponents))


@compiled.jit
def _preconditioner(seen: Answered) -> Array:
    prompts, labels, dim = seen.data.moments.shape
    roots = jnp.sqrt(seen.weights)[:, None]
    queries = roots.astype(seen.data.queries.dtype) * seen.data.queries
    design = (queries[:, None, :, None] * seen.data.moments[:, :, None, :]).reshape(prompts * labels, dim * dim)
    return jnp.linalg.lstsq(reals(design), reals((roots.astype(seen.answers.dtype) * seen.answers).reshape(-1)))[0].reshape(
        dim, dim
    )
