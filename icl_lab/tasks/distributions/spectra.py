"""Covariances written as a spectrum and a rotation, in numpy float64.

The spectra (`isotropic`, `geometric`, `power_law`, `spiked`) are (d,) arrays of eigenvalues, largest first;
`from_spectrum` turns one into the (d, d) matrix Q diag(s) Q^T. Columns of Q are the eigenvectors. Nothing is divided by
d or normalised by the trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import is_traced, psd_root
from icl_lab.core.typing import Array
from icl_lab.tasks.prompt import as_default_float, as_float64, check_count


def isotropic(dim: int, variance: float = 1.0) -> Float[np.ndarray, "d"]:
    """The spectrum of `variance` times the identity."""
    check_count(dim, "dim", 1, "A spectrum has at least one eigenvalue.")
    _check_positive(variance, "variance")
    return np.full(dim, float(variance))


def geometric(dim: int, condition_number: float, largest: float = 1.0) -> Float[np.ndarray, "d"]:
    """Eigenvalues in geometric progression from `largest` down to `largest / condition_number`.

    Raises:
      InvalidValueError: condition number below 1, or other than 1 at dim = 1.
    """
    check_count(dim, "dim", 1, "A spectrum has at least one eigenvalue.")
    _check_positive(largest, "largest")
    if not (np.isfinite(condition_number) and condition_number >= 1):
        raise InvalidValueError(
            f"`condition_number` must be finite and >= 1, largest over smallest eigenvalue; got {condition_number!r}."
        )
    if dim == 1 and condition_number != 1:
        raise InvalidValueError(f"`condition_number` must be 1 when dim = 1; got {condition_number!r}.")
    return largest * float(condition_number) ** -np.linspace(0.0, 1.0, dim)


def power_law(dim: int, exponent: float, largest: float = 1.0) -> Float[np.ndarray, "d"]:
    """Eigenvalues `largest` * k^(-exponent), k = 1 .. d."""
    check_count(dim, "dim", 1, "A spectrum has at least one eigenvalue.")
    _check_positive(largest, "largest")
    if not (np.isfinite(exponent) and exponent >= 0):
        raise InvalidValueError(f"`exponent` must be a finite number >= 0, so that eigenvalues decrease; got {exponent!r}.")
    return largest * np.arange(1.0, dim + 1.0) ** -float(exponent)


def spiked(dim: int, spikes: Sequence[float], bulk: float = 1.0) -> Float[np.ndarray, "d"]:
    """The eigenvalues `spikes`, followed by `bulk` repeated up to d of them."""
    check_count(dim, "dim", 1, "A spectrum has at least one eigenvalue.")
    _check_positive(bulk, "bulk")
    if len(spikes) > dim:
        raise InvalidValueError(f"`spikes` must hold at most dim = {dim} eigenvalues; got {len(spikes)}.")
    for spike in spikes:
        _check_positive(spike, "spikes")
    return np.concatenate([np.asarray(spikes, dtype=np.float64), np.full(dim - len(spikes), float(bulk))])


def random_rotation(dim: int, seed: int) -> Float[np.ndarray, "d d"]:
    """A Haar-distributed orthogonal matrix; the same for the same seed."""
    check_count(dim, "dim", 1, "A rotation acts on at least one dimension.")
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))
    return q * np.sign(np.diagonal(r))[None, :]


def from_spectrum(spectrum: Any, rotation: Any = None) -> Float[np.ndarray, "d d"]:
    """The covariance Q diag(spectrum) Q^T.

    Args:
      spectrum: (d,) eigenvalues, >= 0, in the order of the columns of `rotation`.
      rotation: (d, d) orthogonal Q; None is the identity.

    Returns:
      (d, d), exactly symmetric.

    Raises:
      InvalidValueError: a negative or non-finite eigenvalue, a rotation not orthogonal to 1e-8 or not (d, d).

    Examples:
      >>> from icl_lab.tasks.distributions import spectra
      >>> spectrum = spectra.geometric(dim=3, condition_number=4.0)
      >>> spectrum
      array([1.  , 0.5 , 0.25])
      >>> covariance = spectra.from_spectrum(spectrum, spectra.random_rotation(3, seed=0))
      >>> round(float(covariance.trace()), 6)
      1.75
    """
    spectrum = np.asarray(spectrum, dtype=np.float64)
    if spectrum.ndim != 1 or spectrum.size == 0:
        raise InvalidValueError(f"`spectrum` must be a (d,) array of eigenvalues; got shape {spectrum.shape}.")
    if not np.all(np.isfinite(spectrum)) or np.min(spectrum) < 0:
        raise InvalidValueError(f"`spectrum` must hold finite eigenvalues >= 0; its smallest is {np.min(spectrum):.6g}.")
    if rotation is None:
        return np.diag(spectrum)
    rotation = np.asarray(rotation, dtype=np.float64)
    if rotation.shape != (spectrum.size, spectrum.size):
        raise InvalidValueError(f"`rotation` must have shape {(spectrum.size,) * 2}, as the spectrum; got {rotation.shape}.")
    defect = float(np.max(np.abs(rotation.T @ rotation - np.eye(spectrum.size))))
    if not defect <= 1e-8:
        raise InvalidValueError(f"`rotation` must be orthogonal; Q^T Q differs from the identity by up to {defect:.3g}.")
    matrix = (rotation * spectrum[None, :]) @ rotation.T
    return (matrix + matrix.T) / 2


def as_covariance(value: Any, dim: int, name: str = "covariance") -> Array:
    """`value` as a (dim, dim) matrix: None is the identity, a (dim,) array a spectrum on the coordinate axes.

    Raises:
      InvalidValueError: any other shape. (Definiteness is checked by `linalg.check_covariance`.)
    """
    if value is None:
        return np.eye(dim)
    value = as_float64(value)
    if value.shape == (dim,):
        return jnp.diag(value) if is_traced(value) else np.diag(np.asarray(value))
    if value.shape != (dim, dim):
        raise InvalidValueError(
            f"`{name}` must be a ({dim},) spectrum or a ({dim}, {dim}) matrix, because dim = {dim}; got shape {value.shape}."
        )
    return value


def covariance_root(covariance: Float[Array, "d d"]) -> Array | None:
    """A symmetric square root in its cheapest form: None for the identity, (d,) for a diagonal matrix, (d, d) else.

    The form is decided from concrete numbers; a traced covariance always gives a (d, d) root.
    """
    if is_traced(covariance):
        return psd_root(covariance)
    matrix = np.asarray(covariance, dtype=np.float64)
    diagonal = np.diagonal(matrix)
    if np.array_equal(matrix, np.eye(len(matrix))):
        return None
    if np.array_equal(matrix, np.diag(diagonal)):
        return np.sqrt(np.clip(diagonal, 0.0, None))
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0.0, None))[None, :]) @ vectors.T


def apply_root(root: Array | None, draws: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Rows z_i of `draws` mapped to root z_i, for a root in any of the forms of `covariance_root`."""
    if root is None:
        return draws
    root = as_default_float(root)
    return draws * root[None, :] if root.ndim == 1 else draws @ root


def _check_positive(value: float, name: str) -> None:
    if not (np.isfinite(value) and value > 0):
        raise InvalidValueError(f"`{name}` must be a finite number > 0, as an eigenvalue is; got {value!r}.")
