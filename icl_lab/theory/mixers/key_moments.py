"""`KeyMoments`: what the risk of a mixer on linear regression depends on, as far as keys go.

Where its state is a polynomial of at most first order in each k_i k_i^T, two moments of a rotation-invariant law of keys are
enough.
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
