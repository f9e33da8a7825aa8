"""What a layer is: a map of all tokens that adds an update to each, described apart from its weights.

A layer is added to a `Learner` by three functions. `prepared` checks the weights against the width of the tokens and brings
them to the form in which the other two take them; `updates` serves every layer but the last, and `query_update` the last one,
of which the query token alone is read.
"""

from __future__ import annotations

import abc
from typing import Any

import equinox as eqx
from jaxtyping import Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array, Weights


class Layer(eqx.Module):
    """A layer without its weights. Tokens are rows, T of them and D wide, the query token last."""

    @abc.abstractmethod
    def prepared(self, weights: Weights, width: int, place: str) -> Any:
        """The weights in the form that `updates` and `query_update` take.

        Args:
          weights: of this layer, in its own class.
          width: D, width of the tokens.
          place: what to call the layer in an error message, such as "layer 2".

        Raises:
          InvalidValueError: weights of another class, or not made for tokens of width D.
        """

    @abc.abstractmethod
    def updates(self, weights: Any, tokens: Inexact[Array, "T D"]) -> Inexact[Array, "T D"]:
        """What the layer adds to every token, for prepared weights."""

    @abc.abstractmethod
    def query_update(self, weights: Any, tokens: Inexact[Array, "T D"]) -> Inexact[Array, "D"]:
        """What the layer adds to the last token, for prepared weights, at the cost of that token alone: O(T)."""


def check_class(weights: Weights, expected: type, place: str) -> None:
    """Raise `InvalidValueError` unless the weights of `place` are of the class that its layer takes."""
    if not isinstance(weights, expected):
        raise InvalidValueError(
            f"the weights of {place} must be `{expected.__name__}`, which its layer takes; got {type(weights).__name__}."
        )
