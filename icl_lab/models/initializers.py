"""Starts of training: the theorems' structured ones and Gaussian ones, and what gradient flow conserves from each.

All are float64 numpy arrays. Gradient flow on *any* loss that is a function of a linear-attention layer's output
conserves, layer by layer (a, b number heads; a single head is the 1 x 1 case):

    merged     <W_PV^a, W_PV^b> - <W_KQ^a, W_KQ^b>                        an H x H matrix
    separate   W_K W_K^T - W_Q W_Q^T  and  W_P^T W_P - W_V W_V^T          a head each
               ||W_P||^2 - ||W_K||^2                                      a head each (Frobenius norms)

because the layer depends only on sum_h W_PV^h (x) W_KQ^h, and that on W_K^T W_Q and W_P W_V. Softmax attention keeps
the second line only, and discrete gradient descent none of them exactly. No scale is divided by the token width.
"""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Float

from icl_lab.core import precision
from icl_lab.core.errors import AssumptionError, InvalidValueError
from icl_lab.core.linalg import is_traced
from icl_lab.core.prng import stream
from icl_lab.core.typing import Array, Key
from icl_lab.models.weights import LSAWeights, SeparateWeights
from icl_lab.tasks.prompt import check_count


def zhang(dim: int, scale: float, theta: Float[Array, "d d"] | None = None) -> LSAWeights:
    r"""The structured start under which gradient flow provably finds the global minimum.

    .. math:: W_{PV} = \sigma\, e_{d+1} e_{d+1}^\top, \qquad W_{KQ} = \sigma \operatorname{diag}(\Theta\Theta^\top, 0),
              \qquad \|\Theta\Theta^\top\|_F = 1

    Conserves u^2 - ||U||_F^2 = 0 (u the corner of W_PV, U the input block of W_KQ), and every other entry stays exactly
    zero under the population loss of linear regression with centred Gaussian inputs and tasks.

    Args:
      dim: d >= 1, input dimension; tokens are d + 1 wide.
      scale: sigma > 0. The theorem also wants sigma^2 ||Gamma||_op sqrt(d) < 2, which depends on the task.
      theta: (d, d) matrix Theta, rescaled here to ||Theta Theta^T||_F = 1; None means Theta Theta^T = I / sqrt(d).

    Returns:
      One head of (d+1, d+1) matrices.

    Raises:
      AssumptionError: scale <= 0, or Theta is zero.
      InvalidValueError: dim < 1, or Theta has another shape or holds a NaN.

    Source: Zhang, Frei, Bartlett (arXiv 2306.09927), Assumption 3.3.

    Examples:
      >>> from icl_lab import models
      >>> start = models.initializers.zhang(dim=2, scale=0.1)
      >>> print(start.w_kq.round(4))
      [[0.0707 0.     0.    ]
       [0.     0.0707 0.    ]
       [0.     0.     0.    ]]
    """
    check_count(dim, "dim", 1, "It is the number of input coordinates.")
    if not (np.isfinite(scale) and scale > 0):
        raise AssumptionError(
            f"`scale` must be > 0; got {scale!r}. Assumption 3.3 of arXiv 2306.09927 asks it: zero is a saddle."
        )
    product = np.eye(dim) if theta is None else _outer_square(theta, dim)
    w_pv, w_kq = np.zeros((dim + 1, dim + 1)), np.zeros((dim + 1, dim + 1))
    w_pv[-1, -1] = scale
    w_kq[:dim, :dim] = scale * product / np.linalg.norm(product)
    return LSAWeights(w_pv=w_pv, w_kq=w_kq)


def _outer_square(theta: Array, dim: int) -> np.ndarray:
    theta = np.asarray(theta, dtype=np.float64)
    if theta.shape != (dim, dim) or not np.all(np.isfinite(theta)):
        raise InvalidValueError(f"`theta` must be a finite ({dim}, {dim}) matrix; got shape {theta.shape}.")
    if not np.any(theta):
        raise AssumptionError("`theta` must not be zero: Assumption 3.3 of arXiv 2306.09927 needs Theta Lambda != 0.")
    return theta @ theta.T


def random_theta(key: Key, dim: int) -> Float[Array, "d d"]:
    """A Gaussian matrix Theta, scaled to ||Theta Theta^T||_F = 1: the random instance of `zhang`'s start.

    Source: Zhang, Frei, Bartlett (arXiv 2306.09927), remark after Assumption 3.3.
    """
    check_count(dim, "dim", 1, "It is the number of input coordinates.")
    theta = normal(stream(key, "theta"), (dim, dim))
    return theta / np.sqrt(np.linalg.norm(theta @ theta.T))


