r"""Trained weights of one linear attention layer against a closed form, after the gauge is fixed.

In the notation of `gauge`, the prediction is an odd part, linear in sum_i y_i x_i, and an even part in the labels:

.. math:: \hat y = \pm\frac1\rho\Big[ x_q^\top B \sum_i y_i x_i
          + \sum_i (p_1^\top x_i)(x_i^\top K_1 x_q) + p_2 \sum_i y_i^2\; k_2^\top x_q \Big],
          \qquad B = p_2 K_1^\top + k_2 p_1^\top ,

each term summed over heads; with the query token in the sum the middle one has a term more. The odd part is a step of
preconditioned gradient descent; the even part can only add to the risk of a task whose distribution does not change under
w -> -w, and vanishes at the optimum.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Inexact

from icl_lab.analysis.gauge import active_parts, balance
from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.core.typing import Array, Weights
from icl_lab.models import Learner, LinearSelfAttention, LSAWeights


@runtime_checkable
class ClosedForm(Protocol):
    """What `compare` reads of a `theory.Optimum`."""

    @property
    def name(self) -> str:
        """A few words."""
        ...

    @property
    def preconditioner(self) -> Array:
        """(d, d), acts on the mean over the context."""
        ...

    @property
    def w_pv(self) -> Array:
        """(d+1, d+1)."""
        ...

    @property
    def w_kq(self) -> Array:
        """(d+1, d+1)."""
        ...

    @property
    def normaliser(self) -> str:
        """Normaliser of the model that the two matrices belong to."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One measured quantity beside its expected value.

    Attributes:
      name: what it is.
      measured: array read off the trained weights.
      expected: the closed form's.
      error: relative, in the Frobenius norm; for a part that should vanish, its share of the matrix it is part of.
      tolerance: largest error that passes.
    """

    name: str
    measured: Array
    expected: Array
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within tolerance; a NaN is not."""
        return bool(self.error <= self.tolerance)


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Trained weights beside a closed form; `print` shows a table.

    Attributes:
      name: of the closed form.
      rows: one a quantity; the array of `w_pv` and `w_kq` are the balanced representatives.
    """

    name: str
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether every row is within its tolerance."""
        return all(row.passed for row in self.rows)

    @property
    def errors(self) -> dict[str, float]:
        """The error of every row by its name."""
        return {row.name: row.error for row in self.rows}

    def __getitem__(self, name: str) -> Row:
        """The row called `name`."""
        for row in self.rows:
            if row.name == name:
                return row
        raise InvalidValueError(f"No row is called {name!r}; choose one of {', '.join(row.name for row in self.rows)}.")

    def __str__(self) -> str:
        lines = [
            f"trained weights against {self.name}",
            f"{'':16}{'|measured|':>14}{'|expected|':>14}{'error':>12}{'tolerance':>12}",
        ]
        for row in self.rows:
            sizes = f"{np.linalg.norm(row.measured):>14.8g}{np.linalg.norm(row.expected):>14.8g}"
            verdict = "ok" if row.passed else "FAILS"
            lines.append(f"{row.name:16}{sizes}{row.error:>12.3g}{row.tolerance:>12.3g}  {verdict}")
        return "\n".join(lines)


def effective_preconditioner(
    weights: Weights,
    model: Learner,
    context_length: int | None = None,
) -> Inexact[Array, "d d"]:
    r"""The matrix P of a trained layer: the odd part of its prediction is :math:`x_q^\top P\, \frac1N \sum_i y_i x_i`.

    .. math:: P = \pm\frac{N}{\rho} \sum_{\text{heads}} (p_2 K_1^\top + k_2 p_1^\top)

    Args:
      weights: one layer, merged or separate, with scalar labels; heads may lead.
      model: the architecture, whose normaliser rho and read-out sign enter.
      context_length: N; needed only if the model does not divide by it.

    Returns:
      (d, d) float64 numpy, not symmetric in general.

    Raises:
      UnsupportedProblemError: softmax attention, several layers or loops, or tokens other than (x, y).
      InvalidValueError: no `context_length` for a model with a plain sum.
    """
    model = _single_layer(weights, model)
    odd, _ = _odd_and_even(weights)
    return model.readout_sign * _length_over_rho(model.normaliser, context_length) * odd


