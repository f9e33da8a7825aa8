r"""Moments of the Gram matrix W = X^T X, m_k = E tr W^k, and quadrature rules for losses that are polynomials of it.

Inputs have i.i.d. symmetric coordinates. Any number of gradient steps, with or without curvature correction, leaves an error
operator rho(W) with a polynomial rho, and with isotropic tasks the half loss is (sig2/2) E tr rho(W)^2: the moments are all
that there is to know of the data. They are integers or rationals here, since from floating-point moments a Gauss rule of more
than a few nodes cannot be computed.

The distributions are those of `unit_moment`: standard normal, or uniform on (-1, 1). Another scale c multiplies the nodes by
c^2.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import scipy.linalg
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.core.typing import Array

DISTRIBUTIONS = ("gaussian", "uniform")
LARGEST_ORDER = 9
"""Largest k of E tr W^k for coordinates that are not Gaussian; it takes half a minute, one less a sixth of that."""


def unit_moment(distribution: str, order: int) -> Fraction:
    """E x^order of a standard normal ("gaussian") or of a number uniform on (-1, 1) ("uniform").

    Raises:
      InvalidValueError: another distribution.
    """
    if distribution not in DISTRIBUTIONS:
        raise InvalidValueError(f"`distribution` must be one of {', '.join(DISTRIBUTIONS)}; got {distribution!r}.")
    if order % 2:
        return Fraction(0)
    return Fraction(math.prod(range(1, order, 2))) if distribution == "gaussian" else Fraction(1, order + 1)


def gaussian_moments(dim: int, context_length: int, order: int) -> list[int]:
    r"""m_0 .. m_order of standard normal inputs, exact.

    With :math:`p_k = \operatorname{tr} W^k`, integration by parts in one factor of W gives

    .. math:: E\Big[p_k \prod_j p_{m_j}\Big] = (N + k - 1) E\Big[p_{k-1} \prod_j p_{m_j}\Big]
              + \sum_{i=1}^{k-1} E\Big[p_i p_{k-1-i} \prod_j p_{m_j}\Big]
              + 2 \sum_j m_j E\Big[p_{k-1+m_j} \prod_{l \ne j} p_{m_l}\Big].

    Args:
      dim: d.
      context_length: N.
      order: largest k.

    Source: Stein's identity for the normal distribution; derived for the lab.
    """

    @functools.cache
    def moment(powers: tuple[int, ...]) -> int:
        """E prod_j p_{m_j} of the sorted powers m_j >= 1."""
        if not powers:
            return 1
        *others, k = powers
        total = (context_length + k - 1) * expand(others, k - 1)
        total += sum(expand(others, i, k - 1 - i) for i in range(1, k))
        for j, m in enumerate(others):
            total += 2 * m * expand(others[:j] + others[j + 1 :], k - 1 + m)
        return total

    def expand(others: Sequence[int], *more: int) -> int:
        """The same for powers that may be zero, p_0 = d."""
        powers = [*others, *more]
        return dim ** powers.count(0) * moment(tuple(sorted(m for m in powers if m)))

    return [expand((), k) for k in range(order + 1)]


@functools.cache
def closed_walks(order: int) -> dict[tuple[int, int, tuple[int, ...]], int]:
    r"""How often each pattern occurs in :math:`\operatorname{tr} W^k = \sum \prod_j x_{i_j a_j} x_{i_j a_{j+1}}`.

    The indices a_1, i_1, a_2, i_2, .. a_1 walk on the complete bipartite graph of columns and rows. Names do not matter, so
    vertices are numbered as they are met. Only walks that use every edge an even number of times have an expectation.

    Args:
      order: k, half the length of a walk.

    Returns:
      (different rows, different columns, sorted multiplicities of the edges) -> number of walks.

    Source: the moment method for sample covariance matrices.
    """
    # (where the walk is, rows met, columns met, edges with multiplicities) -> number of ways
    states: dict[tuple, int] = {(0, 0, 1, ()): 1}
    for step in range(2 * order):
        remaining = 2 * order - step - 1
        longer: Counter = Counter()
        for (here, rows, columns, edges), ways in states.items():
            to_row = step % 2 == 0
            for there in range((rows if to_row else columns) + 1):
                used = dict(edges)
                edge = (there, here) if to_row else (here, there)
                used[edge] = used.get(edge, 0) + 1
                # Each edge of odd multiplicity has to be used once more.
                if sum(count % 2 for count in used.values()) > remaining:
                    continue
                met = (max(rows, there + 1), columns) if to_row else (rows, max(columns, there + 1))
                longer[there, *met, tuple(sorted(used.items()))] += ways
        states = longer
    patterns: Counter = Counter()
    for (_, rows, columns, edges), ways in states.items():
        patterns[rows, columns, tuple(sorted(count for _, count in edges))] += ways
    return dict(patterns)


def iid_moments(dim: int, context_length: int, order: int, distribution: str) -> list[Fraction]:
    r"""m_0 .. m_order of inputs with i.i.d. symmetric coordinates, exact.

    .. math:: m_k = \sum_{\text{walks}} \frac{N!}{(N - r)!}\, \frac{d!}{(d - c)!} \prod_e E x^{m_e}

    over the patterns of `closed_walks` with r rows, c columns and edge multiplicities m_e.

    Args:
      dim: d.
      context_length: N.
      order: largest k, at most `LARGEST_ORDER`.
      distribution: of a coordinate, see `unit_moment`.

    Raises:
      UnsupportedProblemError: a larger order.
    """
    if order > LARGEST_ORDER:
        raise UnsupportedProblemError(
            f"moments of the Gram matrix of {distribution} inputs are enumerated up to order {LARGEST_ORDER}; got {order}. "
            "Gaussian inputs have a recursion."
        )
    moments = []
    for k in range(order + 1):
        total = Fraction(0)
        for (rows, columns, multiplicities), ways in closed_walks(k).items():
            value = math.prod((unit_moment(distribution, m) for m in multiplicities), start=Fraction(ways))
            total += value * math.perm(context_length, rows) * math.perm(dim, columns)
        moments.append(total)
    return moments


def gauss_rule(moments: Sequence[Fraction | int]) -> tuple[Float[Array, "r"], Float[Array, "r"]]:
    r"""The Gauss rule of r nodes with the given moments, exact for polynomials of degree 2r - 1.

    Chebyshev's algorithm gives the recursion of the orthogonal polynomials, in rationals; nodes and weights are the
    eigenvalues of its tridiagonal matrix and the squared first entries of its eigenvectors.

    Args:
      moments: m_0 .. m_{2r-1} of a positive measure with at least r points.

    Returns:
      nodes (r,) and weights (r,), ascending nodes.

    Raises:
      InvalidValueError: an odd number of moments, or moments of no such measure.

    Source: Gautschi, Orthogonal Polynomials: Computation and Approximation, Sections 2.1.7 and 3.1.1.
    """
    if len(moments) < 2 or len(moments) % 2:
        raise InvalidValueError(f"`moments` must be m_0 .. m_(2r-1), an even number of them; got {len(moments)}.")
    before, current = [Fraction(0)] * len(moments), [Fraction(m) for m in moments]
    centres, ratios = [current[1] / current[0]], [current[0]]
    for k in range(1, len(moments) // 2):
        following = [Fraction(0)] * len(moments)
        for column in range(k, len(moments) - k):
            following[column] = current[column + 1] - centres[-1] * current[column] - ratios[-1] * before[column]
        if following[k] <= 0:
            raise InvalidValueError(f"`moments` are those of no measure with more than {k} points.")
        centres.append(following[k + 1] / following[k] - current[k] / current[k - 1])
        ratios.append(following[k] / current[k - 1])
        before, current = current, following
    off_diagonal = np.sqrt(np.array([float(ratio) for ratio in ratios[1:]]))
    nodes, vectors = scipy.linalg.eigh_tridiagonal(np.array([float(x) for x in centres]), off_diagonal)
    return nodes, float(moments[0]) * vectors[0] ** 2


def moments_of(distribution: str, dim: int, context_length: int, order: int) -> Sequence[Fraction | int]:
    """m_0 .. m_order of a distribution of `unit_moment`, by the recursion if it is Gaussian."""
    if distribution == "gaussian":
        return gaussian_moments(dim, context_length, order)
    return iid_moments(dim, context_length, order, distribution)


def spectral_rule(
    distribution: str, dim: int, context_length: int, degree: int, scale: float = 1.0
) -> tuple[Float[Array, "r"], Float[Array, "r"]]:
    r"""Nodes s_j and weights w_j with :math:`E \operatorname{tr} f(W) = \sum_j w_j f(s_j)` for polynomials f up to a degree.

    The first node is 0 and the others are the Gauss nodes of the measure weighted by s (a Gauss-Radau rule), so that no
    moment above the degree is needed if it is even.

    Args:
      distribution: of a coordinate divided by `scale`, see `unit_moment`.
      dim: d; the weights sum to it.
      context_length: N.
      degree: largest degree that is integrated exactly, at least 1; an odd one counts as the next even one.
      scale: standard deviation of a normal coordinate, half-width of a uniform one.

    Returns:
      nodes (r + 1,) and weights (r + 1,), r half the degree.
    """
    moments = moments_of(distribution, dim, context_length, degree + degree % 2)
    nodes, weights = gauss_rule(moments[1:])
    weights = weights / nodes
    return scale**2 * np.append(0.0, nodes), np.append(dim - weights.sum(), weights)
