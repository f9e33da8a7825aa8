"""The files of a run folder: strict JSON, YAML and arrays without pickle, each read with the shape that the lab writes.

A file that is empty, cut or somebody else's is a `DamagedRunError` that names it, whatever was wrong with it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from icl_lab.config import yaml12
from icl_lab.config.schema import GROUPS
from icl_lab.core.errors import DamagedRunError


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON in full precision.

    NaN and infinities become the strings "nan", "inf" and "-inf", a complex number {"real": x, "imag": y}.
    """
    path.write_text(json.dumps(_plain(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The content of a JSON file of a run folder.

    Raises:
      DamagedRunError: it is missing, cut or no JSON.

    Examples:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from icl_lab.runs import records
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     records.write_json(Path(folder) / "metrics.json", {"risk": 0.25, "bound": float("inf")})
      ...     records.read_json(Path(folder) / "metrics.json")
      {'risk': 0.25, 'bound': 'inf'}
    """
    with _reading(path):
        return json.loads(path.read_bytes())


def read_status(folder: Path) -> dict[str, Any]:
    """What status.json says, with a text under `status`.

    Raises:
      DamagedRunError: the file says no such thing.
    """
    path = folder / "status.json"
    status = mapping(path, read_json(path), ("status",))
    _check_texts(path, status, ("status",))
    return status


def read_metrics(folder: Path) -> dict[str, Any]:
    """What metrics.json says of a run that ended, with all that a comparison is shown with.

    Raises:
      DamagedRunError: the file is not what a run writes.
    """
    path = folder / "metrics.json"
    metrics = mapping(path, read_json(path), ("warnings", "theory", "comparison"))
    for name, row in mapping(path, metrics["comparison"], (), "`comparison`").items():
        mapping(path, row, ("risk", "standard_error"), f"`comparison.{name}`")
    if metrics["theory"] is not None:
        mapping(path, metrics["theory"], ("name", "source", "weight_distance", "risk"), "`theory`")
    return metrics


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved configuration of a run, as it was written.

    Raises:
      DamagedRunError: config.yaml is not what a run writes.
    """
    path = folder / "config.yaml"
    with _reading(path):
        config = _load_by_key(path.read_text(encoding="utf-8"))
    for name in GROUPS:
        mapping(path, config.get(name, {}), (), f"`{name}`")
    return config


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write named arrays as `.npz`; refuses object arrays, which would need pickle."""
    plain = {name: np.asarray(array) for name, array in arrays.items()}
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **plain)  # pyright: ignore[reportArgumentType]


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file of a run folder.

    Raises:
      DamagedRunError: it is missing or cut, or no archive of arrays.
    """
    _check_archive(path)
    with _reading(path), np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def check(folder: Path) -> None:
    """Raise `DamagedRunError` unless every file of a run that ended is there and can be read."""
    _check_texts(folder / "status.json", read_status(folder), ("verdict", "reason"))
    read_metrics(folder)
    read_config(folder)
    for name in ("weights.npz", "trajectory.npz"):
        _check_archive(folder / name)


def _check_archive(path: Path) -> None:
    """Raise `DamagedRunError` unless the directory at the end of an archive can be read and lists arrays."""
    with _reading(path), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if not names or not all(name.endswith(".npy") for name in names):
        raise DamagedRunError(f"{path} is damaged: it holds no arrays.")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Errors of reading a file of a run folder as a `DamagedRunError` that names it."""
    try:
        if path.is_file() and not path.stat().st_size:
            raise DamagedRunError(f"{path} is damaged: it is empty.")
        yield
    except FileNotFoundError:
        raise DamagedRunError(f"{path} is missing from its run folder.") from None
    except (OSError, ValueError, EOFError, yaml.YAMLError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, DamagedRunError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DamagedRunError(f"{path} is damaged: {reason}.") from None


def mapping(path: Path, value: Any, keys: Sequence[str] = (), what: str = "it") -> dict[str, Any]:
    """`value`, if it is a mapping with the `keys` that readers of the file at `path` rely on; else `DamagedRunError`."""
    if not isinstance(value, dict):
        raise DamagedRunError(f"{path} is damaged: {what} must be a mapping; got {type(value).__name__}.")
    missing = [key for key in keys if key not in value]
    if missing:
        raise DamagedRunError(f"{path} is damaged: {what} lacks {', '.join(missing)}.")
    return value


def _check_texts(path: Path, content: dict[str, Any], keys: Sequence[str]) -> None:
    for key in keys:
        if not isinstance(content.get(key), str):
            raise DamagedRunError(f"{path} is damaged: `{key}` must be a text; got {content.get(key)!r}.")


def _load_by_key(text: str) -> dict[str, Any]:
    """YAML read key by key of the top level, since the runs of a sweep have most of them in common and YAML is slow."""
    config: dict[str, Any] = {}
    for entry in re.split(r"(?m)^(?=\w)", text):
        content = _load_entry(entry)
        if not isinstance(content, dict):
            raise ValueError(f"a mapping must be there; got {type(content).__name__}")
        config |= content
    return config


@functools.lru_cache(maxsize=4096)
def _load_entry(text: str) -> Any:
    return yaml12.load(text) if text.strip() else {}


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
