"""What linear and softmax self-attention have in common: merged weights with heads, and which token attends to which.

    causal   query_in_sum   token t attends to
    False    False          the context: every token but the last
    False    True           every token, itself included
    True     False          i < t
    True     True           i <= t

so the query token attends to the same set whether or not the layer is causal.
"""

from __future__ import annotations

from collections.abc import Sequence

import equinox as eqx

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Weights
from icl_lab.models.layer import Layer
from icl_lab.models.learner import Learner
from icl_lab.models.weights import LSAWeights


class AttentionLayer(Layer):
    """A layer of attention; its weights are any class that can be `merged` to W_PV and W_KQ.

    Attributes:
      query_in_sum: whether a token may attend to the query token (causal: to itself).
      causal: token t attends to the tokens up to t only.
    """

    query_in_sum: bool = eqx.field(static=True, kw_only=True, default=True)
    causal: bool = eqx.field(static=True, kw_only=True, default=False)

    def prepared(self, weights: Weights, width: int, place: str) -> LSAWeights:
        """The merged weights with a leading head axis."""
        if not hasattr(weights, "merged"):
            raise InvalidValueError(
                f"the weights of {place} must be `LSAWeights` or a class that can be merged to them, as an attention layer "
                f"takes W_PV and W_KQ; got {type(weights).__name__}."
            )
        merged = weights.merged()
        merged.check_width(width, place)
        return merged.with_head_axis()


class SelfAttention(Learner):
    """A learner all of whose layers are one and the same attention layer, which it is itself."""

    def kinds(self, count: int) -> Sequence[Layer]:
        """Itself, for every entry of the weights."""
        assert isinstance(self, AttentionLayer)
        return [self] * count
