"""Whether the process that works in a folder is alive, asked from another process, PID namespace (container) or host.

The owner holds an advisory lock on its folder, which the kernel drops however the owner ends and which is seen across PID
namespaces; it touches the folder every `HEARTBEAT` seconds; and the folder's name says where it runs. A folder counts as dead
only on evidence that no living owner gives:

    lock held                                                     alive
    same kernel and file system, lock free                        dead, once the owner has had `GRACE` seconds to take it
    same kernel and PID namespace, no such process                dead
    another kernel, or a file system without (common) locks       dead after `SILENCE` seconds without a heartbeat
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:  # Windows: heartbeats and process numbers decide
    fcntl = None

HEARTBEAT = 60.0
GRACE = 2.0
SILENCE = 86400.0
"""A day, since the clocks of hosts differ and schedulers suspend jobs for hours."""

_OWNER = re.compile(r"(?P<pid>\d+)-[0-9a-f]+@(?P<host>[^+]+)(?:\+(?P<boot>[^+]*)\+(?P<namespace>[^+]*)\+(?P<device>[^+]*))?")


def owner(parent: Path) -> str:
    """A name that no other process has, for the owner of a folder in `parent`, with what `is_dead` needs to know."""
    place = "+".join((socket.gethostname(), _boot(), _namespace(), f"{parent.stat().st_dev:x}"))
    return f"{os.getpid()}-{uuid.uuid4().hex[:8]}@{place}"


@contextlib.contextmanager
def kept_alive(folder: Path) -> Iterator[None]:
    """Hold the lock on a folder and touch it now and then, under whatever name it has, until the block is left."""
    descriptor = os.open(folder, os.O_RDONLY)
    stopped = threading.Event()

    def beat() -> None:
        while not stopped.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                os.utime(descriptor)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    try:
        _lock(descriptor)
        thread.start()
        yield
    finally:
        stopped.set()
        thread.join()
        os.close(descriptor)


def is_dead(folder: Path, name: str) -> bool:
    """Whether the process called `name` (see `owner`) that works in `folder` is surely gone."""
    match = _OWNER.fullmatch(name)
    if match is None:
        return False
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            lock, state = _lock(descriptor), os.fstat(descriptor)
        finally:
            os.close(descriptor)
    except OSError:  # removed in between, or another user's
        return False
    if lock is False:
        return False
    exists = _process_exists(int(match["pid"]))
    if match["boot"] is None:  # of a version that wrote the host and locked nothing
        return match["host"] == socket.gethostname() and not exists
    age = time.time() - state.st_mtime
    if (match["boot"] or match["host"]) != (_boot() or socket.gethostname()):
        return age > SILENCE
    if match["namespace"] == _namespace() and not exists:
        return True
    if lock and match["device"] == f"{state.st_dev:x}":
        return age > GRACE
    return match["namespace"] != _namespace() and age > SILENCE


def _lock(descriptor: int) -> bool | None:
    """Take the lock if it is free: whether it was, or None where the file system has none."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _boot() -> str:
    """The boot of the kernel, the same in all its containers, which have host names of their own; empty if unknown."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _namespace() -> str:
    """The PID namespace, empty where there is only one."""
    with contextlib.suppress(OSError):
        return re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
    return ""


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
