r"""Examples that count by their age: one gradient step on a weighted loss, and ridge regression with weights.

.. math:: L(W) = \frac12 \sum_i c_i\, \lVert y_i - W x_i \rVert^2

Weights may be free, or what the decays of later examples leave, :math:`c_i = \eta_i \prod_{s > i} \alpha_s`; with one decay for
all they are geometric. The loss is a sum: neither a step nor the penalty is divided by N.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Float, Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.estimators.batch.gradient_descent import check_finite_values
from icl_lab.estimators.batch.ridge import Penalty, check_penalty, penalty_matrix
from icl_lab.estimators.examples import examples, predict
from icl_lab.estimators.names import estimator
from icl_lab.estimators.online.each import Decay, check_between, left_of_each, number_of_each
from icl_lab.tasks.prompt import Prompt


def weighted_gradient_step_weights(
    prompt: Prompt, example_weights: Inexact[Array, "N"] | Inexact[Array, "N d"]
) -> Inexact[Array, "k d"]:
    r"""One gradient step from zero on the weighted loss, :math:`W = \sum_i c_i\, y_i x_i^*`.

    Args:
      prompt: one prompt with N examples.
      example_weights: c, (N,) one for each example, oldest first, of any sign; or (N, d) for one a coordinate of each input.

    Returns:
      W (k, d).

    Raises:
      InvalidValueError: weights that are not finite, or of another shape.
      NonFiniteError: a NaN or an infinity in the prompt.

    Source: weighted preconditioned gradient descent, arXiv 2504.04308, with one weight for each example or coordinate.
    """
    inputs, labels, _ = examples(prompt)
    check_finite_values(example_weights, "example_weights")
    if example_weights.shape not in (inputs.shape[:1], inputs.shape):
        raise InvalidValueError(
            f"`example_weights` must have one entry per example, ({inputs.shape[0]},), or per entry of the inputs, "
            f"{inputs.shape}; got shape {example_weights.shape}."
        )
    weights = jnp.asarray(example_weights, inputs.dtype)
    return labels.T @ ((weights[:, None] if weights.ndim == 1 else weights) * inputs.conj())


@estimator
def weighted_gradient_step(prompt: Prompt, example_weights: Inexact[Array, "N"] | Inexact[Array, "N d"]) -> Inexact[Array, "k"]:
    """The prediction W x_q (k,) after one gradient step from zero on a loss that weighs each example.

    Args:
      prompt: one prompt with N examples.
      example_weights: c, (N,) one for each example, oldest first; or (N, d) for one a coordinate of each input.
    """
    return predict(weighted_gradient_step_weights(prompt, example_weights), prompt)


def discounted_gradient_step_weights(
    prompt: Prompt, step_size: float | Float[Array, "*N"], decay: Decay
) -> Inexact[Array, "k d"]:
    r"""One gradient step from zero in which examples fade, :math:`W = \sum_i \eta_i (\prod_{s > i} \alpha_s)\, y_i x_i^*`.

    With one step and one decay the weights are geometric, :math:`\eta\, \alpha^{N - i}`.

    Args:
      prompt: one prompt with N examples.
      step_size: eta, one number for all examples or one for each, (N,).
      decay: alpha in [0, 1], what is left of the older examples when one is read: a number, (d,) for one an input coordinate,
        (N, 1) for one an example, or (N, d).

    Returns:
      W (k, d).

    Raises:
      InvalidValueError: a step size that is not finite, a decay outside [0, 1], or a wrong shape.
      NonFiniteError: a NaN or an infinity in the prompt.

    Source: retention, arXiv 2307.08621, and gated linear attention, arXiv 2312.06635, read as a regression of values on keys.
    """
    inputs, _, _ = examples(prompt)
    faded = number_of_each(step_size, "step_size", inputs)[:, None] * left_of_each(decay, inputs)
    return weighted_gradient_step_weights(prompt, faded)


@estimator
def discounted_gradient_step(prompt: Prompt, step_size: float | Float[Array, "*N"], decay: Decay) -> Inexact[Array, "k"]:
    """The prediction W x_q (k,) after one gradient step from zero in which examples fade with age.

    Args:
      prompt: one prompt with N examples.
      step_size: eta, one number for all examples or one for each, (N,).
      decay: alpha in [0, 1], what is left of the older examples when one is read: a number, (d,), (N, 1) or (N, d).
    """
    return predict(discounted_gradient_step_weights(prompt, step_size, decay), prompt)


def discounted_ridge_weights(
    prompt: Prompt, penalty: Penalty, decay: Decay, strength: float | Float[Array, "*N"] = 1.0
) -> Inexact[Array, "k d"]:
    r"""Ridge regression in which examples fade and the penalty does not.

    .. math:: \Big(\sum_i c_i\, \bar x_i x_i^\top + \Lambda\Big)\, W^\top = \sum_i c_i\, \bar x_i y_i^\top, \qquad
              c_i = \beta_i \prod_{s > i} \gamma_s

    Recursive least squares with forgetting lets the penalty fade as well.

    Args:
      prompt: one prompt with N examples.
      penalty: Lambda, a number lambda > 0 (for lambda I) or a positive definite matrix (d, d).
      decay: gamma in [0, 1], what is left of the older examples when one is read: a number, or (N, 1) for one an example.
      strength: beta >= 0, with which an example counts when it is read: a number, or (N,) for one an example.

    Returns:
      W (k, d).

    Raises:
      InvalidValueError, NotPositiveDefiniteError: a penalty that is not positive definite, or of the wrong shape.
      InvalidValueError: a decay outside [0, 1], a strength below 0, or a wrong shape.
      NonFiniteError: a NaN or an infinity in the prompt.

    Source: the mesa layer, arXiv 2309.05858, with the gates of arXiv 2506.05233.
    """
    inputs, labels, query = examples(prompt)
    check_penalty(penalty, query.shape[0])
    check_between(strength, "strength", 0.0, np.inf, "so that the loss has a minimum")
    weights = number_of_each(strength, "strength", inputs)[:, None] * left_of_each(decay, inputs[:, :1])
    adjoint = (weights * inputs.conj()).T
    normal = adjoint @ inputs + penalty_matrix(penalty, query.shape[0], inputs.dtype)
    return cho_solve(cho_factor(normal), adjoint @ labels).T


@estimator
def discounted_ridge(
    prompt: Prompt, penalty: Penalty, decay: Decay, strength: float | Float[Array, "*N"] = 1.0
) -> Inexact[Array, "k"]:
    """The prediction W x_q (k,) of ridge regression in which examples fade and the penalty does not.

    Args:
      prompt: one prompt with N examples.
      penalty: Lambda, a number lambda > 0 (for lambda I) or a positive definite matrix (d, d).
      decay: gamma in [0, 1], what is left of the older examples when one is read: a number, or (N, 1).
      strength: beta >= 0, with which an example counts when it is read: a number, or (N,).
    """
    return predict(discounted_ridge_weights(prompt, penalty, decay, strength), prompt)
