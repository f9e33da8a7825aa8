"""What claims of Mahankali, Hashimoto, Ma 2023 (arXiv 2307.03576) share: the layer, the Bayes predictor, the settings."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from icl_lab import estimators, models
from icl_lab.claims.setting import integer, number, spectrum
from icl_lab.claims.settings.regression import NoisySetting, SpectralSetting, covariance
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.core.linalg import inverse_covariance
from icl_lab.core.typing import Array
from icl_lab.models import LSAWeights
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.regression.linear import LinearRegression

PAPER = "Mahankali, Hashimoto, Ma 2023, arXiv 2307.03576"
# The paper's layer: a plain sum over the context tokens.
MODEL = models.LinearSelfAttention(query_in_sum=False, normaliser="none")


class Isotropic(Seeded, NoisySetting):
    """Inputs N(0, I), tasks N(0, I) and noisy labels."""

    N: int = integer(5, 1, "context length", ", the paper's n")
    s2 = 0.5


class Whitening(Isotropic, SpectralSetting):
    """Inputs N(0, Sigma) and tasks N(0, Sigma^{-1})."""

    Lam: list[float] | None = spectrum("eigenvalues of the input covariance", "; null: all 1")

    @property
    def covariance(self) -> Array:
        return np.eye(self.d) if self.Lam is None else super().covariance

    @property
    def task_covariance(self) -> Array:
        return inverse_covariance(self.covariance)


class Pair(Whitening):
    """Inputs and tasks of any two covariances."""

    Om: list[float] | None = spectrum("eigenvalues of the task covariance", "; null: those of the inverse input covariance")

    @property
    def task_covariance(self) -> Array:
        return super().task_covariance if self.Om is None else covariance(self.Om, self.d, self.rotate, self.seed, "tasks")


class RandomStarts(Isotropic):
    """Layers trained from random starts of all entries."""

    sigma: float = number(0.1, positive=True, meaning="initial scale", detail="of every weight, times N^{-1/3}")
    starts: int = integer(6, 1, "number of starts", ", of which the best counts")

    @property
    def start_scale(self) -> float:
        """Standard deviation of a weight at the start."""
        return self.sigma * self.N ** (-1 / 3)


class RandomLayers(Isotropic):
    """Layers with random weights, at which an identity is checked."""

    scale: float = number(0.5, positive=True, meaning="standard deviation of a weight", detail=", times N^{-1/3}")

    def layer(self, name: str) -> LSAWeights:
        """The random layer of this name."""
        return models.initializers.gaussian(self.stream(name), self.d + 1, self.scale * self.N ** (-1 / 3))


def active_rows(weights: LSAWeights) -> tuple[np.ndarray, np.ndarray]:
    """(p1, p2) and K1 over k2."""
    return np.asarray(weights.w_pv)[-1], np.asarray(weights.w_kq)[:, :-1]


def bayes_predictor(task: LinearRegression):
    """The Bayes predictor, a function of a prompt: penalty s2 Om^{-1}, and its limit without noise.

    The limit is least squares of minimum norm in the inputs in which tasks are isotropic.
    """
    noise_variance = float(task.noise_std) ** 2
    if noise_variance > 0:
        penalty = noise_variance * inverse_covariance(task.task_covariance)
        return lambda prompt: estimators.ridge(prompt, penalty)
    factor = jnp.asarray(np.linalg.cholesky(task.task_covariance))
    return lambda prompt: estimators.ols(Prompt(prompt.inputs @ factor, prompt.labels, factor.T @ prompt.query, prompt.target))
