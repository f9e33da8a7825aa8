r"""One layer of linear attention on any stationary Gaussian series: exact moments of its features, and its best weights.

The features are phi_{a,l} = Ghat_a h_l, Ghat_a = x^T B_a x an entry of the Gram (a runs over j <= k <= p) and h the last p of
the n = N + p values x; see `theory.zhou2025`. Their moments follow from Isserlis' theorem. The matrices B_a and their products
are formed in full, which costs O(p^2 n^3): a reference, not a fast way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.special
from jaxtyping import Float

from icl_lab.core.typing import Array
from icl_lab.theory.equidistribution import equidistributed


@dataclasses.dataclass(frozen=True)
class FeatureMoments:
    """Second moments of features, query and target, the features in the order of loops over j <= k, then l.

    Attributes:
      order: p.
      gram: (F, F), M = E[phi phi^T].
      cross: (F,), c = E[phi y], y the next value.
      history: (F, p), C = E[phi h^T].
      window: (p, p), E[h h^T].
      link: (p,), E[h y].
      variance: E y^2.
    """

    order: int
    gram: Float[Array, "F F"]
    cross: Float[Array, "F"]
    history: Float[Array, "F p"]
    window: Float[Array, "p p"]
    link: Float[Array, "p"]
    variance: float

    def risk(self, theta: Float[Array, "F"]) -> float:
        """E(theta . phi - y)^2 = v - 2 c . theta + theta^T M theta."""
        return float(self.variance - 2 * self.cross @ theta + theta @ self.gram @ theta)

    @property
    def linear_weights(self) -> Float[Array, "p"]:
        """w, the best linear predictor from the window; (rho_p, .., rho_1) for an autoregression of order at most p."""
        return np.linalg.solve(self.window, self.link)

    @property
    def linear_risk(self) -> float:
        """The risk of the best linear predictor from the window."""
        return float(self.variance - self.link @ self.linear_weights)

    def unexplained(self) -> Float[Array, "p p"]:
        r"""Delta_n = E[h h^T] - C^T M^{-1} C, what no combination of the features explains of the window.

        Positive definite at every finite length; w^T Delta_n w is the smallest gap of any theta, factored or not.

        Source: arXiv 2510.09776, the gap to linear regression as a Schur complement.
        """
        return self.window - self.history.T @ scipy.linalg.cho_solve(scipy.linalg.cho_factor(self.gram), self.history)

    def lifted_gap(self) -> float:
        """w^T Delta_n w, the smallest E(theta . phi - w . h)^2 over all theta."""
        return float(self.linear_weights @ self.unexplained() @ self.linear_weights)


def feature_moments(gamma: Float[Array, "n1"], order: int) -> FeatureMoments:
    r"""The moments at a context of n values, by Isserlis' theorem.

    .. math::
        E\,\phi_{al}\phi_{bm} &= (t_a t_b + 2\operatorname{tr}B_aSB_bS)\,S_{lm} + 2t_a(SB_bS)_{lm} + 2t_b(SB_aS)_{lm}
                                 + 4(SB_aSB_bS + SB_bSB_aS)_{lm} \\
        E\,\phi_{al}\,y &= t_a s_l + 2(SB_as)_l, \qquad t_a = \operatorname{tr}B_aS, \quad s_i = E\,x_i y

    Args:
      gamma: (n + 1,) autocovariances of lags 0 .. n.
      order: p < n.
    """
    gamma = np.asarray(gamma, dtype=np.float64)
    length = len(gamma) - 1
    count = length - order
    full = scipy.linalg.toeplitz(gamma)
    s, past = full[:length, :length], full[:length, length]
    pairs = [(j, k) for j in range(order + 1) for k in range(j, order + 1)]
    forms = np.zeros((len(pairs), length, length))
    for form, (j, k) in zip(forms, pairs, strict=True):
        for i in range(count):
            form[i + j, i + k] += 0.5 / count
            form[i + k, i + j] += 0.5 / count
    products = forms @ s  # B_a S
    last = slice(count, length)
    traces = np.trace(products, axis1=1, axis2=2)
    pair_traces = np.einsum("aij,bji->ab", products, products, optimize=True)
    single = (s @ products)[:, last, last]  # S B_a S
    left = s[last] @ products  # rows of S B_a S, so that left_a B_b S = S B_a S B_b S
    double = np.stack([(rows @ products)[:, :, last] for rows in left])
    window = s[last, last]
    gram = (np.outer(traces, traces) + 2 * pair_traces)[:, :, None, None] * window[None, None]
    gram += 2 * traces[:, None, None, None] * single[None] + 2 * traces[None, :, None, None] * single[:, None]
    gram += 4 * (double + double.swapaxes(0, 1))
    size = len(pairs) * order
    return FeatureMoments(
        order=order,
        gram=gram.transpose(0, 2, 1, 3).reshape(size, size),
        cross=(traces[:, None] * past[None, last] + 2 * (s[last] @ forms @ past)).reshape(size),
        history=(traces[:, None, None] * window[None] + 2 * single).reshape(size, order),
        window=window,
        link=past[last],
        variance=float(gamma[0]),
    )


@dataclasses.dataclass(frozen=True)
class BestLayer:
    """A layer of least risk.

    Attributes:
      pi: (p+1,), of unit norm.
      query: (p+1, p), the best Q for it.
      theta: (F,), the coefficients of the features.
      risk: E(prediction - y)^2.
    """

    pi: Float[Array, "p1"]
    query: Float[Array, "p1 p"]
    theta: Float[Array, "F"]
    risk: float


@runtime_checkable
class LayerMoments(Protocol):
    """What `best_layer` reads of the moments of a series, or of their average over a distribution of series."""

    @property
    def gram(self) -> Float[Array, "F F"]:
        """(F, F), E[phi phi^T]."""
        ...

    @property
    def cross(self) -> Float[Array, "F"]:
        """(F,), E[phi y]."""
        ...

    @property
    def variance(self) -> Any:
        """E y^2."""
        ...


def best_layer(
    moments: LayerMoments, order: int, filters: Sequence[Float[Array, "p1"]] | Float[Array, "k p1"] = (), starts: int = 12
) -> BestLayer:
    r"""The global minimum over pi and Q, found without gradient flow.

    At fixed pi the risk is quadratic in Q, so that what is left is a function on the unit sphere of pi,

    .. math:: v - c_\pi^\top M_\pi^{-1} c_\pi, \qquad c_\pi = U_\pi^\top c, \quad M_\pi = U_\pi^\top M U_\pi,

    U_pi being the linear map from Q to theta. For p = 1 it is a function of one angle, which is scanned; else descent starts
    from many directions.

    Args:
      moments: of the series, or averaged over a distribution of series.
      order: p.
      filters: (k, p + 1), directions of pi to start from, for p > 1, besides evenly spread ones.
      starts: how many evenly spread directions.
    """
    size = order + 1
    gram, cross, variance = moments.gram, moments.cross, float(moments.variance)
    # The smallest risk of free coefficients is the scale of the others.
    scale = variance - float(cross @ np.linalg.solve(gram, cross))
    pairs = [(j, k) for j in range(size) for k in range(j, size)]
    # spread[i]: d U / d pi_i, from (k, l) to (a, l).
    spread = np.zeros((size, len(pairs) * order, size * order))
    for a, (j, k) in enumerate(pairs):
        for lag in range(order):
            spread[j, a * order + lag, k * order + lag] = 1.0
            spread[k, a * order + lag, j * order + lag] = 1.0

    def risk(theta: np.ndarray) -> float:
        return variance + float((gram @ theta - 2 * cross) @ theta)

    def solve(pi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lift = np.tensordot(pi, spread, 1)
        query = np.linalg.solve(lift.T @ gram @ lift, lift.T @ cross)
        return query, lift @ query

    def value(pi: np.ndarray) -> tuple[float, np.ndarray]:
        unit = pi / np.linalg.norm(pi)
        query, theta = solve(unit)
        # Q is optimal, so only the direct dependence on pi counts; the risk is relative, so that tolerances have no scale.
        slope = 2 * (spread @ query) @ (gram @ theta - cross) / scale
        return risk(theta) / scale, (slope - (slope @ unit) * unit) / np.linalg.norm(pi)

    if order == 1:
        angles = np.linspace(0.0, np.pi, 181)
        directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        directions = [min(directions, key=lambda pi: value(pi)[0])]
    else:
        directions = [*filters, *scipy.special.ndtri(equidistributed(starts, size))]
    ends = [scipy.optimize.minimize(value, pi, jac=True, method="BFGS", options={"gtol": 1e-13}) for pi in directions]
    pi = min(ends, key=lambda end: end.fun).x
    pi = pi / np.linalg.norm(pi)
    query, theta = solve(pi)
    return BestLayer(pi, query.reshape(size, order), theta, risk(theta))
