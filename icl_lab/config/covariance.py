"""The ways to write a covariance in a configuration.

    null                     the identity
    anisotropic              {condition_number: 4}, or the identity at d = 1
    {condition_number: c}    eigenvalues in geometric progression from 1 down to 1/c
    {power_law: a}           eigenvalues k^(-a), k = 1 .. d
    [l1, l2, ...]            a spectrum
    [[...], ...]             a matrix
    inverse                  task vectors only: the inverse of the inputs' covariance

A spectrum is diagonal unless `rotate` gives the seed of a random rotation of the eigenvectors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.prng import check_seed
from icl_lab.tasks.distributions import spectra

_NAMED: dict[str, Callable[[int, float], np.ndarray]] = {
    "condition_number": spectra.geometric,
    "power_law": spectra.power_law,
}
_ACCEPTED = "null, anisotropic, {condition_number: c}, {power_law: a}, a list of eigenvalues or a list of rows"


def covariance_matrix(value: Any, dim: int, rotate: int | None = None, *, name: str = "task.covariance") -> np.ndarray:
    """The (dim, dim) matrix that a configuration value means; whether it is positive definite is for the task to check.

    Args:
      value: one of the forms above.
      dim: d >= 1.
      rotate: seed of a Haar rotation Q, giving Q C Q^T; None leaves the matrix as it is.
      name: the key, for messages.

    Raises:
      InvalidValueError: another form, a parameter of a named spectrum out of range, or a size other than d.
    """
    if rotate is not None:
        check_seed(rotate, "task.rotate")
    matrix = _unrotated(value, dim, name)
    if rotate is None:
        return matrix
    rotation = spectra.random_rotation(dim, rotate)
    rotated = rotation @ matrix @ rotation.T
    # A product of three matrices is symmetric only up to rounding; an asymmetry of the user's own must stay visible.
    return rotated if np.any(matrix != matrix.T) else 0.5 * (rotated + rotated.T)


def _unrotated(value: Any, dim: int, name: str) -> np.ndarray:
    if isinstance(value, str) and value == "anisotropic":
        value = {"condition_number": 4.0} if dim > 1 else None
    if isinstance(value, dict):
        return np.diag(_named_spectrum(value, dim, name))
    try:
        numbers = None if value is None else np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidValueError(f"`{name}` must be {_ACCEPTED}; got {value!r}.") from None
    return np.asarray(spectra.as_covariance(numbers, dim, name))


def _named_spectrum(value: dict[str, Any], dim: int, name: str) -> np.ndarray:
    if len(value) == 1:
        ((kind, parameter),) = value.items()
        if kind in _NAMED and isinstance(parameter, int | float) and not isinstance(parameter, bool):
            if isinstance(parameter, int) and abs(parameter) > sys.float_info.max:
                raise InvalidValueError(f"`{name}`: `{kind}` must be at most {sys.float_info.max:.1e}; got a longer integer.")
            return _NAMED[kind](dim, float(parameter))
    raise InvalidValueError(f"`{name}` must be {_ACCEPTED}; got {value!r}.")
