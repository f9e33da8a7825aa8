"""`Check`: one measured number beside one expected, and how it is decided.

- A deterministic check passes when `error <= tolerance`. The error is relative, ||measured - expected||_F / ||expected||_F,
  unless the name ends in `_abs`: then it is ||measured - expected||_F. Where `measured` is a small difference of large
  terms (the risk after a long context), their rounding is added to the tolerance.
- A sampled check has a standard error and passes within `SIGMAS` of them; its tolerance records that same bound in the scale
  of its error. One too noisy to tell anything (a relative tolerance above `LARGEST_SAMPLED_TOLERANCE`) does not pass.
- An inequality (`at_most`, `at_least`) shows its bound as `expected`, and its error is by how much it is violated.
- NaN and infinity never pass, wherever they stand.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, SupportsFloat

import numpy as np

from icl_lab.core.errors import InvalidValueError, PrecisionError

SIGMAS = 4.0
SMALLEST_SHARE = 1e-7
"""Share of the loss of predicting zero below which a search does not find the best weights to five digits."""
ROUNDING = 32 * float(np.finfo(np.float64).eps)
"""Rounding of a sum or difference, as a share of its terms; a dozen operations lead to it."""
LARGEST_SAMPLED_TOLERANCE = 0.5


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison of a claim; made by `exact`, `sampled`, `at_most`, `at_least` or `holds`, which decide `passed`.

    Attributes:
      name: what is compared; ends in `_abs` if the error is absolute.
      measured: from a trained or simulated object; matrices row by row.
      expected: from a closed form, of the shape of `measured`.
      error: see the module docstring.
      tolerance: largest error that passes.
      standard_error: of `measured` (root sum of squares over its entries), None if nothing was sampled.
      passed: the verdict.
    """

    name: str
    measured: float | tuple[float, ...]
    expected: float | tuple[float, ...]
    error: float
    tolerance: float
    standard_error: float | None
    passed: bool

    def to_json(self) -> dict[str, Any]:
        """The check as JSON types in full precision; numbers that are not finite become null."""
        return {
            "name": self.name,
            "measured": _json_value(self.measured),
            "expected": _json_value(self.expected),
            "error": _json_value(self.error),
            "tolerance": _json_value(self.tolerance),
            "standard_error": None if self.standard_error is None else _json_value(self.standard_error),
            "passed": self.passed,
        }


def exact(name: str, measured: Any, expected: Any, tolerance: float, terms: SupportsFloat = 0.0) -> Check:
    """The check that `measured` (number or array) equals `expected` of the same shape to within `tolerance`.

    Args:
      name: what is compared.
      measured: number or array.
      expected: the same shape.
      tolerance: largest error that passes, beside the rounding of `terms`.
      terms: size of the terms that cancel in every entry of `measured`, such as the variance of the labels for a risk.

    Raises:
      InvalidValueError: shapes differ, or `expected` is zero, `terms` too, and the name does not end in `_abs`.
    """
    error, scale = _error(name, measured, expected, terms)
    tolerance = float(tolerance) + _rounding(measured, terms) / scale
    passed = bool(math.isfinite(error) and math.isfinite(tolerance) and error <= tolerance)
    return Check(name, _numbers(measured), _numbers(expected), error, tolerance, None, passed)


def sampled(name: str, measured: Any, expected: Any, standard_error: Any) -> Check:
    """The check that a sample mean lies within `SIGMAS` standard errors of `expected`.

    Args:
      name: what is compared.
      measured: number or array, averaged over samples.
      expected: the same shape.
      standard_error: of `measured`, the same shape; positive.

    Raises:
      InvalidValueError: as `exact`.
    """
    error, scale = _error(name, measured, expected)
    total = float(np.linalg.norm(np.ravel(np.asarray(standard_error, dtype=np.float64))))
    tolerance = SIGMAS * total / scale
    informative = total > 0 and (name.endswith("_abs") or tolerance <= LARGEST_SAMPLED_TOLERANCE)
    passed = bool(informative and math.isfinite(error) and math.isfinite(tolerance) and error <= tolerance)
    return Check(name, _numbers(measured), _numbers(expected), error, tolerance, total, passed)


