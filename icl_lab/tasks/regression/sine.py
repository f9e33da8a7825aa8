"""In-context regression of sine waves: y_i = a sin(x_i + rho), amplitude and phase drawn once per prompt.

Source: von Oswald et al. (arXiv 2212.07677), Section 4, after Finn et al. (arXiv 1703.03400). The text and the published
generator differ: the text draws amplitudes up to 5, the generator up to 1/2, and the latter makes amplitude and phase from the
same random number, so that its waves are a family of one parameter. `DISTRIBUTIONS` has both, and the generator's ranges with
independent draws between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.prng import stream
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.distributions.independent import Uniform
from icl_lab.tasks.prompt import Prompt, RegressionTask, as_default_float, as_float64, regression_prompt


class SineDistribution(NamedTuple):
    """A distribution of amplitude and phase.

    Attributes:
      amplitude, phase: ends of the intervals they are uniform on.
      shared: whether both are the same uniform number, scaled to their intervals.
    """

    amplitude: tuple[float, float]
    phase: tuple[float, float]
    shared: bool


DISTRIBUTIONS = {
    "text": SineDistribution((0.1, 5.0), (0.0, math.pi), False),
    "independent": SineDistribution((0.1, 0.5), (0.0, math.pi), False),
    "published": SineDistribution((0.1, 0.5), (0.0, math.pi), True),
}


class SineRegression(RegressionTask):
    """y_i = a sin(x_i + rho) + ε_i, x ~ U(-half_width, half_width), ε_i ~ N(0, noise_std^2); the target is noiseless.

    The latent is (a, rho). A wave is linear in (sin x, cos x), with coefficients a (cos rho, sin rho).

    Args:
      context_length: N >= 1, labelled examples; the query is not counted.
      half_width: of the inputs, > 0.
      distribution: one of `DISTRIBUTIONS`, of amplitude and phase.
      amplitude: (2,) ends of the amplitude's interval, instead of the distribution's.
      phase: (2,) ends of the phase's interval, instead of the distribution's.
      noise_std: standard deviation of the label noise, >= 0.

    Attributes:
      covariates: the distribution of the inputs.

    Raises:
      InvalidValueError: an unknown distribution, a size below 1, an interval whose ends are not two finite ordered numbers.
    """

    context_length: int = eqx.field(static=True)
    distribution: str = eqx.field(static=True)
    covariates: Uniform
    amplitude: Float[Array, "2"]
    phase: Float[Array, "2"]
    dim: int = eqx.field(static=True, default=1)

    def __init__(
        self,
        context_length: int,
        half_width: float | Float[Array, ""] = 5.0,
        distribution: str = "text",
        amplitude: Sequence[float] | Float[Array, "2"] | None = None,
        phase: Sequence[float] | Float[Array, "2"] | None = None,
        noise_std: float | Float[Array, ""] = 0.0,
    ):
        if distribution not in DISTRIBUTIONS:
            raise InvalidValueError(f"`distribution` must be one of {', '.join(DISTRIBUTIONS)}; got {distribution!r}.")
        self.dim = self.label_dim = 1
        self.context_length = context_length
        self.distribution = distribution
        self.covariates = Uniform(1, half_width)
        self.amplitude = _interval(DISTRIBUTIONS[distribution].amplitude if amplitude is None else amplitude, "amplitude")
        self.phase = _interval(DISTRIBUTIONS[distribution].phase if phase is None else phase, "phase")
        self.noise_std = as_float64(noise_std)

    def with_context_length(self, length: int) -> SineRegression:
        return SineRegression(length, self.covariates.half_width, self.distribution, self.amplitude, self.phase, self.noise_std)

    @property
    def covariance(self) -> Float[Array, "1 1"]:
        """(1, 1) variance of the inputs."""
        return self.covariates.covariance

    def sample(self, key: Key) -> Prompt:
        """One prompt; its latent is (a, rho) (2,)."""
        inputs = self.covariates.sample(stream(key, "inputs"), self.context_length + 1)
        draws = jax.random.uniform(stream(key, "task"), (2,))
        if DISTRIBUTIONS[self.distribution].shared:
            draws = jnp.stack([draws[0], draws[0]])
        ends = jnp.stack([as_default_float(self.amplitude), as_default_float(self.phase)])
        latent = ends[:, 0] + (ends[:, 1] - ends[:, 0]) * draws
        responses = latent[0] * jnp.sin(inputs + latent[1])
        return regression_prompt(key, inputs, responses, self.noise_std, latent)


def features(prompt: Prompt) -> Prompt:
    """The prompt of a sine task with its inputs mapped to (sin x, cos x), in which its responses are linear."""

    def waves(x: Float[Array, "*N 1"]) -> Float[Array, "*N 2"]:
        return jnp.concatenate([jnp.sin(x), jnp.cos(x)], axis=-1)

    return Prompt(waves(prompt.inputs), prompt.labels, waves(prompt.query), prompt.target, prompt.latent)


def _interval(ends: Sequence[float] | Float[Array, "2"], name: str) -> Float[Array, "2"]:
    values = np.asarray(ends, dtype=np.float64)
    if values.shape != (2,) or not np.all(np.isfinite(values)) or values[0] > values[1]:
        raise InvalidValueError(f"`{name}` must be the two ends of an interval, the lower first; got {ends!r}.")
    return values
