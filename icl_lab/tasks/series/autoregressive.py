r"""AR(p) series as prompts, started from their exact stationary distribution.

x_t = ρ_1 x_{t-1} + .. + ρ_p x_{t-p} + ε_t, ε_t ~ N(0, noise_std^2). `coefficients` = (ρ_1, .., ρ_p), nearest lag first.
A prompt shows n = N + p values: its inputs are the N lag windows (x_i, .., x_{i+p-1}), oldest value first, its labels
the values that follow them, its query the last p values and its target the next one. The Bayes weights on a window are
therefore (ρ_p, .., ρ_1).

A series is stationary iff every partial autocorrelation lies in (-1, 1) iff the companion matrix has spectral radius
below 1. The first p values are drawn one after another from their conditional distributions given the earlier ones (Durbin,
Levinson), which is N(0, Γ_p) exactly, without burn-in and without factoring Γ_p.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import is_traced
from icl_lab.core.prng import stream
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.distributions.covariates import normals
from icl_lab.tasks.prompt import Prompt, Task, as_default_float, as_float64, check_count, check_prompt_fits


class Autoregressive(Task):
    """AR(p) with the same coefficients in every prompt.

    Args:
      coefficients: (p,) ρ_1 .. ρ_p, nearest lag first; stationary.
      context_length: N >= 1 lag windows, so N + p observed values.
      noise_std: standard deviation of the innovations, > 0.

    Raises:
      InvalidValueError: a companion matrix of spectral radius >= 1, no coefficient, N < 1, noise <= 0.
    """

    coefficients: Float[Array, "p"]
    context_length: int = eqx.field(static=True)
    noise_std: Float[Array, ""]
    dim: int = eqx.field(static=True)
    label_dim: int = eqx.field(static=True)

    def __init__(self, coefficients: Any, context_length: int, noise_std: Any = 1.0):
        self.coefficients = as_float64(coefficients)
        self.context_length = context_length
        self.noise_std = as_float64(noise_std)
        self.dim = self.coefficients.size
        self.label_dim = 1

    def __check_init__(self):
        if self.coefficients.ndim != 1 or self.coefficients.size == 0:
            raise InvalidValueError(
                f"`coefficients` must be a (p,) array, p >= 1, nearest lag first; got shape {self.coefficients.shape}."
            )
        check_count(self.context_length, "context_length", 1, "A prompt shows at least one lag window.")
        _check_innovation(self.noise_std)
        check_stationary(self.coefficients)

    def with_context_length(self, length: int) -> Autoregressive:
        return Autoregressive(self.coefficients, length, self.noise_std)

    @property
    def covariance(self) -> Float[np.ndarray, "p p"]:
        """Γ_p = [γ_|i-j|], the covariance of a lag window."""
        gamma = self.autocovariances(self.dim)
        return gamma[np.abs(np.arange(self.dim)[:, None] - np.arange(self.dim)[None, :])]

    def autocovariances(self, count: int) -> Float[np.ndarray, "count"]:
        """γ_0 .. γ_{count-1}; see `autocovariances`."""
        return autocovariances(self.coefficients, self.noise_std, count)

    def sample(self, key: Key) -> Prompt:
        """One prompt; its latent is the coefficients (p,)."""
        return _sample_prompt(key, as_default_float(self.coefficients), self.noise_std, self.context_length)


class RandomAutoregressive(Task):
    r"""AR(p) with coefficients drawn once per prompt.

    φ is uniform on the region of stationary coefficients and ρ_j = bound^j φ_j, which multiplies every eigenvalue of
    the companion matrix by `bound`, so their moduli stay below it. For p = 1, ρ ~ U(-bound, bound).

    Args:
      order: p >= 1.
      context_length: N >= 1 lag windows, so N + p observed values.
      noise_std: standard deviation of the innovations, > 0.
      bound: in (0, 1]; at 1 the series are stationary, but their variance has infinite mean over the coefficients.

    Raises:
      InvalidValueError: p < 1, N < 1, noise <= 0, bound outside (0, 1].
    """

    context_length: int = eqx.field(static=True)
    noise_std: Float[Array, ""]
    bound: Float[Array, ""]
    dim: int = eqx.field(static=True)
    label_dim: int = eqx.field(static=True)

    def __init__(self, order: int, context_length: int, noise_std: Any = 1.0, bound: Any = 0.9):
        self.context_length = context_length
        self.noise_std = as_float64(noise_std)
        self.bound = as_float64(bound)
        self.dim = order
        self.label_dim = 1

    def __check_init__(self):
        check_count(self.dim, "order", 1, "An autoregression has at least one lag.")
        check_count(self.context_length, "context_length", 1, "A prompt shows at least one lag window.")
        _check_innovation(self.noise_std)
        if not is_traced(self.bound) and not (np.ndim(self.bound) == 0 and 0 < self.bound <= 1):
            raise InvalidValueError(
                "`bound` must be a number in (0, 1], the bound on the moduli of the companion matrix's eigenvalues; "
                f"got {np.asarray(self.bound).tolist()!r}."
            )

    def with_context_length(self, length: int) -> RandomAutoregressive:
        return RandomAutoregressive(self.dim, length, self.noise_std, self.bound)

    def sample_coefficients(self, key: Key) -> Float[Array, "p"]:
        """One draw of ρ_1 .. ρ_p."""
        powers = as_default_float(self.bound) ** as_default_float(range(1, self.dim + 1))
        return powers * coefficients_from_partial(_uniform_partial_autocorrelations(key, self.dim))

    def sample(self, key: Key) -> Prompt:
        """One prompt, stationary given its coefficients; its latent is the coefficients (p,)."""
        return _sample_prompt(key, self.sample_coefficients(stream(key, "task")), self.noise_std, self.context_length)


def companion(coefficients: Any) -> Float[np.ndarray, "p p"]:
    """The companion matrix of the state (x_t, .., x_{t-p+1}): first row ρ (p,), ones below the diagonal."""
    matrix = np.eye(len(coefficients), k=-1)
    matrix[0] = coefficients
    return matrix


def check_stationary(coefficients: Float[Array, "p"]) -> None:
    """Raise `InvalidValueError` unless the companion matrix has spectral radius below 1; no check of traced values."""
    if is_traced(coefficients):
        return
    if not np.all(np.isfinite(coefficients)):
        raise InvalidValueError(f"`coefficients` must be finite; got {np.asarray(coefficients).tolist()}.")
    radius = float(np.max(np.abs(np.linalg.eigvals(companion(coefficients)))))
    # A unit root is an eigenvalue of modulus 1 up to rounding, which grows with the multiplicity of the root.
    if radius >= 1 - 1e-10:
        raise InvalidValueError(
            "`coefficients` must be stationary: the spectral radius of their companion matrix must be < 1; "
            f"got {radius:.6g} for {np.asarray(coefficients).tolist()}."
        )


def autocovariances(coefficients: Any, noise_std: Any, count: int) -> Float[np.ndarray, "count"]:
    """γ_0 .. γ_{count-1} of a stationary AR(p), γ_k = E x_t x_{t+k}, in numpy float64.

    Solves the p + 1 Yule-Walker equations γ_k - sum_j ρ_j γ_|k-j| = noise_std^2 [k = 0], k = 0 .. p, then recurs.

    Args:
      coefficients: (p,) ρ_1 .. ρ_p, nearest lag first.
      noise_std: standard deviation of the innovations.
      count: how many lags, >= 1.

    Raises:
      InvalidValueError: coefficients that are not stationary, count < 1.
    """
    coefficients = np.asarray(coefficients, dtype=np.float64)
    check_stationary(coefficients)
    check_count(count, "count", 1, "It counts autocovariances, that of lag 0 included.")
    order = len(coefficients)
    equations = np.eye(order + 1)
    for k in range(order + 1):
        for j in range(1, order + 1):
            equations[k, abs(k - j)] -= coefficients[j - 1]
    gamma = list(np.linalg.solve(equations, np.eye(order + 1)[0] * float(noise_std) ** 2))
    while len(gamma) < count:
        gamma.append(coefficients @ np.array(gamma[: -order - 1 : -1]))
    return np.array(gamma[:count])


def coefficients_from_partial(partial: Float[Array, "p"]) -> Float[Array, "p"]:
    """The AR coefficients ρ_1 .. ρ_p of the partial autocorrelations r_1 .. r_p (Durbin-Levinson)."""
    coefficients = partial[:1]
    for k in range(1, partial.shape[0]):
        coefficients = jnp.concatenate([coefficients - partial[k] * coefficients[::-1], partial[k : k + 1]])
    return coefficients


def partial_autocorrelations(coefficients: Float[Array, "p"]) -> Float[Array, "p"]:
    """The partial autocorrelations r_1 .. r_p of AR coefficients: the inverse of `coefficients_from_partial`."""
    return jnp.stack([filters[-1] for filters in _prediction_filters(coefficients)])


def series(prompt: Prompt) -> Inexact[Array, "n"]:
    """The n = N + p observed values of an AR prompt, in time order."""
    return jnp.concatenate([prompt.inputs[0], prompt.labels[:, 0]])


def _prediction_filters(coefficients: Array) -> list[Array]:
    """Best one-step predictors from the last k = 1 .. p values, each (k,), nearest lag first (step-down recursion)."""
    filters = [coefficients]
    while filters[0].shape[0] > 1:
        head, last = filters[0][:-1], filters[0][-1]
        filters.insert(0, (head + last * head[::-1]) / (1 - last**2))
    return filters


def _stationary_start(coefficients: Array, noise_std: Array, draws: Array) -> Array:
    """x_1 .. x_p ~ N(0, Γ_p) from p standard normals, in time order."""
    filters = _prediction_filters(coefficients)
    # Var(x_{k+1} | x_1 .. x_k) = noise_std^2 / prod_{i > k} (1 - r_i^2): each further lag explains its share.
    unexplained = jnp.stack([1 - f[-1] ** 2 for f in filters])
    stds = noise_std / jnp.sqrt(jnp.cumprod(unexplained[::-1])[::-1])
    values = [stds[0] * draws[0]]
    for k in range(1, len(filters)):
        values.append(filters[k - 1] @ jnp.stack(values[::-1]) + stds[k] * draws[k])
    return jnp.stack(values)


def _sample_prompt(key: Key, coefficients: Array, noise_std: Array, context_length: int) -> Prompt:
    noise_std = as_default_float(noise_std)
    order = coefficients.shape[0]
    check_prompt_fits(context_length, order)
    start = _stationary_start(coefficients, noise_std, normals(stream(key, "start"), 1, order)[0])
    innovations = noise_std * normals(stream(key, "noise"), 1, context_length + 1)[0]
    oldest_first = coefficients[::-1]

    def step(window, innovation):
        following = oldest_first @ window + innovation
        return jnp.concatenate([window[1:], following[None]]), (window, following)

    _, (windows, following) = jax.lax.scan(step, start, innovations)
    return Prompt(
        inputs=windows[:-1],
        labels=following[:-1, None],
        query=windows[-1],
        target=following[-1:],
        latent=coefficients,
    )


def _uniform_partial_autocorrelations(key: Key, order: int) -> Array:
    """r_1 .. r_p of coefficients uniform on the stationary region: independent, (r_k + 1)/2 ~ Beta(a_k, b_k),
    a_k = floor((k + 1)/2), b_k = floor(k/2) + 1."""
    # a_k + b_k - 1 = k, so Beta(a_k, b_k) is the a_k-th smallest of k uniforms: exact, without a rejection loop.
    uniforms = jax.random.uniform(key, (order * (order + 1) // 2,))
    groups = (uniforms[k * (k - 1) // 2 : k * (k + 1) // 2] for k in range(1, order + 1))
    return 2 * jnp.stack([jnp.sort(group)[(k + 1) // 2 - 1] for k, group in enumerate(groups, start=1)]) - 1


def _check_innovation(noise_std: Array) -> None:
    if not is_traced(noise_std) and not (np.ndim(noise_std) == 0 and np.isfinite(noise_std) and noise_std > 0):
        raise InvalidValueError(
            "`noise_std` must be a finite number > 0, because a stationary series without innovations is zero; "
            f"got {np.asarray(noise_std).tolist()!r}."
        )
