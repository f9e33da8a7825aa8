"""The setting of a claim that draws random numbers."""

from __future__ import annotations

import jax
import numpy as np

from icl_lab.claims.setting import Setting, integer
from icl_lab.core import prng
from icl_lab.core.typing import Key


class Seeded(Setting):
    """A seed, and the random streams that it starts."""

    seed: int = integer(0, 0, "random seed", "of all that is drawn")

    @property
    def key(self) -> Key:
        """The root of all streams."""
        return jax.random.key(self.seed)

    def stream(self, name: str) -> Key:
        """The random stream of this name."""
        return prng.stream(self.key, name)

    def normals(self, name: str, *shape: int) -> np.ndarray:
        """Standard normal numbers from the stream of this name."""
        return np.asarray(jax.random.normal(self.stream(name), shape))
