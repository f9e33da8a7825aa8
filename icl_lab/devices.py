"""Prompts laid over all devices, of this machine and of every host; parameters are replicated.

The random numbers of a prompt depend on its key alone, so a sharded batch is the batch of one device, and its sums differ in
rounding only. Where the number of devices does not divide a batch, the compiler pads it and discards the padding.
"""

from __future__ import annotations

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from icl_lab.linalg import is_traced
from icl_lab.typing import Key


def shard(keys: Key) -> Key:
    """Keys of a batch of prompts with their first axis laid over all devices; what is computed from them follows.

    Unchanged on one device, and outside compiled functions, whose batches stay where they are.

    Args:
      keys: (B,) keys, one a prompt.

    Returns:
      The same keys.
    """
    if jax.device_count() == 1 or not is_traced(keys):
        return keys
    # Axes are explicit by default, and an explicit axis has to be named in every contraction over it.
    mesh = jax.make_mesh((jax.device_count(),), ("prompts",), axis_types=(AxisType.Auto,))
    return jax.lax.with_sharding_constraint(keys, NamedSharding(mesh, PartitionSpec("prompts")))
