r"""Gradient descent with weight decay or momentum, by layers with a token-wise map (`models.mapped_layer`).

Tokens have one slot more for each label coordinate, (x, s, r): r is the residual y - W x, from which the gradient is taken,
and s what the algorithm has to remember. The prediction is minus the query's r, which starts at 0, so W starts at 0.

These layers do not divide their sum and leave the query out of it: `MODEL` applies them.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.core.typing import Array
from icl_lab.models.learner import Layered
from icl_lab.models.linear_attention import LinearLayer
from icl_lab.models.mapped_layer import MappedLayer, MappedWeights
from icl_lab.models.weights import LSAWeights
from icl_lab.tasks.prompt import Prompt

MODEL = Layered(MappedLayer(LinearLayer(query_in_sum=False, normaliser="none")), readout_sign=-1.0)


def memory_tokens(prompt: Prompt, memory: Float[Array, "N k"]) -> Float[Array, "N+1 D"]:
    """The tokens (x_i, s_i, y_i) and (x_q, 0, 0), D = d + 2k.

    Args:
      prompt: N labelled examples and a query.
      memory: (N, k), s_i: the labels for weight decay, zeros for momentum.
    """
    points = jnp.concatenate([prompt.inputs, prompt.query[None]])
    slots = jnp.concatenate([memory, prompt.labels], axis=1)
    return jnp.concatenate([points, jnp.pad(slots, ((0, 1), (0, 0)))], axis=1)


def ridge(dim: int, label_dim: int, context_length: int, step_size: float, decay: float) -> MappedWeights:
    r"""One step with weight decay, s = y: :math:`r \leftarrow (1 - \eta\lambda) r + \eta\lambda s - \eta\,\nabla R` part.

    Args:
      dim: d.
      label_dim: k.
      context_length: N.
      step_size: eta, multiplies the mean gradient.
      decay: lambda, of the penalty (lambda/2) |W|^2 beside the mean half squared error.

    Returns:
      One layer's weights on tokens of width d + 2k; every step is the same layer.
    """
    memory, residual = _slots(dim, label_dim)
    token_map = np.eye(residual.stop)
    token_map[residual, residual] -= step_size * decay * np.eye(label_dim)
    token_map[residual, memory] = step_size * decay * np.eye(label_dim)
    return MappedWeights(_gradient(dim, label_dim, step_size / context_length, (residual,)), token_map)


def momentum(dim: int, label_dim: int, context_length: int, step_size: float, factor: float) -> MappedWeights:
    r"""One heavy-ball step, s = m: :math:`m \leftarrow \mu m - \eta\,\nabla R` part, :math:`r \leftarrow r + m`.

    Args:
      dim: d.
      label_dim: k.
      context_length: N.
      step_size: eta, multiplies the mean gradient.
      factor: mu.

    Returns:
      One layer's weights on tokens of width d + 2k; every step is the same layer.
    """
    memory, residual = _slots(dim, label_dim)
    token_map = np.eye(residual.stop)
    token_map[memory, memory] = factor * np.eye(label_dim)
    # The new momentum, in the same layer: mu m here, and the gradient into both slots.
    token_map[residual, memory] = factor * np.eye(label_dim)
    return MappedWeights(_gradient(dim, label_dim, step_size / context_length, (memory, residual)), token_map)


def _gradient(dim: int, label_dim: int, scale: float, into: Sequence[slice]) -> LSAWeights:
    """- scale sum_i r_i x_i.x_j into some of the slots."""
    _, residual = _slots(dim, label_dim)
    w_pv, w_kq = np.zeros((2, residual.stop, residual.stop))
    w_kq[:dim, :dim] = np.eye(dim)
    for slots in into:
        w_pv[slots, residual] = -scale * np.eye(label_dim)
    return LSAWeights(w_pv=w_pv, w_kq=w_kq)


def _slots(dim: int, label_dim: int) -> tuple[slice, slice]:
    """Where the memory and the residual are."""
    return slice(dim, dim + label_dim), slice(dim + label_dim, dim + 2 * label_dim)
