r"""Softmax heads on linear regression: what two opposite heads become, and how well scalar heads predict.

Conventions of `theory.vonoswald2022`: half losses (1/2) E(yhat - w.x_q)^2, w ~ N(0, I), no label noise, inputs with
independent symmetric coordinates of variance sig2 and kurtosis kap, eta of the *mean* gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.optimize
from jaxtyping import Float

from icl_lab.core.typing import Array
from icl_lab.theory.descent import vonoswald2022

# Temperatures between which the best one is searched, in units of 1 / (sig2 sqrt(d)), where scores are of order 1.
SEARCH = (1e-3, 30.0)


class Heads(NamedTuple):
    """The best head, or pair of opposite heads, on a sample of prompts.

    Attributes:
      temperature: beta, of the scores beta x_i.x_q.
      value: c, of the labels.
      loss: half loss in the population, estimated.
      standard_error: of `loss`.
    """

    temperature: float
    value: float
    loss: float
    standard_error: float


def spread(dim: int, context_length: int, kurtosis: float) -> float:
    r"""D with E tr C^2 = sig2^2 (N-1) d D for the centred Gram matrix C = sum_i (x_i - xbar)(x_i - xbar)^T.

    .. math:: D = N + d + (\kappa - 3)\,\tfrac{N-1}{N}

    Args:
      dim: d.
      context_length: N.
      kurtosis: kap of one input coordinate.

    Source: derived for the lab; for Gaussian inputs C is a Wishart matrix of N - 1 degrees of freedom.
    """
    return context_length + dim + (kurtosis - 3) * (context_length - 1) / context_length


def centred_loss(step_size: float, dim: int, context_length: int, variance: float, kurtosis: float) -> float:
    r"""Half loss of one step from zero with centred context inputs, `theory.descent_variants.centred_step`.

    .. math:: \tfrac12 \sigma^2 d \left[1 - 2\eta\sigma^2\,\tfrac{N-1}N + \eta^2\sigma^4\,\tfrac{(N-1) D}{N^2}\right]

    Args:
      step_size: eta of the mean gradient.
      dim: d.
      context_length: N.
      variance: sig2 of one input coordinate.
      kurtosis: kap of one input coordinate.

    Source: the limit of two softmax heads of von Oswald et al. (arXiv 2212.07677), derived for the lab.
    """
    examples = (context_length - 1) / context_length
    eta = step_size * variance
    second = examples * spread(dim, context_length, kurtosis) / context_length
    return variance * dim / 2 * (1 - 2 * eta * examples + eta**2 * second)


def centred_step_size(dim: int, context_length: int, variance: float, kurtosis: float) -> float:
    r"""The step size that minimises `centred_loss`, :math:`\eta_c = N / (\sigma^2 D)`.

    Args:
      dim: d.
      context_length: N.
      variance: sig2 of one input coordinate.
      kurtosis: kap of one input coordinate.
    """
    return context_length / (variance * spread(dim, context_length, kurtosis))


def centred_optimum(dim: int, context_length: int, variance: float, kurtosis: float) -> float:
    r"""The smallest `centred_loss`, :math:`L_c = \tfrac12 \sigma^2 d\,(1 - (N-1)/D)`.

    For Gaussian inputs it is (N+d+1)/(N+d) times that of plain gradient descent.

    Args:
      dim: d.
      context_length: N.
      variance: sig2 of one input coordinate.
      kurtosis: kap of one input coordinate.
    """
    return variance * dim / 2 * (1 - (context_length - 1) / spread(dim, context_length, kurtosis))


def best_heads(
    inputs: Float[Array, "S N d"], queries: Float[Array, "S d"], variance: float, kurtosis: float, opposite: bool
) -> Heads:
    r"""The best :math:`c \sum_i y_i\, \mathrm{softmax}(\beta x_i \cdot x_q)_i` over beta and c on a sample of prompts.

    The task is averaged over exactly, c is profiled out, and the loss is corrected by what the sample says of one gradient
    step, whose loss is known.

    Args:
      inputs: (S, N, d), the inputs of S contexts; N >= 2, since attention to one example cannot depend on the query.
      queries: (S, d), their queries, with the distribution of an input.
      variance: sig2 of an input coordinate.
      kurtosis: kap of an input coordinate.
      opposite: subtract a second head of scores -beta x_i.x_q.

    Source: the softmax heads of von Oswald et al. (arXiv 2212.07677); no closed form is known.
    """
    samples, context_length, dim = inputs.shape
    scores = (inputs @ queries[:, :, None])[:, :, 0]
    unit = 1 / (variance * np.sqrt(dim))

    def attended(temperature: float) -> Float[Array, "S d"]:
        """sum_i a_i x_i: with y_i = w.x_i the prediction is w times that."""
        weights = np.exp(temperature * scores - np.max(temperature * scores, axis=1, keepdims=True))
        return ((weights / np.sum(weights, axis=1, keepdims=True))[:, None, :] @ inputs)[:, 0]

    def prediction(temperature: float) -> Float[Array, "S d"]:
        return attended(temperature) - attended(-temperature) if opposite else attended(temperature)

    def unexplained(logarithm: float) -> float:
        mix = prediction(unit * np.exp(logarithm))
        return -float(np.sum(mix * queries) ** 2 / np.sum(mix**2))

    found = scipy.optimize.minimize_scalar(unexplained, bounds=np.log(SEARCH), method="bounded", options={"xatol": 1e-3})
    temperature = float(unit * np.exp(found.x))
    mix = prediction(temperature)
    value = float(np.sum(mix * queries) / np.sum(mix**2))
    eta = vonoswald2022.optimal_step_size(dim, context_length, variance, kurtosis)
    step = eta / context_length * (scores[:, None, :] @ inputs)[:, 0]
    differences = np.sum((queries - value * mix) ** 2 - (queries - step) ** 2, axis=1) / 2
    known = vonoswald2022.one_step_loss(eta, dim, context_length, variance, kurtosis)
    return Heads(temperature, value, float(known + np.mean(differences)), float(np.std(differences, ddof=1) / np.sqrt(samples)))
