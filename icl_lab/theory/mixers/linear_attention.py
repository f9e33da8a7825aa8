r"""Linear attention, S = S_0 + eta sum_i k_i v_i: its risk on linear regression, at its best scale and its best start.

With A = sum_i k_i k_i^T, E A = n c I and E A^2 = (n m + n (n - 1) c^2) I for keys of moments c and m. A start is a constant:
linear attention adds it to a gradient step from zero, and does not step from it.
"""

from __future__ import annotations

from typing import NamedTuple

from icl_lab.theory.mixers.key_moments import KeyMoments


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


def gram_square(keys: KeyMoments, context_length: int) -> float:
    """E A^2 = this number times I, A = sum_i k_i k_i^T; n (n + d + 1) for Gaussian keys."""
    return context_length * (keys.fourth + (context_length - 1) * keys.second**2)


def risk(
    keys: KeyMoments,
    context_length: int,
    noise_variance: float,
    scale: float,
    share: float = 0.0,
    mean_square: float = 0.0,
) -> float:
    """E |S - w|^2 for tasks N(mu, I), at any scale and any start along mu.

    Args:
      keys: moments of the keys.
      context_length: n >= 1.
      noise_variance: s2 >= 0, of a value.
      scale: eta.
      share: S_0 = share mu.
      mean_square: |mu|^2.

    Source: derived for the lab.
    """
    pulled = 1 - 2 * scale * context_length * keys.second + scale**2 * gram_square(keys, context_length)
    start = share**2 + 2 * share * (scale * context_length * keys.second - 1)
    noise = scale**2 * noise_variance * context_length * keys.second * keys.dim
    return start * mean_square + pulled * (mean_square + keys.dim) + noise


def best_scale(keys: KeyMoments, context_length: int, noise_variance: float, mean_square: float = 0.0) -> float:
    """The best eta from the start zero; 1 / (n + d + 1 + s2) for Gaussian keys and tasks of mean zero.

    Args:
      keys: moments of the keys.
      context_length: n >= 1.
      noise_variance: s2 >= 0, of a value.
      mean_square: |mu|^2, of the mean of the tasks.

    Source: for Gaussian keys arXiv 2307.03576, Theorem 1; other keys and means derived for the lab.
    """
    first = context_length * keys.second
    noise = noise_variance * first * keys.dim / (mean_square + keys.dim)
    return first / (gram_square(keys, context_length) + noise)


def minimum_risk(keys: KeyMoments, context_length: int, noise_variance: float, mean_square: float = 0.0) -> float:
    """The risk at the best scale from the start zero, (|mu|^2 + d)(1 - n c eta).

    It is d (d + 1 + s2) / (n + d + 1 + s2) for Gaussian keys and tasks of mean zero, and for a gradient step that starts at the
    mean. Centred Gaussian keys, with centred values, are as good as one example less.

    Args:
      keys: moments of the keys.
      context_length: n >= 1.
      noise_variance: s2 >= 0, of a value.
      mean_square: |mu|^2, of the mean of the tasks.

    Source: for Gaussian keys arXiv 2307.03576, Theorem 1; other keys and means derived for the lab.
    """
    scale = best_scale(keys, context_length, noise_variance, mean_square)
    return (mean_square + keys.dim) * (1 - context_length * keys.second * scale)


def tuned_start(keys: KeyMoments, context_length: int, noise_variance: float, mean_square: float) -> TunedStart:
    """The best scale and start together, for tasks N(mu, I).

    For Gaussian keys without noise eta = d / (|mu|^2 (d + 1) + d (n + d + 1)). The share of the mean is 1 - n c eta: the step
    from zero supplies the rest of it.

    Args:
      keys: moments of the keys.
      context_length: n >= 1.
      noise_variance: s2 >= 0, of a value.
      mean_square: |mu|^2.

    Source: derived for the lab; that one layer cannot step from a learned mean is arXiv 2402.14951.
    """
    first, square = context_length * keys.second, gram_square(keys, context_length)
    curvature = mean_square * (square - first**2) + keys.dim * (square + noise_variance * first)
    scale = keys.dim * first / curvature
    share = 1 - first * scale
    return TunedStart(scale, share, keys.dim * share)
