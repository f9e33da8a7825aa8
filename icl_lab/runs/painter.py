"""A process that draws figures for this one: matplotlib is plain Python, and would stand in the way of whatever else is."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from icl_lab.core.errors import in_words


class Painter:
    """Calls functions in a process of its own, one after the other; `painter` gives the one that all runs share.

    It starts at once, so that it is ready when there is something to draw.

    Raises:
      OSError: no process can be started.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # It finds what this process finds, and Ctrl-C is for this process to deal with.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,
        )
        atexit.register(self.stop)

    def begin(self, function: Callable[..., None], *arguments: Any) -> None:
        """Hand over a call.

        Args:
          function: of a module that can be imported.
          arguments: whatever pickle takes.
        """
        assert self._process.stdin is not None
        # Whole before the first byte is sent: what cannot be pickled leaves nothing in the pipe.
        self._process.stdin.write(pickle.dumps((function, arguments)))
        self._process.stdin.flush()

    def wait(self) -> str | None:
        """Wait for the oldest call that was begun and not waited for.

        Returns:
          What went wrong, in words, or None.
        """
        assert self._process.stdout is not None
        try:
            return pickle.load(self._process.stdout)
        except EOFError:
            return f"the process that draws ended with status {self._process.wait()}"

    def stop(self) -> None:
        """End the process, whatever it is at."""
        atexit.unregister(self.stop)
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # of what was not written yet
                pipe.close()


@functools.cache
def painter() -> Painter:
    """The painter of this process."""
    return Painter()


def stop() -> None:
    """End the painter of this process, if there is one; the next call of `painter` starts another."""
    if painter.cache_info().currsize:
        painter().stop()
        painter.cache_clear()


def serve() -> None:
    """The painter's side: call what comes in until there is no more, and say of each call how it ended."""
    with contextlib.suppress(ImportError):  # said by the call that needs it
        from icl_lab.report import house_style, run_figures  # noqa: F401  # while there is nothing to draw yet
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    while True:
        try:
            function, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        problem = None
        try:
            function(*arguments)
        except Exception as error:
            problem = in_words(error)
        pickle.dump(problem, answers)
        answers.flush()
