r"""Weights with which linear self-attention *is* a given estimator, exactly and for every prompt.

A token holds an input x_i and a label y_i; the query's label slots start at s W_0 x_q, s the model's readout sign. One
layer with W_KQ = P^T on the inputs and W_PV = s [-W_0, 1] into the labels adds

.. math:: s\, \tfrac1N \sum_i (y_i - W_0 x_i)\, x_i^* P^\top x_j  =  s\, \Delta W x_j,

so the query's label block, times s, is the answer of one preconditioned step. Only s = -1 goes on: it makes the labels
residuals y_j - dW x_j, so that the *same* layer, with the same W_0, is the next step, and the label slots carry the
whole state of the optimiser. The sum must then leave out the query, whose label slots hold minus its prediction.

With the "paired" embedding, token (0, x_t, x_{t-1}), the label is x_t, its input x_{t-1}, and the answer to the query
x_t goes into the first block; the last pair sits in the query token itself, which therefore has to be in the sum.

Start the query at W_0 with `model(weights, prompt, query_label=model.readout_sign * initial @ prompt.query)`.

Source: von Oswald et al., arXiv 2212.07677, Proposition 1 and the GD++ construction; Ahn et al., arXiv 2306.00297,
Lemma 1, for the preconditioner.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Inexact

from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.core.typing import Array, Weights
from icl_lab.models.linear_attention import LinearSelfAttention
from icl_lab.models.weights import SeparateWeights
from icl_lab.tasks.prompt import check_count


class _Layout(NamedTuple):
    """Where a token keeps what: its label, the input that belongs to it, the input it asks about, and its answer."""

    width: int
    label: slice
    input: slice
    query: slice
    answer: slice


def gradient_descent(
    model: LinearSelfAttention,
    dim: int,
    context_length: int,
    step_size: float | Float[Array, "*steps"],
    steps: int | None = None,
    initial: Inexact[Array, "k d"] | None = None,
    label_dim: int | None = None,
    separate: bool = False,
) -> Weights:
    r"""The weights of some steps of gradient descent: W <- W - eta (1/N) sum_i (W x_i - y_i) x_i^*.

    In separate form, with the merged embedding and s = -1, these are von Oswald's matrices

    .. math:: W_K = W_Q = \begin{pmatrix} I & 0 \\ 0 & 0 \end{pmatrix}, \quad
              W_V = \begin{pmatrix} 0 & 0 \\ W_0 & -I \end{pmatrix}, \quad W_P = \tfrac{\eta}{\rho_N} I,

    with rho_N = 1 if the model divides by N, and N if it does not.

    Args:
      model: the architecture. One step: any with the "merged", "hankel" or "paired" embedding, but with readout_sign -1
        the query may be in the sum only if W_0 = 0. Several steps: not causal, query not in the sum, readout_sign -1.
      dim: d, dimension of the inputs.
      context_length: N, number of examples; the weights depend on it if normaliser is "none".
      step_size: eta, one for all steps or one for each, (steps,); multiplies the *mean* gradient.
      steps: number of steps >= 1; by default the number of step sizes, and `model.loops` for a scalar.
      initial: W_0 (k, d); zeros by default. Start the query's label slots accordingly, see the module.
      label_dim: k; by default the rows of `initial`, else 1 (d with the "paired" embedding).
      separate: give `SeparateWeights` instead of `LSAWeights`.

    Returns:
      One layer for one step, or where `model.loops` equals the number of equal steps; otherwise a tuple of layers.

    Raises:
      InvalidValueError: sizes or shapes that do not fit, or loops that cannot give this number of steps.
      UnsupportedProblemError: the architecture cannot implement the estimator.
    """
    sizes = np.asarray(step_size, dtype=np.float64)
    if sizes.ndim > 1 or not np.all(np.isfinite(sizes)):
        raise InvalidValueError(f"`step_size` must be finite, a number or one per step; got {sizes}.")
    layout = _layout(model, dim, initial, label_dim)
    steps = _step_count(model, sizes, 0, steps, initial)
    layers = [
        _layer(model, layout, context_length, np.eye(dim), float(eta), initial) for eta in np.broadcast_to(sizes, (steps,))
    ]
    return _stack(model, layers, equal=sizes.ndim == 0, separate=separate)


def preconditioned_gradient_descent(
    model: LinearSelfAttention,
    context_length: int,
    preconditioner: Float[Array, "*steps d d"],
    steps: int | None = None,
    initial: Inexact[Array, "k d"] | None = None,
    label_dim: int | None = None,
    separate: bool = False,
) -> Weights:
    """The weights of some steps with a matrix step size: W <- W - (1/N) sum_i (W x_i - y_i) x_i^* P^T.

    Args:
      model: as for `gradient_descent`.
      context_length: N, number of examples.
      preconditioner: P (d, d) for all steps, or (steps, d, d), one for each; need not be symmetric.
      steps: number of steps >= 1; by default the number of preconditioners, and `model.loops` for one matrix.
      initial: W_0 (k, d); zeros by default.
      label_dim: k; by default the rows of `initial`, else 1 (d with the "paired" embedding).
      separate: give `SeparateWeights`, with W_K holding P, instead of `LSAWeights`.

    Returns:
      One layer or a tuple of layers, as `gradient_descent`.

    Raises:
      InvalidValueError, UnsupportedProblemError: as `gradient_descent`.
    """
    matrices = np.asarray(preconditioner, dtype=np.float64)
    if matrices.ndim not in (2, 3) or matrices.shape[-1] != matrices.shape[-2] or not np.all(np.isfinite(matrices)):
        raise InvalidValueError(f"`preconditioner` must be finite, (d, d) or (steps, d, d); got shape {matrices.shape}.")
    dim = int(matrices.shape[-1])
    layout = _layout(model, dim, initial, label_dim)
    steps = _step_count(model, matrices, 2, steps, initial)
    layers = [
        _layer(model, layout, context_length, matrix, 1.0, initial) for matrix in np.broadcast_to(matrices, (steps, dim, dim))
    ]
    return _stack(model, layers, equal=matrices.ndim == 2, separate=separate)


def gd_plus_plus(
    model: LinearSelfAttention,
    dim: int,
    context_length: int,
    step_sizes: Float[Array, "layers"],
    curvatures: Float[Array, "layers"],
    initial: Inexact[Array, "k d"] | None = None,
    label_dim: int | None = None,
    separate: bool = False,
) -> Weights:
    r"""The weights of GD++, with one head a layer.

    .. math:: W_V = \begin{pmatrix} I & 0 \\ W_0 & -I \end{pmatrix}, \quad
              W_P = \operatorname{diag}(-\gamma\, I, \tfrac{\eta}{N} I), \quad W_K = W_Q = \operatorname{diag}(I, 0)

    (times N if the model divides by N) does x_j <- x_j - gamma sum_i x_i (x_i^* x_j) and y_j <- y_j - dW x_j at once.

    Args:
      model: not causal, query not in the sum, readout_sign -1, "merged" or "hankel" embedding.
      dim: d, dimension of the inputs.
      context_length: N, number of examples.
      step_sizes: (layers,), eta of each layer, for the *mean* gradient.
      curvatures: (layers,), gamma of each layer, for the *unnormalised* Gram matrix; the last has no effect.
      initial: W_0 (k, d), the same in every layer; zeros by default.
      label_dim: k; by default the rows of `initial`, else 1.
      separate: give `SeparateWeights` instead of `LSAWeights`.

    Returns:
      One layer, or a tuple of layers. For a looped model give one layer's parameters.

    Raises:
      InvalidValueError: sizes or shapes that do not fit.
      UnsupportedProblemError: the architecture cannot implement GD++.

    Source: von Oswald et al., arXiv 2212.07677, GD++.
    """
    sizes, gammas = np.asarray(step_sizes, dtype=np.float64), np.asarray(curvatures, dtype=np.float64)
    if sizes.ndim != 1 or sizes.shape != gammas.shape or sizes.size == 0:
        raise InvalidValueError(
            f"`step_sizes` and `curvatures` need one entry for each layer; got shapes {sizes.shape} and {gammas.shape}."
        )
    layout = _layout(model, dim, initial, label_dim)
    _require_residual_form(model, "GD++ moves the inputs of every token")
    if layout.query != layout.input:
        raise UnsupportedProblemError('GD++ needs the "merged" or "hankel" embedding, where a token holds one input.')
    layers = []
    for eta, gamma in zip(sizes, gammas, strict=True):
        layer = _layer(model, layout, context_length, np.eye(dim), float(eta), initial)
        w_p, w_v = layer.w_p.copy(), layer.w_v.copy()
        w_p[layout.input, layout.input] = -gamma * model.normaliser_at(context_length + 1) * np.eye(dim)
        w_v[layout.input, layout.input] = np.eye(dim)
        layers.append(SeparateWeights(w_p=w_p, w_v=w_v, w_k=layer.w_k, w_q=layer.w_q))
    return _stack(model, layers, equal=False, separate=separate)


def _layer(
    model: LinearSelfAttention, layout: _Layout, context_length: int, matrix: Array, scale: float, initial: Array | None
) -> SeparateWeights:
    """One step W - scale (1/N) sum_i (W_0 x_i - y_i) x_i^* P^T, P = `matrix`."""
    check_count(context_length, "context_length", 1, "It is the number of examples that a gradient averages over.")
    width, sign = layout.width, model.readout_sign
    w_k, w_q, w_v = (np.zeros((width, width)) for _ in range(3))
    w_k[layout.query, layout.input] = matrix
    w_q[layout.query, layout.query] = np.eye(matrix.shape[0])
    w_v[layout.answer, layout.label] = sign * np.eye(layout.answer.stop - layout.answer.start)
    if initial is not None:
        w_v = w_v.astype(np.result_type(w_v, initial))
        w_v[layout.answer, layout.input] = -sign * np.asarray(initial)
    # The gradient is a mean over N; the model divides by rho.
    per_example = scale * model.normaliser_at(context_length + 1) / context_length
    return SeparateWeights(w_p=per_example * np.eye(width), w_v=w_v, w_k=w_k, w_q=w_q)


def _stack(model: LinearSelfAttention, layers: list[SeparateWeights], equal: bool, separate: bool) -> Weights:
    finished = layers if separate else [layer.merged() for layer in layers]
    return finished[0] if len(finished) == 1 or (equal and model.loops > 1) else tuple(finished)


def _layout(model: LinearSelfAttention, dim: int, initial: Array | None, label_dim: int | None) -> _Layout:
    check_count(dim, "dim", 1, "It is the number of input coordinates.")
    if model.layer_norm:
        raise UnsupportedProblemError("A layer that normalises its tokens takes no gradient step; use layer_norm=False.")
    paired = model.embedding == "paired"
    if label_dim is None:
        label_dim = int(np.shape(initial)[0]) if initial is not None and np.ndim(initial) == 2 else dim if paired else 1
    check_count(label_dim, "label_dim", 1, "It is the number of label coordinates.")
    if initial is not None and (np.shape(initial) != (label_dim, dim) or not np.all(np.isfinite(np.asarray(initial)))):
        raise InvalidValueError(
            f"`initial` must be a finite matrix W_0, (k, d) = ({label_dim}, {dim}); got shape {np.shape(initial)}."
        )
    if model.embedding in ("merged", "hankel"):
        inputs, labels = slice(0, dim), slice(dim, dim + label_dim)
        return _Layout(dim + label_dim, label=labels, input=inputs, query=inputs, answer=labels)
    if not paired:
        raise UnsupportedProblemError(
            f'One layer cannot take a gradient step on tokens of the "{model.embedding}" embedding, where inputs and '
            'labels are in different tokens; use "merged", "hankel" or "paired".'
        )
    if label_dim != dim:
        raise InvalidValueError(f'With the "paired" embedding `label_dim` is that of the inputs, {dim}; got {label_dim}.')
    if not model.query_in_sum:
        raise UnsupportedProblemError(
            'With the "paired" embedding the query token holds the last example: a step needs query_in_sum=True.'
        )
    answer, current, previous = slice(0, dim), slice(dim, 2 * dim), slice(2 * dim, 3 * dim)
    return _Layout(3 * dim, label=current, input=previous, query=current, answer=answer)


def _step_count(model: LinearSelfAttention, parameter: np.ndarray, ndim: int, steps: int | None, initial: Array | None) -> int:
    """The number of steps that `parameter`, of rank `ndim` for all steps or one more for each, and `steps` ask for."""
    each = parameter.shape[0] if parameter.ndim > ndim else None
    if each is not None and steps not in (None, each):
        raise InvalidValueError(f"`steps` is {steps}, but parameters for {each} steps were given; drop one of them.")
    count = each or (model.loops if steps is None else steps)
    check_count(count, "steps", 1, "It is the number of gradient steps, one a layer.")
    if model.loops > 1 and (each is not None or count != model.loops):
        raise InvalidValueError(
            f"A model with loops={model.loops} takes as many equal steps; got {count} "
            f"{'different' if each is not None else 'equal'} ones. Use loops=1 and a tuple of layers."
        )
    if count > 1:
        _require_residual_form(model, "A second step needs the residuals of the first in the label slots")
    # The query token's own value is s (s W_0 x_q - W_0 x_q): it vanishes for s = 1, and for W_0 = 0.
    starts_elsewhere = initial is not None and np.any(initial) and model.embedding != "paired"
    if model.query_in_sum and model.readout_sign == -1 and starts_elsewhere:
        raise UnsupportedProblemError(
            "With W_0 != 0 and readout_sign=-1 the query token adds 2 W_0 x_q to the sum; use query_in_sum=False."
        )
    return count


def _require_residual_form(model: LinearSelfAttention, reason: str) -> None:
    if model.query_in_sum or model.causal or model.readout_sign != -1:
        raise UnsupportedProblemError(
            f"{reason}: the model must have query_in_sum=False, causal=False and readout_sign=-1; got "
            f"query_in_sum={model.query_in_sum}, causal={model.causal}, readout_sign={model.readout_sign}."
        )
