"""Float64 as a scope, never as a global flag.

Importing icl_lab changes no JAX setting. Exact flows and claims open `float64()` round their outermost call, outside jit (a
scope opened inside a jitted function fails) and once per thread (the scope is thread-local). Results leave the scope as
numpy arrays, because a float64 `jax.Array` silently drops to float32 at its next arithmetic operation outside.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab.core import programs

P = ParamSpec("P")
T = TypeVar("T")


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Scope in which JAX computes in float64 with full-precision matrix products (they are bf16 or tf32 by default on
    TPU and recent GPUs), and in which a seed gives the same random numbers whatever generator the environment asks for.

    When the outermost scope ends, compiled programs may be discarded (see `programs`).

    Examples:
      >>> import jax.numpy as jnp
      >>> from icl_lab.core import precision
      >>> jnp.ones(2).dtype
      dtype('float32')
      >>> with precision.float64():
      ...     jnp.ones(2).dtype
      dtype('float64')
    """
    with (
        programs.bounded(),
        jax.enable_x64(True),
        jax.default_matmul_precision("highest"),
        jax.default_prng_impl("threefry2x32"),
        jax.threefry_partitionable(True),
    ):
        yield


def to_numpy(tree: T) -> T:
    """`tree` with every jax array replaced by the numpy array of the same dtype (random keys are left alone)."""

    def leaf(x):
        is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(x) if isinstance(x, jax.Array) and not is_key else x

    return jax.tree.map(leaf, tree)


def to_double(tree: T) -> T:
    """`tree` with every array as numpy in double precision, complex where it is."""

    def leaf(x):
        array = np.asarray(x)
        return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)

    return jax.tree.map(leaf, tree)


def in_float64(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: run `function` inside `float64()` and hand its result out as numpy."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with float64():
            return to_numpy(function(*args, **kwargs))

    return wrapped