def compare(
    weights: Weights,
    optimum: ClosedForm,
    model: Learner | None = None,
    context_length: int | None = None,
    tolerance: float = 1e-6,
) -> Comparison:
    """Trained weights of one layer against a closed form, in the balanced gauge.

    Rows: `preconditioner` and, for a single head, `w_pv` and `w_kq` (active entries of the balanced representatives), as
    relative errors; then what should vanish: `p1` and `k2` as shares of the active row of w_pv and of the active columns of
    w_kq, and `even part`, the size of the terms even in the labels over that of the odd ones. With several heads the
    gauge also mixes heads, so only the function's own `preconditioner` and `even part` are compared.

    Args:
      weights: one layer, merged or separate, with scalar labels; heads may lead.
      optimum: a `theory.Optimum`. Its matrices are carried over to the model's normaliser and read-out sign.
      model: the architecture; `LinearSelfAttention()` by default.
      context_length: N of training; needed if the model or the optimum's matrices do not divide by it.
      tolerance: largest error of a row that passes.

    Returns:
      The comparison.

    Raises:
      UnsupportedProblemError: softmax attention, several layers or loops, or tokens other than (x, y).
      InvalidValueError: a dimension that differs from the optimum's, or a missing `context_length`.

    Examples:
      The weights of a theorem, with another scale in each matrix, are the same layer:

      >>> from icl_lab import analysis, models, tasks, theory
      >>> best = theory.lsa.optimum(tasks.LinearRegression(dim=2, context_length=8))
      >>> comparison = analysis.compare(models.LSAWeights(2 * best.w_pv, best.w_kq / 2), best)
      >>> comparison.passed
      True
      >>> analysis.compare(models.LSAWeights(2 * best.w_pv, best.w_kq), best)["preconditioner"].error
      1.0
    """
    model = _single_layer(weights, LinearSelfAttention() if model is None else model)
    preconditioner = effective_preconditioner(weights, model, context_length)
    expected_preconditioner = np.asarray(optimum.preconditioner, dtype=np.float64)
    if preconditioner.shape != expected_preconditioner.shape:
        raise InvalidValueError(
            f"The weights are for inputs of dimension {preconditioner.shape[0]}, but the optimum is for dimension "
            f"{expected_preconditioner.shape[0]}."
        )
    rows = [_row("preconditioner", preconditioner, expected_preconditioner, tolerance)]
    trained = balance(weights)
    if trained.w_pv.ndim == 2:
        change = model.readout_sign
        if model.normaliser != optimum.normaliser:
            change *= _length_over_rho(optimum.normaliser, context_length)
            change /= _length_over_rho(model.normaliser, context_length)
        best = balance(LSAWeights(w_pv=np.asarray(optimum.w_pv), w_kq=change * np.asarray(optimum.w_kq)))
        rows.append(_row("w_pv", trained.w_pv, best.w_pv, tolerance))
        rows.append(_row("w_kq", trained.w_kq, best.w_kq, tolerance))
        parts = active_parts(trained)
        for name, part, whole in (("p1", parts.p1, trained.w_pv), ("k2", parts.k2, trained.w_kq)):
            rows.append(_vanishing_row(name, part, whole, tolerance))
    odd, even = _odd_and_even(trained)
    rows.append(_vanishing_row("even part", even, odd, tolerance))
    return Comparison(name=optimum.name, rows=tuple(rows))


def _odd_and_even(weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    """B (d, d), and the coefficients of the even terms as one vector; without rho."""
    parts = active_parts(weights)
    dim = parts.p1.shape[-1]
    p1, p2 = parts.p1.reshape(-1, dim), parts.p2.reshape(-1)
    k1, k2 = parts.k1.reshape(-1, dim, dim), parts.k2.reshape(-1, dim)
    cubic = np.einsum("ha,hbc->abc", p1, k1)  # sum_i x_ia x_ib x_qc, so only its symmetric part in (a, b) acts
    square = np.einsum("h,hc->c", p2, k2)
    odd = np.einsum("h,hbc->cb", p2, k1) + np.einsum("hc,hb->cb", k2, p1)
    return odd, np.concatenate([((cubic + cubic.swapaxes(0, 1)) / 2).ravel(), square])


def _row(name: str, measured: Array, expected: Array, tolerance: float) -> Row:
    gap, size = np.linalg.norm(measured - expected), np.linalg.norm(expected)
    error = float(gap / size) if size > 0 else (0.0 if gap == 0 else float("inf"))
    return Row(name, measured, expected, error, tolerance)


def _vanishing_row(name: str, part: Array, whole: Array, tolerance: float) -> Row:
    size = np.linalg.norm(whole)
    share = float(np.linalg.norm(part) / size) if size > 0 else float("nan")
    return Row(name, part, np.zeros_like(part), share, tolerance)


def _length_over_rho(normaliser: str, context_length: int | None) -> float:
    """N / rho: 1 for a model that divides by N, N for a plain sum."""
    if normaliser == "context_length":
        return 1.0
    if context_length is None:
        raise InvalidValueError(
            "`context_length` is needed: preconditioners act on the mean over the context, a plain sum is N times that."
        )
    return float(context_length)


def _single_layer(weights: Weights, model: Learner) -> LinearSelfAttention:
    """The model, if it is one layer of linear attention on merged tokens."""
    layers = len(weights) if isinstance(weights, tuple | list) else 1
    if not isinstance(model, LinearSelfAttention) or layers != 1 or not model.is_single_pass or model.embedding != "merged":
        raise UnsupportedProblemError(
            "An effective preconditioner exists for one layer of linear attention on tokens (x, y); got "
            f"{type(model).__name__} with {layers} layer(s), {model.loops} loop(s), embedding {model.embedding!r}. "
            "Compare other models as functions, with `analysis.compare_functions`."
        )
    return model
