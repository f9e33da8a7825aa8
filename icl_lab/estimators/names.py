"""Estimators by name, for configurations and tables."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx

from icl_lab.core.errors import InvalidValueError

ESTIMATORS: dict[str, Callable] = {}
"""Every estimator of the package, a function of a prompt and its parameters, by its name."""

Estimator = TypeVar("Estimator", bound=Callable)


def estimator(function: Estimator) -> Estimator:
    """Decorator that makes a function of a prompt and its parameters known by its name."""
    ESTIMATORS[function.__name__] = function
    return function


def named(name: str, **parameters: Any) -> Callable:
    """The estimator called `name` with its parameters filled in: a function of one prompt, and a pytree.

    Args:
      name: a key of `ESTIMATORS`.
      **parameters: the arguments of that estimator other than the prompt.

    Returns:
      Callable, prompt -> prediction (k,).

    Raises:
      InvalidValueError: an unknown name, an unknown parameter, or a missing one.

    Examples:
      >>> import jax
      >>> from icl_lab import estimators, tasks
      >>> step = estimators.named("gradient_descent", step_size=0.5)
      >>> prompts = tasks.LinearRegression(dim=2, context_length=8).sample_batch(jax.random.key(0), 3)
      >>> jax.vmap(step)(prompts).shape
      (3, 1)
    """
    if name not in ESTIMATORS:
        raise InvalidValueError(f"No estimator is called {name!r}; choose one of {', '.join(sorted(ESTIMATORS))}.")
    function = ESTIMATORS[name]
    try:
        inspect.signature(function).bind(None, **parameters)
    except TypeError as error:
        accepted = list(inspect.signature(function).parameters)[1:]
        raise InvalidValueError(f"`{name}` takes the parameters {accepted}; got {sorted(parameters)} ({error}).") from error
    return eqx.Partial(function, **parameters)
