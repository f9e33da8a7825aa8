r"""Families of in-context algorithms and their fits: the parameters with which an estimator is closest to given answers.

Steps of gradient descent, GD++ and ridge regression are filters of the Gram matrix: with the singular value decomposition
X = U s V^* of the inputs and Y the labels,

.. math:: \hat y = \sum_j f(s_j^2)\; c_j, \qquad c_j = s_j\, (Y^\top \bar U)_j\, (V^\top x_q)_j ,

and the filter f alone depends on the parameters. So a prompt is decomposed once, and a fit costs O(d) a prompt and an iteration
whatever the length of the prompt. The fitted parameters are those of `estimators`, which answer on fresh prompts.

Parameters of fits have no scale: step sizes are in units of N over the mean eigenvalue of X^* X, penalties in units of that
eigenvalue, curvatures in units of its inverse, exponents of kernels in units of their spread over the examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
from jaxtyping import Float, Inexact

from icl_lab import estimators
from icl_lab.analysis.sampling import Predictor
from icl_lab.core import compiled
from icl_lab.core.typing import Array
from icl_lab.estimators.examples import examples
from icl_lab.estimators.gradient_descent import mean_gradient
from icl_lab.tasks.prompt import Prompt

PENALTIES = np.geomspace(1e-10, 1e4, 57)[:, None]
"""Ridge penalties from which fits start; one that ends outside is at the boundary."""
_STEPS = np.geomspace(1e-4, 10.0, 31)[:, None]
_EXPONENTS = np.geomspace(1e-3, 100.0, 31)[:, None]
# GD++: step size of the first layer, ratio of the last to it, curvature.
_LAYERS = np.stack(np.meshgrid(np.geomspace(1e-3, 10.0, 13), [0.3, 1.0, 3.0], [0.0, 0.1, 0.2, 0.4, 0.7]), -1).reshape(-1, 3)
# An exact family converges quadratically from the grid; of another one the last digits do not matter.
_FEW, _MANY = 12, 50

Answer = Callable[[Array, Any, "Features"], Array]
"""Parameters (p,), whatever else a family needs, decomposed prompts -> answers (M, k)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """One family with the parameters that bring it closest.

    Attributes:
      family: its name.
      estimator: key of `estimators.ESTIMATORS`.
      parameters: of that estimator, as float64 numpy.
      words: the parameters for a table.
      note: what to know about the fit, as a sentence, or nothing.
    """

    family: str
    estimator: str
    parameters: dict[str, Any]
    words: str = ""
    note: str = ""

    @property
    def predictor(self) -> Predictor:
        """The estimator with its parameters filled in: prompt -> answer (k,)."""
        return estimators.named(self.estimator, **self.parameters)


class Fit(NamedTuple):
    """A family at its best, and the squared distances (M,) of its answers from those that it was fitted to."""

    candidate: Candidate
    squares: Float[np.ndarray, "M"]


class Features(eqx.Module):
    """What fits need of M prompts (or of one, without the axis M).

    Attributes:
      values: (M, r), squared singular values of the inputs, r = min(N, d).
      parts: (M, k, r), c of the module.
      moments: (M, k, d), mean of y_i x_i^*.
      queries: (M, d).
      labels: (M, N, k).
      scores: exponents of each kernel, (M, N).
    """

    values: Float[Array, "*M r"]
    parts: Inexact[Array, "*M k r"]
    moments: Inexact[Array, "*M k d"]
    queries: Inexact[Array, "*M d"]
    labels: Inexact[Array, "*M N k"]
    scores: dict[str, Float[Array, "*M N"]]


@compiled.jit
def features(prompts: Prompt) -> Features:
    """The decomposition of M prompts, stacked along their first axis, that all fits share."""

    def one(prompt: Prompt) -> Features:
        inputs, labels, query = examples(prompt)
        left, singular, right = jnp.linalg.svd(inputs, full_matrices=False)
        parts = (labels.T @ left.conj()) * (singular.astype(query.dtype) * (right.conj() @ query))[None, :]
        start = jnp.zeros((labels.shape[1], inputs.shape[1]), inputs.dtype)
        return Features(
            values=singular**2,
            parts=parts,
            moments=-mean_gradient(start, inputs, labels),
            queries=query,
            labels=labels,
            scores={kernel: estimators.kernel_scores(inputs, query, kernel) for kernel in estimators.EXPONENTS},
        )

    return jax.vmap(one)(prompts)


