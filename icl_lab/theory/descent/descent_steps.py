r"""Losses and best coefficients of one or several gradient steps, with and without curvature correction (arXiv 2212.07677).

Conventions as in `theory.vonoswald2022`: inputs with i.i.d. coordinates of variance sig2, tasks w ~ N(0, I), *half* losses
(1/2) E(yhat - w.x_q)^2, eta multiplies the mean gradient, gamma the unnormalised Gram matrix W. K steps from zero leave the
error w^T rho(W) x_q, rho a polynomial with rho(0) = 1, so that

.. math:: L = \tfrac{\sigma^2}{2} E \operatorname{tr} \rho(W)^2 = \tfrac{\sigma^2}{2} \sum_j w_j \rho(s_j)^2

with a rule (s_j, w_j) of `theory.gram_moments` that is exact to the degree of rho^2, or with the eigenvalues of given W.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import scipy.optimize
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.theory.descent import gram_moments
from icl_lab.theory.descent.descent_variants import gdpp_polynomials
from icl_lab.theory.equidistribution import equidistributed

STEP_SIZES = (0.2, 10.0)
"""Between which the searches for best coefficients start, in units of 1/sig2."""


class Rule(NamedTuple):
    """A spectral measure of the Gram matrix, and what turns an integral over it into a loss.

    Attributes:
      nodes: (r,), eigenvalues s_j of W.
      weights: (r,), w_j, of sum d.
      context_length: N.
      variance: sig2 of an input coordinate.
    """

    nodes: Float[Array, "r"]
    weights: Float[Array, "r"]
    context_length: int
    variance: float

    @staticmethod
    def exact(distribution: str, dim: int, context_length: int, scale: float, degree: int) -> Rule:
        """The rule that integrates polynomials of the Gram matrix up to a degree exactly.

        Args:
          distribution: "gaussian" or "uniform", of an input coordinate.
          dim: d.
          context_length: N.
          scale: standard deviation of a normal coordinate, half-width of a uniform one.
          degree: largest degree that is integrated exactly.
        """
        nodes, weights = gram_moments.spectral_rule(distribution, dim, context_length, degree, scale)
        variance = scale**2 * float(gram_moments.unit_moment(distribution, 2))
        return Rule(nodes, weights, context_length, variance)

    @staticmethod
    def of_contexts(inputs: Float[Array, "S N d"], variance: float) -> Rule:
        """The eigenvalues of the Gram matrices of given contexts, d for each context in turn, with equal weights.

        Args:
          inputs: (S, N, d), the inputs of S contexts.
          variance: sig2 of an input coordinate.
        """
        nodes = np.linalg.eigvalsh(np.swapaxes(inputs, 1, 2) @ inputs).ravel()
        return Rule(nodes, np.full(nodes.size, 1 / len(inputs)), inputs.shape[1], variance)


class Descent(NamedTuple):
    """Coefficients of K steps and their loss.

    Attributes:
      step_sizes: (K,), eta.
      curvatures: (K,), gamma; all zero for plain gradient descent, the last zero unless the layers are tied.
      loss: half loss.
    """

    step_sizes: Float[Array, "K"]
    curvatures: Float[Array, "K"]
    loss: float


def loss(rule: Rule, step_sizes: Float[Array, "K"], curvatures: Float[Array, "K"]) -> float:
    """The half loss of K steps of gradient descent with curvature correction (GD++) on a rule.

    Args:
      rule: exact to the degree of rho_K^2, see `descent_variants.gdpp_polynomials`.
      step_sizes: (K,), eta.
      curvatures: (K,), gamma; zeros for plain gradient descent.
    """
    _, errors = gdpp_polynomials(rule.nodes, step_sizes, curvatures, rule.context_length)
    return float(rule.variance / 2 * rule.weights @ errors**2)


def loss_from_moments(
    moments: Sequence[Fraction | int],
    step_sizes: Float[Array, "K"],
    curvatures: Float[Array, "K"],
    context_length: int,
    variance: float,
) -> float:
    """The half loss of `loss` in rational arithmetic, from the coefficients of the polynomial rho^2.

    Args:
      moments: m_0 .. m_(3^K - 1) at least.
      step_sizes: (K,), eta.
      curvatures: (K,), gamma.
      context_length: N.
      variance: sig2.
    """

    def times(first: list[Fraction], second: list[Fraction]) -> list[Fraction]:
        product = [Fraction(0)] * (len(first) + len(second) - 1)
        for i, a in enumerate(first):
            for j, b in enumerate(second):
                product[i + j] += a * b
        return product

    rho, shrinkage = [Fraction(1)], [Fraction(1)]
    for eta, gamma in zip(step_sizes, curvatures, strict=True):
        gram = times([Fraction(0), Fraction(1)], times(shrinkage, shrinkage))
        rho = times(rho, [Fraction(1), *(-Fraction(float(eta)) / context_length * c for c in gram[1:])])
        shrinkage = times(shrinkage, [Fraction(1), *(-Fraction(float(gamma)) * c for c in gram[1:])])
    return variance / 2 * float(sum(c * m for c, m in zip(times(rho, rho), moments, strict=False)))


def best_shared_step(rule: Rule, steps: int) -> Descent:
    """The best K equal steps of gradient descent: the loss is convex in eta, and its slope has one zero.

    Args:
      rule: exact to degree 2K.
      steps: K.
    """
    smallest = rule.nodes[rule.nodes > 0].min()

    def slope(rate: float) -> float:
        return float(-rule.weights @ (rule.nodes * (1 - rate * rule.nodes) ** (2 * steps - 1)))

    found = scipy.optimize.root_scalar(slope, bracket=(0.0, 2 / smallest), method="brentq", xtol=1e-300, rtol=1e-15)
    rate = float(found.root)
    etas, zeros = np.full(steps, rate * rule.context_length), np.zeros(steps)
    return Descent(etas, zeros, loss(rule, etas, zeros))


def best_steps(distribution: str, dim: int, context_length: int, scale: float, steps: int) -> Descent:
    r"""The best K steps of gradient descent, each of its own size, in ascending order; any order is as good.

    A polynomial rho with rho(0) = 1 of least :math:`\int \rho^2 d\mu` is orthogonal to s q(s) for every q of lower degree:
    it is the orthogonal polynomial of degree K of s dmu. So N / eta are the K Gauss nodes of s dmu.

    Args:
      distribution: "gaussian" or "uniform", of an input coordinate.
      dim: d.
      context_length: N.
      scale: standard deviation of a normal coordinate, half-width of a uniform one.
      steps: K.

    Source: the theory of kernel polynomials; derived for the lab.
    """
    moments = gram_moments.moments_of(distribution, dim, context_length, 2 * steps)
    roots, _ = gram_moments.gauss_rule(moments[1:])
    etas, zeros = np.sort(context_length / (scale**2 * roots)), np.zeros(steps)
    return Descent(etas, zeros, loss(Rule.exact(distribution, dim, context_length, scale, 2 * steps), etas, zeros))


def best_corrected(rule: Rule, steps: int, tied: bool, starts: int) -> Descent:
    """The best gradient descent with curvature correction, from quasi-Newton searches and Newton's method at the end.

    Args:
      rule: exact to degree 3^K - 1.
      steps: K >= 2.
      tied: whether all layers share eta and gamma.
      starts: how many evenly spread points the searches start from; K = 2 needs some 16, K = 3 some 60.

    Raises:
      InvalidValueError: one layer, whose curvature has no effect.
    """
    if steps < 2:
        raise InvalidValueError(f"`steps` must be at least 2, since the last curvature has no effect; got {steps}.")
    count, bends = (1, 1) if tied else (steps, steps - 1)
    points = equidistributed(starts, count + bends)
    smallest, largest = np.log(STEP_SIZES)
    points[:, :count] = np.sort(np.exp(smallest + (largest - smallest) * points[:, :count]), axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        ends = [scipy.optimize.minimize(_value_and_slope, point, (rule, steps, tied), "BFGS", jac=True) for point in points]
    best = min((end for end in ends if np.isfinite(end.fun)), key=lambda end: end.fun)
    return polish(rule, steps, tied, best.x)


def polish(rule: Rule, steps: int, tied: bool, point: Float[Array, "p"]) -> Descent:
    """The stationary point of the loss next to given coefficients, by Newton's method.

    Args:
      rule: exact to degree 3^K - 1.
      steps: K >= 2.
      tied: whether all layers share eta and gamma.
      point: eta sig2 of each layer (one if tied), then gamma N sig2 of each layer but the last (one if tied).
    """
    solved = scipy.optimize.root(lambda x: _value_and_slope(x, rule, steps, tied)[1], point, tol=1e-14)
    etas, gammas = _coefficients(solved.x, rule, steps, tied)
    return Descent(etas, gammas, loss(rule, etas, gammas))


def _mean_node(rule: Rule) -> float:
    """E tr W / d = N sig2, the unit in which eigenvalues are of order 1."""
    return rule.context_length * rule.variance


def _coefficients(point: np.ndarray, rule: Rule, steps: int, tied: bool) -> tuple[np.ndarray, np.ndarray]:
    """eta and gamma of scale-free coefficients (eta sig2, .., gamma N sig2, ..); untied, the last gamma is zero."""
    etas, gammas = _layers(point, steps, tied)
    return etas / rule.variance, gammas / _mean_node(rule)


def _layers(point: np.ndarray, steps: int, tied: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scale-free eta and gamma of every layer."""
    if tied:
        return point[:1].repeat(steps), point[1:].repeat(steps)
    return point[:steps], np.append(point[steps:], 0.0)


