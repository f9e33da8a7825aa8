"""Tasks of users in the form in which their values share compiled programs.

Arrays in a task are arguments of a program; everything else is a part of it. So a degree of freedom that is kept as a Python
number would compile every program anew for each value. Numbers are handed over as arrays where the task's `sample` takes them,
and where it does not, or a field is static, a warning says once which field is the reason.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np

from icl_lab.tasks.blocks import is_foreign
from icl_lab.tasks.prompt import Task

SIZES = ("dim", "context_length", "label_dim")
"""Static fields that set the shapes of arrays: another value is another program in any case."""

Kind = tuple[type, ...]
"""A task's type and those of the modules in it."""

_liftable: dict[Kind, tuple[type, ...]] = {}
_seen: dict[tuple[type, str], Any] = {}
_warned: set[tuple[type, str]] = set()


class RecompilationWarning(UserWarning):
    """A field of a task makes programs compile anew for each of its values."""


def sharing(task: Task) -> Task:
    """The task with its Python numbers as arrays, but for those that its `sample` needs as they are."""
    if not any(type(leaf) in (int, float) for leaf in jax.tree.leaves(task)):
        _watch(task, ())
        return task
    kind = tuple(type(module) for module in _modules(task))
    if kind not in _liftable:
        # An integer may be the size of an array.
        options = ((int, float), (float,))
        _liftable[kind] = next((types for types in options if _samples(_lifted(task, types))), ())
    types = _liftable[kind]
    _watch(task, types)
    return _lifted(task, types)


def _lifted(task: Task, types: tuple[type, ...]) -> Task:
    return jax.tree.map(lambda leaf: np.asarray(leaf) if type(leaf) in types else leaf, task)


def _samples(task: Task) -> bool:
    """Whether the arrays of a task may be arguments of a program that draws its prompts."""
    try:
        eqx.filter_eval_shape(lambda task, key: task.sample(key), task, jax.random.key(0))
    except Exception:  # of whatever kind the code of a user raises; one that is an error comes up where the task is used
        return False
    return True


def _modules(tree: Any) -> Iterator[eqx.Module]:
    if isinstance(tree, eqx.Module):
        yield tree
        for field in dataclasses.fields(tree):
            yield from _modules(getattr(tree, field.name, None))


def _watch(task: Task, lifted: tuple[type, ...]) -> None:
    """Warn once of each number of a user's module that is a part of programs and has changed since the last task."""
    for module in _modules(task):
        owner = type(module)
        if not is_foreign(module):
            continue
        for field in dataclasses.fields(module):
            value = getattr(module, field.name, None)
            static = field.metadata.get("static", False) or type(value) not in lifted
            if type(value) not in (int, float) or not static or field.name in SIZES:
                continue
            before = _seen.get((owner, field.name), value)
            _seen[owner, field.name] = value
            if before != value and (owner, field.name) not in _warned:
                _warned.add((owner, field.name))
                warnings.warn(
                    f"`{owner.__name__}.{field.name}` is {value!r} now and was {before!r}: a static field, or a number that "
                    "`sample` needs as such, is a part of compiled programs, and each of its values compiles them anew. An "
                    "array field (`equinox.field(converter=jnp.asarray)`) is an argument of them.",
                    RecompilationWarning,
                    stacklevel=4,
                )