def descents(data: Features, answers: Inexact[Array, "M k"], length: int, most: int) -> list[Fit]:
    """Gradient descent of 1 .. `most` equal steps, each with its best step size.

    Args:
      data: the decomposed prompts, from `features`.
      answers: (M, k), the model's answers to them.
      length: N.
      most: largest number of steps.
    """
    unit, found = _eigenvalue(data), []
    for steps in range(1, most + 1):
        taken = np.arange(most) < steps
        point, squares = _fit(_descent, _STEPS, (unit, taken), data, answers, 1, _FEW)
        size = point[0] * length / unit
        words = f"{_count(steps, 'step')} of {_number(size)}"
        note = f"{steps} steps are the most that were tried, and more may fit better" if steps == most else ""
        parameters = {"step_size": np.full(steps, size)}
        found.append(Fit(Candidate("gradient descent", "gradient_descent", parameters, words, note), squares))
    return found


def layered_descents(data: Features, answers: Inexact[Array, "M k"], length: int, most: int) -> list[Fit]:
    """GD++ of 2 .. `most` layers, each with its best step sizes and curvatures; the last curvature has no effect and is 0.

    Args:
      data: the decomposed prompts, from `features`.
      answers: (M, k), the model's answers to them.
      length: N.
      most: largest number of layers.
    """
    unit, found = _eigenvalue(data), []
    ramp = np.linspace(0.0, 1.0, most)
    for layers in range(2, most + 1):
        taken = np.arange(most) < layers
        sizes = _LAYERS[:, :1] * _LAYERS[:, 1:2] ** (ramp * (most - 1) / (layers - 1))
        starts = np.concatenate([sizes, np.broadcast_to(_LAYERS[:, 2:], (len(_LAYERS), most - 1))], axis=1)
        point, squares = _fit(_layered_descent, starts, (unit, taken), data, answers, 4, _MANY)
        steps, bends = point[:layers] * length / unit, np.append(point[most : most + layers - 1], 0.0) / unit
        words = f"{layers} layers, steps {_numbers(steps)}, curvatures {_numbers(bends[:-1])}"
        note = f"{layers} layers are the most that were tried, and more may fit better" if layers == most else ""
        parameters = {"step_sizes": steps, "curvatures": bends}
        found.append(Fit(Candidate("GD++", "gd_plus_plus", parameters, words, note), squares))
    return found


def ridge(data: Features, answers: Inexact[Array, "M k"]) -> Fit:
    """Ridge regression at its best penalty.

    Args:
      data: the decomposed prompts, from `features`.
      answers: (M, k), the model's answers to them.
    """
    unit = _eigenvalue(data)
    (logarithm,), squares = _fit(_ridge, np.log(PENALTIES), unit, data, answers, 1, _FEW)
    low, high = np.log(PENALTIES[[0, -1], 0])
    note = ""
    if logarithm <= low:
        note = "its penalty went to the lower end of what was tried, where ridge is OLS"
    elif logarithm >= high:
        note = "its penalty went to the upper end of what was tried, where ridge is a small step of gradient descent"
    penalty = unit * np.exp(np.clip(logarithm, low, high))
    words = f"penalty {_number(penalty)}"
    return Fit(Candidate("ridge", "ridge", {"penalty": np.asarray(penalty)}, words, note), squares)


def smoother(data: Features, answers: Inexact[Array, "M k"], kernel: str) -> Fit:
    """A kernel smoother with its best bandwidth and scale.

    Args:
      data: the decomposed prompts, from `features`.
      answers: (M, k), the model's answers to them.
      kernel: one of `estimators.KERNELS`.
    """
    scores = data.scores["exponential" if kernel == "odd" else kernel]
    against = np.asarray(float(kernel == "odd"))
    spread = np.sqrt(np.mean(np.var(scores, axis=1)))
    # Where all examples are equally far every bandwidth is the same.
    unit = np.asarray(spread if spread > 0 else 1.0)
    scales = np.asarray(_scales(_EXPONENTS[:, 0] / unit, scores, against, data.labels, answers))
    starts = np.concatenate([np.log(_EXPONENTS), scales[:, None]], axis=1)
    (exponent, scale), squares = _fit(_smoother, starts, (unit, scores, against), data, answers, 1, _FEW)
    bandwidth = np.sqrt(unit / np.exp(exponent))
    parameters = {"bandwidth": np.asarray(bandwidth), "scale": np.asarray(scale)}
    words = f"bandwidth {_number(bandwidth)}, scale {_number(scale)}"
    name = f"kernel smoother, {kernel}"
    return Fit(Candidate(name, "kernel_smoother", {**parameters, "kernel": kernel}, words), squares)


