r"""Layers that forecast a known AR(p) series: linear attention on Hankel tokens (x_i, .., x_{i+p}).

With w = (rho_p, .., rho_1) and the innovation filter r = (-w, 1), r.h_i is the innovation of column i. A layer with last value
row pi and key-query columns Q adds pi^T G Q h to the query's empty slot, G the mean of h_i h_i^T over complete columns.

Source: Zhou et al. (arXiv 2510.09776) for the layer; the weights are the lab's own.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from icl_lab.core.typing import Array
from icl_lab.models.weights import LSAWeights
from icl_lab.tasks.prompt import check_count
from icl_lab.tasks.series.autoregressive import check_stationary


def one_layer(coefficients: Float[Array, "p"], noise_std: float, context_length: int | None = None) -> LSAWeights:
    r"""The layer that answers (mean squared innovation / sigma^2) w.h, shrunk to the best scale for a context length.

    .. math:: \pi = \frac{N}{N+4}\,\frac{r}{\sigma^2}, \qquad Q = r\,w^\top

    Args:
      coefficients: (p,) rho_1 .. rho_p, nearest lag first, stationary.
      noise_std: sigma > 0.
      context_length: N >= 1 complete columns; None leaves out the factor N/(N+4).

    Returns:
      (p+1, p+1) matrices of one head.

    Raises:
      InvalidValueError: coefficients that are not stationary, or N < 1.
    """
    shrinkage = 1.0
    if context_length is not None:
        check_count(context_length, "context_length", 1, "It is the number of complete columns.")
        shrinkage = context_length / (context_length + 4)
    oldest_first, innovation = _filters(coefficients)
    return _layer(shrinkage * innovation / float(noise_std) ** 2, np.outer(innovation, np.append(oldest_first, 0.0)))


def two_layers(coefficients: Float[Array, "p"], noise_std: float) -> tuple[LSAWeights, LSAWeights]:
    r"""Two layers whose answer is w.h [1 - (1 - s)(1 - s')], s and s' two estimates of 1 from the innovations.

    The first is `one_layer` without shrinkage and leaves x_{i+p} + s w.h_i in the last slot of column i. The second reads it
    with f = (-2w, 1): pi = f / sigma^2, Q h = f w.h - f (query's slot), so it corrects w.h - s w.h by its own estimate s'.

    Args and errors as `one_layer`.
    """
    oldest_first, _ = _filters(coefficients)
    reader = np.append(-2 * oldest_first, 1.0)
    correction = _layer(reader / float(noise_std) ** 2, np.outer(reader, np.append(oldest_first, -1.0)))
    return one_layer(coefficients, noise_std), correction


def softmax_head(coefficients: Float[Array, "p"], noise_std: float, scale: float) -> LSAWeights:
    r"""The softmax head that forecasts the series in the limit of long contexts: pi = C r, Q = r w^T / (sigma^2 C).

    Args:
      coefficients: (p,) rho_1 .. rho_p, nearest lag first, stationary.
      noise_std: sigma > 0.
      scale: C > 0; small scores (large C) make the weights nearly equal, large ones concentrate them.

    Returns:
      (p+1, p+1) matrices of one head, for a softmax over the complete columns.

    Raises:
      InvalidValueError: coefficients that are not stationary.
    """
    oldest_first, innovation = _filters(coefficients)
    scores = np.outer(innovation, np.append(oldest_first, 0.0)) / (float(noise_std) ** 2 * scale)
    return _layer(scale * innovation, scores)


def _filters(coefficients: Array) -> tuple[np.ndarray, np.ndarray]:
    """w (p,) and r (p+1,)."""
    coefficients = np.asarray(coefficients, dtype=np.float64)
    check_stationary(coefficients)
    oldest_first = coefficients[::-1]
    return oldest_first, np.append(-oldest_first, 1.0)


def _layer(value_row: np.ndarray, w_kq: np.ndarray) -> LSAWeights:
    w_pv = np.zeros_like(w_kq)
    w_pv[-1] = value_row
    return LSAWeights(w_pv=w_pv, w_kq=w_kq)
