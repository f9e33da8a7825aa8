r"""Zheng et al. 2024 (arXiv 2405.16845): one causal linear attention layer trained on x_{t+1} = W x_t, W diagonal unitary.

Setting: W = diag(e^{i theta_1} .. e^{i theta_d}), independent uniform phases; tokens (x_t, x_{t-1}); attention at position t
is divided by t - 1. The training loss sums *half* squared errors over t = 2 .. T - 1. Only two blocks move from the start of
their Assumption 3.1: K = W_KQ_32 = a I and P = W_PV_12 = b I, so that

    yhat_t = (a b / (t - 1)) sum_{i<t} x_{i+1} x_i^* x_t.

Distributions of x_1 are named; `scale` is the standard deviation of a coordinate (Gaussian distributions) or the size of a
non-zero one: gaussian, sparse (uniform on the 2d vectors +-scale e_j), rademacher, constant (all ones times scale),
complex_gaussian, and skew (independent coordinates 2 with probability 1/3, else -1, times scale: mean zero but no symmetry).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.integrate
from jaxtyping import Float

from icl_lab.core.errors import AssumptionError, InvalidValueError
from icl_lab.core.typing import Array


class Constants(NamedTuple):
    """Moments of x_1, the same for every coordinate j.

    Attributes:
      m2, kappa1, kappa2: E|x_j|^2, E|x_j|^4, E|x_j|^6.
      kappa3: sum over r != j of E|x_j|^2 |x_r|^4.
    """

    m2: float
    kappa1: float
    kappa2: float
    kappa3: float


SYMMETRIC_DISTRIBUTIONS = ("gaussian", "sparse", "rademacher", "complex_gaussian")
"""The distributions of Assumption 4.1, whose moments of odd power in some coordinate vanish."""
DISTRIBUTIONS = (*SYMMETRIC_DISTRIBUTIONS, "constant", "skew")


def constants(distribution: str, dim: int, scale: float) -> Constants:
    """The constants of a start distribution in closed form.

    Args:
      distribution: one of `DISTRIBUTIONS`.
      dim: d.
      scale: standard deviation of a coordinate, or the size of a non-zero one.

    Raises:
      InvalidValueError: an unknown distribution.

    Source: arXiv 2405.16845, Theorem 4.1.
    """
    table = {
        "gaussian": (1.0, 3.0, 15.0, 3.0 * (dim - 1)),
        "complex_gaussian": (1.0, 2.0, 6.0, 2.0 * (dim - 1)),
        "sparse": (1 / dim, 1 / dim, 1 / dim, 0.0),
        "rademacher": (1.0, 1.0, 1.0, dim - 1.0),
        "constant": (1.0, 1.0, 1.0, dim - 1.0),
        "skew": (2.0, 6.0, 22.0, 12.0 * (dim - 1)),
    }
    if distribution not in table:
        raise InvalidValueError(f"`distribution` must be one of {', '.join(DISTRIBUTIONS)}; got {distribution!r}.")
    m2, kappa1, kappa2, kappa3 = table[distribution]
    return Constants(m2 * scale**2, kappa1 * scale**4, kappa2 * scale**6, kappa3 * scale**6)


def mean_inverse_length(length: int) -> float:
    """h_T = (1/(T-2)) sum_{t=2}^{T-1} 1/(t-1), the mean inverse context length.

    Raises:
      InvalidValueError: T < 3, for which the loss has no term.
    """
    if length < 3:
        raise InvalidValueError(f"`length` must be >= 3; got {length!r}. The loss sums over t = 2 .. T - 1.")
    return float(np.mean(1 / np.arange(1, length - 1)))


def curvature(moments: Constants, length: int) -> float:
    """kbar = kappa2 + kappa3 h_T: the loss per position and coordinate is (m2 - 2 s kappa1 + s^2 kbar) / 2.

    Args:
      moments: constants of x_1, from `constants`.
      length: T >= 3 of the training sequences.
    """
    return moments.kappa2 + moments.kappa3 * mean_inverse_length(length)


def limit_product(moments: Constants, length: int) -> float:
    r"""The limit of the product a b under gradient flow.

    .. math:: s^* = \frac{\kappa_1}{\kappa_2 + \frac{\kappa_3}{T-2}\sum_{t=2}^{T-1}\frac{1}{t-1}}

    Args:
      moments: constants of x_1, from `constants`.
      length: T >= 3 of the training sequences.

    Source: arXiv 2405.16845, Theorem 4.1.
    """
    return moments.kappa1 / curvature(moments, length)


def minimum_loss(moments: Constants, dim: int, length: int) -> float:
    """The loss at the limit, (d/2)(T-2)(m2 - kappa1 s*).

    Args:
      moments: constants of x_1, from `constants`.
      dim: d.
      length: T >= 3 of the training sequences.
    """
    return dim / 2 * (length - 2) * (moments.m2 - moments.kappa1 * limit_product(moments, length))


def check_start(a0: float, b0: float) -> None:
    """Refuse the starts from which the flow runs into the saddle at zero, a0 = -b0.

    Raises:
      AssumptionError: a0 + b0 = 0. (The paper asks a0, b0 > 0; a0 + b0 != 0 is enough, since its sign is conserved.)
    """
    if a0 + b0 == 0:
        raise AssumptionError(
            f"a0 = {a0:g} = -b0: a + b stays zero and the flow ends in the saddle at zero, not in the limit of Theorem 4.1 of "
            "arXiv 2405.16845. Take a0, b0 > 0, as its Assumption 3.1 does, or any a0 != -b0."
        )


def check_distribution(distribution: str) -> None:
    """Refuse a start distribution outside Assumption 4.1.

    Raises:
      AssumptionError: the distribution has moments of odd power that do not vanish.
    """
    if distribution not in SYMMETRIC_DISTRIBUTIONS:
        raise AssumptionError(
            f"distribution = {distribution}: Assumption 4.1 of arXiv 2405.16845 wants every moment of odd power in some "
            f"coordinate to vanish; "
            f"the gradient off the diagonal is not zero otherwise. It holds for {', '.join(SYMMETRIC_DISTRIBUTIONS)}."
        )


def limit(moments: Constants, length: int, a0: float, b0: float) -> tuple[float, float]:
    r"""The limits of a and b under gradient flow from K = a0 I, P = b0 I.

    .. math:: a = \pm\sqrt{\tfrac12\left(c + \sqrt{c^2 + 4 s^{*2}}\right)},\quad b = s^*/a,\quad c = a_0^2 - b_0^2,

    with the sign of a0 + b0.

    Args:
      moments: constants of x_1, from `constants`.
      length: T >= 3 of the training sequences.
      a0: start of a.
      b0: start of b; a0 + b0 != 0.

    Raises:
      AssumptionError: a0 = -b0.

    Source: arXiv 2405.16845, Theorem 4.1 for the product; icl_lab for the factors.
    """
    check_start(a0, b0)
    product, gap = limit_product(moments, length), a0**2 - b0**2
    radius = np.hypot(gap, 2 * product)
    # The larger square root first: the difference of the other would cancel.
    large = np.sqrt((abs(gap) + radius) / 2)
    a, b = (large, product / large) if gap >= 0 else (product / large, large)
    sign = np.sign(a0 + b0)
    return float(sign * a), float(sign * b)


def velocity(moments: Constants, length: int, a: float, b: float) -> tuple[float, float]:
    """(da/dt, db/dt) = (-b g, -a g), g = (T-2)(a b kbar - kappa1), of the flow of the matrix entries.

    Args:
      moments: constants of x_1, from `constants`.
      length: T >= 3 of the training sequences.
      a: the number on the diagonal of K.
      b: the number on the diagonal of P.

    Source: arXiv 2405.16845, proof of Theorem 4.1.
    """
    pull = (length - 2) * (a * b * curvature(moments, length) - moments.kappa1)
    return -b * pull, -a * pull


def flow(
    moments: Constants, length: int, a0: float, b0: float, times: Float[Array, "S"]
) -> tuple[Float[Array, "S"], Float[Array, "S"]]:
    """a and b along gradient flow from K = a0 I, P = b0 I, to about 1e-11.

    Args:
      moments: constants of x_1, from `constants`.
      length: T >= 3 of the training sequences.
      a0: start of a.
      b0: start of b; a0 + b0 != 0.
      times: (S,), increasing, t >= 0.

    Returns:
      a (S,) and b (S,).
    """
    times = np.asarray(times, dtype=np.float64)
    solution = scipy.integrate.solve_ivp(
        lambda _, state: velocity(moments, length, *state),
        (0.0, float(times[-1])),
        [a0, b0],
        method="DOP853",
        t_eval=times,
        rtol=1e-12,
        atol=1e-14,
    )
    return solution.y[0], solution.y[1]


def time_to_reach(moments: Constants, length: int, a0: float, b0: float, product: float) -> float:
    r"""The time at which a b has come from a0 b0 to `product`, from the separated scalar equation.

    .. math:: t = \int_{a_0 b_0}^{s} \frac{ds}{\sqrt{c^2 + 4 s^2}\,(T-2)\,(\kappa_1 - \bar\kappa s)}

    Args:
      moments: constants of x_1, from `constants`.
      length: T >= 3 of the training sequences.
      a0: start of a.
      b0: start of b; a0 + b0 != 0.
      product: between a0 b0 and the limit, which it must not reach.

    Source: arXiv 2405.16845, proof of Theorem 4.1.
    """
    gap, pull = a0**2 - b0**2, curvature(moments, length)

    def slowness(s: float) -> float:
        return 1 / (np.hypot(gap, 2 * s) * (length - 2) * (moments.kappa1 - pull * s))

    return float(scipy.integrate.quad(slowness, a0 * b0, product, epsabs=0.0, epsrel=1e-11, limit=200)[0])


def final_rate(moments: Constants, length: int, a0: float, b0: float) -> float:
    """The exponential rate at which a b approaches its limit, (T-2) kbar sqrt(c^2 + 4 s*^2), c = a0^2 - b0^2.

    Args:
      moments: constants of x_1, from `constants`.
      length: T >= 3 of the training sequences.
      a0: start of a.
      b0: start of b; a0 + b0 != 0.
    """
    return float((length - 2) * curvature(moments, length) * np.hypot(a0**2 - b0**2, 2 * limit_product(moments, length)))


def descent(
    moments: Constants, length: int, a0: float, b0: float, step_size: float, steps: int
) -> tuple[Float[Array, "K"], Float[Array, "K"]]:
    """a and b along plain gradient descent of the population loss, the start included.

    Args:
      moments: constants of x_1, from `constants`.
      length: T >= 3 of the training sequences.
      a0: start of a.
      b0: start of b; a0 + b0 != 0.
      step_size: of gradient descent on the matrix entries.
      steps: how many.

    Returns:
      a and b, (steps + 1,) each.
    """
    path = [(a0, b0)]
    for _ in range(steps):
        a, b = path[-1]
        da, db = velocity(moments, length, a, b)
        path.append((a + step_size * da, b + step_size * db))
    a, b = np.array(path).T
    return a, b
