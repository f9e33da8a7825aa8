"""flax.nnx modules round the weights, for people who train with flax.

`Attention` holds one `nnx.Param` for each matrix of each layer, under the papers' names; the forward pass is the
architecture's. `Attention(model, weights, param_dtype=...).to_weights()` gives the weights back.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Inexact

from icl_lab.core.errors import InvalidValueError, PrecisionError
from icl_lab.core.typing import Array, Weights
from icl_lab.models.attention import SelfAttention
from icl_lab.models.weights import LSAWeights, SeparateWeights
from icl_lab.tasks.prompt import Prompt

_MATRICES = {LSAWeights: ("w_pv", "w_kq"), SeparateWeights: ("w_p", "w_v", "w_k", "w_q")}


class AttentionLayer(nnx.Module):
    """One layer's matrices as parameters: `w_pv` and `w_kq`, or `w_p`, `w_v`, `w_k` and `w_q`."""

    def __init__(self, weights: LSAWeights | SeparateWeights, param_dtype: type | jnp.dtype):
        self.parametrisation = type(weights)
        for name in _MATRICES[self.parametrisation]:
            setattr(self, name, nnx.Param(jnp.asarray(getattr(weights, name), dtype=param_dtype)))

    def to_weights(self) -> LSAWeights | SeparateWeights:
        """The current values, in the class the layer was made from."""
        return self.parametrisation(**{name: getattr(self, name)[...] for name in _MATRICES[self.parametrisation]})


class Attention(nnx.Module):
    """Self-attention of one or more layers, trainable by flax.

    Attributes:
      model: the architecture; static.
      layers: an `nnx.List` of `AttentionLayer`.

    Args:
      model: `LinearSelfAttention` or `SoftmaxSelfAttention`.
      weights: initial weights, one layer or a tuple of layers (see `models.initializers`).
      param_dtype: dtype of the parameters; float64 needs `precision.float64()` round construction *and* training.
    """

    def __init__(self, model: SelfAttention, weights: Weights, *, param_dtype: type | jnp.dtype):
        if jax.dtypes.canonicalize_dtype(param_dtype) != jnp.dtype(param_dtype):
            raise PrecisionError(
                f"`param_dtype` {jnp.dtype(param_dtype)} would become {jax.dtypes.canonicalize_dtype(param_dtype)}; "
                "open `icl_lab.core.precision.float64()` round the construction and the training."
            )
        self.model = model
        self.is_stack = isinstance(weights, tuple | list)
        self.layers = nnx.List([AttentionLayer(w, param_dtype) for w in (weights if self.is_stack else [weights])])

    def __call__(self, prompt: Prompt) -> Inexact[Array, "k"]:
        """The answer (k,) to one prompt's query."""
        return self.model(self.to_weights(), prompt)

    def to_weights(self) -> Weights:
        """The current weights as the library's dataclasses: one layer, or a tuple if it was made from one."""
        layers = tuple(layer.to_weights() for layer in self.layers)
        return layers if self.is_stack else layers[0]

    def from_weights(self, weights: Weights) -> None:
        """Overwrite the parameters by `weights`, in place; the dtype is kept.

        Raises:
          InvalidValueError: another class, number of layers or shape than the module was made with.
        """
        current = self.to_weights()
        if jax.tree.structure(current) != jax.tree.structure(weights) or (
            jax.tree.map(jnp.shape, current) != jax.tree.map(jnp.shape, weights)
        ):
            raise InvalidValueError(
                f"`weights` must have the layers and shapes of this module, {jax.tree.map(jnp.shape, current)}; "
                f"got {jax.tree.map(jnp.shape, weights)}."
            )
        for layer, new in zip(self.layers, weights if self.is_stack else [weights], strict=True):
            for name in _MATRICES[layer.parametrisation]:
                parameter = getattr(layer, name)
                parameter[...] = jnp.asarray(getattr(new, name), dtype=parameter.dtype)
