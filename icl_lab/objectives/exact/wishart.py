r"""Exact losses of several linear attention layers on Gaussian linear regression, as averages over finitely many prompts.

Layers whose scores see no labels answer a bilinear form in the task w and the query x_q, and they see the context only through
the Gram matrix W = X^T X. So w and x_q run over a basis, and W over a Gauss rule, exact for polynomials of a given degree:

- `wishart_cubature` takes the rule over Bartlett's triangular factor, W = R^T R with R_ii^2 ~ chi2(n - i), R_ij ~ N(0, 1). It
  holds for any such weights and has too many nodes for d > 3.
- `bidiagonal_cubature` takes the bidiagonal factor of Dumitriu and Edelman, with 2d - 1 chi-square variables. It holds for
  layers that are multiples of one matrix in the metric of the inputs, whose squared error is d E[rho(W)^2]_11.
- `spectral_cubature` takes prompts of one dimension, W running over nodes for its eigenvalues. It holds for the same layers.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import jax
import numpy as np
import scipy.linalg
from jaxtyping import Float

from icl_lab.core import precision
from icl_lab.core.errors import UnsupportedProblemError
from icl_lab.core.linalg import psd_root
from icl_lab.core.typing import Array, Weights
from icl_lab.objectives.exact.cubature import LARGEST_RULE, CubatureLoss
from icl_lab.tasks.distributions.covariates import Gaussian
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.regression.linear import LinearRegression

Rule = tuple[np.ndarray, np.ndarray]
"""Nodes and quadrature_weights of a distribution of one variable; the quadrature_weights sum to 1."""


def wishart_cubature(task: LinearRegression, model: Callable[[Weights, Prompt], Array], degree: int) -> CubatureLoss:
    """The exact half loss of layers whose scores see no labels.

    Args:
      task: Gaussian inputs and no noise; any covariances.
      model: a function of weights and a prompt that divides sums over the context by its length, query not in the sum.
      degree: of the squared error in W, at least: 2 L for L steps of gradient descent, 3^L - 1 for GD++.

    Raises:
      UnsupportedProblemError: another task, or more prompts than can be averaged literally.
    """
    d, n = task.dim, task.context_length
    _check(task, wishart_size(d, n, degree))
    rows = min(n, d)
    pairs = [(i, j) for i in range(rows) for j in range(i + 1, d)]
    # Monomials are even in each row of R, so powers of its diagonal are powers of chi-squares.
    rules = [_chi_squared(n - i, degree // 2 + 1) for i in range(rows)] + [_normal(degree + 1)] * len(pairs)
    points, quadrature_weights = _product(rules)
    factors = np.zeros((len(points), rows, d))
    factors[:, range(rows), range(rows)] = np.sqrt(points[:, :rows])
    for column, (i, j) in enumerate(pairs, start=rows):
        factors[:, i, j] = points[:, column]
    return _average(task, model, factors, quadrature_weights, np.eye(d))


def wishart_size(dim: int, context_length: int, degree: int) -> int:
    """The number of prompts of `wishart_cubature`."""
    rows = min(dim, context_length)
    normals = sum(dim - 1 - i for i in range(rows))
    return (degree // 2 + 1) ** rows * (degree + 1) ** normals * dim**2


def bidiagonal_cubature(task: LinearRegression, model: Callable[[Weights, Prompt], Array], degree: int) -> CubatureLoss:
    """The exact half loss of layers that act on whitened inputs as multiples of the identity; for other weights it is wrong.

    Args:
      task: Gaussian inputs, no noise, and the inverse of their covariance as that of the tasks.
      model, degree: as for `wishart_cubature`.

    Raises:
      UnsupportedProblemError: another task, or more prompts than can be averaged literally.
    """
    d, n = task.dim, task.context_length
    if not np.allclose(np.asarray(task.covariance) @ np.asarray(task.task_covariance), np.eye(d), rtol=0, atol=1e-9):
        raise UnsupportedProblemError("the bidiagonal rule needs a task covariance that is the inverse of that of the inputs.")
    # Paths of length k on the tridiagonal B B^T meet the h-th square at most k - h times.
    rules = [_chi_squared(f, max(degree - h, 0) // 2 + 1) for h, f in enumerate(_freedom(d, n))]
    _check(task, math.prod(len(nodes) for nodes, _ in rules) * d)
    points, quadrature_weights = _product(rules)
    factors = np.zeros((len(points), d, d))
    factors[:, range(d), range(d)] = np.sqrt(points[:, 0::2])
    factors[:, range(d - 1), range(1, d)] = np.sqrt(points[:, 1::2])
    return _average(task, model, factors, d * quadrature_weights, np.eye(d)[:1])


def spectral_cubature(dim: int, context_length: int, model: Callable[[Weights, Prompt], Array], degree: int) -> CubatureLoss:
    """The half loss of layers that are multiples of the identity, on prompts of one dimension.

    Args:
      dim: d of the prompts that are meant.
      context_length: n of the prompts that are meant.
      model, degree: as for `wishart_cubature`.
    """
    nodes, quadrature_weights = spectral_rule(dim, context_length, degree)
    task = LinearRegression(dim=1, context_length=context_length)
    factors = np.sqrt(np.maximum(nodes, 0.0)).reshape(-1, 1, 1)
    return _average(task, model, factors, quadrature_weights * dim / np.sum(quadrature_weights), np.eye(1))


def spectral_rule(dim: int, context_length: int, degree: int) -> Rule:
    """Nodes s_j and weights w_j with E tr f(W) = sum_j w_j f(s_j) for polynomials f up to a degree, standard normal inputs.

    The exact factors L D L^T of the Hankel matrix of the moments hold the recursion of the orthogonal polynomials.

    Args:
      dim: d; the weights sum to it.
      context_length: N, examples in W.
      degree: of the polynomials; an odd one costs as many nodes as the even one below it.

    Returns:
      nodes (r,), r = degree // 2 + 1, and weights (r,).

    Source: Golub and Welsch, Calculation of Gauss Quadrature Rules (1969), Section 4.
    """
    count = degree // 2 + 1
    moments = path_moments(dim, context_length, 2 * count - 1)
    lower = [[Fraction(0)] * count for _ in range(count + 1)]
    pivots: list[Fraction] = []
    for column in range(count):
        for row in range(column, count + 1):
            known = sum((lower[row][k] * pivots[k] * lower[column][k] for k in range(column)), start=Fraction(0))
            lower[row][column] = moments[row + column] - known
        pivots.append(lower[column][column])
        for row in range(column, count + 1):
            lower[row][column] /= pivots[-1]
    steps = [lower[column + 1][column] for column in range(count)]
    centres = [float(step - before) for step, before in zip(steps, [Fraction(0), *steps], strict=False)]
    sides = np.sqrt([float(pivot / before) for before, pivot in itertools.pairwise(pivots)])
    nodes, vectors = np.linalg.eigh(np.diag(centres) + np.diag(sides, 1) + np.diag(sides, -1))
    return nodes, dim * vectors[0] ** 2


def path_moments(dim: int, context_length: int, order: int) -> list[int]:
    """E tr W^k, k = 0 .. order, for standard normal inputs, from paths on the bidiagonal factor.

    [(B B^T)^k]_11 is a sum over Dyck paths of 2k steps, a rise from height h giving the h-th of B_11^2, B_21^2, B_22^2, ..; if
    m rises leave height h, j rises leave the next in C(m + j - 1, j) ways.
    """
    freedom = _freedom(dim, context_length)

    @functools.cache
    def paths(height: int, rises: int, left: int) -> int:
        """The sum over paths of which `rises` of the `left` rises leave this height, and the others leave higher ones."""
        if rises == 0 or height == len(freedom) or rises > left:
            return int(rises == 0 and left == 0)
        higher = sum(math.comb(rises + j - 1, j) * paths(height + 1, j, left - rises) for j in range(left - rises + 1))
        return math.prod(freedom[height] + 2 * i for i in range(rises)) * higher

    return [dim * sum(paths(0, rises, k) for rises in range(k + 1)) for k in range(order + 1)]


def _freedom(dim: int, context_length: int) -> list[int]:
    """Degrees of freedom of the squares B_11^2, B_21^2, B_22^2, B_32^2, .. of the bidiagonal factor."""
    return [max(context_length - h // 2, 0) if h % 2 == 0 else dim - 1 - h // 2 for h in range(2 * dim - 1)]


def _check(task: LinearRegression, prompts: int) -> None:
    if not isinstance(task.covariates, Gaussian) or float(task.noise_std) != 0:
        raise UnsupportedProblemError(f"the rule is for linear regression with Gaussian inputs and no noise; got {task}.")
    if prompts > LARGEST_RULE:
        raise UnsupportedProblemError(
            f"the rule needs {prompts} prompts, more than {LARGEST_RULE}; use a smaller d or fewer layers."
        )


def _chi_squared(freedom: int, count: int) -> Rule:
    """Gauss rule of a chi-square variable; zero degrees of freedom are the number 0."""
    if freedom == 0:
        return np.zeros(1), np.ones(1)
    # From the recurrence of the Laguerre polynomials: weights that are not normalised overflow from 343 degrees of freedom on.
    k, alpha = np.arange(count), freedom / 2 - 1
    nodes, vectors = scipy.linalg.eigh_tridiagonal(2 * k + 1 + alpha, np.sqrt(k[1:] * (k[1:] + alpha)))
    return 2 * nodes, vectors[0] ** 2


def _normal(count: int) -> Rule:
    nodes, quadrature_weights = np.polynomial.hermite_e.hermegauss(count)
    return nodes, quadrature_weights / np.sum(quadrature_weights)


def _product(rules: Sequence[Rule]) -> tuple[Float[np.ndarray, "P v"], Float[np.ndarray, "P"]]:
    """The product of rules for independent variables."""
    points = np.array(list(itertools.product(*(nodes for nodes, _ in rules))))
    return points, np.prod(np.array(list(itertools.product(*(quadrature_weights for _, quadrature_weights in rules)))), axis=1)


def _average(
    task: LinearRegression,
    model,
    factors: Float[np.ndarray, "P r d"],
    quadrature_weights: Float[np.ndarray, "P"],
    queries: np.ndarray,
) -> CubatureLoss:
    """The weighted mean over contexts with W = R^T R in whitened inputs, all basis tasks, and some whitened queries."""
    count, rows, d = factors.shape
    root, task_root = psd_root(np.asarray(task.covariance)), psd_root(np.asarray(task.task_covariance))
    # The model divides by the number of rows instead of n.
    contexts = factors @ root * np.sqrt(rows / task.context_length)
    shape = (count, d, len(queries))
    inputs = np.broadcast_to(contexts[:, None, None], (*shape, rows, d)).reshape(-1, rows, d)
    tasks = np.broadcast_to(task_root.T[None, :, None], (*shape, d)).reshape(-1, d)
    asked = np.broadcast_to((queries @ root)[None, None], (*shape, d)).reshape(-1, d)
    labels = np.einsum("pri,pi->pr", inputs, tasks)[..., None]
    targets = np.einsum("pi,pi->p", asked, tasks)[:, None]
    with precision.float64():
        prompts = precision.to_numpy(jax.vmap(Prompt)(inputs, labels, asked, targets))
    return CubatureLoss(task, model, (prompts,), (np.repeat(quadrature_weights, d * len(queries)),))
