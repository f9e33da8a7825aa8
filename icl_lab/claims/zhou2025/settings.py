"""Settings of the claims of Zhou et al. 2025 (arXiv 2510.09776): a Gaussian series, and one layer's loss and moments on it."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab import models, objectives, theory
from icl_lab.claims.setting import Setting, integer, number, optional, vector
from icl_lab.claims.settings.series import SeriesSetting
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.series.autoregressive import check_stationary
from icl_lab.tasks.series.gaussian import GaussianSeries, arma_autocovariances

PAPER = "Zhou, Wang, Goel, Zhang 2025, arXiv 2510.09776"
LAB = "icl_lab, on the series of arXiv 2510.09776"
LSA = models.LinearSelfAttention(embedding="hankel", query_in_sum=False)


class SignalSetting(SeriesSetting):
    """A series with something to predict."""

    def validate(self) -> None:
        super().validate()
        if not np.any(self.coefficients):
            raise InvalidValueError(f"`rho` must not be zero: white noise has nothing to predict; got {self.rho}.")

    def loss(self, length: int) -> objectives.MomentLoss:
        """The exact loss of one layer on contexts of `length` windows."""
        return objectives.series_loss(self.task(length), LSA)

    def moments(self, length: int) -> theory.isserlis.FeatureMoments:
        """The reference moments of the layer's features."""
        return _reference_moments(self.coefficients, np.zeros(0), self.sigma, self.order, length)


class MixedSetting(Setting):
    """x_t = sum_j rho_j x_{t-j} + innovation + sum_j theta_j (innovation j steps before), in windows of any size."""

    rho: Sequence[float] | None = vector(None, "autoregressive coefficients", ", nearest lag first; null: none")
    theta: Sequence[float] | None = vector(None, "moving-average coefficients", ", nearest lag first; null: none")
    p: int | None = optional(integer(1, 1, "lags in a window", "; null: as many as coefficients in rho, at least one"))
    sigma: float = number(1.0, positive=True, meaning="standard deviation of the innovations")

    def validate(self) -> None:
        super().validate()
        if self.rho is None and self.theta is None:
            raise InvalidValueError("`rho` and `theta` must not both be null: white noise has nothing to predict.")
        if self.rho is not None:
            check_stationary(self.coefficients)

    @property
    def coefficients(self) -> Float[Array, "r"]:
        """rho as an array, empty for null."""
        return np.asarray(self.rho or (), dtype=np.float64)

    @property
    def moving(self) -> Float[Array, "q"]:
        """theta as an array, empty for null."""
        return np.asarray(self.theta or (), dtype=np.float64)

    @property
    def order(self) -> int:
        """Lags in a window: p, or the number of autoregressive coefficients if it is not given."""
        return self.p if self.p is not None else max(1, len(self.coefficients))

    @property
    def is_autoregressive(self) -> bool:
        """Whether a window holds all that the past says about the next value."""
        return not np.any(self.moving) and len(np.trim_zeros(self.coefficients, "b")) <= self.order

    def autocovariances(self, count: int) -> Float[Array, "count"]:
        """gamma_0 .. gamma_{count - 1} of the series."""
        return arma_autocovariances(self.coefficients, self.moving, self.sigma, count)

    def task(self, length: int) -> GaussianSeries:
        """The series as prompts of `length` windows."""
        return GaussianSeries(self.autocovariances(length + self.order + 1), self.order)

    def moments(self, length: int) -> theory.isserlis.FeatureMoments:
        """The reference moments of one layer's features on the same prompts."""
        return _reference_moments(self.coefficients, self.moving, self.sigma, self.order, length)


def _reference_moments(
    coefficients: Array, moving: Array, sigma: float, order: int, length: int
) -> theory.isserlis.FeatureMoments:
    gamma = theory.bartlett.autocovariances(coefficients, moving, sigma, length + order + 1)
    return theory.isserlis.feature_moments(gamma, order)


def series_prompt(values: Array, order: int) -> Prompt:
    """The prompt that shows all of a series but its last value, which is the target."""
    count = values.shape[0] - order
    windows = values[jnp.arange(count)[:, None] + jnp.arange(order)[None, :]]
    return Prompt(windows[:-1], values[order:-1, None], windows[-1], values[-1:], latent=jnp.zeros(0, values.dtype))
