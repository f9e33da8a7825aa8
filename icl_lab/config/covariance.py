"""The ways to write a covariance in a configuration.

    null                     the identity
    anisotropic              the same as {condition_number: 4}
    {condition_number: c}    a geometric spectrum from sqrt(c) down to 1/sqrt(c)
    [l1, l2, ...]            a spectrum
    [[...], ...]             a matrix
    inverse                  task vectors only: the inverse of the inputs' covariance

A spectrum is diagonal unless `rotate` gives the seed of a random rotation of the eigenvectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from icl_lab.errors import InvalidValueError

_ACCEPTED = "null, anisotropic, {condition_number: c}, a list of eigenvalues or a list of rows"


def covariance_matrix(value: Any, dim: int, rotate: int | None = None, *, name: str = "task.covariance") -> np.ndarray:
    """The (dim, dim) matrix that a configuration value means; whether it is positive definite is for the task to check.

    Args:
      value: one of the forms above.
      dim: d >= 1.
      rotate: seed of a Haar rotation Q, giving Q C Q^T; null leaves the matrix as it is.
      name: the key, for messages.

    Raises:
      InvalidValueError: another form, a condition number below 1, or a size other than d.
    """
    matrix = _unrotated(value, dim, name)
    if rotate is None:
        return matrix
    rotation = _haar_rotation(dim, rotate)
    rotated = rotation @ matrix @ rotation.T
    # A product of three matrices is symmetric only up to rounding; an asymmetry of the user's own must stay visible.
    return rotated if np.any(matrix != matrix.T) else 0.5 * (rotated + rotated.T)


def _unrotated(value: Any, dim: int, name: str) -> np.ndarray:
    if value is None:
        return np.eye(dim)
    if value == "anisotropic":
        value = {"condition_number": 4.0}
    if isinstance(value, dict):
        return np.diag(_geometric_spectrum(value, dim, name))
    try:
        matrix = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidValueError(f"`{name}` must be {_ACCEPTED}; got {value!r}.") from None
    if matrix.shape not in ((dim,), (dim, dim)):
        raise InvalidValueError(
            f"`{name}` must have {dim} eigenvalues or {dim} rows of {dim} numbers, because task.dim = {dim}; "
            f"got shape {matrix.shape}. Accepted forms: {_ACCEPTED}."
        )
    return np.diag(matrix) if matrix.ndim == 1 else matrix


def _geometric_spectrum(value: dict, dim: int, name: str) -> np.ndarray:
    condition = value.get("condition_number")
    if set(value) != {"condition_number"} or isinstance(condition, bool) or not isinstance(condition, int | float):
        raise InvalidValueError(f"`{name}` must be {_ACCEPTED}; got {value!r}.")
    if not 1 <= condition < np.inf:
        raise InvalidValueError(f"`{name}.condition_number` must be a finite number >= 1; got {condition!r}.")
    exponents = np.linspace(0.5, -0.5, dim) if dim > 1 else np.zeros(1)
    return float(condition) ** exponents


def _haar_rotation(dim: int, seed: int) -> np.ndarray:
    if seed < 0:
        raise InvalidValueError(f"`task.rotate` must be a seed >= 0 or null; got {seed!r}.")
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))
    return q * np.sign(np.diagonal(r))[None, :]
