"""One class for each kind of mistake a user can make; every message names the value, the accepted range and the reason.

All derive from `IclLabError` and from the built-in exception that fits, so `except ValueError` works as expected. What is
known only after running (did the flow converge?) is never raised: it is a verdict, see `training.stopping`.
"""

from __future__ import annotations

import errno
import re

_MISUSED_PATH = frozenset(
    getattr(errno, name)
    for name in (
        "ENOENT",
        "ENOTDIR",
        "EISDIR",
        "EEXIST",
        "EACCES",
        "EPERM",
        "EROFS",
        "ENAMETOOLONG",
        "ELOOP",
        "EINVAL",
        "ENXIO",
    )
)
"""What the system answers to a path that the user can mend; a full or broken disk is no misuse."""


class IclLabError(Exception):
    """Base of every error the lab raises on purpose; the command line turns it into one sentence and exit status 2."""


class InvalidValueError(IclLabError, ValueError):
    """A number, shape or name outside the accepted range. Remedy: the range is in the message."""


class NotPositiveDefiniteError(InvalidValueError):
    """A covariance that is not symmetric positive definite. Remedy: symmetrise it, or raise its smallest eigenvalue."""


class DamagedRunError(IclLabError, ValueError):
    """A file of a run folder that is empty, cut or not the lab's. Remedy: delete the folder and do the run again."""


class UnsupportedProblemError(IclLabError, ValueError):
    """A closed form was asked for outside the conditions under which it is proved. Remedy: sample instead."""


class AssumptionError(IclLabError, ValueError):
    """An initialisation or a setting outside a theorem's assumption, which the message names."""


class MemoryBudgetError(IclLabError, MemoryError):
    """A computation would need more memory than allowed; the message names how much."""


class NonFiniteError(IclLabError, ValueError):
    """A NaN or an infinity in a prompt or in weights that must be finite."""


class DeviceError(IclLabError, RuntimeError):
    """No device to compute on, or flags that the compiler refuses. Remedy: the variable is in the message."""


class PrecisionError(IclLabError, RuntimeError):
    """The computation needs float64 and would run in a lower precision. Remedy: open `precision.float64()`."""


def mistake_in(error: Exception) -> Exception:
    """The user's mistake behind an exception of the system or the device; the exception itself if there is none.

    Such mistakes are a place that cannot be read or written, and an array that no memory holds.
    """
    if isinstance(error, IclLabError):
        return error
    if isinstance(error, OSError) and error.filename is not None and error.errno in _MISUSED_PATH:
        return InvalidValueError(
            f"{str(error.filename)!r} cannot be used: {error.strerror}. Name a place that you may read and write."
        )
    if asked := re.search(r"Out of memory (?:while trying to allocate|allocating) (\d+) bytes", str(error)):
        return MemoryBudgetError(
            f"an array of {int(asked[1]) / 1e9:,.1f} GB is needed, which is more than the device has left. "
            "Choose a shorter context, a smaller dimension or fewer prompts."
        )
    if isinstance(error, MemoryError):
        return MemoryBudgetError(f"{error}. Choose a smaller dimension or a shorter context.")
    return error


def in_words(error: Exception) -> str:
    """What a record says of an exception: the sentence of a mistake, and of any other its kind and its message."""
    mistake = mistake_in(error)
    return str(mistake) if isinstance(mistake, IclLabError) else f"{type(error).__name__}: {error}"