def gaussian(key: Key, token_dim: int, scale: float, heads: int | None = None) -> LSAWeights:
    """Merged weights with independent N(0, scale^2) entries.

    Conserves <W_PV^a, W_PV^b> - <W_KQ^a, W_KQ^b> at its random, generally non-zero, value.

    Args:
      key: random key.
      token_dim: D, width of a token (d + 1 for scalar labels, merged).
      scale: standard deviation of an entry, > 0.
      heads: number of heads; None gives matrices without a head axis.

    Returns:
      (D, D) or (heads, D, D) matrices.

    Raises:
      InvalidValueError: scale <= 0, or a size below 1.
    """
    lead = check_gaussian(token_dim, scale, heads)
    shape = (*lead, token_dim, token_dim)
    return LSAWeights(w_pv=scale * normal(stream(key, "w_pv"), shape), w_kq=scale * normal(stream(key, "w_kq"), shape))


def separate_gaussian(
    key: Key,
    token_dim: int,
    scale: float,
    heads: int | None = None,
    rank: int | None = None,
    value_rank: int | None = None,
) -> SeparateWeights:
    """Separate weights with independent N(0, scale^2) entries.

    Conserves W_K W_K^T - W_Q W_Q^T and W_P^T W_P - W_V W_V^T at their random values of order scale^2. The origin is a
    saddle of higher order than for merged weights: the first plateau grows as a power of 1/scale, not as its logarithm.

    Args:
      key: random key.
      token_dim: D, width of a token.
      scale: standard deviation of an entry, > 0.
      heads: number of heads; None gives matrices without a head axis.
      rank: r, rows of W_K and W_Q; None means D.
      value_rank: v, rows of W_V; None means D.

    Returns:
      w_p (D, v), w_v (v, D), w_k (r, D), w_q (r, D), with a leading head axis if `heads` is given.

    Raises:
      InvalidValueError: scale <= 0, or a size below 1.
    """
    lead = check_gaussian(token_dim, scale, heads)
    rank = token_dim if rank is None else rank
    value_rank = token_dim if value_rank is None else value_rank
    check_count(rank, "rank", 1, "It is the number of rows of W_K and W_Q.")
    check_count(value_rank, "value_rank", 1, "It is the number of rows of W_V.")
    shapes = {
        "w_p": (token_dim, value_rank),
        "w_v": (value_rank, token_dim),
        "w_k": (rank, token_dim),
        "w_q": (rank, token_dim),
    }
    return SeparateWeights(**{name: scale * normal(stream(key, name), (*lead, *shape)) for name, shape in shapes.items()})


def balanced(weights: LSAWeights, rank: int | None = None, value_rank: int | None = None) -> SeparateWeights:
    r"""The balanced separate weights of the same function as `weights`, from singular value decompositions.

    With W_KQ = L S R^T: W_K = S^{1/2} L^T and W_Q = S^{1/2} R^T, and likewise W_P, W_V from W_PV, so that gradient flow
    conserves W_K W_K^T - W_Q W_Q^T = 0 and W_P^T W_P - W_V W_V^T = 0. `balanced(zhang(d, scale))` is the structured
    start of the separate parametrisation.

    Args:
      weights: merged weights, (D, D) or (H, D, D), real.
      rank: r <= D, rows of W_K and W_Q; None means D. A rank below that of W_KQ would change the function.
      value_rank: v <= D, rows of W_V; None means D.

    Returns:
      Separate weights with the same head axis.

    Raises:
      InvalidValueError: a rank below that of the matrix (singular values above 1e-12 of the largest), or above D.
    """
    w_p, w_v = _balanced_factors(weights.w_pv, value_rank, "value_rank")
    left, w_q = _balanced_factors(weights.w_kq, rank, "rank")
    return SeparateWeights(w_p=w_p, w_v=w_v, w_k=np.swapaxes(left, -1, -2), w_q=w_q)


def _balanced_factors(matrix: Array, rank: int | None, name: str) -> tuple[np.ndarray, np.ndarray]:
    left, values, right = np.linalg.svd(np.asarray(matrix, dtype=np.float64))
    needed = int(np.max(np.sum(values > 1e-12 * np.max(values, axis=-1, keepdims=True), axis=-1)))
    width = int(values.shape[-1])
    rank = width if rank is None else rank
    if not needed <= rank <= width:
        raise InvalidValueError(
            f"`{name}` must be between {needed}, the rank of the matrix it factors, and {width}; got {rank}."
        )
    root = np.sqrt(values[..., :rank])
    return left[..., :rank] * root[..., None, :], root[..., None] * right[..., :rank, :]


def check_gaussian(token_dim: int, scale: float, heads: int | None) -> tuple[int, ...]:
    """Raise on a bad argument; the head axis as a shape."""
    check_count(token_dim, "token_dim", 1, "It is the width of a token.")
    if not (np.isfinite(scale) and scale > 0):
        raise InvalidValueError(f"`scale` must be a finite number > 0; got {scale!r}. Zero weights are a saddle.")
    if heads is None:
        return ()
    check_count(heads, "heads", 1, "It is the number of heads.")
    return (heads,)


def normal(key: Key, shape: tuple[int, ...]) -> Array:
    """Standard normal draws in float64 whatever scope is in force; a traced key draws in that of the trace."""
    if is_traced(key):
        return jax.random.normal(key, shape)
    with precision.float64():
        return np.asarray(jax.random.normal(key, shape))
