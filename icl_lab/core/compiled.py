"""The one way in which the library compiles, so that no program waits for itself on a CPU.

XLA runs the steps of a program on a pool of as many threads as there are cores. A batched factorisation (a LAPACK call) hands
the pieces of its batch to that same pool and blocks its thread until they are done. Two of them at a time, as after a sort,
whose successors run on the pool, can occupy every thread of a small machine while the pieces of both stand in the queue: for
ever, without a word. A task that sorts while it draws a prompt and two predictors that factorise are enough.

Here a batch of matrices is factorised one after the other, each by a call that has no pieces. That holds for whatever a
program calls, distributions and predictors of users included, and for nothing that the library does not compile.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import equinox as eqx
import jax
from jax._src.interpreters import mlir  # the table of rules has no public name
from jax._src.lax import linalg

P = ParamSpec("P")
T = TypeVar("T")


def jit(function: Callable[P, T]) -> Callable[P, T]:
    """`equinox.filter_jit`, with factorisations that cannot wait for each other.

    Arrays of the arguments are traced; all else, Python numbers included, is static.

    Args:
      function: a pure function of pytrees.

    Returns:
      The compiled function. Inside a function that the library did not compile it is a part of that program.
    """
    inner = eqx.filter_jit(function if isinstance(function, eqx.Module) else _Plain(function))  # pyright: ignore[reportArgumentType]

    @functools.wraps(function)  # pyright: ignore[reportArgumentType]
    def compiled(*args: P.args, **kwargs: P.kwargs) -> T:
        with _one_matrix_at_a_time():
            # An array that could not be allocated ends the process when numpy reads it, and raises here.
            return jax.block_until_ready(inner(*args, **kwargs))

    return compiled


@dataclasses.dataclass(frozen=True)
class _Plain:
    """A function that is no pytree, equal to itself: equinox looks into those that JAX has transformed, and warns."""

    function: Callable[..., Any]

    def __post_init__(self) -> None:
        # What JAX calls the program in its logs.
        for name in ("__name__", "__qualname__"):
            object.__setattr__(self, name, getattr(self.function, name, "program"))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def _rules() -> dict[Any, Any]:
    """JAX's rules for the CPU: primitive -> how it becomes code."""
    return mlir._platform_specific_lowerings["cpu"]


def _serial(primitive: Any, entry: Any) -> Any:
    """The rule that takes the matrices of a batch one by one, and a single one by JAX's own rule."""

    def rule(context: Any, *operands: Any, **parameters: Any) -> Any:
        first = context.avals_in[0]
        # Of a tridiagonal system the first operand is a diagonal, else it is a matrix.
        batch = first.shape[: first.ndim - (1 if primitive.name == "tridiagonal_solve" else 2)]
        if math.prod(batch) == 1:
            return entry.rule(context, *operands, **parameters)

        def each(*arrays: Any) -> list[Any]:
            flat = [array.reshape(math.prod(batch), *array.shape[len(batch) :]) for array in arrays]
            results = jax.lax.map(lambda matrices: _listed(primitive.bind(*matrices, **parameters)), flat)
            return [result.reshape(*batch, *result.shape[1:]) for result in results]

        return mlir.lower_fun(each, multiple_results=True)(context, *operands)

    return dataclasses.replace(entry, rule=rule)


def _listed(result: Any) -> list[Any]:
    return list(result) if isinstance(result, list | tuple) else [result]


_lock = threading.Lock()
_inside = 0


@contextlib.contextmanager
def _one_matrix_at_a_time() -> Iterator[None]:
    """Scope in which what is compiled, in any thread, follows `_serial`; JAX's own rules stand again when the last one ends."""
    global _inside
    with _lock:
        if _inside == 0:
            _rules().update(_serial_rules())
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _rules().update(_factorisations())


@functools.cache
def _factorisations() -> dict[Any, Any]:
    """JAX's own rules of the operations that become LAPACK calls."""
    named = (value for name, value in vars(linalg).items() if name.endswith("_p"))
    return {primitive: _rules()[primitive] for primitive in named if primitive in _rules()}


@functools.cache
def _serial_rules() -> dict[Any, Any]:
    return {primitive: _serial(primitive, entry) for primitive, entry in _factorisations().items()}
