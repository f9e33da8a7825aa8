"""What follows from a fit: the end of its path, and the prediction of its matrix.

`NAME_path` returns the matrices after each example, `NAME_weights` the matrix after all of them, and the estimator `NAME` the
prediction W x_q. The three take the same arguments and refuse the same ones, so one of them is written, the others follow.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Concatenate, ParamSpec

from jaxtyping import Inexact

from icl_lab.core.typing import Array
from icl_lab.estimators.examples import predict
from icl_lab.estimators.names import estimator
from icl_lab.tasks.prompt import Prompt

Parameters = ParamSpec("Parameters")


def end_of(
    path: Callable[Concatenate[Prompt, Parameters], Inexact[Array, "N k d"]], summary: str
) -> Callable[Concatenate[Prompt, Parameters], Inexact[Array, "k d"]]:
    """`NAME_weights`, the last of the matrices of `NAME_path`.

    Args:
      path: a function of a prompt and parameters, called `NAME_path`, that returns matrices (N, k, d).
      summary: a sentence on what is returned; the rest of its documentation is that of `path`.
    """

    def weights(prompt: Prompt, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Inexact[Array, "k d"]:
        return path(prompt, *args, **kwargs)[-1]

    return _introduced(weights, path.__name__.removesuffix("_path") + "_weights", summary, path)


def prediction_of(
    weights: Callable[Concatenate[Prompt, Parameters], Inexact[Array, "k d"]], summary: str
) -> Callable[Concatenate[Prompt, Parameters], Inexact[Array, "k"]]:
    """The estimator `NAME`, which predicts W x_q with the matrix W of `NAME_weights`; known by its name, as `estimator` has it.

    Args:
      weights: a function of a prompt and parameters, called `NAME_weights`, that returns a matrix (k, d).
      summary: a sentence on what is returned; the rest of its documentation is that of `weights`.
    """

    def prediction(prompt: Prompt, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Inexact[Array, "k"]:
        return predict(weights(prompt, *args, **kwargs), prompt)

    return estimator(_introduced(prediction, weights.__name__.removesuffix("_weights"), summary, weights))


def _introduced(function: Callable, name: str, summary: str, source: Callable) -> Callable:
    """The function under its own name, with the parameters and the documentation of `source` but for what it returns."""
    returned = inspect.signature(function).return_annotation
    function.__name__ = function.__qualname__ = name
    function.__module__ = source.__module__
    vars(function)["__signature__"] = inspect.signature(source).replace(return_annotation=returned)
    _, heading, rest = inspect.cleandoc(source.__doc__ or "").partition("Args:")
    function.__doc__ = f"{summary}\n\n{heading}" + re.sub(r"Returns:\n(  .*\n)+\n", "", rest)
    return function
