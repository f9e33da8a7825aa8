r"""Excess risks of the classical predictors of a Gaussian linear task: Bayes (ridge), least squares, minimum norm.

Setting: x ~ N(0, Lambda), w ~ N(0, Omega), y_i = w.x_i + noise of variance s2, N examples; risks are E(yhat - w.x_q)^2.

What depends on the inputs only through A = Lambda^{1/2} Omega Lambda^{1/2} = omega I reduces to the mean of a linear
statistic sum_i f(s_i) of the eigenvalues of a Wishart matrix S ~ W_d(N). Their joint density is a Vandermonde determinant times
a product of weights, so that by de Bruijn's formula the mean is a ratio of Pfaffians whose entries are one-dimensional
integrals: `eigenvalue_mean` evaluates it to rounding, without sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import check_covariance
from icl_lab.core.typing import Array
from icl_lab.theory.regression.problem import Problem

PANELS, HALVINGS, NODES = 60, 30, 16
REACH = 13.0
"""How far beyond the edges sqrt(n) -+ sqrt(m) singular values are followed; their density falls like a Gaussian there."""


def eigenvalue_mean(statistic: Callable[[Array], Array], dim: int, count: int) -> float:
    r"""E sum_i f(s_i) over the d eigenvalues of S = sum_{i <= N} z_i z_i^T, z_i ~ N(0, I_d).

    With m = min(d, N), n = max(d, N), weights w(s) = s^{(n-m-1)/2} e^{-s/2} and functions phi_j spanning w times the
    polynomials of degree below m,

    .. math:: E \sum f = \tfrac12 \operatorname{tr}(A^{-1} A') + (d - N)_+ f(0), \qquad
              A_{jk} = \iint_{x<y} [\phi_j(x)\phi_k(y) - \phi_k(x)\phi_j(y)],

    A' the same with f(x) + f(y) inserted; for odd m, A is bordered by the integrals of phi_j and A' by those of phi_j f.
    The integrals run over t = sqrt(s), in which every weight is smooth.

    Args:
      statistic: f, vectorised over an array of eigenvalues > 0 (and at 0, if N < d).
      dim: d >= 1.
      count: N >= 1.

    Raises:
      InvalidValueError: a size below 1.

    Source: de Bruijn (1955) for the Pfaffian; used here for the Bayes risk of arXiv 2307.03576.
    """
    if dim < 1 or count < 1:
        raise InvalidValueError(f"`dim` and `count` must be >= 1; got {dim} and {count}.")
    m, n = min(dim, count), max(dim, count)
    nodes, weights, integrate = _panels(max(0.0, math.sqrt(n) - math.sqrt(m) - REACH), math.sqrt(n) + math.sqrt(m) + REACH)
    flat, mass = nodes.ravel(), weights.ravel()
    # s^{(n-m-1)/2} e^{-s/2} ds = 2 t^{n-m} e^{-t^2/2} dt, up to a constant that cancels.
    log_density = (n - m) * np.log(flat) - flat**2 / 2
    basis = _orthonormal(np.exp(log_density - log_density.max()), flat**2, mass, m)
    values = np.asarray(statistic(flat**2), dtype=np.float64)

    def pairs(left, right):
        """The double integrals over x < y of left_j(x) right_k(y)."""
        below = np.stack([integrate(one.reshape(nodes.shape)).ravel() for one in left])
        return (below * mass[None, :]) @ right.T

    plain = pairs(basis, basis)
    inserted = pairs(basis * values[None, :], basis) + pairs(basis, basis * values[None, :])
    first, second = plain - plain.T, inserted - inserted.T
    if m % 2:
        first = _bordered(first, basis @ mass)
        second = _bordered(second, (basis * values[None, :]) @ mass)
    mean = float(np.trace(np.linalg.solve(first, second))) / 2
    return mean + (dim - count) * float(statistic(np.zeros(1))[0]) if dim > count else mean


def _panels(start: float, end: float):
    """Gauss-Legendre nodes and weights on panels, and the integral of tabulated functions from `start` to each node.

    The first panel is halved again and again towards `start`, for statistics that vary quickly near s = 0.
    """
    x, w = np.polynomial.legendre.leggauss(NODES)
    edges = np.linspace(0.0, 1.0, PANELS + 1)
    edges = start + (end - start) * np.concatenate([[0.0], edges[1] * 0.5 ** np.arange(HALVINGS, 0, -1), edges[1:]])
    half = np.diff(edges) / 2
    # Row i integrates the interpolating polynomial from -1 to x_i: Legendre coefficients by quadrature, then their integrals.
    legendre = np.polynomial.legendre.legvander(x, NODES)
    degrees = np.arange(NODES)
    integrals = np.empty((NODES, NODES))
    integrals[:, 0] = x + 1
    integrals[:, 1:] = (legendre[:, 2:] - legendre[:, : NODES - 1]) / (2 * degrees[None, 1:] + 1)
    matrix = integrals @ ((degrees[:, None] + 0.5) * legendre[:, :NODES].T * w[None, :])

    def integrate(values: Float[Array, "P n"]) -> Float[Array, "P n"]:
        totals = half * (values @ w)
        return (np.cumsum(totals) - totals)[:, None] + half[:, None] * (values @ matrix.T)

    centres = (edges[1:] + edges[:-1]) / 2
    return centres[:, None] + half[:, None] * x[None, :], half[:, None] * w[None, :], integrate


def _orthonormal(weight: Array, variable: Array, mass: Array, count: int) -> Float[Array, "m P"]:
    """Weight times the polynomials of degree below m, orthonormal in the quadrature (orthogonalised twice, for rounding)."""
    basis = np.empty((count, len(weight)))
    for j in range(count):
        new = weight if j == 0 else (variable - (basis[j - 1] ** 2 * mass) @ variable) * basis[j - 1]
        for _ in range(2):
            new = new - (basis[:j] @ (mass * new)) @ basis[:j]
        basis[j] = new / np.sqrt(mass @ new**2)
    return basis


def _bordered(matrix: Float[Array, "m m"], border: Float[Array, "m"]) -> Float[Array, "m+1 m+1"]:
    return np.block([[matrix, border[:, None]], [-border[None, :], np.zeros((1, 1))]])


def isotropic_risk(dim: int, context_length: int, noise_variance: float, signal: float = 1.0) -> float:
    r"""Excess Bayes risk where Lambda^{1/2} Omega Lambda^{1/2} = omega I, for instance Lambda = Omega = I.

    .. math:: E \operatorname{tr}\left(\omega^{-1} I + S / s_2\right)^{-1}, \qquad S \sim W_d(N)

    Args:
      dim: d.
      context_length: N.
      noise_variance: s2 >= 0.
      signal: omega > 0.

    Source: the constant C - s2 of Lemma 1 of Mahankali, Hashimoto, Ma (arXiv 2307.03576), evaluated here.
    """
    return isotropic_ridge_risk(dim, context_length, noise_variance, noise_variance / signal, signal)


def isotropic_ridge_risk(dim: int, context_length: int, noise_variance: float, penalty: float, signal: float = 1.0) -> float:
    r"""Excess risk of ridge with penalty lambda I on Lambda = I and Omega = omega I.

    .. math:: E \sum_i \frac{\omega \lambda^2 + s_2 s_i}{(s_i + \lambda)^2}

    A penalty of 0 is minimum-norm least squares, which needs |N - d| >= 2 or s2 = 0 to have a mean.

    Args:
      dim: d.
      context_length: N.
      noise_variance: s2 >= 0.
      penalty: lambda >= 0, added to the unnormalised Gram matrix.
      signal: omega > 0.
    """

    def bias_and_variance(s):
        ratio = np.divide(penalty, s + penalty, out=np.ones_like(s), where=s + penalty > 0)
        spread = np.divide(s, (s + penalty) ** 2, out=np.zeros_like(s), where=s > 0)
        return signal * ratio**2 + noise_variance * spread

    return eigenvalue_mean(bias_and_variance, dim, context_length)


def risk(problem: Problem, contexts: Iterable[Float[Array, "B N d"]]) -> tuple[float, float]:
    r"""Excess Bayes risk E tr(Lambda (Omega^{-1} + S / s2)^{-1}) for any pair of covariances, and its standard error.

    By the change of variables x = Lambda^{1/2} z it depends on the eigenvalues of Lambda^{1/2} Omega Lambda^{1/2} only. If
    these are equal it is `isotropic_risk` and the error 0.0; else the posterior trace, a far less noisy quantity than the
    squared error of a prompt, is averaged over given inputs. Without noise the risk is that of the prior on the complement of
    the span of the inputs.

    Args:
      problem: the regression problem, of a finite context; Omega positive definite.
      contexts: batches (B, N, d) of independent standard normal numbers, the whitened inputs z of as many contexts; not read
        where the risk is exact.

    Returns:
      The risk and its standard error.

    Raises:
      NotPositiveDefiniteError: a covariance is not positive definite.

    Source: Mahankali, Hashimoto, Ma (arXiv 2307.03576), Lemma 1, for a general pair.
    """
    problem.check_gaussian()
    check_covariance(problem.covariance)
    check_covariance(problem.task_covariance, "task_covariance")
    dim, noise_variance, context_length = problem.dim, problem.noise_variance, int(problem.context_length)
    factor = np.linalg.cholesky(problem.covariance)
    signals = np.linalg.eigvalsh(factor.T @ problem.task_covariance @ factor)
    if signals[-1] - signals[0] <= 1e-10 * signals[-1]:
        return isotropic_risk(dim, context_length, noise_variance, float(np.mean(signals))), 0.0
    roots = np.sqrt(signals)
    traces = []
    for inputs in (batch * roots[None, None, :] for batch in contexts):
        # tr (A^{-1} + S/s2)^{-1} = tr A - tr X A (s2 + X X^T)^{-1} A X^T in whitened inputs, finite also without noise.
        if context_length < dim:
            inner = inputs @ inputs.transpose(0, 2, 1) + noise_variance * np.eye(context_length)
            explained = np.linalg.solve(inner, inputs * roots[None, None, :])
            traces.append(np.sum(signals) - np.sum(explained * inputs * roots[None, None, :], axis=(1, 2)))
        else:
            gram = inputs.transpose(0, 2, 1) @ inputs + noise_variance * np.eye(dim)
            traces.append(noise_variance * np.einsum("pii,i->p", np.linalg.inv(gram), signals))
    values = np.concatenate(traces)
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))


def ols_risk(dim: int, context_length: int, noise_variance: float) -> float:
    """Excess risk s2 d / (N - d - 1) of least squares with N >= d, for every Lambda, Omega and even every fixed w.

    Infinite for N = d and d + 1 unless s2 = 0, where it is 0.

    Args:
      dim: d.
      context_length: N >= d.
      noise_variance: s2 >= 0.

    Raises:
      InvalidValueError: fewer examples than dimensions; see `minimum_norm_risk`.
    """
    if context_length < dim:
        raise InvalidValueError(f"least squares needs N >= d = {dim} examples; got {context_length}. Use `minimum_norm_risk`.")
    if noise_variance == 0:
        return 0.0
    return noise_variance * dim / (context_length - dim - 1) if context_length >= dim + 2 else math.inf


def minimum_norm_risk(dim: int, context_length: int, noise_variance: float, scale: float, task_trace: float) -> float:
    """Excess risk of the interpolating vector of least norm, N < d, for Lambda = lambda I only.

    lambda tr(Omega) (1 - N/d) + s2 N / (d - N - 1); infinite for N = d - 1 unless s2 = 0.

    Args:
      dim: d.
      context_length: N < d.
      noise_variance: s2.
      scale: lambda.
      task_trace: tr(Omega), or |w|^2 of one fixed task.

    Raises:
      InvalidValueError: N >= d.
    """
    if context_length >= dim:
        raise InvalidValueError(f"minimum norm is about N < d = {dim} examples; got {context_length}. Use `ols_risk`.")
    bias = scale * task_trace * (1 - context_length / dim)
    if noise_variance == 0:
        return bias
    return bias + noise_variance * context_length / (dim - context_length - 1) if context_length <= dim - 2 else math.inf


def longest_winning_context(dim: int, noise_variance: float) -> float:
    """N below which the layer, trained at its own length, beats least squares on Lambda = Omega = I.

    d + 1 + 2 s2 + s2^2 / (d + 1); the comparison starts at N = d + 2, where least squares has a mean.
    """
    return dim + 1 + 2 * noise_variance + noise_variance**2 / (dim + 1)


def longest_winning_test(dim: int, noise_variance: float) -> float:
    """M below which the layer trained on infinite contexts beats least squares on Lambda = Omega = I: d + 1 + s2."""
    return dim + 1 + noise_variance


def scaled_limit(problem: Problem) -> float:
    """lim N x (excess risk of the optimal layer), (d + 1) tr(Lambda Omega) + d s2; Bayes and least squares keep d s2 of it.

    Args:
      problem: the regression problem, at any context length.
    """
    problem.check_gaussian()
    signal = np.trace(problem.covariance @ problem.task_covariance)
    return float((problem.dim + 1) * signal + problem.dim * problem.noise_variance)
