r"""What each layer of a stack of linear attention does to inputs and labels, with the gauge fixed.

On tokens (x_j, y_j) a layer of the sparse form

.. math:: W_{PV} = \begin{pmatrix} B & 0 \\ 0 & 1 \end{pmatrix}, \qquad
          W_{KQ} = -\tfrac{\rho}{N} \begin{pmatrix} A & 0 \\ 0 & 0 \end{pmatrix}

updates, with sums over the N examples and values from before the layer,

.. math:: y_j \leftarrow y_j - \tfrac1N \sum_i y_i\, x_i^\top A\, x_j, \qquad
          x_j \leftarrow x_j - \tfrac1N B \sum_i x_i\, x_i^\top A\, x_j,

which is a gradient step preconditioned by A^T, and for A = a I, B = b I one of GD++ with eta = a and gamma = a b / N. Every
layer whose label entry of W_PV is not zero can be scaled to have 1 there, and that scaling is all its gauge freedom.

Source: the form is that of Ahn et al. (arXiv 2306.00297), GD++ is von Oswald et al. (arXiv 2212.07677).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from icl_lab.analysis.gauge import widened
from icl_lab.core import precision
from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.core.linalg import psd_root
from icl_lab.core.typing import Array, Weights
from icl_lab.models import LinearSelfAttention, LSAWeights, SelfAttention


class LayerCoefficients(NamedTuple):
    """Coefficients of L layers in the gauge of the module, and what of their weights these leave out.

    What a layer's weights cannot change in the answer is left out of everything: the first d rows of the last layer's W_PV, and
    of a single layer the last column of W_KQ too. So the last curvatures are zero.

    Attributes:
      preconditioners: (L, d, d), A_l.
      curvatures: (L, d, d), B_l.
      step_sizes: (L,), eta_l = tr A_l / d.
      gammas: (L,), gamma_l = tr A_l tr B_l / (d^2 N).
      outside_w_pv: (L,), share of the Frobenius norm of W_PV outside its two blocks.
      outside_w_kq: (L,), share of the Frobenius norm of W_KQ outside its block.
    """

    preconditioners: Float[np.ndarray, "L d d"]
    curvatures: Float[np.ndarray, "L d d"]
    step_sizes: Float[np.ndarray, "L"]
    gammas: Float[np.ndarray, "L"]
    outside_w_pv: Float[np.ndarray, "L"]
    outside_w_kq: Float[np.ndarray, "L"]


def layer_coefficients(weights: Weights, model: SelfAttention, context_length: int) -> LayerCoefficients:
    """The coefficients of every layer of trained weights.

    Args:
      weights: one layer or a tuple of layers, merged or separate, of one head each, with scalar labels.
      model: the architecture, with normaliser rho; of several loops one is described.
      context_length: N of training, by which a mean gradient is divided.

    Returns:
      The coefficients, as float64 numpy.

    Raises:
      UnsupportedProblemError: softmax or causal attention, tokens that are not merged, readout_sign 1, or several heads.
      InvalidValueError: a layer whose labels no label moves, so that no scale puts 1 there.
    """
    if not isinstance(model, LinearSelfAttention) or model.embedding != "merged" or model.readout_sign != -1 or model.causal:
        raise UnsupportedProblemError(
            "Coefficients of gradient steps exist for linear attention, not causal, on tokens (x, y) and with readout_sign=-1; "
            f"got {model}. Compare other models as functions, with `analysis.compare_functions`."
        )
    stack = [_one_head(layer) for layer in (weights if isinstance(weights, tuple | list) else (weights,))]
    heads = np.array([layer.w_pv[-1, -1] for layer in stack])
    if not np.all(heads):
        raise InvalidValueError(
            f"The label entries of W_PV are {heads}; one that is zero leaves no gauge in which it is 1, and no gradient step."
        )
    w_pv, w_kq = np.stack([layer.w_pv for layer in stack]), np.stack([layer.w_kq for layer in stack])
    if model.loops == 1:
        w_pv[-1, :-1] = 0
        if len(stack) == 1:
            w_kq[0, :, -1] = 0
    # A model that sums and does not divide has rho = 1.
    per_mean = context_length / model.normaliser_at(context_length + 1)
    preconditioners = -per_mean * heads[:, None, None] * w_kq[:, :-1, :-1]
    curvatures = w_pv[:, :-1, :-1] / heads[:, None, None]
    steps = np.trace(preconditioners, axis1=1, axis2=2) / preconditioners.shape[-1]
    bends = np.trace(curvatures, axis1=1, axis2=2) / curvatures.shape[-1]
    return LayerCoefficients(
        preconditioners=preconditioners,
        curvatures=curvatures,
        step_sizes=steps,
        gammas=steps * bends / context_length,
        outside_w_pv=_share(np.stack([w_pv[:, :-1, -1], w_pv[:, -1, :-1]], axis=1), w_pv),
        outside_w_kq=_share(np.concatenate([w_kq[:, :-1, -1], w_kq[:, -1, :]], axis=1), w_kq),
    )


def distance_to_identity(
    matrices: Float[Array, "*lead d d"], covariance: Float[Array, "d d"] | None = None
) -> Float[np.ndarray, "*lead"]:
    r"""Dist(M, I) = min_c |M - c I| / |M| in the Frobenius norm, from the least squares fit; not a number for M = 0.

    Args:
      matrices: (..., d, d).
      covariance: Sigma; if given, M is :math:`\Sigma^{1/2} A \Sigma^{1/2}` for each matrix A, which is what layers trained on
        inputs of covariance Sigma make a multiple of the identity.

    Source: Ahn et al. (arXiv 2306.00297), Section 5, the measure of their figures.
    """
    matrices = np.asarray(matrices, dtype=np.float64)
    if covariance is not None:
        with precision.float64():
            root = np.asarray(psd_root(np.asarray(covariance, dtype=np.float64)))
        matrices = root @ matrices @ root
    dim = matrices.shape[-1]
    flat, identity = matrices.reshape(-1, dim * dim), np.eye(dim).reshape(-1, 1)
    multiples = np.linalg.lstsq(identity, flat.T, rcond=None)[0]
    rest = np.linalg.norm(flat - (identity @ multiples).T, axis=1)
    return _ratio(rest, np.linalg.norm(flat, axis=1)).reshape(matrices.shape[:-2])


def _one_head(layer: Weights) -> LSAWeights:
    merged = widened(layer).merged()
    if merged.w_pv.ndim == 2:
        return merged
    if merged.w_pv.ndim != 3 or merged.w_pv.shape[0] != 1:
        raise UnsupportedProblemError(
            f"One gradient step is read off one head; got matrices of shape {merged.w_pv.shape}. "
            "Compare layers of several heads as functions, with `analysis.compare_functions`."
        )
    return LSAWeights(w_pv=merged.w_pv[0], w_kq=merged.w_kq[0])


def _share(part: Array, whole: Array) -> Float[np.ndarray, "L"]:
    """Frobenius norm of a part over that of the whole, layer by layer."""
    count = len(whole)
    return _ratio(*(np.linalg.norm(x.reshape(count, -1), axis=1) for x in (part, whole)))


def _ratio(part: Array, whole: Array) -> np.ndarray:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
