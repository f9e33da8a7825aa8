"""Devices: prompts are sharded over those of every host, parameters are replicated on each.

The random numbers of a prompt depend on its key alone, so a sharded batch is the batch of one device, and its sums differ in
rounding only. Where the number of devices does not divide a batch, the compiler pads it and discards the padding.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from icl_lab.core.errors import DeviceError
from icl_lab.core.linalg import is_traced
from icl_lab.core.typing import Key


def first() -> Any:
    """The first device that JAX finds, on which everything runs that is not sharded.

    Raises:
      DeviceError: JAX finds no device, as where `JAX_PLATFORMS` names one that this machine has not.
    """
    try:
        return jax.devices()[0]
    except (AssertionError, RuntimeError) as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        if not asked:
            raise DeviceError(f"JAX finds no device on this machine: {' '.join(str(error).split())}") from error
        raise DeviceError(
            f"`JAX_PLATFORMS` must name platforms that this machine has ({_platforms()}), since everything is computed "
            f"there; got {asked!r}."
        ) from error


def _platforms() -> str:
    """The platforms that JAX finds if nobody asks for one; in another process, since this one has been asked."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    program = "import jax; print(*sorted({device.platform for device in jax.devices()} | {'cpu'}))"
    try:
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return ", ".join(done.stdout.split()) or "cpu"


def shard(keys: Key) -> Key:
    """Shard the keys of a batch of prompts over all devices along axis 0, and with them what is computed from each key.

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
