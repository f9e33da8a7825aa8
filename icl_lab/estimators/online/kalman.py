r"""The Kalman filter on one prompt: the Bayes predictor of a task vector that drifts.

Row by row of the labels, an example has a task vector of its own, w_1 .. w_N, and the query the next one,

.. math:: w_{t+1} = a\, w_t + \sqrt{1 - a^2}\, \varepsilon_t, \qquad y_t = w_t^\top x_t + \sqrt{s_2}\, e_t,
          \qquad w_1, \varepsilon_t \sim N(0, I) .

The posterior of w_t is Gaussian, its covariance P the same for all rows. An example and a step of the drift change them to

.. math:: g = \frac{P \bar x}{s_2 + x^\top P \bar x}, \quad w \leftarrow a\,(w + (y - w^\top x)\, g), \quad
          P \leftarrow a\,(P - g\, x^\top P)\, a + I - a^2 .
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import is_traced
from icl_lab.core.typing import Array
from icl_lab.estimators.derived import prediction_of
from icl_lab.estimators.examples import examples
from icl_lab.estimators.online.each import check_between
from icl_lab.tasks.prompt import Prompt


def kalman_weights(
    prompt: Prompt, correlation: float | Float[Array, "*d"], noise_variance: float | Float[Array, ""]
) -> Inexact[Array, "k d"]:
    """The posterior mean of the query's task, one step of the drift after the last example.

    Args:
      prompt: one prompt with N examples, taken in order.
      correlation: a in [-1, 1], of a task with the one before: a number, or (d,) for one a coordinate. 1 is a task that does
        not drift.
      noise_variance: s2 > 0, of a label.

    Returns:
      W (k, d).

    Raises:
      InvalidValueError: a correlation outside [-1, 1] or of a wrong shape, or a noise variance that is not positive and finite.
      NonFiniteError: a NaN or an infinity in the prompt.

    Source: Kalman (1960), for the state and the observation above.
    """
    inputs, labels, query = examples(prompt)
    dim = query.shape[0]
    if np.shape(correlation) not in ((), (dim,)):
        raise InvalidValueError(
            f"`correlation` must be a number or one per coordinate, ({dim},); got shape {np.shape(correlation)}."
        )
    check_between(correlation, "correlation", -1.0, 1.0, "the covariance of two numbers of variance 1")
    if not is_traced(noise_variance) and not (np.isfinite(noise_variance) and noise_variance > 0):
        raise InvalidValueError(f"`noise_variance` must be a finite number > 0; got {noise_variance!r}.")
    left = jnp.broadcast_to(jnp.asarray(correlation, inputs.dtype), (dim,))
    noise = jnp.asarray(noise_variance, inputs.dtype)
    fresh = jnp.diag(1 - left**2)

    def update(state, example):
        mean, covariance = state
        x, y = example
        direction = covariance @ x.conj()
        gain = direction / (noise + x @ direction)
        mean = (mean + jnp.outer(y - mean @ x, gain)) * left[None, :]
        covariance = (covariance - jnp.outer(gain, direction.conj())) * left[:, None] * left[None, :] + fresh
        return (mean, covariance), None

    start = (jnp.zeros((labels.shape[1], dim), inputs.dtype), jnp.eye(dim, dtype=inputs.dtype))
    return jax.lax.scan(update, start, (inputs, labels))[0][0]


kalman = prediction_of(
    kalman_weights, "The prediction W x_q (k,) of the Kalman filter, the Bayes predictor of a task that drifts."
)
