"""Places of results, tried before the work whose results go there; nothing is left of the trial."""

from __future__ import annotations

import os
from pathlib import Path

from icl_lab.core.errors import InvalidValueError


def try_file(path: str | Path, name: str) -> Path:
    """Find out whether a file can be written.

    Args:
      path: the file; replaced later, if it exists.
      name: what messages call it, as the user wrote it ("--json").

    Returns:
      The path.

    Raises:
      InvalidValueError: the path is empty or a folder, or the system refuses to write there.
    """
    target = Path(path)
    if not str(path):
        raise InvalidValueError(f"`{name}` must name a file; got ''.")
    if target.is_dir():
        raise InvalidValueError(f"`{name}` must name a file; got the folder {str(path)!r}.")
    if not target.absolute().parent.is_dir():
        raise InvalidValueError(f"the folder of `{name}` must exist; got {str(path)!r}.")
    try:
        if not target.exists():
            target.touch(exist_ok=False)
            target.unlink()
        elif target.is_file():
            target.open("ab").close()
        elif not os.access(target, os.W_OK):  # a pipe or a device, which opening might block or set going
            raise PermissionError(None, "Permission denied")
    except OSError as error:
        raise _refused(name, path, error) from None
    return target


def try_folder(path: Path, file: str, name: str) -> None:
    """Find out whether a folder can be made, if there is none, and a file be written in it.

    Args:
      path: the folder.
      file: the name of the file.
      name: what messages call the folder, as the user wrote it ("-o").

    Raises:
      InvalidValueError: the path is empty or a file, or the system refuses to write there.
    """
    if path.exists() and not path.is_dir():
        raise InvalidValueError(f"`{name}` must be a folder, in which {file} is written; got the file {str(path)!r}.")
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    made: list[Path] = []
    try:
        for folder in reversed(missing):
            folder.mkdir()
            made.append(folder)
        try_file(path / file, name)
    except OSError as error:
        raise _refused(name, path, error) from None
    finally:
        for folder in reversed(made):
            folder.rmdir()


def _refused(name: str, path: str | Path, error: OSError) -> InvalidValueError:
    return InvalidValueError(f"`{name}` must be a place that can be written; got {str(path)!r}: {error.strerror}.")
