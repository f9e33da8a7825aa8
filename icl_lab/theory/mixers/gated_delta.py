r"""Delta rules with decay on tasks that drift: the recursion of their moments, and their best decays and step.

Coordinate j of the task is stationary of variance 1 with E w_t w_{t-1} = a_j, and channel j of the state decays by alpha_j
before each step. Three numbers describe a channel, X = E w S, Y = E S^2 and the error before a step, D = E (w - alpha S)^2:

.. math::
    x = \alpha a X, \qquad y = \alpha^2 Y, \qquad D = 1 - 2 x + y, \\
    X \leftarrow x + \beta c\, (1 - x), \qquad
    Y \leftarrow y + 2 \beta c\, (x - y) + \beta^2 \big(\kappa\,(2 D + \textstyle\sum D) + s_2 c\big),

c and kappa being the moments of keys, 1 for Gaussian ones (`KeyMoments.second`, `.cross`). Other products of channels vanish by
symmetry. The map is affine, so that n examples are a power of a matrix, and an endless context its fixed point.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.theory.mixers.problem import MixerProblem

Channels = float | Float[Array, "d"]
"""One number for all channels, or one for each, (d,)."""


class Gates(NamedTuple):
    """The best constant gates of a delta rule.

    Attributes:
      decays: alpha (d,), of each channel.
      step: beta.
      risk: at these gates.
    """

    decays: Float[Array, "d"]
    step: float
    risk: float


def moments(
    problem: MixerProblem, correlation: Channels, decay: Channels, step: float
) -> tuple[Float[Array, "d"], Float[Array, "d"]]:
    """X = E w_n S_n and Y = E S_n^2 of each channel, from S_0 = 0.

    Args:
      problem: keys, length, `math.inf` for the stationary state, and noise.
      correlation: a in [-1, 1], of a coordinate of the task with that before.
      decay: alpha in [0, 1].
      step: beta, the write strength.

    Returns:
      X and Y, (d,) each; infinite for an endless context on which the state has no stationary variance.

    Source: derived for the lab.
    """
    dim, c, kappa = problem.keys.dim, problem.keys.second, problem.keys.cross
    a, alpha = np.broadcast_to(correlation, dim), np.broadcast_to(decay, dim)
    identity, mixing = np.eye(dim), kappa * step**2 * (2 * np.eye(dim) + np.ones((dim, dim)))
    crossed, squared = np.diag(alpha * a), np.diag(alpha**2)
    linear = np.zeros((2 * dim, 2 * dim))
    linear[:dim, :dim] = (1 - step * c) * crossed
    linear[dim:, :dim] = (2 * step * c * identity - 2 * mixing) @ crossed
    linear[dim:, dim:] = ((1 - 2 * step * c) * identity + mixing) @ squared
    fresh = np.append(np.full(dim, step * c), np.sum(mixing, axis=1) + step**2 * problem.noise_variance * c)
    if not math.isinf(problem.context_length):
        affine = np.block([[linear, fresh[:, None]], [np.zeros((1, 2 * dim)), np.ones((1, 1))]])
        state = np.linalg.matrix_power(affine, int(problem.context_length))[:-1, -1]
    elif np.max(np.abs(np.linalg.eigvals(linear))) < 1:
        state = np.linalg.solve(np.eye(2 * dim) - linear, fresh)
    else:
        state = np.full(2 * dim, np.inf)
    return state[:dim], state[dim:]


def risk(
    problem: MixerProblem, correlation: Channels, decay: Channels, step: float, ahead: int = 0, readout: Channels = 1.0
) -> float:
    """E |readout S_n - w_{n + ahead}|^2, the sum of 1 - 2 readout a^ahead X + readout^2 Y over channels.

    Args:
      problem: keys, length, `math.inf` for the stationary state, and noise.
      correlation: a in [-1, 1], of a coordinate of the task with that before.
      decay: alpha in [0, 1].
      step: beta, the write strength.
      ahead: how many steps of the drift lie between the last example's task and the query's: 0, or 1 as in a prompt whose query
        has a task of its own.
      readout: by which the state is multiplied when it is read.

    Returns:
      The risk; infinite if the state has no stationary variance.

    Source: derived for the lab.
    """
    x, y = moments(problem, correlation, decay, step)
    if not np.all(np.isfinite(y)):
        return math.inf
    read, a = np.broadcast_to(readout, len(x)), np.broadcast_to(correlation, len(x))
    return float(np.sum(1 - 2 * read * a**ahead * x + read**2 * y))


def best_gates(problem: MixerProblem, correlation: Channels, kind: str, ahead: int = 0, readout: Channels = 1.0) -> Gates:
    """The constant gates of lowest risk of a delta rule.

    Args:
      problem: keys, length n >= 1, `math.inf` for the stationary state, and noise.
      correlation: a in [-1, 1], of a coordinate of the task with that before.
      kind: "deltanet" without a decay, "gated_deltanet" with one for all channels, "kda" with one for each; channels of equal
        drift have equal decays.
      ahead: how many steps of the drift lie between the last example's task and the query's.
      readout: by which the state is multiplied when it is read.

    Returns:
      Gates good to the square root of rounding, and their risk, found by the simplex method of Nelder and Mead.

    Raises:
      InvalidValueError: another kind.

    Source: derived for the lab.
    """
    keys = problem.keys
    drifts = np.broadcast_to(correlation, keys.dim)
    groups = {
        "deltanet": None,
        "gated_deltanet": np.zeros(keys.dim, dtype=int),
        "kda": np.unique(drifts, return_inverse=True)[1],
    }
    if kind not in groups:
        raise InvalidValueError(f"`kind` must be one of {', '.join(groups)}; got {kind!r}.")
    group = groups[kind]

    # A logit for each gate keeps the search inside, where every state has a variance: steps below 2 c / m and decays below 1.
    widest = 2 * keys.second / keys.fourth

    def gates(point: Float[Array, "p"]) -> tuple[Float[Array, "d"], float]:
        inside = scipy.special.expit(point)
        return np.ones(keys.dim) if group is None else inside[1:][group], float(widest * inside[0])

    def value(point: Float[Array, "p"]) -> float:
        return risk(problem, correlation, *gates(point), ahead, readout)

    start = scipy.special.logit(np.append(0.25, np.full(0 if group is None else group.max() + 1, 0.95)))
    options = {"xatol": 1e-9, "fatol": 1e-13, "maxiter": 4000, "maxfev": 4000}
    found = scipy.optimize.minimize(value, start, method="Nelder-Mead", options=options)
    return Gates(*gates(found.x), float(found.fun))