def _value_and_slope(point: np.ndarray, rule: Rule, steps: int, tied: bool) -> tuple[float, np.ndarray]:
    """Half loss over sig2/2 and its gradient in scale-free coefficients; derivatives are carried along with the recursion."""
    nodes = rule.nodes / _mean_node(rule)
    etas, gammas = _layers(point, steps, tied)
    rho, shrinkage = np.ones_like(nodes), np.ones_like(nodes)
    d_rho, d_shrinkage = np.zeros((2, 2 * steps, nodes.size))
    for k in range(steps):
        gram, d_gram = nodes * shrinkage**2, 2 * nodes * shrinkage * d_shrinkage
        d_rho = d_rho * (1 - etas[k] * gram) - rho * etas[k] * d_gram
        d_rho[k] -= rho * gram
        rho = rho * (1 - etas[k] * gram)
        d_shrinkage = d_shrinkage * (1 - gammas[k] * gram) - shrinkage * gammas[k] * d_gram
        d_shrinkage[steps + k] -= shrinkage * gram
        shrinkage = shrinkage * (1 - gammas[k] * gram)
    slopes = 2 * d_rho @ (rule.weights * rho)
    slope = np.array([slopes[:steps].sum(), slopes[steps:].sum()]) if tied else slopes[:-1]
    return float(rule.weights @ rho**2), slope


