"""BFGS from many starts on one objective: where the landscape, and not the dynamics, is what a claim is about."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
import scipy.optimize
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from icl_lab.core import compiled, precision
from icl_lab.core.typing import Array, Weights
from icl_lab.objectives.objective import Objective

# The loss is quadratic around a minimum: this leaves losses exact and weights good to about as many digits.
GRADIENT_TOLERANCE = 1e-10


class Ends(NamedTuple):
    """Where the starts ended: (S,) half losses, and the weights of the lowest."""

    losses: Float[np.ndarray, "S"]
    lowest: Weights


def minimise(objective: Objective, starts: Weights) -> Ends:
    """The ends of BFGS from each start.

    Args:
      objective: real weights, called without a key.
      starts: weights with a leading axis S.
    """
    count = len(jax.tree.leaves(starts)[0])
    like = jax.tree.map(lambda w: np.asarray(w[0], np.float64), starts)
    first, unravel = ravel_pytree(like)

    def function(flat: np.ndarray) -> tuple[float, np.ndarray]:
        loss, slope = value_and_slope(objective, like, flat)
        # Far out a polynomial of high degree overflows; a line search needs a number there.
        return float(np.nan_to_num(loss, nan=1e300, posinf=1e300)), np.nan_to_num(np.asarray(slope, dtype=np.float64))

    ends = []
    for i in range(count):
        flat = np.asarray(ravel_pytree(jax.tree.map(lambda w, i=i: np.asarray(w[i], np.float64), starts))[0])
        options = {"gtol": GRADIENT_TOLERANCE, "maxiter": 100 * len(first)}
        with np.errstate(over="ignore", invalid="ignore"):  # a line search may step far out
            ends.append(scipy.optimize.minimize(function, flat, jac=True, method="BFGS", options=options))
    losses = np.array([end.fun for end in ends])
    lowest = ends[int(np.argmin(losses))].x
    return Ends(losses, precision.to_numpy(unravel(jax.numpy.asarray(lowest))))


@compiled.jit
def value_and_slope(objective: Objective, like: Weights, flat: Float[Array, "n"]) -> tuple[Array, Array]:
    """The loss and its gradient at a vector of all entries of weights that look like `like`."""
    unravel = ravel_pytree(like)[1]
    return jax.value_and_grad(lambda x: objective(unravel(x)))(flat)
