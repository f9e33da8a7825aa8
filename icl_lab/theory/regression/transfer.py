r"""What a trained layer makes of prompts from another distribution: Theorem 4.2 of Zhang, Frei, Bartlett (arXiv 2306.09927).

Training: x ~ N(0, Lambda), w ~ N(0, I), no noise, length N, preconditioner Gamma^{-1}. Test: length M, and any distribution
of (x, y) with x ~ N(0, Lambda). Errors are mean squared errors against the label of the query itself, without a factor 1/2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.theory.regression import zhang2023


class LabelDistribution(NamedTuple):
    """Second-order facts about a distribution of (x, y).

    Attributes:
      slope: (d,), a = Lambda^{-1} E[x y], the best linear predictor without intercept.
      product_covariance: (d, d), Cov(x y) = E[y^2 x x^T] - E[x y] E[x y]^T.
      minimum: E(a.x - y)^2, the smallest error of a linear predictor without intercept.
    """

    slope: Float[Array, "d"]
    product_covariance: Float[Array, "d d"]
    minimum: float


# E g^2, E g^2 z^2 and E g z of g(r z), z ~ N(0, 1), as functions of r.
_LINK_MOMENTS = {
    "linear": lambda r: (r**2, 3 * r**2, r),
    "relu": lambda r: (r**2 / 2, 3 * r**2 / 2, r / 2),
    "sign": lambda r: (1.0, 1.0, math.sqrt(2 / math.pi)),
    "cubic": lambda r: (15 * r**6, 105 * r**6, 3 * r**3),
    "square": lambda r: (3 * r**4, 15 * r**4, 0.0),
    "constant": lambda r: (1.0, 1.0, 0.0),
}
LABELS = tuple(_LINK_MOMENTS)
"""Label functions g with closed moments: s, max(s, 0), sign(s), s^3, s^2, 1."""


def single_index_distribution(
    label: str, vector: Float[Array, "d"], covariance: Float[Array, "d d"], noise_variance: float = 0.0
) -> LabelDistribution:
    r"""The distribution of y = g(w.x) + noise, x ~ N(0, Lambda).

    With :math:`r^2 = w^\top\Lambda w` and :math:`z \sim N(0, 1)`,

    .. math:: a = \frac{E[z g(rz)]}{r}\,w, \qquad
              \mathrm{Cov}(xy) = (E g^2 + s^2)\Lambda
              + \frac{E g^2 z^2 - E g^2 - (E z g)^2}{r^2}\,\Lambda w w^\top \Lambda, \qquad
              \min = E g^2 - (E z g)^2 + s^2

    Args:
      label: the function g, one of `LABELS`.
      vector: (d,), w, not zero.
      covariance: (d, d), Lambda.
      noise_variance: s2 of the labels, that of the query included.

    Raises:
      InvalidValueError: an unknown label or a zero vector.
    """
    if label not in _LINK_MOMENTS:
        raise InvalidValueError(f"`label` must be one of {', '.join(LABELS)}; got {label!r}.")
    length = float(np.sqrt(vector @ covariance @ vector))
    if length == 0:
        raise InvalidValueError("`vector` must not be zero: the index w.x would be constant.")
    second, fourth, correlation = _LINK_MOMENTS[label](length)
    image = covariance @ vector / length
    return LabelDistribution(
        slope=correlation / length * vector,
        product_covariance=(second + noise_variance) * covariance + (fourth - second - correlation**2) * np.outer(image, image),
        minimum=second - correlation**2 + noise_variance,
    )


def error(
    covariance: Float[Array, "d d"], context_length: int | float, test_length: int | float, distribution: LabelDistribution
) -> float:
    r"""Mean squared error of the trained layer on prompts of any distribution of labels.

    .. math:: E(\hat y - y_q)^2 = \min_w E(w \cdot x_q - y_q)^2 + \tfrac1M \operatorname{tr}[\Sigma\Gamma^{-2}\Lambda]
              + \tfrac1{N^2}\left[a^\top\Gamma^{-2}\Lambda^3 a + 2\operatorname{tr}(\Lambda)\,a^\top\Gamma^{-2}\Lambda^2 a
              + \operatorname{tr}(\Lambda)^2\,a^\top\Gamma^{-2}\Lambda a\right]

    Args:
      covariance: (d, d), Lambda of training and test.
      context_length: N of the training prompts.
      test_length: M of the test prompts, `math.inf` allowed.
      distribution: slope a, covariance Sigma and minimum of the labels' distribution.

    Returns:
      E(yhat - y_q)^2, y_q being the query's own, possibly noisy label.

    Source: arXiv 2306.09927, Theorem 4.2.
    """
    inverse_square = np.linalg.matrix_power(np.linalg.inv(zhang2023.gamma(covariance, context_length)), 2)
    trace = np.trace(covariance)
    t1, t2, t3 = (
        distribution.slope @ inverse_square @ np.linalg.matrix_power(covariance, k) @ distribution.slope for k in (1, 2, 3)
    )
    variance = np.trace(distribution.product_covariance @ inverse_square @ covariance) / test_length
    return float(distribution.minimum + variance + (t3 + 2 * trace * t2 + trace**2 * t1) / context_length**2)


def residual_bound(covariance: Float[Array, "d d"], context_length: int) -> float:
    r"""What is left of the bound of `sample_size` after any number of test examples.

    .. math:: \eta = \frac{(1 + 2d + d^2\kappa)\operatorname{tr}\Lambda}{N^2}, \qquad \kappa = \operatorname{cond}\Lambda

    Source: arXiv 2306.09927, Corollary 4.3.
    """
    dim = len(covariance)
    return float((1 + 2 * dim + dim**2 * np.linalg.cond(covariance)) * np.trace(covariance) / context_length**2)


def sample_size(covariance: Float[Array, "d d"], accuracy: float) -> int:
    r"""Test examples after which the risk is below accuracy + `residual_bound`: M >= (d + 1) tr(Lambda) / accuracy.

    Source: arXiv 2306.09927, Corollary 4.3.
    """
    # A quotient that is whole but for rounding is not rounded up.
    return math.ceil((len(covariance) + 1) * float(np.trace(covariance)) / accuracy * (1 - 1e-12))


def isotropic_risk(
    dim: int, context_length: int | float, test_length: int | float, noise_variance: float = 0.0, test_noise: float = 0.0
) -> float:
    r"""Risk for Lambda = Omega = I of a layer trained at one length and noise and tested at another.

    .. math:: d\left[(1-\beta)^2 + \frac{\beta^2(d + 1 + s_2')}{M}\right], \qquad \beta = \frac{1}{1 + (d + 1 + s_2)/N}

    Args:
      dim: d.
      context_length: N of training, `math.inf` allowed.
      test_length: M, `math.inf` allowed.
      noise_variance: s2 of the training labels.
      test_noise: s2' of the test labels.

    Returns:
      E(yhat - w.x_q)^2.

    Source: the lab's own, from arXiv 2306.09927, Theorem 4.2 and the discussion of its rates.
    """
    beta = 1 / (1 + (dim + 1 + noise_variance) / context_length)
    return dim * ((1 - beta) ** 2 + beta**2 * (dim + 1 + test_noise) / test_length)


def scaled_inputs_error(factor: float, signal: float) -> float:
    r"""Error after infinite contexts when all inputs are multiplied by c: c^2 (c^2 - 1)^2 w^T Lambda w.

    The answer is c^2 times the right one.

    Args:
      factor: c.
      signal: w^T Lambda w.

    Source: the lab's own, from arXiv 2306.09927, section 4.2 on covariate shift.
    """
    return factor**2 * (factor**2 - 1) ** 2 * signal
