r"""Gradient descent on the examples of one prompt, and GD++.

The loss of a matrix W (k, d) is the mean one with a half,

.. math:: R(W) = \frac{1}{2N} \sum_i \lVert W x_i - y_i \rVert^2, \qquad
          \nabla R(W) = \frac1N \sum_i (W x_i - y_i)\, x_i^*,

and a step size multiplies its gradient: it is eta, not eta / N. For complex data the gradient is the direction of
steepest ascent in real and imaginary parts, hence the conjugate of x.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import is_traced
from icl_lab.core.typing import Array
from icl_lab.estimators.derived import prediction_of
from icl_lab.estimators.examples import examples
from icl_lab.tasks.prompt import Prompt, check_count


def mean_gradient(
    weights: Inexact[Array, "k d"], inputs: Inexact[Array, "N d"], labels: Inexact[Array, "N k"]
) -> Inexact[Array, "k d"]:
    r"""The gradient :math:`\frac1N \sum_i (W x_i - y_i) x_i^*` of the mean half squared error at W, in O(N d k)."""
    residuals = inputs @ weights.T - labels
    return residuals.T @ inputs.conj() / inputs.shape[0]


def starting_weights(
    initial: Inexact[Array, "..."] | None, inputs: Inexact[Array, "N d"], labels: Inexact[Array, "N k"]
) -> Inexact[Array, "k d"]:
    """The start W_0 of an iteration: `initial` in the dtype of the data, or zeros.

    Raises:
      InvalidValueError: `initial` has another shape than (k, d), or holds a NaN or an infinity.
    """
    shape = (labels.shape[1], inputs.shape[1])
    if initial is None:
        return jnp.zeros(shape, inputs.dtype)
    if initial.shape != shape:
        raise InvalidValueError(f"`initial` must be the matrix W_0 of shape (k, d) = {shape}; got shape {initial.shape}.")
    check_finite_values(initial, "initial")
    return jnp.asarray(initial, inputs.dtype)


def check_finite_values(value: float | Array, name: str) -> None:
    """Raise `InvalidValueError` if a concrete parameter `value` holds a NaN or an infinity."""
    if not is_traced(value) and not np.all(np.isfinite(np.asarray(value))):
        raise InvalidValueError(f"`{name}` must be finite; got {np.asarray(value)}.")


def sizes_of_steps(step_size: float | Float[Array, "*steps"], steps: int | None, dtype: Any) -> Inexact[Array, "K"]:
    """The size of each of K steps.

    Args:
      step_size: one number for all steps or one for each, (steps,).
      steps: K >= 0; None for the number of step sizes, which is 1 for a scalar.
      dtype: of the result.

    Raises:
      InvalidValueError: step sizes that are not finite or do not fit `steps`.
    """
    check_finite_values(step_size, "step_size")
    sizes = jnp.asarray(step_size, dtype)
    if sizes.ndim > 1 or (sizes.ndim == 1 and steps not in (None, sizes.shape[0])):
        raise InvalidValueError(f"`step_size` must be a number or one per step ({steps}); got shape {sizes.shape}.")
    if sizes.ndim == 1:
        return sizes
    steps = 1 if steps is None else steps
    check_count(steps, "steps", 0, "It is how often the step is taken.")
    return jnp.full((steps,), sizes)


def gradient_descent_weights(
    prompt: Prompt,
    step_size: float | Float[Array, "*steps"],
    steps: int | None = None,
    initial: Inexact[Array, "k d"] | None = None,
) -> Inexact[Array, "k d"]:
    r"""The matrix after some steps of gradient descent on the examples of a prompt.

    .. math:: W_{j+1} = W_j - \eta_j \nabla R(W_j)

    Args:
      prompt: one prompt with N examples.
      step_size: eta, one number for all steps or one for each, (steps,); multiplies the *mean* gradient.
      steps: number of steps >= 0; by default the number of step sizes, which is 1 for a scalar.
      initial: W_0 (k, d); zeros by default.

    Returns:
      W (k, d).

    Raises:
      InvalidValueError: a step size or start that is not finite, or shapes or counts that do not fit.
      NonFiniteError: a NaN or an infinity in the prompt.

    Source: von Oswald et al., arXiv 2212.07677, Section 2, with a mean in place of their sum.

    Examples:
      >>> import numpy as np
      >>> from icl_lab import estimators
      >>> from icl_lab.tasks import Prompt
      >>> inputs = np.array([[1.0], [2.0], [3.0]])
      >>> prompt = Prompt(inputs, labels=2 * inputs, query=np.array([5.0]), target=np.array([10.0]), latent=np.array([2.0]))
      >>> print(estimators.gradient_descent(prompt, step_size=0.1).round(2))
      [4.67]
      >>> print(estimators.gradient_descent(prompt, step_size=0.1, steps=10).round(2))
      [9.98]
    """
    inputs, labels, _ = examples(prompt)
    sizes = sizes_of_steps(step_size, steps, inputs.dtype)

    def step(weights, size):
        return weights - size * mean_gradient(weights, inputs, labels), None

    return jax.lax.scan(step, starting_weights(initial, inputs, labels), sizes)[0]


gradient_descent = prediction_of(
    gradient_descent_weights, "The prediction W x_q (k,) after some steps of gradient descent on the examples of one prompt."
)


def gd_plus_plus_weights(
    prompt: Prompt,
    step_sizes: Float[Array, "layers"],
    curvatures: Float[Array, "layers"],
    initial: Inexact[Array, "k d"] | None = None,
) -> Inexact[Array, "k d"]:
    r"""The matrix that GD++ applies to the query: gradient steps that also rescale the inputs by their curvature.

    A layer changes every input and every label at once, both from the inputs *before* the layer, query included:

    .. math:: x_j \leftarrow (I - \gamma X^* X)\, x_j, \qquad y_j \leftarrow y_j - \Delta W x_j, \qquad
              \Delta W = -\tfrac{\eta}{N} \sum_i (W_0 x_i - y_i)\, x_i^*,

    with the query's label starting at :math:`-W_0 x_q` and the prediction minus its value after the last layer. Since
    the query's input stays a linear image of x_q, so does the prediction. The last curvature has no effect.

    Args:
      prompt: one prompt with N examples.
      step_sizes: (layers,), eta of each layer, for the *mean* gradient.
      curvatures: (layers,), gamma of each layer; multiplies the *unnormalised* Gram matrix, sum_i x_i x_i^*.
      initial: W_0 (k, d), the same in every layer; zeros by default.

    Returns:
      W (k, d), so that the prediction is W x_q.

    Raises:
      InvalidValueError: parameters that are not finite, or of different lengths.
      NonFiniteError: a NaN or an infinity in the prompt.

    Source: von Oswald et al., arXiv 2212.07677, Section 4 and Appendix A.10 (GD++).
    """
    inputs, labels, query = examples(prompt)
    for name, values in (("step_sizes", step_sizes), ("curvatures", curvatures)):
        check_finite_values(values, name)
    sizes, gammas = jnp.asarray(step_sizes, inputs.dtype), jnp.asarray(curvatures, inputs.dtype)
    if sizes.ndim != 1 or sizes.shape != gammas.shape:
        raise InvalidValueError(
            f"`step_sizes` and `curvatures` need one entry for each layer; got shapes {sizes.shape} and {gammas.shape}."
        )
    start = starting_weights(initial, inputs, labels)

    def layer(state, parameters):
        x, y, query_map, weights = state
        size, gamma = parameters
        delta = -size * mean_gradient(start, x, y)
        gram = x.conj().T @ x  # (X^* X)_ab = sum_i conj(x_ia) x_ib, the transpose of sum_i x_i x_i^*
        new = (x - gamma * (x @ gram), y - x @ delta.T, query_map - gamma * (gram.T @ query_map))
        return (*new, weights + delta @ query_map), None

    identity = jnp.eye(query.shape[0], dtype=inputs.dtype)
    return jax.lax.scan(layer, (inputs, labels, identity, start), (sizes, gammas))[0][3]


gd_plus_plus = prediction_of(
    gd_plus_plus_weights, "The prediction (k,) of GD++: minus the label slot of the query after the last layer."
)
