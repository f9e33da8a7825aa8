r"""A layer with a token-wise linear map beside attention, in place of the residual connection.

.. math:: e_j \leftarrow A e_j + \sum_i W_{PV} e_i\, e_i^\top W_{KQ} e_j

Attention alone cannot rescale a token's own slot without knowing its position; the map A can.
"""

from __future__ import annotations

import equinox as eqx
from jaxtyping import Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array, Weights
from icl_lab.models.attention import AttentionLayer
from icl_lab.models.layer import Layer, check_class
from icl_lab.models.weights import LSAWeights


class MappedWeights(eqx.Module):
    """Attention weights and the map A that replaces the residual connection; the identity is the usual one.

    Attributes:
      attention: merged weights on tokens of width D.
      token_map: (D, D), A.
    """

    attention: LSAWeights
    token_map: Inexact[Array, "D D"]


class MappedLayer(Layer):
    """Attention with a token-wise linear map in place of the residual connection; its weights are `MappedWeights`.

    Attributes:
      attention: the layer of attention.
    """

    attention: AttentionLayer

    def prepared(self, weights: Weights, width: int, place: str) -> MappedWeights:
        """The weights with a head axis on those of attention."""
        check_class(weights, MappedWeights, place)
        if weights.token_map.shape != (width, width):
            raise InvalidValueError(
                f"`token_map` of {place} must be ({width}, {width}), because the tokens are {width} wide; got shape "
                f"{tuple(weights.token_map.shape)}."
            )
        return MappedWeights(self.attention.prepared(weights.attention, width, place), weights.token_map)

    def updates(self, weights: MappedWeights, tokens: Inexact[Array, "T D"]) -> Inexact[Array, "T D"]:
        """(A - 1) e_j, and what attention adds to e_j."""
        return tokens @ weights.token_map.T - tokens + self.attention.updates(weights.attention, tokens)

    def query_update(self, weights: MappedWeights, tokens: Inexact[Array, "T D"]) -> Inexact[Array, "D"]:
        """The same for the last token alone."""
        query = tokens[-1]
        return weights.token_map @ query - query + self.attention.query_update(weights.attention, tokens)
