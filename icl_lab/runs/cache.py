"""JAX's persistent compilation cache: a program compiled once starts at once in the next process.

The command line switches it on, everybody else by `icl_lab.enable_cache()`. Everything is set by environment variables, and
only those that the user has not set, so that the processes of a launcher inherit them; where JAX is imported already, its
configuration is set as well. `JAX_ENABLE_COMPILATION_CACHE=false` turns the cache off.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = "JAX_COMPILATION_CACHE_DIR"
SWITCH = "JAX_ENABLE_COMPILATION_CACHE"
MAX_BYTES = 2**30
"""Size above which the entries written longest ago are deleted, when a process starts."""
DEFAULTS = {
    # Small programs too: dozens that compile in a tenth of a second each make up a good part of a run's start.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    # JAX stores no program that calls back into Python, as the ODE solver's check of its time span does; the library checks
    # what it passes and every result itself.
    "EQX_ON_ERROR": "off",
}


def enable() -> Path | None:
    """Switch the cache on for this process and its children.

    Call it before JAX is imported: programs with an ODE solver are stored only then.

    Returns:
      The folder, or None if the cache is switched off or its folder cannot be written.
    """
    folder = location()
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    if FOLDER not in os.environ:
        # A folder of the user's own is the user's to keep in bounds.
        prune(folder, MAX_BYTES)
    os.environ[FOLDER] = str(folder)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if "jax" in sys.modules:
        import jax

        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update(
            "jax_persistent_cache_min_compile_time_secs", float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"])
        )
        jax.config.update(
            "jax_persistent_cache_min_entry_size_bytes", int(os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"])
        )
    if not isinstance(warnings.showwarning, _Mend):
        warnings.showwarning = _Mend(folder, warnings.showwarning)
    return folder


def location() -> Path | None:
    """Where compiled programs are kept, or None if `JAX_ENABLE_COMPILATION_CACHE` says no.

    That is `JAX_COMPILATION_CACHE_DIR`, else a folder of `XDG_CACHE_HOME` or `~/.cache`. Programs are compiled for the
    processor they are compiled on, so machines that share a home folder have folders of their own in it.
    """
    if os.environ.get(SWITCH, "").lower() in ("0", "false", "no", "off", "f", "n"):
        return None
    if os.environ.get(FOLDER):
        return Path(os.environ[FOLDER])
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no home folder
        return None
    return home / "icl-lab" / f"compiled-{_processor()}"


def prune(folder: Path, max_bytes: int) -> None:
    """Delete the entries written longest ago until the rest is below `max_bytes`; other processes may be using them."""
    entries = []
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            entries.append((entry.stat().st_mtime, entry.stat().st_size, entry.path))
    excess = sum(size for _, size, _ in entries) - max_bytes
    for _, size, path in sorted(entries):
        if excess <= 0:
            return
        Path(path).unlink(missing_ok=True)
        excess -= size


class _Mend:
    """Shows warnings, except that of an entry which cannot be read: that is deleted, so that JAX compiles and stores it anew.

    A process that is killed while it writes an entry leaves half of it, which JAX neither uses nor replaces.
    """

    def __init__(self, folder: Path, show: Callable[..., None]) -> None:
        self.folder, self.show = folder, show

    def __call__(self, message: Warning | str, *args: Any, **kwargs: Any) -> None:
        unreadable = re.match(r"Error reading persistent compilation cache entry for '([^']+)'", str(message))
        if unreadable is None:
            self.show(message, *args, **kwargs)
            return
        for entry in self.folder.glob(f"{glob.escape(unreadable[1])}-*-cache"):
            entry.unlink(missing_ok=True)


def _processor() -> str:
    """A short name of the kind of processor, by its instruction sets where the system lists them."""
    described = platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        described += next((line for line in file if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(described.encode()).hexdigest()[:8]
