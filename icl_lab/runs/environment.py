"""What the environment of the command line may not change: numbers, figures, and whether a text can be printed.

The user's variables say where programs run, where files are kept and how much JAX logs. Those that would change a result
without changing the name of its run, or have JAX refuse the lab's programs, are dropped before JAX is imported; processes that
this one starts inherit that. Imports only the standard library, so that `icl-lab --help` answers at once.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys

from icl_lab.core import compiler
from icl_lab.core.errors import DeviceError

DROPPED = (
    # Other random numbers for the same seed.
    "JAX_DEFAULT_PRNG_IMPL",
    "JAX_THREEFRY_PARTITIONABLE",
    "JAX_RANDOM_SEED_OFFSET",
    "JAX_ENABLE_CUSTOM_PRNG",
    "JAX_LEGACY_PRNG_KEY",
    "JAX_HIGH_DYNAMIC_RANGE_GUMBEL",
    # Another precision: the lab has scopes for it, and a key of the configuration.
    "JAX_ENABLE_X64",
    "JAX_EXPLICIT_X64_DTYPES",
    "JAX_DEFAULT_DTYPE_BITS",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_ALLOW_F16_REDUCTIONS",
    "JAX_NUMPY_DTYPE_PROMOTION",
    "JAX_NUMPY_RANK_PROMOTION",
    # Other compiled programs, or none.
    "JAX_DISABLE_JIT",
    "JAX_DISABLE_MOST_OPTIMIZATIONS",
    "JAX_OPTIMIZATION_LEVEL",
    "JAX_SOFTMAX_CUSTOM_JVP",
    "JAX_USE_DIRECT_LINEARIZE",
    "EAGER_CONSTANT_FOLDING",
    # Checks that stop a program: the lab looks for what is not finite itself, and says what it means.
    "JAX_DEBUG_NANS",
    "JAX_DEBUG_INFS",
    "JAX_DEBUG_KEY_REUSE",
    "JAX_CHECK_TRACER_LEAKS",
    "JAX_CHECK_STATIC_INDICES",
    "JAX_ENABLE_CHECKS",
    "JAX_ERROR_CHECKING_BEHAVIOR_NAN",
    "JAX_ERROR_CHECKING_BEHAVIOR_DIVIDE",
    "JAX_ERROR_CHECKING_BEHAVIOR_OOB",
    "JAX_NO_TRACING",
    "JAX_NO_EXECUTION",
    "JAX_TRANSFER_GUARD",
    "JAX_TRANSFER_GUARD_HOST_TO_DEVICE",
    "JAX_TRANSFER_GUARD_DEVICE_TO_DEVICE",
    "JAX_TRANSFER_GUARD_DEVICE_TO_HOST",
    "JAX_THREAD_GUARD",
    "JAX_ARRAY_GARBAGE_COLLECTION_GUARD",
)
QUIET = {
    "jax._src.xla_bridge": logging.WARNING,  # platforms that it looked for and this machine has not
    "matplotlib": logging.ERROR,  # the font cache of a first start, and lines of the user's own style
}


def settle() -> None:
    """Make the environment of this process and its children one that leaves the lab's results alone; before JAX is imported.

    Raises:
      DeviceError: the compiler refuses `XLA_FLAGS`, on which it would end this process without a word of ours.
    """
    for name in DROPPED:
        os.environ.pop(name, None)
    # The lab draws into files; a backend that is missing here, or opens windows, is for other programs.
    os.environ["MPLBACKEND"] = "agg"
    for name, level in QUIET.items():
        logging.getLogger(name).setLevel(level)
    # A name with a letter that the terminal has not is printed with an escape instead of an error.
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    flags = os.environ.get("XLA_FLAGS", "").replace(compiler.OWN_SUMS, "").strip()
    if flags and flags != os.environ.get(_CHECKED) and "jax" not in sys.modules:
        _check_flags(flags)
        os.environ[_CHECKED] = flags


_CHECKED = "ICL_LAB_CHECKED_XLA_FLAGS"
"""Tells the processes of a sweep or a verification that these flags are good."""


def _check_flags(flags: str) -> None:
    program = "from jaxlib import xla_client; xla_client.make_cpu_client()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, errors="replace")
    refusal = next((line for line in done.stderr.splitlines() if "XLA_FLAGS" in line), "")
    if done.returncode != 0 and refusal:
        words = refusal.rpartition("] ")[2]
        raise DeviceError(f"`XLA_FLAGS` must be flags of the XLA compiler; got {flags!r}, which it refuses: {words}.")
