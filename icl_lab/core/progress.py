"""What the process is doing, said on stderr: nothing that somebody waits for is silent for more than ten seconds.

Work says which of its phases it is in (`with phase("drawing prompts"): ...`), which costs next to nothing while nobody
listens. A `display` listens, with a thread of its own, so that it speaks by the clock: while the main thread imports,
compiles or computes, too. On a terminal a line with a bar appears after `PATIENCE` seconds and is kept up to date; elsewhere
a plain line is written every `INTERVAL` seconds.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 2.0
"""Seconds before a terminal shows anything."""
INTERVAL = 6.0
"""Seconds between plain lines, and before the first: a busy machine may be late by some more."""
FRAME = 0.2
"""Seconds between two drawings of the line on a terminal."""
SPINNER = "|/-\\"
COMPILATION = "/jax/core/compile/backend_compile_duration"

_phases: list[Phase] = []
"""Those under way, outermost first."""
_compiling: dict[int, float] = {}
"""Thread -> when it called the compiler."""
_displays: list[_Display] = []
"""The one display of the process, if there is one."""
_one_display = threading.Lock()
_listening = threading.Event()


class Phase(contextlib.ContextDecorator):
    """A named part of the work, from entry to exit.

    Attributes:
      name: what is being done, in a word or two; any text.
      done, total: how much of how much, or None.
      detail: numbers worth showing.
    """

    def __init__(self, name: str, total: int | None = None):
        self.name, self.total = name, total
        self.done: int | None = None
        self.detail = ""
        self.since, self.thread = time.monotonic(), threading.get_ident()

    def _recreate_cm(self) -> Phase:
        # A decorated function may be called again before it has returned.
        return Phase(self.name, self.total)

    def __enter__(self) -> Phase:
        _listen_to_compiler()
        self.since, self.thread = time.monotonic(), threading.get_ident()
        _phases.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        under_way = tuple(_phases)
        if self in under_way:
            # With it end those inside it that an exception left behind in a generator, which lives as long as its traceback.
            for inside in under_way[under_way.index(self) :]:
                if inside.thread == self.thread:
                    with contextlib.suppress(ValueError):
                        _phases.remove(inside)

    def update(self, done: int | None = None, detail: str = "") -> None:
        """Say how far the phase is."""
        self.done, self.detail = done, detail

    def words(self, now: float) -> str:
        """Name, counts, seconds and detail in one clause."""
        counts = "" if self.done is None else f" {self.done}" + (f" of {self.total}" if self.total else "")
        return f"{self.name}{counts}, {seconds_in_words(now - self.since)}" + (f", {self.detail}" if self.detail else "")


phase = Phase
"""`with phase(name, total) as shown:` round a part of the work, or `@phase(name)` before a function that is one."""


def each(name: str, items: Iterable[T], total: int | None = None) -> Iterator[T]:
    """The items one after another, as a phase that counts those that are done; `total` where they have no length."""
    with phase(name, len(items) if isinstance(items, Sized) else total) as shown:
        for done, item in enumerate(items):
            shown.update(done)
            yield item


@contextlib.contextmanager
def display(label: str, enabled: bool = True) -> Iterator[None]:
    """Show on stderr what the process is doing, for the length of the block. Within another display it adds nothing.

    Args:
      label: what is said outside of any phase.
      enabled: False shows nothing.
    """
    shown = None
    with _one_display:
        if enabled and not _displays and sys.stderr is not None:
            shown = _Display(label)
            _displays.append(shown)
    if shown is None:
        yield
        return
    try:
        shown.start()
        yield
    finally:
        shown.stop()
        _displays.remove(shown)


class _Display:
    """The thread that says what is going on, and on a terminal the line that it draws."""

    def __init__(self, label: str):
        self.label, self.since = label, time.monotonic()
        self.ended = threading.Event()
        self.on_terminal = sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
        self.stderr = sys.stderr
        self.drawing = threading.RLock()
        self.visible = self.within_line = False
        self.watched: list[tuple[str, _Watched]] = []
        self.thread = threading.Thread(target=self._run, name="icl_lab progress", daemon=True)

    def start(self) -> None:
        if self.on_terminal:
            for name in ("stdout", "stderr"):
                stream = getattr(sys, name)
                if stream is not None and stream.isatty():
                    self.watched.append((name, _Watched(stream, self)))
                    setattr(sys, name, self.watched[-1][1])
        self.thread.start()

    def stop(self) -> None:
        """End the display; without waiting for a reader of stderr that has stopped reading."""
        self.ended.set()
        if self.drawing.acquire(timeout=1.0):
            with contextlib.suppress(OSError, ValueError):
                self.erase()
            self.drawing.release()
        for name, watched in self.watched:
            if getattr(sys, name) is watched:
                setattr(sys, name, watched.stream)
        self.thread.join(timeout=1.0)

    def _run(self) -> None:
        # Nobody reads stderr any more, or it was closed: there is nobody to say anything to.
        with contextlib.suppress(OSError, ValueError):
            if self.on_terminal:
                self._draw()
                return
            while not self.ended.wait(INTERVAL):
                self._write(f"icl-lab: {_printable(self.words())}\n")

    def words(self) -> str:
        """What is going on, from the whole to its parts."""
        now = time.monotonic()
        clauses = [phase.words(now) for phase in tuple(_phases)] or [f"{self.label}, {seconds_in_words(now - self.since)}"]
        started = min(list(_compiling.values()), default=now)
        if now - started > 1.0:
            clauses.append(f"compiling, {seconds_in_words(now - started)}")
        return "; ".join(clauses)

    def _draw(self) -> None:
        if self.ended.wait(PATIENCE):
            return
        from rich.console import Console

        console, frame = Console(stderr=True), 0
        while not self.ended.wait(FRAME):
            frame += 1
            line = self._rendered(console, SPINNER[frame % len(SPINNER)])
            with self.drawing:
                if not (self.within_line or self.ended.is_set()):
                    self._write(f"\r\x1b[2K{line}")
                    self.visible = True

    def _rendered(self, console: Any, spinner: str) -> str:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        line = Table.grid(padding=(0, 1))
        cells: list[Any] = [Text(spinner)]
        counted = [phase for phase in tuple(_phases) if phase.total and phase.done is not None]
        if counted:
            cells.append(ProgressBar(total=counted[0].total, completed=counted[0].done or 0, width=24))
        cells.append(Text(_printable(self.words()), no_wrap=True, overflow="ellipsis"))
        line.add_row(*cells)
        with console.capture() as captured:
            # A line of the full width would wrap, and the next drawing leave half of it.
            console.print(line, width=max(console.width - 1, 10))
        return captured.get().splitlines()[0].rstrip() if captured.get() else ""

    def erase(self) -> None:
        """Take the line off the terminal, before something else is written there."""
        if self.visible:
            self.visible = False
            self._write("\r\x1b[2K")

    def _write(self, text: str) -> None:
        encoded = text.encode(getattr(self.stderr, "encoding", None) or "utf-8", errors="replace")
        if isinstance(self.stderr, io.TextIOWrapper):
            # Past the buffer: its lock, held by this thread in a full pipe, would keep the interpreter from ending.
            with contextlib.suppress(io.UnsupportedOperation):
                os.write(self.stderr.fileno(), encoded)
                return
        self.stderr.write(text)
        self.stderr.flush()


class _Watched:
    """Standard output or error on a terminal that shares it with the line of a display: the line makes room for other text."""

    def __init__(self, stream: Any, display: _Display):
        self.stream, self._display = stream, display

    def write(self, text: str) -> int:
        with self._display.drawing:
            with contextlib.suppress(OSError, ValueError):
                self._display.erase()
            if text:
                self._display.within_line = not text.endswith("\n")
            return self.stream.write(text)

    def writelines(self, lines: Any) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _listen_to_compiler() -> None:
    """Note when JAX calls its compiler; a listener cannot be taken off in every version, so there is one a process."""
    monitoring = getattr(sys.modules.get("jax"), "monitoring", None)
    if monitoring is None or _listening.is_set():
        return
    _listening.set()

    def begun(event: str, *_: Any, **__: Any) -> None:
        if event == COMPILATION:
            _compiling[threading.get_ident()] = time.monotonic()

    def ended(event: str, *_: Any, **__: Any) -> None:
        if event == COMPILATION:
            _compiling.pop(threading.get_ident(), None)

    # JAX reports the beginning as a scalar and the end as a duration.
    monitoring.register_scalar_listener(begun)
    monitoring.register_event_duration_secs_listener(ended)


def seconds_in_words(seconds: float) -> str:
    """`seconds` as in "2 min 5 s"."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _printable(text: str) -> str:
    """Names come from users' files: no line break and no control sequence of theirs reaches a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)
