"""Any learner with its weights as a `flax.nnx.Module`, for people who train with flax, and back.

Every array of the weights is an `nnx.Param` under the names that the weights have: `("weights", "w_pv")` of one layer,
`("weights", 1, "w_q")` in a tuple of layers. The forward pass is the learner's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Inexact

from icl_lab.core.errors import InvalidValueError, PrecisionError
from icl_lab.core.typing import Array, Weights
from icl_lab.models.learner import Learner
from icl_lab.tasks.prompt import Prompt


class LearnerModule(nnx.Module):
    """A learner of one or more layers, trainable by flax.

    Attributes:
      model: the architecture; static.
      weights: the pytree of the weights, with an `nnx.Param` for every array.

    Args:
      model: any learner.
      weights: initial weights, one layer or a tuple of layers and token-wise maps.
      param_dtype: dtype of the parameters; float64 needs `precision.float64()` round construction *and* training.

    Raises:
      PrecisionError: a dtype that the scope in force does not have.
    """

    def __init__(self, model: Learner, weights: Weights, *, param_dtype: type | jnp.dtype):
        if jax.dtypes.canonicalize_dtype(param_dtype) != jnp.dtype(param_dtype):
            raise PrecisionError(
                f"`param_dtype` {jnp.dtype(param_dtype)} would become {jax.dtypes.canonicalize_dtype(param_dtype)}; "
                "open `icl_lab.core.precision.float64()` round the construction and the training."
            )
        self.model = nnx.static(model)
        self.weights = nnx.data(jax.tree.map(lambda leaf: nnx.Param(jnp.asarray(leaf, dtype=param_dtype)), weights))

    def __call__(self, prompt: Prompt) -> Inexact[Array, "k"]:
        """The answer (k,) to one prompt's query."""
        return self.model(self.to_weights(), prompt)

    def to_weights(self) -> Weights:
        """The current weights, in the classes that the module was made with."""
        return jax.tree.map(lambda parameter: parameter[...], self.weights, is_leaf=_is_parameter)

    def from_weights(self, weights: Weights) -> None:
        """Overwrite the parameters by `weights`, in place; the dtype is kept.

        Raises:
          InvalidValueError: another class, number of layers or shape than the module was made with.
        """
        current = self.to_weights()
        shapes, given = (jax.tree.map(jnp.shape, tree) for tree in (current, weights))
        if jax.tree.structure(current) != jax.tree.structure(weights) or shapes != given:
            raise InvalidValueError(f"`weights` must have the layers and shapes of this module, {shapes}; got {given}.")
        parameters = jax.tree.leaves(self.weights, is_leaf=_is_parameter)
        for parameter, new in zip(parameters, jax.tree.leaves(weights), strict=True):
            parameter[...] = jnp.asarray(new, dtype=parameter.dtype)


def _is_parameter(node: object) -> bool:
    return isinstance(node, nnx.Param)
