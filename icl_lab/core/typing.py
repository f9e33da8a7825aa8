"""The array type of every signature, and the function types that are passed around.

Arrays are jax arrays while a computation runs and numpy arrays once they have left it (a float64 jax array would drop to
float32 at its next operation outside a float64 scope), so the library accepts both. Shapes are jaxtyping strings.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array | np.ndarray
Key: TypeAlias = jax.Array
"""A typed or raw JAX random key."""
Weights: TypeAlias = Any
"""A pytree of arrays: `LSAWeights`, `SeparateWeights`, or a tuple of layers."""
