r"""Sequences x_{t+1} = W x_t + noise as prompts, W drawn once per prompt.

Observed are x_1 .. x_{N+1}: inputs x_1 .. x_N, labels x_2 .. x_{N+1}, query x_{N+1}; the target is x_{N+2}, with its
noise. `context_length` N counts the observed pairs. If the transition or the start is complex, so is every array of the
prompt.
"""

from __future__ import annotations

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import haar_orthogonal
from icl_lab.core.prng import stream
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.distributions.starts import GaussianStart, StartDistribution
from icl_lab.tasks.prompt import Prompt, Task, add_noise, as_float64, check_count, check_nonnegative, check_prompt_fits


class TransitionDistribution(eqx.Module):
    """A distribution of transition matrices W."""

    @abc.abstractmethod
    def sample(self, key: Key, dim: int) -> Inexact[Array, "d d"]:
        """One transition matrix W."""

    def check_dim(self, dim: int) -> None:
        """Raise `InvalidValueError` if the distribution has no matrices of size `dim`."""


class DiagonalUnitary(TransitionDistribution):
    r"""W = diag(e^{iθ_1}, .., e^{iθ_d}), θ_j independent and uniform on [0, 2π).

    Source: the data of Zheng et al. (arXiv 2405.16845).
    """

    def sample(self, key: Key, dim: int) -> Inexact[Array, "d d"]:
        """One complex transition matrix W."""
        angles = _angles(key, dim)
        return jnp.diag(jax.lax.complex(jnp.cos(angles), jnp.sin(angles)))


class HaarOrthogonal(TransitionDistribution):
    """W Haar-distributed on O(d), determinants +1 and -1 alike."""

    def sample(self, key: Key, dim: int) -> Inexact[Array, "d d"]:
        """One transition matrix W."""
        return haar_orthogonal(key, dim)


class RotationBlocks(TransitionDistribution):
    """W = R blockdiag(rotations by θ_1 .. θ_{d/2}) R^T, θ_j uniform; R is Haar if `haar_basis`, else the identity."""

    haar_basis: bool = eqx.field(static=True, default=False)

    def sample(self, key: Key, dim: int) -> Inexact[Array, "d d"]:
        """One transition matrix W."""
        angles = _angles(stream(key, "angles"), dim // 2)
        cosine = jnp.kron(jnp.diag(jnp.cos(angles)), jnp.eye(2))
        sine = jnp.kron(jnp.diag(jnp.sin(angles)), jnp.array([[0.0, -1.0], [1.0, 0.0]]))
        if not self.haar_basis:
            return cosine + sine
        basis = haar_orthogonal(stream(key, "basis"), dim)
        return basis @ (cosine + sine) @ basis.T

    def check_dim(self, dim: int) -> None:
        """Raise `InvalidValueError` for an odd dimension: blocks are 2 x 2."""
        if dim % 2:
            raise InvalidValueError(f"`dim` must be even for `RotationBlocks`, whose blocks are 2 x 2; got {dim}.")


class LinearDynamics(Task):
    """x_{t+1} = W x_t + ε_t, ε_t of covariance noise_std^2 I (circular if the sequence is complex).

    Args:
      dim: d >= 1; even for `RotationBlocks`.
      context_length: N >= 1 observed pairs (x_t, x_{t+1}), so N + 1 observed vectors.
      transition: the distribution of W, drawn once per prompt.
      start: the distribution of x_1; standard Gaussian by default.
      noise_std: >= 0.

    Raises:
      InvalidValueError: a size below 1 or that the transition does not have, negative noise.
    """

    dim: int = eqx.field(static=True)
    context_length: int = eqx.field(static=True)
    transition: TransitionDistribution
    start: StartDistribution = eqx.field(default_factory=GaussianStart)
    noise_std: Float[Array, ""] = eqx.field(converter=as_float64, default=0.0)
    label_dim: int = eqx.field(static=True, init=False)

    def __post_init__(self):
        self.label_dim = self.dim

    def __check_init__(self):
        check_count(self.dim, "dim", 1, "A state has at least one coordinate.")
        check_count(self.context_length, "context_length", 1, "A prompt shows at least one pair of states.")
        check_nonnegative(self.noise_std, "noise_std")
        self.transition.check_dim(self.dim)

    def with_context_length(self, length: int) -> LinearDynamics:
        return LinearDynamics(self.dim, length, self.transition, self.start, self.noise_std)

    def sample(self, key: Key) -> Prompt:
        """One prompt; its latent is W (d, d)."""
        check_prompt_fits(self.context_length, self.dim)
        transition = self.transition.sample(stream(key, "task"), self.dim)
        first = self.start.sample(stream(key, "start"), self.dim)
        dtype = jnp.result_type(complex if jnp.iscomplexobj(transition) or jnp.iscomplexobj(first) else float)
        transition, first = transition.astype(dtype), first.astype(dtype)
        noise = add_noise(stream(key, "noise"), jnp.zeros((self.context_length + 1, self.dim), dtype), self.noise_std)

        def step(state, disturbance):
            following = transition @ state + disturbance
            return following, following

        _, following = jax.lax.scan(step, first, noise)
        states = jnp.concatenate([first[None], following])
        return Prompt(inputs=states[:-2], labels=states[1:-1], query=states[-2], target=states[-1], latent=transition)


def _angles(key: Key, count: int) -> Float[Array, "count"]:
    return jax.random.uniform(key, (count,), maxval=2 * np.pi)
