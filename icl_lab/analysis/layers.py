"""How far matrices read off trained layers are from multiples of the identity."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from icl_lab.core import precision
from icl_lab.core.linalg import psd_root
from icl_lab.core.typing import Array


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
    sizes = np.linalg.norm(flat, axis=1)
    return np.divide(rest, sizes, out=np.full_like(rest, np.nan), where=sizes > 0).reshape(matrices.shape[:-2])
