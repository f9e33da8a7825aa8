"""`Setting`: what a claim is run at, a frozen dataclass whose fields are the papers' symbols, with their ranges and meanings.

    class Regression(Setting):
        d: int = integer(3, 1, "dimension", "of the inputs")
        N: int = integer(10, 1, "context length")

    class LongRegression(Regression):
        N = 100

Every value is checked when a setting is made, so that a setting is valid: `LongRegression(d=0)` is refused. A subclass adds
fields, or gives an inherited one another default. A symbol's meaning is the same words wherever it stands for the same thing;
what only one claim says of it is the detail that follows.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, dataclass_transform

import numpy as np

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.prng import check_seed

LARGEST_SIZE = 2**10
"""Rows of the matrices of a claim, which it decomposes more than once, at seconds each."""
_SIZES = frozenset({"d", "p", "k", "K", "H", "L", "width", "heads"})


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of a claim.

    Attributes:
      default: its value unless overridden; JSON types only.
      accepts: the accepted values, in words ("an integer >= 1").
      convert: the value as the claim wants it; raises ValueError, TypeError or OverflowError if it is not accepted.
      symbol: what the symbol stands for, in the words that all claims use for it.
      detail: what this claim says of it besides, as the end of that sentence.
      length: the parameter that says how many eigenvalues it holds, if it is a spectrum.
    """

    default: Any
    accepts: str
    convert: Callable[[Any], Any]
    symbol: str = ""
    detail: str = ""
    length: str = ""

    @property
    def meaning(self) -> str:
        """Symbol and detail as one clause, for listings."""
        return self.symbol + (" " if self.detail and self.detail[0].isalnum() else "") + self.detail

    def field(self) -> Any:
        """This parameter as the field of a setting."""
        return dataclasses.field(default=_immutable(self.default), metadata={"parameter": self})


def _immutable(value: Any) -> Any:
    return tuple(map(_immutable, value)) if isinstance(value, list | tuple) else value


def custom(default: Any, accepts: str, convert: Callable[[Any], Any], meaning: str = "", detail: str = "") -> Any:
    """A parameter of a kind of its own; see `Parameter`."""
    return Parameter(default, accepts, convert, meaning, detail).field()


def integer(default: int, minimum: int, meaning: str = "", detail: str = "") -> Any:
    """An integer of at least `minimum`; 1e5 is one."""
    return custom(default, f"an integer >= {minimum}", lambda value: _integer(value, minimum), meaning, detail)


