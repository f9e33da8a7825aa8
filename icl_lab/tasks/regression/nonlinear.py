r"""In-context regression with nonlinear responses: y_i = f(x_i) + noise, f drawn once per prompt from a family.

A family is a `Response`: `sample(key, dim)` draws the latent parameters of one f, and `response(latent, x)` is f(x).
With standard Gaussian x, three numbers of a family decide what one layer of linear attention can learn
(`ResponseMoments`): E f^2, E f^2 |x|^2 and E |m_f|^2 with m_f = E_x[x f(x)]; expectations are over f as well.

Writing a direction as r u with |u| = 1 and z ~ N(0, 1), a single-index response g(r u.x) has

    E f^2 = E g(rz)^2,   E f^2 |x|^2 = E g(rz)^2 (z^2 + d - 1),   |m_f|^2 = (E[z g(rz) | r])^2.

Source of the quantities: Mahankali, Hashimoto, Ma (arXiv 2307.03576), Theorem 3; the closed forms are worked out here.
"""

from __future__ import annotations

import abc
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Float, PyTree

from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.core.prng import stream
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.distributions.covariates import CovariateDistribution, Gaussian, covariates_for, normals
from icl_lab.tasks.prompt import Prompt, RegressionTask, as_float64, check_count, check_prompt_fits, regression_prompt
from icl_lab.tasks.regression.links import Link

DIRECTIONS = ("sphere", "gaussian", "axis")
"""Distributions of an index direction: uniform on the unit sphere, N(0, I), or uniform on the 2d signed coordinate vectors."""


class ResponseMoments(NamedTuple):
    """Moments of a response family for x ~ N(0, I_d).

    Attributes:
      second: E f(x)^2.
      second_times_norm: E f(x)^2 |x|^2.
      correlation: E |m_f|^2, m_f = E_x[x f(x)]: the part a linear predictor can use.
    """

    second: float
    second_times_norm: float
    correlation: float


class Response(eqx.Module):
    """A family of random functions f from R^d to R."""

    @property
    @abc.abstractmethod
    def rotation_invariant(self) -> bool:
        """Whether f(R .) has the distribution of f for every rotation R."""

    @property
    @abc.abstractmethod
    def odd_symmetric(self) -> bool:
        """Whether -f has the distribution of f."""

    @abc.abstractmethod
    def sample(self, key: Key, dim: int) -> PyTree:
        """The latent parameters of one f."""

    @abc.abstractmethod
    def __call__(self, latent: Any, x: Float[Array, "d"]) -> Float[Array, ""]:
        """f(x)."""

    def moments(self, dim: int) -> ResponseMoments:
        """The three moments for x ~ N(0, I_dim).

        Raises:
          UnsupportedProblemError: no closed form is known for this family.
        """
        raise UnsupportedProblemError(
            f"No closed-form moments are known for `{type(self).__name__}` at dim = {dim}; estimate them from samples."
        )


class SingleIndex(Response):
    """f(x) = s g(u.x): a link g, a random direction u, and s = 1 or (random_sign) a fair random sign.

    `direction` names the distribution of u, one of `DIRECTIONS`. The latent is (u (d,), s ()).
    """

    link: Link
    direction: str = eqx.field(static=True, default="sphere")
    random_sign: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        _check_direction(self.direction)

    @property
    def rotation_invariant(self) -> bool:
        """False for the coordinate axes only."""
        return self.direction != "axis"

    @property
    def odd_symmetric(self) -> bool:
        """By the random sign, or by an odd link, since u and -u have the same distribution."""
        return self.random_sign or self.link.odd

    def sample(self, key: Key, dim: int) -> PyTree:
        """(u, s)."""
        sign = jax.random.rademacher(stream(key, "sign"), (), jnp.result_type(float)) if self.random_sign else jnp.ones(())
        return _sample_direction(stream(key, "direction"), self.direction, dim), sign

    def __call__(self, latent: Any, x: Float[Array, "d"]) -> Float[Array, ""]:
        direction, sign = latent
        return sign * self.link(direction @ x)

    def moments(self, dim: int) -> ResponseMoments:
        """From the link's one-dimensional moments; the other d - 1 coordinates of x are independent of the index."""
        second, with_square, correlation = self.link.moments(lambda power: _radial_moment(self.direction, dim, power))
        return ResponseMoments(second, with_square + (dim - 1) * second, correlation)


class RandomCosine(Response):
    """f(x) = cos(w.x + φ), φ uniform on [0, 2π): random Fourier features.

    `direction` names the distribution of w, one of `DIRECTIONS`. The latent is (w (d,), φ ()).
    """

    direction: str = eqx.field(static=True, default="gaussian")

    def __check_init__(self):
        _check_direction(self.direction)

    @property
    def rotation_invariant(self) -> bool:
        """False for the coordinate axes only."""
        return self.direction != "axis"

    @property
    def odd_symmetric(self) -> bool:
        """A phase shifted by π has the same distribution."""
        return True

    def sample(self, key: Key, dim: int) -> PyTree:
        """(w, φ)."""
        phase = jax.random.uniform(stream(key, "phase"), (), maxval=2 * math.pi)
        return _sample_direction(stream(key, "direction"), self.direction, dim), phase

    def __call__(self, latent: Any, x: Float[Array, "d"]) -> Float[Array, ""]:
        frequency, phase = latent
        return jnp.cos(frequency @ x + phase)

    def moments(self, dim: int) -> ResponseMoments:
        """m_f = -w sin(φ) exp(-|w|^2 / 2), so E|m_f|^2 = E[|w|^2 exp(-|w|^2)] / 2."""
        damped = dim * 3.0 ** -(dim / 2 + 1) if self.direction == "gaussian" else math.exp(-1.0)
        return ResponseMoments(0.5, dim / 2, damped / 2)


