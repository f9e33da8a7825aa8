"""Compiled programs are discarded before a process has too many.

JAX keeps every program it has compiled. One of a flow has some forty memory maps, of which Linux allows a process 65,530, and
leaves megabytes with malloc, so that some hundred claims end in gigabytes or in a crash of the compiler. The library looks at
the size of the process whenever its outermost float64 scope ends. A program that was discarded is compiled again when it is
needed, to the same result. Sizes are read from /proc; where there is none, nothing is discarded.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import sys
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer


class Size(NamedTuple):
    """Memory maps of this process, and its resident memory in bytes."""

    maps: int
    resident: int


GROWTH = Size(6_000, 3 * 2**28)
"""By how much a process may grow, from the size it had when programs were last let go of, before they are again."""
PAUSE = 0.5
"""Seconds between two looks at the size, which takes milliseconds."""

_lock = threading.Lock()
_open = 0
_base = Size(0, 0)
_looked = 0.0


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Scope of work that compiles: when the last open one in the process ends, compiled programs may be discarded."""
    global _open
    with _lock:
        _open += 1
    try:
        yield
    finally:
        with _lock:
            _open -= 1
    if _open == 0:
        keep_bounded()


def keep_bounded() -> None:
    """Discard all compiled programs if the process has grown by more than `GROWTH`; inside a transformation, do nothing."""
    global _base, _looked
    if time.monotonic() < _looked + PAUSE:
        return
    now = size()
    if now.resident > _base.resident + GROWTH.resident:
        _trim()  # often enough
        now = size()
    # What was freed since is not to be filled up by programs.
    _base = Size(*map(min, _base, now))
    grown = any(x > base + more for x, base, more in zip(now, _base, GROWTH, strict=True))
    # Functions that are being traced stand in the caches that would be emptied.
    if grown and not isinstance(jnp.zeros(()), Tracer):
        let_go()
        _base = size()
    _looked = time.monotonic()


def let_go() -> None:
    """Empty JAX's caches of compiled programs and give their memory back to the system."""
    gc.collect()
    jax.clear_caches()
    _trim()


def size() -> Size:
    """The size of this process; zero where the system does not tell."""
    try:
        with open("/proc/self/maps", "rb") as maps, open("/proc/self/statm", "rb") as pages:
            return Size(maps.read().count(b"\n"), int(pages.read().split()[1]) * mmap.PAGESIZE)
    except FileNotFoundError:
        return Size(0, 0)


def _trim() -> None:
    """Give back what malloc holds free in all its arenas; only glibc can."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
