"""What a run was made with: versions, device, commit, precision in force, wall and compile time, peak memory."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import icl_lab

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "diffrax",
    "equinox",
    "optimistix",
    "lineax",
    "numpy",
    "scipy",
    "hydra-core",
)

_compile_seconds = {"total": 0.0, "listening": 0.0}


def describe() -> dict[str, Any]:
    """Versions, machine, device, commit and the precision in force where it is called."""
    import jax

    from icl_lab.core import devices

    device = devices.first()
    return {
        "icl_lab": icl_lab.__version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "cpus": os.cpu_count(),
        "precision": {
            "default_float": str(jax.numpy.result_type(float)),
            # A flag with a context manager is an attribute, which type checkers do not know.
            "matmul": getattr(jax.config, "jax_default_matmul_precision", None) or "default",
        },
        "git": git_state(Path(icl_lab.__file__).parent),
    }


def git_state(package: Path) -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout that holds the package's source, or None if it is an installed copy.

    A virtual environment inside some other repository must not lend that repository's commit, so the package's own
    `__init__.py` has to be a tracked file.
    """

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(package), *arguments], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = git("rev-parse", "HEAD")
    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


class Stopwatch:
    """Seconds spent in a block: `wall`, and those of the XLA compiler among them (`compile`; tracing not included)."""

    wall: float = 0.0
    compile: float = 0.0


@contextlib.contextmanager
def stopwatch() -> Iterator[Stopwatch]:
    """Time a block; the numbers are there when it is left."""
    _listen_to_compilation()
    watch = Stopwatch()
    started, compiled = time.perf_counter(), _compile_seconds["total"]
    try:
        yield watch
    finally:
        watch.wall = time.perf_counter() - started
        watch.compile = _compile_seconds["total"] - compiled


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far, in bytes; over the whole process, so a sweep's runs share it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _listen_to_compilation() -> None:
    """Add up the compile times that JAX reports; a listener cannot be taken off, so there is one a process."""
    if _compile_seconds["listening"]:
        return
    import jax

    def add(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            _compile_seconds["total"] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(add)
    _compile_seconds["listening"] = 1.0
