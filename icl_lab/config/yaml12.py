"""YAML by the core schema of YAML 1.2, on the command line and in every file that is read or written here.

PyYAML follows YAML 1.1, where `010` is 8, `1:30` is 90, `no` is false and `1e5` is a word. By the core schema these are 10, a
word, a word and a number. What is written is quoted wherever either version would read something else in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

_NULL, _BOOL, _INT, _FLOAT, _WORD = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str"))
_SCALARS = (
    (_NULL, r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    (_BOOL, r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    (_INT, r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)", list("-+0123456789")),
    (
        _FLOAT,
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))",
        list("-+0123456789."),
    ),
)


# libyaml's, ten times as fast, where PyYAML was built with it.
_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BaseDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Loader(_BaseLoader):
    """YAML 1.2; a key that stands twice in a mapping is an error."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key `{key.value}` stands twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


class _Dumper(_BaseDumper):
    """Plain scalars are those that both versions read alike."""


def _number(read: Callable[[str], int | float]) -> Callable[[Any, Any], int | float]:
    def construct(loader: Any, node: Any) -> int | float:
        text = loader.construct_scalar(node)
        try:
            return read(text)
        except ValueError:  # `!!int abc`, or more digits than Python reads
            shown = text if len(text) < 40 else f"{text[:40]}..."
            raise yaml.constructor.ConstructorError(None, None, f"`{shown}` is no number", node.start_mark) from None

    return construct


for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, re.compile(f"^{_pattern}$"), _first)
    _Dumper.add_implicit_resolver(_tag, re.compile(f"^{_pattern}$"), _first)
_Loader.add_constructor(_INT, _number(lambda text: int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))))
# ".inf" and ".nan" are Python's words with a dot.
_Loader.add_constructor(_FLOAT, _number(lambda text: float(text.replace(".", "") if text[-1:].isalpha() else text)))
_Loader.add_constructor(_BOOL, lambda loader, node: loader.construct_scalar(node).lower() == "true")


def load(text: str) -> Any:
    """The value of a YAML document, None if it is empty.

    Raises:
      yaml.YAMLError: `text` is no YAML, or a key stands twice in a mapping.
    """
    return yaml.load(text, _Loader)


def dump(value: Any) -> str:
    """A value of plain dicts, lists and scalars as a YAML document, keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def problem(error: yaml.YAMLError) -> str:
    """What is wrong with a text that is no YAML, and where: "line 2, column 1: a tab ..."."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    words = error.problem or "it is no YAML"
    if "'\\t'" in words or "tab" in words:
        words = "a tab stands where YAML takes spaces only"
    return f"line {mark.line + 1}, column {mark.column + 1}: {words}"
