"""Stationary Gaussian series of any autocovariance (moving averages, ARMA, ...) as prompts of lag windows."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import check_covariance, is_traced
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.prompt import Prompt, Task, as_default_float, as_float64, check_count


class GaussianSeries(Task):
    """A stationary Gaussian series with mean zero, shown as N lag windows of length p and the value that follows each.

    Like `Autoregressive`, a prompt holds n = N + p values and asks for the next one; here p is only the length of a window,
    and the best predictor from one window need not be the best from the whole past.

    Args:
      autocovariance: (n + 1,) γ_0 .. γ_n; its Toeplitz matrix is positive definite.
      order: p >= 1, below n.

    Raises:
      InvalidValueError: an order out of range, or not enough autocovariances.
      NotPositiveDefiniteError: no autocovariance of any series.
    """

    autocovariance: Float[Array, "lags"]
    dim: int = eqx.field(static=True)
    label_dim: int = eqx.field(static=True)
    context_length: int = eqx.field(static=True)

    def __init__(self, autocovariance: Any, order: int):
        self.autocovariance = as_float64(autocovariance)
        self.dim = order
        self.label_dim = 1
        self.context_length = int(np.size(self.autocovariance)) - 1 - order

    def __check_init__(self):
        check_count(self.dim, "order", 1, "A lag window holds at least one value.")
        if np.ndim(self.autocovariance) != 1 or self.context_length < 1:
            raise InvalidValueError(
                f"`autocovariance` must hold N + p + 1 lags, N >= 1, from lag 0 on, with p = {self.dim}; got shape "
                f"{np.shape(self.autocovariance)}."
            )
        if not is_traced(self.autocovariance):
            check_covariance(toeplitz(np.asarray(self.autocovariance)), "autocovariance")

    def with_context_length(self, length: int) -> GaussianSeries:
        if not 1 <= length <= self.context_length:
            raise InvalidValueError(
                f"`length` must be between 1 and {self.context_length}, since the autocovariances are known up to lag "
                f"{self.context_length + self.dim}; got {length!r}."
            )
        return GaussianSeries(self.autocovariance[: length + self.dim + 1], self.dim)

    def sample(self, key: Key) -> Prompt:
        """One prompt; its latent is the autocovariance."""
        gamma = as_default_float(self.autocovariance)
        factor = jnp.linalg.cholesky(toeplitz(gamma))
        values = factor @ jax.random.normal(key, gamma.shape, gamma.dtype)
        windows = values[jnp.arange(self.context_length + 1)[:, None] + jnp.arange(self.dim)[None, :]]
        following = values[self.dim :]
        return Prompt(inputs=windows[:-1], labels=following[:-1, None], query=windows[-1], target=following[-1:], latent=gamma)


def toeplitz(first: Float[Array, "n"]) -> Float[Array, "n n"]:
    """The symmetric Toeplitz matrix of a first row."""
    positions = np.arange(first.shape[0])
    return first[np.abs(positions[:, None] - positions[None, :])]


def arma_autocovariances(
    coefficients: Any, moving_average: Any, noise_std: float, count: int, tail: float = 1e-18
) -> Float[np.ndarray, "count"]:
    """γ_0 .. γ_{count-1} of x_t = sum_j ρ_j x_{t-j} + ε_t + sum_j θ_j ε_{t-j}, from its impulse response.

    Args:
      coefficients: ρ_1 .. ρ_p, nearest lag first; may be empty.
      moving_average: θ_1 .. θ_q, nearest lag first; may be empty.
      noise_std: standard deviation of ε.
      count: how many lags, >= 1.
      tail: the impulse response is followed until p successive squares are below this share of its sum of squares.

    Raises:
      InvalidValueError: count < 1, or a series that is not stationary (no end within a million steps).
    """
    check_count(count, "count", 1, "It counts autocovariances, that of lag 0 included.")
    rho, theta = np.asarray(coefficients, np.float64).ravel(), np.asarray(moving_average, np.float64).ravel()
    response, total = [1.0], 1.0
    while len(response) <= len(theta) or any(x**2 > tail * total for x in response[len(response) - len(rho) :]):
        k = len(response)
        recent = response[: -len(rho) - 1 : -1]
        following = float(rho[: len(recent)] @ recent) + (theta[k - 1] if k <= len(theta) else 0.0)
        response.append(following)
        total += following**2
        if k > 1_000_000 or not np.isfinite(total):
            raise InvalidValueError(f"`coefficients` must be stationary; got {rho.tolist()}, whose response does not end.")
    psi = np.pad(np.asarray(response), (0, count))
    length = len(response)
    return np.array([psi[:length] @ psi[k : k + length] for k in range(count)]) * float(noise_std) ** 2
