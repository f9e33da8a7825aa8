"""The run store: one folder a run, named by the hash of its resolved configuration, published by a single rename.

    <root>/<experiment>/<hash>/           a whole run; exists if and only if the run finished
    <root>/<experiment>/<hash>.failed/    what is left of a run that raised: status.json with the error and traceback
    <root>/<experiment>/.partial-*/       a run in progress, or what a killed process left; never read
    <root>/<experiment>/.going-on-<hash>/ the checkpoint of a long descent, for the process that goes on with it

A kill at any moment leaves a whole run or none. When two processes do the same run, the first rename wins and the loser
deletes its copy. What the dead leave is swept by the next process, on any host or in any container that shares the root
(`liveness`). What does not change a result (where runs are kept, how the series is called) is left out of the hash.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from icl_lab.core import interruption
from icl_lab.runs import liveness, records

SCHEMA_VERSION = 1
"""Version of the folder's contents, written into every `status.json`."""

NOT_HASHED = frozenset({"run_root", "experiment"})
"""Top-level configuration keys that place a run and do not change its result."""

_PARTIAL = re.compile(r"\.partial-(?P<hash>[0-9a-f]+)-(?P<owner>.+)")
_CHECKPOINT = ".going-on-"


def config_hash(config: Mapping[str, Any]) -> str:
    """The name of a run: 16 hexadecimal digits of SHA-256 over the resolved configuration as canonical JSON.

    Keys are sorted and 1.0 equals 1, so the order of overrides and the spelling of a number do not matter.

    Args:
      config: the resolved configuration as plain dicts, lists and scalars; `NOT_HASHED` keys are ignored.

    Examples:
      >>> from icl_lab.runs import store
      >>> store.config_hash({"task": {"dim": 2}, "seed": 0}) == store.config_hash({"seed": 0, "task": {"dim": 2.0}})
      True
      >>> len(store.config_hash({"seed": 0}))
      16
    """
    hashed = {key: value for key, value in config.items() if key not in NOT_HASHED}
    text = json.dumps(_canonical(hashed), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_folder(config: Mapping[str, Any]) -> Path:
    """The folder `<run_root>/<experiment>/<hash>` of a run, whether or not it exists."""
    return Path(config["run_root"]).expanduser().absolute() / str(config["experiment"]) / config_hash(config)


def failed_folder(final: Path) -> Path:
    """Where the record of a failed attempt at the run `final` is kept."""
    return final.with_name(f"{final.name}.failed")


def checkpoint_file(final: Path) -> Path:
    """Where a run that may be killed leaves what another process can go on from; gone once the run is finished.

    Processes that do the same run write the same states there, each replacing the whole file.
    """
    return _checkpoint_folder(final) / "state.npz"


def is_finished(final: Path) -> bool:
    """Whether the run has been published (a folder under its final name is whole).

    Raises:
      DamagedRunError: there is such a folder, and a file in it cannot be read.
    """
    if not (final.is_dir() and any(final.iterdir())):
        return False
    records.check(final)
    return True


@contextlib.contextmanager
def partial_folder(final: Path) -> Iterator[Path]:
    """A fresh temporary folder beside `final`, removed on leaving unless it was published.

    What the dead left there is swept first.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(final.parent)
    partial = final.with_name(f".partial-{final.name}-{liveness.owner(final.parent)}")

    def leave() -> str | None:
        shutil.rmtree(partial, ignore_errors=True)
        checkpoint = checkpoint_file(final)
        return f"the run goes on from its checkpoint {checkpoint} when it is asked for again" if checkpoint.is_file() else None

    partial.mkdir()
    try:
        with interruption.at_stop(leave), liveness.kept_alive(partial):
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
    # Another process that does the same run may be about to write its next checkpoint; the last one clears up.
    if not any(other != partial for other in final.parent.glob(f".partial-{final.name}-*")):
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
    """Delete the temporary folders under `parent` whose process is surely gone, and checkpoints of runs that need none.

    Returns:
      The folders deleted.
    """
    removed, at_work = [], set()
    for folder in parent.glob(".partial-*"):
        match = _PARTIAL.fullmatch(folder.name)
        if match is None:
            continue
        if liveness.is_dead(folder, match["owner"]):
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
        else:
            at_work.add(match["hash"])
    for folder in parent.glob(f"{_CHECKPOINT}*"):
        run = folder.name.removeprefix(_CHECKPOINT)
        if run not in at_work and (parent / run / "status.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed


def run_folders(root: Path) -> list[Path]:
    """Every published or failed run below `root`, in the order of their names; hidden folders are not read."""
    found = (path.parent for path in root.rglob("status.json"))
    return sorted(folder for folder in found if not any(part.startswith(".") for part in folder.relative_to(root).parts))


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _checkpoint_folder(final: Path) -> Path:
    return final.with_name(f"{_CHECKPOINT}{final.name}")