def alignment(
    first: Descent, second: Descent, inputs: Float[Array, "S N d"], queries: Float[Array, "S d"], tasks: Float[Array, "S d"]
) -> Float[Array, "S 3"]:
    """How two predictors differ on given prompts: cosine and distance of their query weights, distance of their predictions.

    The query weights of a predictor are (I - rho(W)) w.

    Args:
      first: coefficients of one predictor.
      second: coefficients of the other.
      inputs: (S, N, d), the inputs of S contexts.
      queries: (S, d), their queries.
      tasks: (S, d), their task vectors w.

    Returns:
      (S, 3).
    """
    nodes, basis = np.linalg.eigh(np.swapaxes(inputs, 1, 2) @ inputs)
    tasks = np.einsum("sab,sa->sb", basis, tasks)
    u, v = (
        tasks * (1 - gdpp_polynomials(nodes, one.step_sizes, one.curvatures, inputs.shape[1])[1]) for one in (first, second)
    )
    cosine = np.sum(u * v, axis=1) / (np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1))
    predictions = np.einsum("sb,sab,sa->s", u - v, basis, queries)
    return np.column_stack([cosine, np.linalg.norm(u - v, axis=1), np.abs(predictions)])


def anisotropic_step(covariance: Float[Array, "d d"], context_length: int) -> tuple[float, float]:
    r"""The best single step size for normal inputs of any covariance and tasks w ~ N(0, I), and its half loss.

    .. math:: \eta^* = \frac{\operatorname{tr} \Sigma^2}{(1 + 1/N) \operatorname{tr} \Sigma^3
              + \operatorname{tr} \Sigma \operatorname{tr} \Sigma^2 / N}, \qquad
              L^* = \tfrac12 (\operatorname{tr} \Sigma - \eta^* \operatorname{tr} \Sigma^2)

    Args:
      covariance: (d, d), Sigma.
      context_length: N.

    Returns:
      eta* and L*.

    Source: fourth moments of the normal distribution; derived for the lab.
    """
    first, second, third = (float(np.trace(np.linalg.matrix_power(covariance, k))) for k in (1, 2, 3))
    eta = second / ((1 + 1 / context_length) * third + first * second / context_length)
    return eta, (first - eta * second) / 2


def replaced_labels_loss(
    step_size: float, dim: int, context_length: int, variance: float, kurtosis: float, replaced: int
) -> float:
    r"""Half loss of one step when m of the N labels are independent standard normal numbers instead.

    .. math:: \tfrac12 \sigma^2 d \left[1 - 2\eta\sigma^2 \tfrac{N-m}{N} + \tfrac{\eta^2}{N^2} \left(
              \sigma^4 (N-m)(N-m+d+\kappa-2) + m \sigma^2\right)\right]

    Args:
      step_size: eta.
      dim: d.
      context_length: N.
      variance: sig2.
      kurtosis: kap = E x^4 / sig2^2.
      replaced: m <= N.

    Source: as `theory.vonoswald2022.one_step_loss`, from N - m clean and m noisy examples; derived for the lab.
    """
    clean = context_length - replaced
    square = variance**2 * clean * (clean + dim + kurtosis - 2) + replaced * variance
    rate = step_size / context_length
    return variance * dim / 2 * (1 - 2 * rate * variance * clean + rate**2 * square)


def normalised_inputs_loss(step_size: float, dim: int, context_length: int, scale: float) -> float:
    r"""Half loss of one step when normal context and query are divided by the context's norm and multiplied by alpha.

    .. math:: \frac{\alpha^2}{2 (Nd - 2)} \left[d - 2 h \alpha^2 + h^2 \alpha^4 \frac{N + d + 1}{Nd + 2}\right],
              \qquad h = \eta / N

    The direction of the context is independent of its norm, and E|X|^{-2} = 1/(Nd - 2).

    Args:
      step_size: eta.
      dim: d.
      context_length: N, with N d > 2.
      scale: alpha.

    Source: the "other distributions" of the published code of von Oswald et al. (arXiv 2212.07677); derived for the lab.
    """
    entries, step = context_length * dim, step_size / context_length * scale**2
    inner = dim - 2 * step + step**2 * (context_length + dim + 1) / (entries + 2)
    return scale**2 / (2 * (entries - 2)) * inner
