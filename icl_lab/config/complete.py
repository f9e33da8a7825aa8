"""The configuration of a stored run, with the keys that its version of the lab did not have yet.

A key is added with the default that means what the lab did before it, so records of schema version 1 are completed from the
YAML files. A later version that changes the meaning of a default keeps the old one here, under the version it held for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from icl_lab.config import yaml12
from icl_lab.config.paths import config_dir
from icl_lab.config.schema import GROUPS
from icl_lab.core.errors import InvalidValueError


def complete(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A stored configuration with every missing key at its default: that on which all YAML files of the group's kind agree.

    Args:
      config: plain values, as in config.yaml.
      where: what messages call it.

    Raises:
      InvalidValueError: a group that is missing or of no known kind.
    """
    primary = yaml12.load((config_dir() / "run.yaml").read_text(encoding="utf-8"))
    whole = {**{key: value for key, value in primary.items() if key not in ("defaults", "hydra")}, **config}
    for name in GROUPS:
        group = config.get(name)
        kind = group.get("kind") if isinstance(group, Mapping) else None
        files = [yaml12.load(path.read_text(encoding="utf-8")) for path in sorted((config_dir() / name).glob("*.yaml"))]
        alike = [file for file in files if file.get("kind") == kind]
        if name != "analysis" and (group is None or not alike):
            kinds = ", ".join(dict.fromkeys(str(file["kind"]) for file in files))
            raise InvalidValueError(f"`{name}.kind` of {where} must be one of {kinds}; got {kind!r}.")
        first, *others = alike
        names = first.keys() - {"defaults"}
        agreed = {key: first[key] for key in names if all(file.get(key) == first[key] for file in others)}
        whole[name] = {**agreed, **(group or {})}
        missing = names - whole[name].keys()
        if missing:
            raise InvalidValueError(f"{where} lacks `{name}.{min(missing)}`, for which there is no default of all {kind}.")
    return whole
