"""Covariances of claims: a spectrum of the user's, or a default of the right length, in a random basis on request."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float

from icl_lab.core import precision
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import haar_orthogonal
from icl_lab.core.prng import stream
from icl_lab.core.typing import Array


def check_spectrum(values: Sequence[float] | None, dim: int, name: str) -> None:
    """Raise `InvalidValueError` unless a spectrum is null or has one eigenvalue for each of `dim` dimensions."""
    if values is not None and len(values) != dim:
        raise InvalidValueError(
            f"`{name}` must hold d = {dim} eigenvalues; got {len(values)}. Set `d` too, or null for the default spectrum."
        )


def covariance(
    values: Sequence[float] | None, dim: int, rotate: bool, seed: int, name: str = "rotation", largest: float = 2.0
) -> Float[Array, "d d"]:
    """A covariance with a given spectrum; null stands for `largest` down to 1/2 in geometric steps.

    Args:
      values: d positive eigenvalues or null.
      dim: d.
      rotate: whether the eigenvectors are a Haar-random basis instead of the axes.
      seed: of the basis.
      name: of the basis's random stream, so that two covariances of one claim do not commute.
      largest: largest eigenvalue of the default spectrum.

    Returns:
      (d, d).
    """
    spectrum = np.geomspace(largest, 0.5, dim) if values is None else np.asarray(values, dtype=np.float64)
    if not rotate:
        return np.diag(spectrum)
    with precision.float64():
        basis = np.asarray(haar_orthogonal(stream(jax.random.key(seed), name), dim))
    rotated = (basis * spectrum[None, :]) @ basis.T
    return (rotated + rotated.T) / 2