def _integer(value: Any, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or value < minimum:
        raise ValueError
    whole = int(value)
    if whole != value:
        raise ValueError
    return whole


def number(default: float, minimum: float = -math.inf, meaning: str = "", detail: str = "", *, positive: bool = False) -> Any:
    """A finite number of at least `minimum`, or above 0 if `positive`."""
    words = "a number > 0" if positive else "a finite number" if minimum == -math.inf else f"a number >= {minimum:g}"
    return custom(default, words, lambda value: _number(value, minimum, positive), meaning, detail)


def _number(value: Any, minimum: float = -math.inf, positive: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
        raise ValueError
    if value < minimum or (positive and value <= 0):
        raise ValueError
    return float(value)


def flag(default: bool, meaning: str = "", detail: str = "") -> Any:
    """true or false."""

    def convert(value: Any) -> bool:
        if not isinstance(value, bool | np.bool_):
            raise ValueError
        return bool(value)

    return custom(default, "true or false", convert, meaning, detail)


def choice(default: str, options: Sequence[str], meaning: str = "", detail: str = "") -> Any:
    """One of a few words."""

    def convert(value: Any) -> str:
        if value not in options:
            raise ValueError
        return value

    return custom(default, "one of " + ", ".join(options), convert, meaning, detail)


"""What a spectrum accepts; that there are d of them is for a setting to check, which knows d."""


def spectrum(meaning: str = "", detail: str = "") -> Any:
    """A list of positive eigenvalues, or null for the claim's own default of the right length."""
    convert = functools.partial(_numbers, positive=True)
    return Parameter(None, "null or a list of d numbers > 0", convert, meaning, detail, length="d").field()


def vector(default: Sequence[float] | None, meaning: str = "", detail: str = "") -> Any:
    """A list of finite numbers, or null for the claim's own default of the right length."""
    return custom(default, "null or a list of d numbers", _numbers, meaning, detail)


def _numbers(value: Any, positive: bool = False) -> list[float] | None:
    return None if value is None else [_number(x, positive=positive) for x in _entries(value)]


def _entries(value: Any) -> Sequence[Any] | np.ndarray:
    """The entries of a list or an array; a word and a mapping are neither, though Python walks through both."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | np.ndarray) or not len(value):
        raise ValueError
    return value


def table(default: Sequence[Sequence[float]] | None, minimum: float = -math.inf, meaning: str = "", detail: str = "") -> Any:
    """A list of lists of numbers of at least `minimum`, all of one length, or null for the claim's own default."""

    def convert(value: Any) -> list[list[float]] | None:
        if value is None:
            return None
        rows = [_numbers(x) for x in _entries(value)]
        if any(x is None or len(x) != len(rows[0] or ()) or min(x) < minimum for x in rows):
            raise ValueError
        return rows  # pyright: ignore[reportReturnType]

    words = "" if minimum == -math.inf else f" >= {minimum:g}"
    accepts = f"null or a list of d lists of numbers{words}, all of one length"
    return custom(default, accepts, convert, meaning, detail)


def optional(field: Any) -> Any:
    """The same parameter, or null, which is its default."""
    one: Parameter = field.metadata["parameter"]
    accepts, convert = f"null or {one.accepts}", one.convert
    return custom(None, accepts, lambda value: None if value is None else convert(value), one.symbol, one.detail)


def restricted(field: Any, accepts: str, condition: Callable[[Any], bool]) -> Any:
    """The same parameter, accepting only those of its values for which a condition holds; `accepts` says both in words."""
    one: Parameter = field.metadata["parameter"]

    def convert(value: Any) -> Any:
        value = one.convert(value)
        if not condition(value):
            raise ValueError
        return value

    return custom(one.default, accepts, convert, one.symbol, one.detail)


def check_spectrum(values: Sequence[float] | None, dim: int, name: str) -> None:
    """Raise `InvalidValueError` unless a spectrum is null or has one eigenvalue for each of `dim` dimensions."""
    if values is not None and len(values) != dim:
        raise InvalidValueError(
            f"`{name}` must hold d = {dim} eigenvalues; got {len(values)}. Set `d` too, or null for the default spectrum."
        )


@dataclass_transform(kw_only_default=True, frozen_default=True, eq_default=False)
class Setting:
    """The parameters of a claim; a claim without any takes this class itself.

    Raises:
      InvalidValueError: a value of the wrong type or out of range, by name, with what is accepted.
      AssumptionError: whatever else `validate` refuses.
    """

    # Arguments get the annotated types only in `__post_init__`: jaxtyping must not check those of `__init__`.
    __no_type_check__ = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        inherited = {
            name: one for base in cls.__bases__ if issubclass(base, Setting) for name, one in base.parameters().items()
        }
        for name in inherited.keys() & vars(cls).keys() - cls.__annotations__.keys():
            cls.__annotations__[name] = Any
            setattr(cls, name, dataclasses.replace(inherited[name], default=vars(cls)[name]).field())
        dataclasses.dataclass(frozen=True, kw_only=True, eq=False)(cls)

    def __post_init__(self) -> None:
        for name, parameter in self.parameters().items():
            value = getattr(self, name)
            try:
                value = parameter.convert(value)
            except (ValueError, TypeError, OverflowError):
                raise InvalidValueError(f"`{name}` must be {parameter.accepts}; got {value!r}.") from None
            if name in _SIZES and (value or 0) > LARGEST_SIZE:
                raise InvalidValueError(
                    f"`{name}` must be at most {LARGEST_SIZE}, since matrices of it are decomposed; got {value!r}."
                )
            if name == "seed":
                check_seed(value, name)
            object.__setattr__(self, name, value)
        for name, parameter in self.parameters().items():
            if parameter.length in self.parameters():
                check_spectrum(getattr(self, name), getattr(self, parameter.length), name)
        self.validate()

    def validate(self) -> None:
        """Raise on what the range of no single parameter says: a spectrum of the wrong length, a start outside an assumption.

        A subclass that has more to say also calls the method it inherits.
        """

    @classmethod
    def parameters(cls) -> dict[str, Parameter]:
        """The parameters by name."""
        if cls is Setting:
            return {}
        return {one.name: one.metadata["parameter"] for one in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]

    def to_json(self) -> dict[str, Any]:
        """The value of every parameter, as JSON types."""
        return {name: getattr(self, name) for name in self.parameters()}
