"""Pytrees of arrays on disk, without pickle: one .npz whose entries are named by their tree path, plus a JSON header.

A file is written under a temporary name and renamed, so a kill at any moment leaves the old file or the new one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from icl_lab.core.errors import InvalidValueError

T = TypeVar("T")
HEADER = "__header__"


def save(path: Path | str, tree: Any, header: dict[str, Any] | None = None) -> None:
    """Write the array leaves of `tree` and a JSON-serialisable `header` to `path` (.npz), atomically; its folder is made."""
    path = Path(path)
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    arrays: dict[str, Any] = {jax.tree_util.keystr(p): np.asarray(_numbers(leaf)) for p, leaf in leaves}
    arrays[HEADER] = np.frombuffer(json.dumps(header or {}).encode(), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(path: Path | str, like: T) -> tuple[T, dict[str, Any]]:
    """The tree saved at `path`, in the structure of `like`, and its header.

    Raises:
      InvalidValueError: the file holds another structure; the message names the first entry that differs.
    """
    with np.load(Path(path), allow_pickle=False) as file:
        arrays = dict(file)
    header = json.loads(arrays.pop(HEADER).tobytes().decode())
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(p) for p, _ in leaves]
    if set(names) != set(arrays):
        differing = sorted(set(names) ^ set(arrays))[0]
        raise InvalidValueError(
            f"{path} does not hold the expected tree: entry {differing!r} is in only one of them "
            f"(file: {sorted(arrays)}, expected: {sorted(names)})."
        )
    # Random keys, which some optimisers carry, are kept as the numbers behind them.
    values = [
        jax.random.wrap_key_data(arrays[name], impl=jax.random.key_impl(leaf)) if _is_key(leaf) else arrays[name]
        for name, (_, leaf) in zip(names, leaves, strict=True)
    ]
    return jax.tree_util.tree_unflatten(structure, values), header


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _numbers(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf
