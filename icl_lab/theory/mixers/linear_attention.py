r"""Linear attention, S = S_0 + eta sum_i k_i v_i: its risk on linear regression, at its best scale and its best start.

With A = sum_i k_i k_i^T, E A = n c I and E A^2 = (n m + n (n - 1) c^2) I for keys of moments c and m. A start is a constant:
linear attention adds it to a gradient step from zero, and does not step from it.
"""

from __future__ import annotations

from typing import NamedTuple

from icl_lab.theory.mixers.problem import MixerProblem


class TunedStart(NamedTuple):
    """The best scale and start of linear attention on tasks of mean mu, and the risk.

    Attributes:
      scale: eta.
      share: of the mean in the start, S_0 = share mu.
      risk: E |S - w|^2.
    """

    scale: float
    share: float
    risk: float


def gram_square(problem: MixerProblem) -> float:
    """E A^2 = this number times I, A = sum_i k_i k_i^T; n (n + d + 1) for Gaussian keys."""
    keys, n = problem.keys, problem.context_length
    return n * (keys.fourth + (n - 1) * keys.second**2)


def risk(problem: MixerProblem, scale: float, share: float = 0.0, mean_square: float = 0.0) -> float:
    """E |S - w|^2 for tasks N(mu, I), at any scale and any start along mu.

    Args:
      problem: keys, length n >= 1 and noise.
      scale: eta.
      share: S_0 = share mu.
      mean_square: |mu|^2.

    Source: derived for the lab.
    """
    dim, first = problem.keys.dim, problem.context_length * problem.keys.second
    pulled = 1 - 2 * scale * first + scale**2 * gram_square(problem)
    start = share**2 + 2 * share * (scale * first - 1)
    return start * mean_square + pulled * (mean_square + dim) + scale**2 * problem.noise_variance * first * dim


def best_scale(problem: MixerProblem, mean_square: float = 0.0) -> float:
    """The best eta from the start zero; 1 / (n + d + 1 + s2) for Gaussian keys and tasks of mean zero.

    Args:
      problem: keys, length n >= 1 and noise.
      mean_square: |mu|^2, of the mean of the tasks.

    Source: for Gaussian keys arXiv 2307.03576, Theorem 1; other keys and means derived for the lab.
    """
    dim, first = problem.keys.dim, problem.context_length * problem.keys.second
    return first / (gram_square(problem) + problem.noise_variance * first * dim / (mean_square + dim))


def minimum_risk(problem: MixerProblem, mean_square: float = 0.0) -> float:
    """The risk at the best scale from the start zero, (|mu|^2 + d)(1 - n c eta).

    It is d (d + 1 + s2) / (n + d + 1 + s2) for Gaussian keys and tasks of mean zero, and for a gradient step that starts at the
    mean. Centred Gaussian keys, with centred values, are as good as one example less.

    Args:
      problem: keys, length n >= 1 and noise.
      mean_square: |mu|^2, of the mean of the tasks.

    Source: for Gaussian keys arXiv 2307.03576, Theorem 1; other keys and means derived for the lab.
    """
    first = problem.context_length * problem.keys.second
    return (mean_square + problem.keys.dim) * (1 - first * best_scale(problem, mean_square))


def tuned_start(problem: MixerProblem, mean_square: float) -> TunedStart:
    """The best scale and start together, for tasks N(mu, I).

    For Gaussian keys without noise eta = d / (|mu|^2 (d + 1) + d (n + d + 1)). The share of the mean is 1 - n c eta: the step
    from zero supplies the rest of it.

    Args:
      problem: keys, length n >= 1 and noise.
      mean_square: |mu|^2.

    Source: derived for the lab; that one layer cannot step from a learned mean is arXiv 2402.14951.
    """
    dim, first, square = problem.keys.dim, problem.context_length * problem.keys.second, gram_square(problem)
    scale = dim * first / (mean_square * (square - first**2) + dim * (square + problem.noise_variance * first))
    share = 1 - first * scale
    return TunedStart(scale, share, dim * share)
