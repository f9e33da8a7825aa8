"""Named random streams: one key per purpose, so that changing the noise level never changes the inputs.

`stream(key, "noise")` depends only on the key and the name. Batches are indexed by `jax.random.fold_in`, prompts within a
batch by `jax.random.split`, whose first k keys do not depend on how many are asked for. Draws are made in the default float
type of the scope in force (float64 inside `precision.float64()`) and cast afterwards, since one key gives different numbers in
different dtypes.
"""

from __future__ import annotations

import zlib

import jax

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Key

LARGEST_SEED = 2**63 - 1
"""JAX takes seeds as signed integers of 64 bits."""


def check_seed(seed: int, name: str) -> None:
    """Raise `InvalidValueError` unless `seed` is an integer from 0 to `LARGEST_SEED`; `name` is what messages call it."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED:
        raise InvalidValueError(f"`{name}` must be an integer from 0 to 2^63 - 1, since it makes a random key; got {seed!r}.")


def stream(key: Key, name: str) -> Key:
    """The key of the stream called `name` ("task", "inputs", "noise", "init", ...).

    Examples:
      >>> import jax
      >>> from icl_lab.core import prng
      >>> key = jax.random.key(0)
      >>> inputs, noise = prng.stream(key, "inputs"), prng.stream(key, "noise")
      >>> bool(inputs == prng.stream(key, "inputs")), bool(inputs == noise)
      (True, False)
    """
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)
