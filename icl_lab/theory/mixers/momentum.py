r"""The delta rule with momentum on a task that does not drift: its risk after n examples, and its best momentum and step.

With the error e = w - S and the step M <- mu M + beta k (v - S^T k)^T, S <- S + M, three numbers say all,
A = E |e|^2, B = E e.M and C = E |M|^2, from (d, 0, 0):

.. math::
    C' = \mu^2 C + 2 \mu \beta c B + \beta^2 (m A + s_2\, c\, d), \qquad
    B' = \mu B + \beta c A - C', \qquad
    A' = A - 2\,(\mu B + \beta c A) + C' .
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Float

from icl_lab.core.typing import Array
from icl_lab.theory.mixers.problem import MixerProblem


class Momentum(NamedTuple):
    """The best momentum and step.

    Attributes:
      momentum: mu.
      step: beta.
      risk: E |S - w|^2.
    """

    momentum: float
    step: float
    risk: float


def risk(problem: MixerProblem, momentum: float, step: float) -> float:
    """E |S - w|^2 after n examples, by a power of the recursion's matrix.

    Args:
      problem: keys, length and noise.
      momentum: mu in [0, 1), the share of the last step that is taken again; 0 is the delta rule.
      step: beta, the write strength.

    Source: derived for the lab, for the memory of arXiv 2501.00663 with a linear memory and without forgetting.
    """
    keys = problem.keys
    pull = step * keys.second
    # Rows give A', B', C' from A, B, C, 1.
    kept = np.array([pull, momentum, 0.0, 0.0])
    moved = np.array(
        [
            step**2 * keys.fourth,
            2 * momentum * pull,
            momentum**2,
            step**2 * problem.noise_variance * keys.second * keys.dim,
        ]
    )
    matrix = np.stack([np.eye(4)[0] - 2 * kept + moved, kept - moved, moved, np.eye(4)[3]])
    return float((np.linalg.matrix_power(matrix, int(problem.context_length)) @ np.array([keys.dim, 0.0, 0.0, 1.0]))[0])


def best(problem: MixerProblem) -> Momentum:
    """The momentum and step of lowest risk.

    Args:
      problem: keys, length n >= 1 and noise.

    Returns:
      Both good to the square root of rounding, and the risk, found by the simplex method of Nelder and Mead.

    Source: derived for the lab.
    """
    # A logit for each keeps the search inside: momentum below 1 and steps below 2 c / m.
    widest = np.array([1.0, 2 * problem.keys.second / problem.keys.fourth])

    def value(point: Float[Array, "2"]) -> float:
        return risk(problem, *(float(gate) for gate in widest * scipy.special.expit(point)))

    options = {"xatol": 1e-9, "fatol": 1e-13, "maxiter": 4000}
    found = scipy.optimize.minimize(value, scipy.special.logit(np.array([0.1, 0.25])), method="Nelder-Mead", options=options)
    momentum, step = widest * scipy.special.expit(found.x)
    return Momentum(float(momentum), float(step), float(found.fun))