def holds(name: str, condition: bool) -> Check:
    """A yes-or-no check (a verdict, an inequality), as the number 1 or 0 beside an expected 1; the name ends in `_abs`."""
    return exact(name, float(condition), 1.0, 0.0)


def at_most(
    name: str,
    measured: Any,
    bound: Any,
    tolerance: float = 0.0,
    standard_error: float | None = None,
    terms: SupportsFloat = 0.0,
) -> Check:
    """The check of an inequality, measured <= bound entry by entry; its error is the Frobenius norm of the excess, relative to
    that of the bound unless the name ends in `_abs`.

    Args:
      name: what is compared.
      measured: number or array.
      bound: the same shape, shown as `expected`.
      tolerance: excess that is allowed, beside the rounding of `terms`.
      terms: as in `exact`.
      standard_error: of `measured`, shown only; put what it allows into `measured` or `bound`.

    Raises:
      InvalidValueError: as `exact`.
    """
    measured, bound = np.asarray(measured, dtype=np.float64), np.asarray(bound, dtype=np.float64)
    distance, scale = _error(name, measured, bound, terms)
    excess = float(np.linalg.norm(np.ravel(np.maximum(measured - bound, 0.0)))) / scale
    tolerance = float(tolerance) + _rounding(measured, terms) / scale
    passed = bool(math.isfinite(distance) and excess <= tolerance)
    return Check(name, _numbers(measured), _numbers(bound), excess, tolerance, standard_error, passed)


def at_least(
    name: str,
    measured: Any,
    bound: Any,
    tolerance: float = 0.0,
    standard_error: float | None = None,
    terms: SupportsFloat = 0.0,
) -> Check:
    """`at_most` the other way round: measured >= bound."""
    negative = -np.asarray(measured, dtype=np.float64), -np.asarray(bound, dtype=np.float64)
    mirrored = at_most(name, *negative, tolerance, standard_error, terms)
    return dataclasses.replace(mirrored, measured=_numbers(measured), expected=_numbers(bound))


def require_shown(loss: float, terms: SupportsFloat) -> None:
    """Raise `PrecisionError` if a least loss is so small beside its terms that double precision does not find its weights."""
    if not loss >= SMALLEST_SHARE * float(terms):
        raise PrecisionError(
            f"the least loss would be {loss / float(terms):.1g} of that of predicting zero; below {SMALLEST_SHARE:g} double "
            "precision does not tell the best weights from others. Take a shorter context, or fewer layers."
        )


def _rounding(measured: Any, terms: SupportsFloat) -> float:
    """The Frobenius norm of what rounding may leave in all entries."""
    return ROUNDING * float(terms) * math.sqrt(np.size(measured))


def _error(name: str, measured: Any, expected: Any, terms: SupportsFloat = 0.0) -> tuple[float, float]:
    """The error and the scale it is divided by: that of `expected`, or of the terms where their difference should vanish."""
    if np.iscomplexobj(measured) or np.iscomplexobj(expected):
        raise InvalidValueError(f"check {name!r}: compare real and imaginary parts, as two real numbers; got complex values.")
    measured, expected = np.asarray(measured, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if measured.shape != expected.shape:
        raise InvalidValueError(
            f"check {name!r}: measured has shape {measured.shape}, expected has {expected.shape}; they must be equal, "
            "since broadcasting would compare the wrong entries."
        )
    scale = 1.0 if name.endswith("_abs") else float(np.linalg.norm(np.ravel(expected))) or float(terms)
    if scale == 0:
        raise InvalidValueError(
            f"check {name!r}: a relative error needs a non-zero expected value; end the name in `_abs` to compare with zero."
        )
    return float(np.linalg.norm(np.ravel(measured - expected))) / scale, scale


def _numbers(value: Any) -> float | tuple[float, ...]:
    """A float, or the entries of an array row by row."""
    array = np.asarray(value, dtype=np.float64)
    return float(array) if array.ndim == 0 else tuple(array.ravel().tolist())


def _json_value(value: float | tuple[float, ...]) -> float | list[float | None] | None:
    if isinstance(value, tuple):
        return [x if math.isfinite(x) else None for x in value]
    return value if math.isfinite(value) else None
