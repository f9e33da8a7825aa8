r"""`MixerProblem`: what the risk of a mixer on linear regression depends on, beside its gates.

Setting of the folder: keys k_i are independent, and independent of the task; the query is N(0, I), tasks w are N(0, I) and
values w.k_i plus noise of variance s2. A mixer that has read n examples answers q.S for a state S (d,), and its risk is

.. math:: E\,(q \cdot S - q \cdot w)^2 = E\,\lVert S - w \rVert^2 .

Where S is a polynomial of at most first order in each k_i k_i^T, two moments of a rotation-invariant law of keys are enough. A
closed form takes the problem as its first argument; how the task drifts, where it does, comes after.
"""

from __future__ import annotations

import dataclasses

from icl_lab.core.errors import InvalidValueError


@dataclasses.dataclass(frozen=True)
class KeyMoments:
    """Moments of keys whose law is invariant under rotations.

    Attributes:
      dim: d >= 1.
      second: c, E k k^T = c I.
      fourth: m, E |k|^2 k k^T = m I; at least d c^2, its value for keys of one length.

    Raises:
      InvalidValueError: a dimension below 1, a second moment that is not positive, or a fourth below d c^2.

    Examples:
      >>> from icl_lab import theory
      >>> theory.KeyMoments.gaussian(3)
      KeyMoments(dim=3, second=1.0, fourth=5.0)
    """

    dim: int
    second: float
    fourth: float

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise InvalidValueError(f"`dim` must be >= 1; got {self.dim!r}.")
        if not self.second > 0:
            raise InvalidValueError(f"`second` must be > 0; got {self.second!r}.")
        lowest = self.dim * self.second**2
        if not self.fourth >= lowest * (1 - 1e-12):
            raise InvalidValueError(
                f"`fourth` must be at least d c^2 = {lowest:g}, because E |k|^4 >= (E |k|^2)^2; got {self.fourth!r}."
            )

    @classmethod
    def gaussian(cls, dim: int) -> KeyMoments:
        """Those of N(0, I): c = 1, m = d + 2."""
        return cls(dim, 1.0, dim + 2.0)

    @classmethod
    def sphere(cls, dim: int) -> KeyMoments:
        """Those of the uniform law on the unit sphere: c = m = 1/d."""
        return cls(dim, 1 / dim, 1 / dim)

    @property
    def cross(self) -> float:
        """E k_a^2 k_b^2 of two coordinates, m / (d + 2); three times as much for a = b."""
        return self.fourth / (self.dim + 2)


@dataclasses.dataclass(frozen=True)
class MixerProblem:
    """Linear regression with keys of a rotation-invariant law, of which a mixer reads n examples.

    Attributes:
      keys: moments of the keys.
      context_length: n >= 0; `math.inf`, an endless context, where a closed form says so.
      noise_variance: s2 >= 0, of a value.

    Raises:
      InvalidValueError: a negative length or noise variance.

    Examples:
      >>> from icl_lab import theory
      >>> problem = theory.MixerProblem(theory.KeyMoments.gaussian(8), context_length=24, noise_variance=0.25)
      >>> 1 / theory.linear_attention.best_scale(problem)  # n + d + 1 + s2
      33.25
    """

    keys: KeyMoments
    context_length: int | float
    noise_variance: float

    def __post_init__(self) -> None:
        if not self.context_length >= 0:
            raise InvalidValueError(f"`context_length` must be >= 0; got {self.context_length!r}. It counts the examples.")
        if not self.noise_variance >= 0:
            raise InvalidValueError(f"`noise_variance` must be >= 0; got {self.noise_variance!r}.")
