"""Standard output and error of the command line: a reader that has gone away (`| head -1`) is no error of ours.

What a command says after that is dropped, and its exit status is what it would have been. A full disk is no crash either, but
it is told at the end.
"""

from __future__ import annotations

import io
import os
import sys

_failed: list[OSError] = []


class _Dropping(io.FileIO):
    """A file that goes on as the null device once it cannot be written any more."""

    def write(self, data, /) -> int | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            return super().write(data)
        except BlockingIOError:
            raise
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                _failed.append(error)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return memoryview(data).nbytes


def outlive_readers() -> None:
    """Make sys.stdout and sys.stderr drop what nobody reads any more, for good; one that is closed becomes the null device."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        before = getattr(sys, name)
        if before is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(before, io.TextIOWrapper) and not isinstance(getattr(before.buffer, "raw", None), _Dropping):
            before.flush()
            buffered = io.BufferedWriter(_Dropping(descriptor, "w", closefd=False))
            settings = {"encoding": before.encoding, "errors": before.errors, "line_buffering": before.line_buffering}
            setattr(sys, name, io.TextIOWrapper(buffered, write_through=before.write_through, **settings))


def failure() -> OSError | None:
    """The error by which output was lost, such as a full disk; None if nothing was lost but what a reader left unread."""
    sys.stdout.flush()
    sys.stderr.flush()
    return _failed[0] if _failed else None
