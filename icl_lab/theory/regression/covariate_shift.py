"""The linear layer's limit under the covariate shifts of arXiv 2306.09927, Section 5: the exact lines beside the transformers.

Training and test distributions as in that experiment: inputs N(0, I) ("fixed"), or N(0, diag(lambda)) with exponential
lambda_i drawn for each prompt ("random"), of mean 1 in training and of mean c at test time. Tasks are N(0, I), labels
noiseless.
"""

from __future__ import annotations

import numpy as np

from icl_lab.core.errors import InvalidValueError
from icl_lab.theory.regression import lsa, random_covariance
from icl_lab.theory.regression.problem import Problem


def risk_per_coordinate(trained: str, tested: str, scale: float, dim: int, context_length: int, length: int) -> float:
    """E (yhat - w.x_q)^2 / d of the trained layer on M examples; the zero predictor has c, least squares 0 from d examples on.

    Args:
      trained, tested: "fixed" or "random".
      scale: c, mean of the random eigenvalues at test time; 1 if tested on the identity.
      dim: d.
      context_length: N of training.
      length: M of the test.

    Raises:
      InvalidValueError: an unknown distribution.

    Source: arXiv 2306.09927, Theorem 4.1 (fixed) and Theorem 4.5 (random) for the limits.
    """
    for name in (trained, tested):
        if name not in ("fixed", "random"):
            raise InvalidValueError(f"a covariate distribution is fixed or random; got {name!r}.")
    identity = np.eye(dim)
    if trained == "fixed":
        step = float(lsa.optimal_preconditioner(Problem(identity, identity, 0.0, context_length))[0, 0])
    else:
        step = random_covariance.exponential_preconditioner(dim, context_length)
    if tested == "fixed":
        return lsa.risk(Problem(identity, identity, 0.0, length), step * identity) / dim
    return random_covariance.exponential_risk(step, dim, length, scale) / dim
