"""Names of a package that are imported when somebody first asks for them, so that a command loads only what it needs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def names(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package (PEP 562); type checkers read the imports that stand beside it under TYPE_CHECKING.

    Args:
      package: its `__name__`.
      places: name -> the module below the package that defines it, or that it is the name of.

    Raises:
      AttributeError: by the function that is returned, for any other name.

    Examples:
      >>> from icl_lab.core import lazy
      >>> find = lazy.names("icl_lab.core", {"stream": "prng", "prng": "prng"})
      >>> find("stream").__module__, find("prng").__name__
      ('icl_lab.core.prng', 'icl_lab.core.prng')
    """

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{places[name]}")
        is_module = places[name].rpartition(".")[2] == name
        value = module if is_module else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    return find