class SymmetricResponse(Response):
    """A family of functions of Gaussian directions, which have no preferred axis, in which f is as likely as -f."""

    @property
    def rotation_invariant(self) -> bool:
        """By the Gaussian directions."""
        return True

    @property
    def odd_symmetric(self) -> bool:
        """f and -f have the same distribution."""
        return True


class ReLUNetwork(SymmetricResponse):
    """f(x) = sum_k a_k max(w_k.x, 0), k = 1 .. width, w_k ~ N(0, I), a_k fair signs.

    The latent is (w (K, d), a (K,)).
    """

    width: int = eqx.field(static=True)

    def __check_init__(self):
        check_count(self.width, "width", 1, "A network has at least one hidden unit.")

    def sample(self, key: Key, dim: int) -> PyTree:
        """(w, a)."""
        signs = jax.random.rademacher(stream(key, "sign"), (self.width,), jnp.result_type(float))
        return normals(stream(key, "direction"), self.width, dim), signs

    def __call__(self, latent: Any, x: Float[Array, "d"]) -> Float[Array, ""]:
        hidden, signs = latent
        return signs @ jnp.maximum(hidden @ x, 0.0)

    def moments(self, dim: int) -> ResponseMoments:
        """Units are uncorrelated through their signs: `width` times the moments of one ReLU of a Gaussian direction."""
        return ResponseMoments(self.width * dim / 2, self.width * dim * (dim + 2) / 2, self.width * dim / 4)


class Linear(SymmetricResponse):
    """f(x) = w.x, w ~ N(0, I): the linear task as a member of this family. The latent is w (d,)."""

    def sample(self, key: Key, dim: int) -> PyTree:
        """w."""
        return _sample_direction(key, "gaussian", dim)

    def __call__(self, latent: Any, x: Float[Array, "d"]) -> Float[Array, ""]:
        return latent @ x

    def moments(self, dim: int) -> ResponseMoments:
        """d, d (d + 2), d."""
        return ResponseMoments(float(dim), float(dim * (dim + 2)), float(dim))


class NonlinearRegression(RegressionTask):
    """y_i = f(x_i) + ε_i, f drawn once per prompt from `response`; the target is the noiseless f(x_q).

    Args:
      dim: d >= 1.
      context_length: N >= 1, labelled examples; the query is not counted.
      response: the family of f.
      covariance: covariance of Gaussian covariates: None (identity), a (d,) spectrum or a (d, d) matrix.
      noise_std: standard deviation of the label noise, >= 0.
      covariates: any other covariate distribution, instead of `covariance`.

    Raises:
      InvalidValueError: a size below 1, a shape that does not fit dim, negative noise, or covariates given twice.
      NotPositiveDefiniteError: covariance not symmetric positive definite.
    """

    dim: int = eqx.field(static=True)
    context_length: int = eqx.field(static=True)
    response: Response
    covariates: CovariateDistribution

    def __init__(
        self,
        dim: int,
        context_length: int,
        response: Response,
        covariance: Any = None,
        noise_std: Any = 0.0,
        covariates: CovariateDistribution | None = None,
    ):
        self.dim = dim
        self.context_length = context_length
        self.label_dim = 1
        self.response = response
        self.covariates = covariates_for(dim, covariance, covariates)
        self.noise_std = as_float64(noise_std)

    def with_context_length(self, length: int) -> NonlinearRegression:
        return NonlinearRegression(self.dim, length, self.response, noise_std=self.noise_std, covariates=self.covariates)

    @property
    def covariance(self) -> Float[Array, "d d"]:
        """(d, d) covariance of the inputs."""
        return self.covariates.covariance

    @property
    def moments(self) -> ResponseMoments:
        """The response's moments under this task's covariates.

        Raises:
          UnsupportedProblemError: covariates other than N(0, I), or a family without closed form.
        """
        if not (isinstance(self.covariates, Gaussian) and self.covariates.root is None):
            raise UnsupportedProblemError(
                "Closed-form response moments are known for standard Gaussian covariates only; "
                f"these are `{type(self.covariates).__name__}`. Estimate the moments from samples."
            )
        return self.response.moments(self.dim)

    def sample(self, key: Key) -> Prompt:
        """One prompt; its latent is that of the response."""
        check_prompt_fits(self.context_length, self.dim)
        inputs = self.covariates.sample(stream(key, "inputs"), self.context_length + 1)
        latent = self.response.sample(stream(key, "task"), self.dim)
        responses = jax.vmap(self.response, in_axes=(None, 0))(latent, inputs)
        return regression_prompt(key, inputs, responses[:, None], self.noise_std, latent)


def _check_direction(direction: str) -> None:
    if direction not in DIRECTIONS:
        raise InvalidValueError(f"`direction` must be one of {', '.join(DIRECTIONS)}; got {direction!r}.")


def _sample_direction(key: Key, direction: str, dim: int) -> Float[Array, "d"]:
    if direction == "axis":
        index = jax.random.randint(key, (), 0, 2 * dim)
        sign = jnp.where(index < dim, 1.0, -1.0)
        return sign * jax.nn.one_hot(index % dim, dim, dtype=jnp.result_type(float))
    draw = normals(key, 1, dim)[0]
    return draw / jnp.linalg.norm(draw) if direction == "sphere" else draw


def _radial_moment(direction: str, dim: int, power: int) -> float:
    """E r^power, power even: 1 for unit directions, d (d + 2) ... (d + power - 2) for Gaussian ones."""
    return float(math.prod(dim + 2 * i for i in range(power // 2))) if direction == "gaussian" else 1.0
