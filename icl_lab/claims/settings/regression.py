"""Settings of claims on linear regression: (Lambda, Omega, s2, N) as the papers name them, and the task that they make.

What a claim does not vary it does not offer, so there are four: isotropic inputs, with label noise, with a spectrum of the
inputs, and with both and a spectrum of the tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import jax
import numpy as np
from jaxtyping import Float

from icl_lab import theory
from icl_lab.claims.setting import Setting, flag, integer, number, spectrum
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.core import precision
from icl_lab.core.linalg import haar_orthogonal
from icl_lab.core.prng import stream
from icl_lab.core.typing import Array
from icl_lab.tasks.distributions.covariates import CovariateDistribution, Gaussian
from icl_lab.tasks.regression.linear import LinearRegression


class RegressionSetting(Setting):
    """Inputs N(0, I) and tasks N(0, I) without noise."""

    d: int = integer(3, 1, "dimension", "of the inputs")
    N: int = integer(10, 1, "context length")

    @property
    def covariance(self) -> Float[Array, "d d"]:
        """Lambda, of an input."""
        return np.eye(self.d)

    @property
    def task_covariance(self) -> Float[Array, "d d"]:
        """Omega, of a task vector."""
        return np.eye(self.d)

    @property
    def noise_variance(self) -> float:
        """s2, of a label."""
        return 0.0

    @property
    def covariates(self) -> CovariateDistribution:
        """The distribution of an input."""
        return Gaussian(self.covariance)

    def task(self) -> LinearRegression:
        """The distribution of prompts."""
        return LinearRegression(
            dim=self.d,
            context_length=self.N,
            covariates=self.covariates,
            task_covariance=self.task_covariance,
            noise_std=np.sqrt(self.noise_variance),
        )

    @cached_property
    def problem(self) -> theory.Problem:
        """What the closed forms depend on."""
        return theory.Problem(self.covariance, self.task_covariance, self.noise_variance, self.N)


class NoisySetting(RegressionSetting):
    """The same with noisy labels."""

    s2: float = number(0.0, 0.0, "variance of the label noise")

    @property
    def noise_variance(self) -> float:
        return self.s2


class SpectralSetting(Seeded, RegressionSetting):
    """Inputs of any covariance, by its eigenvalues, on the axes or on a random basis."""

    Lam: list[float] | None = spectrum("eigenvalues of the input covariance", "; null: 2 down to 1/2")
    rotate: bool = flag(False, "random eigenvectors", "of the covariances")

    inputs_basis: ClassVar[str] = "inputs"
    """The random stream of the eigenvectors of Lambda."""

    @property
    def covariance(self) -> Float[Array, "d d"]:
        return covariance(self.Lam, self.d, self.rotate, self.seed, self.inputs_basis)


class GeneralSetting(SpectralSetting, NoisySetting):
    """Inputs and tasks of any covariances, and noisy labels."""

    Om: list[float] | None = spectrum("eigenvalues of the task covariance", "; null: all 1")

    tasks_basis: ClassVar[str] = "tasks"
    """The random stream of the eigenvectors of Omega; that of the inputs' makes the two commute."""

    @property
    def task_covariance(self) -> Float[Array, "d d"]:
        return covariance([1.0] * self.d if self.Om is None else self.Om, self.d, self.rotate, self.seed, self.tasks_basis)


def covariance(
    values: Sequence[float] | None, dim: int, rotate: bool, seed: int, name: str = "rotation", largest: float = 2.0
) -> Float[Array, "d d"]:
    """A covariance with a given spectrum; null stands for `largest` down to 1/2 in geometric steps.

    Args:
      values: d positive eigenvalues or null.
      dim: d.
      rotate: whether the eigenvectors are a Haar-random basis instead of the axes.
      seed: of the basis.
      name: of the basis's random stream, so that two covariances of one claim do not commute.
      largest: largest eigenvalue of the default spectrum.

    Returns:
      (d, d).
    """
    spectrum = np.geomspace(largest, 0.5, dim) if values is None else np.asarray(values, dtype=np.float64)
    if not rotate:
        return np.diag(spectrum)
    with precision.float64():
        basis = np.asarray(haar_orthogonal(stream(jax.random.key(seed), name), dim))
    rotated = (basis * spectrum[None, :]) @ basis.T
    return (rotated + rotated.T) / 2
