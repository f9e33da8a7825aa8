r"""`MixerProblem`: what the risk of a mixer on linear regression depends on, beside its gates.

Setting of the folder: keys k_i are independent, and independent of the task; the query is N(0, I), tasks w are N(0, I) and
values w.k_i plus noise of variance s2. A mixer that has read n examples answers q.S for a state S (d,), and its risk is

.. math:: E\,(q \cdot S - q \cdot w)^2 = E\,\lVert S - w \rVert^2 .

A closed form takes the problem as its first argument. How the task drifts, where it does, comes after.
"""

from __future__ import annotations

import dataclasses

from icl_lab.core.errors import InvalidValueError
from icl_lab.theory.mixers.key_moments import KeyMoments


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
