"""Ending the command line within seconds of SIGINT, SIGTERM or SIGHUP, whatever its main thread is doing.

Python runs a signal handler between two bytecodes of the main thread, and XLA can keep that thread from its next one for
minutes. So a thread of our own hears of the signal too: the main thread gets `GRACE` seconds to leave its work in good order,
then the process ends all the same. It ends by `os._exit`, since an interpreter torn down under a running computation crashes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
GRACE = 1.5
"""Seconds in which the main thread may leave its work by itself."""
LIMIT = 4.0
"""Seconds after which the process ends, whatever still waits (for the reader of a full pipe, for instance)."""

_SHOW_CURSOR = "\r\x1b[K\x1b[?25h"

_last_acts: list[Callable[[], str | None]] = []
_heard: list[int] = []
"""Signals that asked for the end, in the order in which a thread heard of them; the first one gives the exit status."""
_unwinding = threading.Event()
_ending = threading.Lock()


@contextlib.contextmanager
def at_stop(act: Callable[[], str | None]) -> Iterator[None]:
    """While the block runs, a signal that ends the command calls `act` first.

    Args:
      act: puts things in order and returns a clause that says what was kept, or None. It may be called from another thread
        while the block still runs, and must not wait for it.
    """
    _last_acts.append(act)
    try:
        yield
    finally:
        if not _heard:  # else `_end` calls it, after the block was left
            _last_acts.remove(act)


@contextlib.contextmanager
def guard() -> Iterator[None]:
    """Let signals end this process as the module says; to be opened once, in the main thread, by the command line itself.

    A signal that the parent process had ignored (`nohup`, a shell's background job) stays ignored.
    """
    handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    if not handled:
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in handled:
        signal.signal(number, _interrupt)
    threading.Thread(target=_watch, args=(read, frozenset(handled)), name="interruption", daemon=True).start()
    try:
        yield
    except BaseException:  # a KeyboardInterrupt, or what became of it on its way through somebody else's code
        if _heard:
            _end()
        raise
    if _heard:
        _end()


def _interrupt(number: int, _: object) -> None:
    """Unwind the main thread, once: an impatient second signal must not interrupt the putting in order."""
    _heard.append(number)
    if not _unwinding.is_set():
        _unwinding.set()
        raise KeyboardInterrupt


def _watch(read: int, handled: frozenset[int]) -> None:
    while True:
        number = os.read(read, 1)
        if number and number[0] in handled:
            break
    _heard.append(number[0])
    patience = threading.Timer(LIMIT, os._exit, [128 + number[0]])
    patience.daemon = True
    patience.start()
    time.sleep(GRACE)
    _end()


def _end() -> NoReturn:
    """Call the last acts, say on stderr what was kept, and end the process and those it started with 128 + signal."""
    if not _ending.acquire(blocking=False):
        while True:  # the other thread is at it
            time.sleep(LIMIT)
    _unwinding.set()
    number = _heard[0]
    _end_children()
    clauses = []
    for act in reversed(_last_acts):
        # The process ends in any case, and the other acts have their turn.
        with contextlib.suppress(Exception):
            clauses.append(act())
    kept = "; ".join(clause for clause in clauses if clause) or "nothing that was under way was kept"
    word = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    # A progress display may have hidden the cursor; the buffers of sys.stderr may be locked by the main thread.
    with contextlib.suppress(OSError):
        os.write(2, f"{_SHOW_CURSOR if os.isatty(2) else ''}icl-lab: {word}; {kept}.\n".encode(errors="replace"))
    os._exit(128 + number)


def _end_children() -> None:
    """Kill the processes started through `multiprocessing`, as the workers of claims and of Hydra's launchers are."""
    if "multiprocessing" in sys.modules:
        import multiprocessing

        for child in multiprocessing.active_children():
            with contextlib.suppress(Exception):
                child.kill()
