r"""What gradient flow conserves, as functions of the weights, and the drift along a trajectory.

A linear attention layer depends on its matrices only through :math:`\sum_h W_{PV}^h \otimes W_{KQ}^h`, and through the
products :math:`W_{PV} = W_P W_V`, :math:`W_{KQ} = W_K^* W_Q`. By that symmetry gradient flow on *any* loss of the
outputs, real or complex weights, in every layer of a stack, conserves

    name               weights    value                                                 shape
    value_key_query    merged     sum conj(W_PV^a) W_PV^b - sum W_KQ^a conj(W_KQ^b)     (H, H), or one number
    projection_value   separate   W_P^* W_P - W_V W_V^*                                 (v, v) a head
    key_query          separate   W_K W_K^* - W_Q W_Q^*                                 (r, r) a head
    projection_key     separate   ||W_P||^2 - ||W_K||^2                                 one a head

(sums over all entries; entries that never move add constants). Softmax attention keeps only `projection_value` and
`key_query`. Discrete gradient descent conserves none of them exactly, so drift measures the error of an integrator, or
of the step size.

Source: for one head, Zhang, Frei, Bartlett (arXiv 2306.09927), Lemma A.3.
"""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Float

from icl_lab.analysis.gauge import widened
from icl_lab.core.typing import Weights
from icl_lab.models import Learner, LinearSelfAttention, LSAWeights, SeparateWeights


def invariants(weights: Weights, model: Learner | None = None) -> dict[str, np.ndarray]:
    """The quantities that gradient flow conserves, under the names and in the shapes of the table above.

    Args:
      weights: one layer's weights, or a tuple of layers (then names start with "layer 0 ", ...).
      model: the architecture; `LinearSelfAttention()` by default.

    Returns:
      Name to float64 (or complex) numpy array. Empty for merged weights of softmax attention, which conserve nothing, and
      for layers other than attention, of which this is not known.
    """
    linear = model is None or isinstance(model, LinearSelfAttention)
    if isinstance(weights, tuple | list):
        layers = [_of_layer(layer, linear) for layer in weights]
        return {f"layer {i} {name}": value for i, layer in enumerate(layers) for name, value in layer.items()}
    return _of_layer(weights, linear)


def drift(weights: Weights, model: Learner | None = None) -> dict[str, Float[np.ndarray, "S"]]:
    """How far every invariant has moved from its value at the start of a trajectory.

    Args:
      weights: stacked weights of a trajectory, every array with a leading axis of S times.
      model: the architecture; `LinearSelfAttention()` by default.

    Returns:
      Name to (S,): Euclidean norm of the change, 0 at the first time. Absolute, since balanced starts have invariants
      of zero; judge it by the squared norm of the weights.
    """
    count = jax.tree.leaves(weights)[0].shape[0]
    path = [invariants(jax.tree.map(lambda w, i=i: w[i], weights), model) for i in range(count)]
    return {name: np.asarray([np.linalg.norm(point[name] - start) for point in path]) for name, start in path[0].items()}


def _of_layer(weights: Weights, linear: bool) -> dict[str, np.ndarray]:
    if isinstance(weights, LSAWeights):
        return {"value_key_query": _value_key_query(weights)} if linear else {}
    if not isinstance(weights, SeparateWeights):
        return {}
    wide = widened(weights)
    w_p, w_v, w_k, w_q = wide.w_p, wide.w_v, wide.w_k, wide.w_q
    values = {"projection_value": _gram(_adjoint(w_p)) - _gram(w_v), "key_query": _gram(w_k) - _gram(w_q)}
    if linear:
        values["projection_key"] = np.sum(np.abs(w_p) ** 2, axis=(-2, -1)) - np.sum(np.abs(w_k) ** 2, axis=(-2, -1))
    return values


def _value_key_query(weights: LSAWeights) -> np.ndarray:
    wide = widened(weights)
    rows, columns = (w.reshape(-1, w.shape[-2] * w.shape[-1]) for w in (wide.w_pv, wide.w_kq))
    difference = rows.conj() @ rows.T - columns @ columns.conj().T
    return difference if wide.w_pv.ndim == 3 else difference.reshape(())


def _adjoint(matrix: np.ndarray) -> np.ndarray:
    return matrix.swapaxes(-1, -2).conj()


def _gram(matrix: np.ndarray) -> np.ndarray:
    return matrix @ _adjoint(matrix)
