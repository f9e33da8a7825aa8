r"""Iterative refinement of the query: the ridge predictor by layers that leave keys and values untouched.

With the unnormalised Gram S = sum_i x_i x_i^*, each step is one attention layer that moves the query token alone,

.. math:: q \leftarrow q + \eta_k\,(x_q - (S + \lambda I)\, q), \qquad q_0 = 0, \qquad \hat y = \sum_i y_i\, x_i^* q,

so that all positions of a sequence can do it at once behind a causal mask. It converges to ridge regression, the mesa layer.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import is_traced
from icl_lab.core.typing import Array
from icl_lab.estimators.batch.gradient_descent import sizes_of_steps
from icl_lab.estimators.examples import examples
from icl_lab.estimators.names import estimator
from icl_lab.tasks.prompt import Prompt, check_count


def refined_query(
    prompt: Prompt, step_size: float | Float[Array, "*steps"], steps: int | None = None, penalty: float | Float[Array, ""] = 0.0
) -> Inexact[Array, "d"]:
    r"""The query after K steps; with constant steps it is :math:`[I - (I - \eta(S + \lambda))^K](S + \lambda)^{-1} x_q`.

    Args:
      prompt: one prompt with N examples.
      step_size: eta, one number for all steps or one for each, (steps,), for instance `chebyshev_steps`; acts on the
        *unnormalised* S.
      steps: K >= 0; by default the number of step sizes, which is 1 for a scalar.
      penalty: lambda >= 0.

    Returns:
      (d,).

    Raises:
      InvalidValueError: step sizes that are not finite or do not fit `steps`, a negative penalty.
      NonFiniteError: a NaN or an infinity in the prompt.

    Source: the mesa layer it approximates, von Oswald et al. (arXiv 2309.05858); the iteration is Richardson's.
    """
    inputs, _, query = examples(prompt)
    if not is_traced(penalty) and not (np.isfinite(penalty) and penalty >= 0):
        raise InvalidValueError(f"`penalty` must be a finite number >= 0; got {penalty!r}.")
    sizes = sizes_of_steps(step_size, steps, inputs.dtype)
    shift = jnp.asarray(penalty, inputs.dtype)

    def refine(q, size):
        return q + size * (query - (inputs @ q.conj()).conj() @ inputs - shift * q), None

    return jax.lax.scan(refine, jnp.zeros_like(query), sizes)[0]


@estimator
def query_refinement(
    prompt: Prompt, step_size: float | Float[Array, "*steps"], steps: int | None = None, penalty: float | Float[Array, ""] = 0.0
) -> Inexact[Array, "k"]:
    """The prediction sum_i y_i x_i^* q (k,) of the refined query q, which tends to that of ridge regression.

    Args:
      prompt: one prompt with N examples.
      step_size: eta, one number for all steps or one for each, (steps,); acts on the *unnormalised* S.
      steps: K >= 0; by default the number of step sizes, which is 1 for a scalar.
      penalty: lambda >= 0.
    """
    inputs, labels, _ = examples(prompt)
    return (inputs.conj() @ refined_query(prompt, step_size, steps, penalty)) @ labels


def chebyshev_steps(smallest: float, largest: float, steps: int) -> Float[np.ndarray, "steps"]:
    r"""Step sizes of K refinements whose error is the Chebyshev polynomial of the interval [smallest, largest].

    .. math:: 1/\eta_k = \tfrac{m+M}{2} + \tfrac{M-m}{2}\cos\tfrac{(2k-1)\pi}{2K}

    With condition number kappa = M/m they reduce the error by 1/T_K((kappa+1)/(kappa-1)) in the worst case, the constant step
    2/(m+M) by ((kappa-1)/(kappa+1))^K.

    Args:
      smallest, largest: bounds m < M on the eigenvalues of S + lambda I, m > 0.
      steps: K >= 1.

    Raises:
      InvalidValueError: an empty interval, or K < 1.
    """
    check_count(steps, "steps", 1, "It is the number of refinements.")
    if not 0 < smallest < largest < np.inf:
        raise InvalidValueError(
            f"the eigenvalues must lie in an interval 0 < smallest < largest; got {smallest!r}, {largest!r}."
        )
    nodes = np.cos((2 * np.arange(1, steps + 1) - 1) * np.pi / (2 * steps))
    return 2 / (smallest + largest + (largest - smallest) * nodes)
