"""Settings of claims on a stationary autoregressive series: its coefficients, its innovations, and the prompts cut from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from icl_lab.claims.setting import Setting, number, vector
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.tasks.series.autoregressive import Autoregressive, check_stationary


class SeriesSetting(Setting):
    """x_t = rho_1 x_{t-1} + .. + rho_p x_{t-p} + innovation, seen through windows of p lags."""

    rho: Sequence[float] | None = vector((0.5, -0.3), "autoregressive coefficients", ", nearest lag first")
    sigma: float = number(1.0, positive=True, meaning="standard deviation of the innovations")

    def validate(self) -> None:
        super().validate()
        check_coefficients(self.coefficients)

    @property
    def coefficients(self) -> Float[Array, "p"]:
        """rho as an array, empty for null."""
        return np.asarray(self.rho or (), dtype=np.float64)

    @property
    def best_weights(self) -> Float[Array, "p"]:
        """w, those of the best prediction from a window, oldest lag first."""
        return self.coefficients[::-1].copy()

    @property
    def explained_variance(self) -> float:
        """V, the variance of the best prediction."""
        return float(self.task(1).autocovariances(1)[0]) - self.sigma**2

    @property
    def order(self) -> int:
        """p, the number of coefficients and of lags in a window."""
        return len(self.coefficients)

    def task(self, length: int) -> Autoregressive:
        """The series as prompts of `length` windows."""
        return Autoregressive(self.coefficients, length, self.sigma)


def check_coefficients(coefficients: Float[Array, "p"]) -> None:
    """Raise `InvalidValueError` unless there are coefficients, and the series that they make is stationary."""
    if not coefficients.size:
        raise InvalidValueError("`rho` must be a list of coefficients; got null.")
    check_stationary(coefficients)
