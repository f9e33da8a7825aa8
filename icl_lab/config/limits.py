"""What the numbers of a configuration may be where no class of the library sees them before training has begun.

Everything here is refused in a moment; without it a run would train first and fail then, or have no end.
"""

from __future__ import annotations

from typing import Any

from icl_lab.config.choice import Group
from icl_lab.core.errors import InvalidValueError
from icl_lab.estimators.batch.ridge import check_penalty
from icl_lab.tasks.prompt import Task, check_count, check_prompt_fits
from icl_lab.training.solver import check_flow

LARGEST_COUNT = 2**31 - 1
"""Steps and prompts are numbered by 32 bits, of keys and of arrays."""
LARGEST_SIZE = 2**14
"""Matrices of this size are held whole, two gigabytes each in float64."""
_SIZES = {
    "task": {"dim": 1, "order": 1, "degree": 0, "width": 1, "value_dim": 1, "states": 2},
    "model": {"layers": 1, "loops": 1, "heads": 1, "key_width": 1, "value_width": 1, "writes": 1, "convolution": 0},
}


def check_sizes(group: Group, name: str) -> None:
    """Raise `InvalidValueError` unless the sizes that `task` or `model` has can be those of arrays; null is none."""
    for key, minimum in _SIZES[name].items():
        if group.get(key) is not None:
            check_count(group[key], f"{name}.{key}", minimum, "It is a size.")
            if group[key] > LARGEST_SIZE:
                raise InvalidValueError(f"`{name}.{key}` must be at most {LARGEST_SIZE}, to fit into memory; got {group[key]}.")


def check_objective(group: Group) -> None:
    """Raise `InvalidValueError` unless prompts can be drawn as `objective` says, also where a closed form needs none."""
    for name in ("prompts", "batch"):
        if name in group:
            _check_count(group[name], f"objective.{name}", 2, "A standard error needs at least two prompts.")


def check_trainer(group: Group) -> None:
    """Raise `InvalidValueError` unless a flow or a descent can be made as `trainer` says; optimisers are built elsewhere."""
    if group["kind"] == "gradient_flow":
        _check_count(group["max_steps"], "trainer.max_steps", 1, "A flow takes at least one step.")
        check_flow(group["solver"], group["weight_tolerance"], group["max_steps"], "trainer.")
    else:
        _check_count(group["steps"], "trainer.steps", 1, "Training makes at least one update.")


def check_analysis(group: Group, task: Task) -> None:
    """Raise `InvalidValueError` unless the comparison can be made as `analysis` says.

    Raises:
      InvalidValueError: a context length that the task does not have.
      MemoryBudgetError: a context length at which one prompt would not fit into memory.
    """
    _check_count(group["prompts"], "analysis.prompts", 2, "A standard error needs two prompts at least.")
    if group["ridge_penalty"] is not None:
        check_penalty(group["ridge_penalty"], task.dim)
    # Unless they are given, they go up to 4 times the length of training.
    longest = max(context_lengths(group["context_lengths"], task.context_length))
    check_prompt_fits(longest, task.dim)
    task.with_context_length(longest)


def context_lengths(asked: Any, length: int) -> list[int]:
    """The lengths of the risk curve, increasing, that of training among them.

    Args:
      asked: `analysis.context_lengths`: one length, a list of them, or None for 1/4, 1/2, 1, 2 and 4 times `length`.
      length: that of training.

    Raises:
      InvalidValueError: anything else.
    """
    if asked is None:
        asked = [max(1, length // 4), max(1, length // 2), 2 * length, 4 * length]
    entries = asked if isinstance(asked, list) else [asked]
    whole: list[Any] = [int(n) if isinstance(n, float) and n.is_integer() else n for n in entries]
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in whole):
        raise InvalidValueError(f"`analysis.context_lengths` must be null, an integer >= 1 or a list of them; got {asked!r}.")
    for n in whole:
        _check_count(n, "analysis.context_lengths", 1, "A prompt shows at least one example.")
    return sorted({*whole, length})


def _check_count(value: int, name: str, minimum: int, reason: str) -> None:
    check_count(value, name, minimum, reason)
    if value > LARGEST_COUNT:
        raise InvalidValueError(f"`{name}` must be at most {LARGEST_COUNT}, since it is counted in 32 bits; got {value}.")
