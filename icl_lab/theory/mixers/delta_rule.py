r"""The delta rule with one step beta on a task that does not drift: its risk after n examples, and its best step.

A step changes the error e = w - S to (I - beta k k^T) e - beta k times the noise of the value, so that

.. math:: E\,\lVert e \rVert^2 \leftarrow \rho\, E\,\lVert e \rVert^2 + \beta^2 s_2\, c\, d, \qquad
          \rho = 1 - 2 \beta c + \beta^2 m .

The risk falls exponentially in n to a floor, where linear attention falls like 1/n to zero.
"""

from __future__ import annotations

import scipy.optimize

from icl_lab.theory.mixers.problem import KeyMoments, MixerProblem


def contraction(keys: KeyMoments, step: float) -> float:
    """rho = 1 - 2 beta c + beta^2 m, by which a step multiplies the risk without noise; below 1 for 0 < beta < 2 c / m.

    Args:
      keys: moments of the keys.
      step: beta.
    """
    return 1 - 2 * step * keys.second + step**2 * keys.fourth


def risk(problem: MixerProblem, step: float) -> float:
    """E |S - w|^2 after n examples, d rho^n + beta^2 s2 c d (1 + rho + .. + rho^(n-1)).

    Args:
      problem: keys, length and noise.
      step: beta, the write strength.

    Source: derived for the lab.
    """
    keys, rho = problem.keys, contraction(problem.keys, step)
    left = rho**problem.context_length
    steps = problem.context_length if rho == 1 else (1 - left) / (1 - rho)
    return keys.dim * left + step**2 * problem.noise_variance * keys.second * keys.dim * steps


def best_step(problem: MixerProblem) -> tuple[float, float]:
    """The step of lowest risk between 0 and c / m, where rho is smallest, and the risk.

    A larger step contracts no better and adds more noise. It is good to the square root of rounding, the risk to rounding.

    Args:
      problem: keys, length n >= 1 and noise.

    Source: derived for the lab.
    """
    found = scipy.optimize.minimize_scalar(
        lambda step: risk(problem, step),
        bounds=(0.0, problem.keys.second / problem.keys.fourth),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return float(found.x), float(found.fun)


def implicit_step(error_weight: float, square: float) -> float:
    """D / (1 + D |k|^2), the step of the delta rule that minimises |S - S_0|^2 + D |v - S^T k|^2.

    With D = p / s2 it is the Kalman gain of a task of one dimension, known up to a variance p.

    Args:
      error_weight: D >= 0.
      square: |k|^2.

    Source: Longhorn, arXiv 2407.14207.
    """
    return error_weight / (1 + error_weight * square)
