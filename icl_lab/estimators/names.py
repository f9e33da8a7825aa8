"""Estimators by name, for configurations and tables."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx

from icl_lab.core.errors import InvalidValueError
from icl_lab.estimators.gradient_descent import gd_plus_plus, gradient_descent
from icl_lab.estimators.least_squares import ols, recursive_least_squares
from icl_lab.estimators.online import online_sgd
from icl_lab.estimators.preconditioned import preconditioned_gradient_descent
from icl_lab.estimators.refinement import query_refinement
from icl_lab.estimators.ridge import ridge
from icl_lab.estimators.sequences import last_value, yule_walker, zero
from icl_lab.estimators.smoother import kernel_smoother

ESTIMATORS: dict[str, Callable] = {
    function.__name__: function
    for function in (
        zero,
        last_value,
        gradient_descent,
        preconditioned_gradient_descent,
        gd_plus_plus,
        ols,
        ridge,
        recursive_least_squares,
        online_sgd,
        query_refinement,
        kernel_smoother,
        yule_walker,
    )
}
"""Every estimator of the package, a function of a prompt and its parameters, by its name."""


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