def preconditioned(data: Features, answers: Inexact[Array, "M k"]) -> Candidate:
    """One step of preconditioned gradient descent; its matrix, in which the answer is linear, by least squares.

    Args:
      data: the decomposed prompts, from `features`.
      answers: (M, k), the model's answers to them.
    """
    matrix = np.asarray(_preconditioner(data.moments, data.queries, answers))
    sizes = np.linalg.svd(matrix, compute_uv=False)
    words = f"singular values {_number(sizes[0])} to {_number(sizes[-1])}"
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
    unit, scores, against = extra
    return point[1].astype(data.labels.dtype) * _smoothed(jnp.exp(point[0]) / unit, scores, against, data.labels)


def _smoothed(exponent: Array, scores: Array, against: Array, labels: Array) -> Array:
    """Means of the labels by their scores, less `against` (0 or 1) times those by the opposite scores."""
    weights = jax.nn.softmax(exponent * scores, axis=1) - against * jax.nn.softmax(-exponent * scores, axis=1)
    return jnp.einsum("mn,mnk->mk", weights.astype(labels.dtype), labels)


@compiled.jit
def _scales(exponents: Array, scores: Array, against: Array, labels: Array, answers: Array) -> Array:
    """The best scale of a smoother at each exponent."""

    def scale(exponent):
        smooth = _smoothed(exponent, scores, against, labels)
        return jnp.sum(jnp.real(jnp.conj(smooth) * answers)) / jnp.sum(jnp.abs(smooth) ** 2)

    return jax.lax.map(scale, jnp.asarray(exponents))


@compiled.jit
def _preconditioner(moments: Array, queries: Array, answers: Array) -> Array:
    count, labels, dim = moments.shape
    design = (queries[:, None, :, None] * moments[:, :, None, :]).reshape(count * labels, dim * dim)
    return jnp.linalg.lstsq(_reals(design), _reals(answers.reshape(-1)))[0].reshape(dim, dim)


def _fit(*arguments) -> tuple[np.ndarray, np.ndarray]:
    """See `_search`."""
    point, squares = _search(*arguments)
    return np.asarray(point), np.asarray(squares)


@compiled.jit
def _search(
    answer: Answer, grid: Array, extra: Any, data: Features, answers: Array, keep: int, iterations: int
) -> tuple[Array, Array]:
    """The least squares parameters (p,), by Levenberg and Marquardt from the best `keep` points of a grid (G, p).

    And the squared distances (M,) that they leave.
    """

    def residual(point):
        return _reals((answer(point, extra, data) - answers).reshape(-1))

    def loss(point):
        value = jnp.sum(residual(point) ** 2)
        return jnp.where(jnp.isfinite(value), value, jnp.inf)

    grid = jnp.asarray(grid)
    starts = grid[jnp.argsort(jax.lax.map(loss, grid))[:keep]]

    def descend(start):
        # In units of where it starts: what is damped and where to stop must not depend on how close the grid came.
        scale = jnp.sqrt(jnp.maximum(loss(start), jnp.finfo(start.dtype).tiny))
        solver = optimistix.LevenbergMarquardt(rtol=1e-7, atol=1e-10)
        found = optimistix.least_squares(
            lambda point, _: residual(point) / scale, solver, start, max_steps=iterations, throw=False
        ).value
        return jnp.where(loss(found) <= loss(start), found, start)

    ends = jax.lax.map(descend, starts)
    best = ends[jnp.argmin(jax.lax.map(loss, ends))]
    return best, jnp.sum(jnp.abs(answer(best, extra, data) - answers) ** 2, axis=1)


def _reals(values: Inexact[Array, "n *m"]) -> Float[Array, "rows *m"]:
    """Real and imaginary parts one after the other, for real parameters."""
    return jnp.concatenate([jnp.real(values), jnp.imag(values)]) if jnp.iscomplexobj(values) else values


def _eigenvalue(data: Features) -> np.ndarray:
    """Mean eigenvalue of X^* X over the prompts, as an array: a number would be compiled in."""
    return np.asarray(np.mean(np.sum(data.values, axis=1)) / data.queries.shape[1])


def _number(value: float) -> str:
    return f"{float(value):.5g}"


def _numbers(values: np.ndarray) -> str:
    return ", ".join(map(_number, values))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number > 1 else "")
