"""The run store: one folder a run, named by the hash of its resolved configuration, published by a single rename.

    <root>/<experiment>/<hash>/           a whole run; exists if and only if the run finished
    <root>/<experiment>/<hash>.failed/    what is left of a run that raised: status.json with the error and traceback
    <root>/<experiment>/.partial-*/       a run in progress, or what a killed process left; never read
    <root>/<experiment>/.going-on-<hash>/ the checkpoint of a long descent, for the process that goes on with it

A kill at any moment leaves a whole run or none. When two processes do the same run, the first rename wins and the loser
deletes its copy. What does not change a result (where runs are kept, how the series is called) is left out of the hash.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

SCHEMA_VERSION = 1
"""Version of the folder's contents, written into every `status.json`."""

NOT_HASHED = frozenset({"run_root", "experiment"})
"""Top-level configuration keys that place a run and do not change its result."""

_PARTIAL = re.compile(r"^\.partial-(?P<hash>[0-9a-f]+)-(?P<pid>\d+)-[0-9a-f]+@(?P<host>.+)$")


def config_hash(config: Mapping[str, Any]) -> str:
    """The name of a run: 16 hexadecimal digits of SHA-256 over the resolved configuration as canonical JSON.

    Keys are sorted and 1.0 equals 1, so the order of overrides and the spelling of a number do not matter.

    Args:
      config: the resolved configuration as plain dicts, lists and scalars; `NOT_HASHED` keys are ignored.
    """
    hashed = {key: value for key, value in config.items() if key not in NOT_HASHED}
    text = json.dumps(_canonical(hashed), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_folder(config: Mapping[str, Any]) -> Path:
    """The folder `<run_root>/<experiment>/<hash>` of a run, whether or not it exists."""
    return Path(config["run_root"]).absolute() / str(config["experiment"]) / config_hash(config)


def failed_folder(final: Path) -> Path:
    """Where the record of a failed attempt at the run `final` is kept."""
    return final.with_name(f"{final.name}.failed")


def checkpoint_file(final: Path) -> Path:
    """Where a run that may be killed leaves what another process can go on from; gone once the run is finished.

    Processes that do the same run write the same states there, each replacing the whole file.
    """
    return _checkpoint_folder(final) / "state.npz"


def is_finished(final: Path) -> bool:
    """Whether the run has been published (a folder under its final name is whole)."""
    if not (final / "status.json").is_file():
        return False
    # Left by a process that was killed while another one finished the run.
    shutil.rmtree(_checkpoint_folder(final), ignore_errors=True)
    return True


@contextlib.contextmanager
def partial_folder(final: Path) -> Iterator[Path]:
    """A fresh temporary folder beside `final`, removed on leaving unless it was published.

    Leftovers of processes of this machine that no longer exist are swept away first.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(final.parent)
    name = f".partial-{final.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}@{socket.gethostname()}"
    partial = final.with_name(name)
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish(partial: Path, final: Path) -> bool:
    """Give a whole run its final name.

    Returns:
      True if this process published it, False if another had published the same run before (whose folder stays).
    """
    first = True
    try:
        os.rename(partial, final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        first = False
    shutil.rmtree(failed_folder(final), ignore_errors=True)
    shutil.rmtree(_checkpoint_folder(final), ignore_errors=True)
    return first


def publish_failure(partial: Path, final: Path) -> Path:
    """Keep `partial` as the record of a failed attempt, in the place of an earlier one.

    Returns:
      The folder of the record.
    """
    target = failed_folder(final)
    shutil.rmtree(target, ignore_errors=True)
    # Another process may have failed in between; its record says the same thing, so it stays.
    with contextlib.suppress(OSError):
        os.rename(partial, target)
    return target


def remove_stale(parent: Path) -> list[Path]:
    """Delete the temporary folders under `parent` whose process ran on this machine and is gone.

    Returns:
      The folders deleted. Those of other machines, which cannot be asked, are left alone.
    """
    removed = []
    for folder in parent.glob(".partial-*"):
        match = _PARTIAL.match(folder.name)
        if match and match["host"] == socket.gethostname() and not _process_exists(int(match["pid"])):
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed


def run_folders(root: Path) -> list[Path]:
    """Every published or failed run below `root`, in the order of their names; hidden folders are not read."""
    found = (path.parent for path in root.rglob("status.json"))
    return sorted(folder for folder in found if not any(part.startswith(".") for part in folder.relative_to(root).parts))


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON in full precision.

    NaN and infinities become the strings "nan", "inf" and "-inf", a complex number {"real": x, "imag": y}.
    """
    path.write_text(json.dumps(_plain(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The content of a JSON file of a run folder."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write named arrays as `.npz`; refuses object arrays, which would need pickle."""
    plain = {name: np.asarray(array) for name, array in arrays.items()}
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **plain)  # pyright: ignore[reportArgumentType]


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file of a run folder."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _plain(value: Any) -> Any:
    """`value` with numpy scalars and arrays as Python numbers and lists, and what JSON has no number for as above."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, complex):
        return {"real": _plain(value.real), "imag": _plain(value.imag)}
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value


def _checkpoint_folder(final: Path) -> Path:
    return final.with_name(f".going-on-{final.name}")


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
