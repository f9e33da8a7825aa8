"""Flags of the XLA compiler without which numbers are wrong; set when the package is imported, before a program is compiled.

jaxlib 0.10.2 and 0.11.0 hand sums on CPUs to another library. It leaves out parts of some of them, and others read memory that
nobody wrote (https://github.com/jax-ml/jax/issues/39103 and 39257): a batch of sums is silently wrong, or NaN in one process
and right in the next. The flag has XLA sum by itself, as in the releases before.
"""

from __future__ import annotations

import os

from jaxlib import version  # alone: metadata of packages take twenty times as long to import

WRONG_SUMS = ("0.10.2", "0.11.0")
"""Releases of jaxlib."""
NAME = "--xla_cpu_experimental_ynn_fusion_type"
OWN_SUMS = f"{NAME}=-reduce"


def settle() -> None:
    """Add the flag to `XLA_FLAGS`, where the release needs it and nobody has set it."""
    flags = os.environ.get("XLA_FLAGS", "")
    if NAME not in flags and version.__version__ in WRONG_SUMS:
        os.environ["XLA_FLAGS"] = f"{flags} {OWN_SUMS}".strip()
