"""Series of claims: their parameters, what is refused, and the same series as a task and as reference moments."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from icl_lab import models, objectives, theory
from icl_lab.claims.claim import Parameter, integer, number, vector
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.series.autoregressive import check_stationary
from icl_lab.tasks.series.gaussian import GaussianSeries, arma_autocovariances

PAPER = "Zhou, Wang, Goel, Zhang 2025, arXiv 2510.09776"
LAB = "icl_lab, on the series of arXiv 2510.09776"
LSA = models.LinearSelfAttention(embedding="hankel", query_in_sum=False)

SERIES = {
    "rho": vector((0.5, -0.3), "coefficients of the series, nearest lag first"),
    "sigma": number(1.0, positive=True, meaning="standard deviation of the innovations"),
}
MIXED_SERIES = {
    "rho": vector(None, "autoregressive coefficients, nearest lag first; null: none"),
    "theta": vector(None, "moving-average coefficients, nearest lag first; null: none"),
    "p": Parameter(
        None,
        "null or an integer >= 1",
        lambda value: value if value is None else integer(1, 1).convert(value),
        "lags in a window; null: as many as coefficients in rho, at least one",
    ),
    "sigma": SERIES["sigma"],
}


def validate_coefficients(rho, **_) -> None:
    if rho is None:
        raise InvalidValueError("`rho` must be a list of coefficients; got null.")
    if not np.any(rho):
        raise InvalidValueError(f"`rho` must not be zero, or there is nothing to predict; got {rho}.")
    check_stationary(np.asarray(rho))


def validate_mixed(rho, theta, **_) -> None:
    if rho is None and theta is None:
        raise InvalidValueError("`rho` and `theta` must not both be null: white noise has nothing to predict.")
    if rho is not None:
        check_stationary(np.asarray(rho))


def window_order(rho, p) -> int:
    """p, or the number of autoregressive coefficients if it is not given."""
    return p if p is not None else max(1, len(rho or ()))


def is_autoregressive(rho, theta, order: int) -> bool:
    """Whether a window of `order` values holds all that the past says about the next one."""
    return not np.any(theta or 0.0) and len(np.trim_zeros(rho or (), "b")) <= order


def mixed_task(rho, theta, order: int, sigma: float, length: int) -> GaussianSeries:
    """The ARMA series as prompts of `length` windows."""
    return GaussianSeries(arma_autocovariances(rho or (), theta or (), sigma, length + order + 1), order)


def coefficient_arrays(rho, theta) -> tuple[np.ndarray, np.ndarray]:
    """Both lists as arrays, empty for null."""
    return np.asarray(rho or (), dtype=np.float64), np.asarray(theta or (), dtype=np.float64)


def mixed_moments(rho, theta, order: int, sigma: float, length: int) -> theory.isserlis.FeatureMoments:
    """The reference moments of the same series."""
    coefficients, moving = coefficient_arrays(rho, theta)
    gamma = theory.bartlett.autocovariances(coefficients, moving, sigma, length + order + 1)
    return theory.isserlis.feature_moments(gamma, order)


def series_prompt(values: Array, order: int) -> Prompt:
    """The prompt that shows all of a series but its last value, which is the target."""
    count = values.shape[0] - order
    windows = values[jnp.arange(count)[:, None] + jnp.arange(order)[None, :]]
    return Prompt(windows[:-1], values[order:-1, None], windows[-1], values[-1:], latent=jnp.zeros(0, values.dtype))


def features_of(objective: objectives.MomentLoss, prompt: Prompt) -> Array:
    """phi (F,) of a prompt, from the tokens of the model."""
    tokens = objective.model.tokens(prompt)
    return objective.features.values(tokens[:-1, :, None], tokens[-1, :, None])[:, 0] / objective.model.normaliser_at(
        tokens.shape[0]
    )
