"""The one way in which the library compiles, so that no program waits for itself on a CPU.

XLA runs a program's steps on the threads of one pool, two on a machine of two cores. A batched factorisation (a LAPACK
custom call) splits its batch into pieces, hands them to the same pool and blocks its own thread until they are done. What
follows a sort or a large loop runs on a thread of the pool, so two factorisations, of one program or of two that run at the
same time, can occupy all threads while the pieces of both stand in the queue: for ever, without a word. A law of prompts
that sorts and predictors that factorise are enough. A program that holds a factorisation is therefore compiled to run
on its caller's thread alone; any other keeps the pool.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, jaxprs_in_params

from icl_lab.linalg import is_traced

P = ParamSpec("P")
T = TypeVar("T")

ONE_THREAD: dict[str, Any] = {"xla_cpu_multi_thread_eigen": False}
"""Compiler options of a program that holds a factorisation."""

FACTORISATIONS = frozenset(p.name for n, p in vars(jax.lax.linalg).items() if n.endswith("_p")) | {
    "geqrf",
    "geqp3",
    "ffi_call",
}
"""Names of the operations that become LAPACK calls, and of foreign calls, which are handed the same pool."""


class _Static(eqx.Module):
    """What a compiled function returns besides arrays."""

    value: Any = eqx.field(static=True)


def jit(function: Callable[P, T]) -> Callable[P, T]:
    """`equinox.filter_jit`, except that a program which factorises matrices runs on one thread on a CPU.

    Arrays of the arguments, and of the function if it is a pytree, are traced; all else is static and hashable. Inside
    another compiled function or a derivative, the function is a part of the outer program, whose content counts.

    Args:
      function: a pure function of pytrees.

    Returns:
      The compiled function, which waits for its result.
    """

    def flat(arrays: list[Any], rest: tuple[Any, ...], tree: Any) -> Any:
        leaves = [array if array is not None else other for array, other in zip(arrays, rest, strict=True)]
        called, args, kwargs = jax.tree.unflatten(tree, leaves)
        returned, others = eqx.partition(called(*args, **kwargs), eqx.is_array)
        return returned, _Static(others)

    # The compiler's logs and profiles call a program by its function.
    flat.__name__ = flat.__qualname__ = getattr(function, "__name__", type(function).__name__)
    pooled = jax.jit(flat, static_argnums=(1, 2))
    alone = jax.jit(flat, static_argnums=(1, 2), compiler_options=ONE_THREAD)

    def compiled(*args: P.args, **kwargs: P.kwargs) -> T:
        leaves, tree = jax.tree.flatten((function, args, kwargs))
        arrays = [x if eqx.is_array(x) else None for x in leaves]
        rest = tuple(None if eqx.is_array(x) else x for x in leaves)
        # Both share the trace, which is kept: to ask for it again takes microseconds.
        one = (
            not any(map(is_traced, arrays))
            and factorises(pooled.trace(arrays, rest, tree).jaxpr.jaxpr)
            and not is_traced(jnp.zeros(()))  # else the call, of constants, is a part of a program
        )
        returned, others = (alone if one else pooled)(arrays, rest, tree)
        if not any(map(is_traced, jax.tree.leaves(returned))):
            jax.block_until_ready(returned)
        return eqx.combine(returned, others.value)

    return functools.update_wrapper(compiled, function)


_KNOWN: WeakKeyDictionary[Jaxpr, bool] = WeakKeyDictionary()


def factorises(jaxpr: Jaxpr) -> bool:
    """Whether a program, or any that it calls, holds an operation that becomes a LAPACK call."""
    if jaxpr not in _KNOWN:
        _KNOWN[jaxpr] = any(
            equation.primitive.name in FACTORISATIONS or any(map(factorises, jaxprs_in_params(equation.params)))
            for equation in jaxpr.eqns
        )
    return _KNOWN[jaxpr]
