"""What the claims of Zhang, Frei, Bartlett 2023 (arXiv 2306.09927) are run at: prompts, structured starts, and covariances that
are drawn once a prompt.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import numpy as np
from jaxtyping import Float

from icl_lab import models, objectives, theory
from icl_lab.claims.setting import choice, integer, number, table, vector
from icl_lab.claims.settings.flow_paths import exact
from icl_lab.claims.settings.regression import RegressionSetting, SpectralSetting
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import haar_orthogonal
from icl_lab.core.typing import Array
from icl_lab.models import initializers
from icl_lab.models.weights import LSAWeights
from icl_lab.tasks import FiniteDiagonal

PAPER = "Zhang, Frei, Bartlett 2023, arXiv 2306.09927"
MODEL = models.LinearSelfAttention()
LARGEST_SUPPORT = 2**14
# Lengths that stand for infinity; what they leave is of their inverse.
INFINITE = 10**16
INFINITE_TRAINING = 10**10
INFINITE_TOLERANCE = 1e-8


class TrainedSetting(SpectralSetting):
    """Training prompts without noise: inputs of any covariance, and tasks N(0, I)."""

    N: int = integer(10, 1, "context length", "of training")
    inputs_basis = "rotation"

    @property
    def objective(self) -> objectives.Objective:
        """The exact half loss of the layer."""
        return exact(self.task())


class StartSetting(Seeded, RegressionSetting):
    """The start of Assumption 3.3, and the same one where covariances are random."""

    sigma: float = number(
        0.1,
        positive=True,
        meaning="initial scale",
        detail="; sigma^2 ||Gamma|| sqrt(d) < 2, and as Theorem 4.5 bounds it where covariances are random",
    )
    theta: str = choice("identity", ("identity", "random"), "matrix Theta of the start")

    @property
    def root(self) -> Float[np.ndarray, "d d"]:
        """Theta, scaled to || Theta Theta^T ||_F = 1."""
        if self.theta == "identity":
            return np.eye(self.d) / self.d**0.25
        return np.asarray(initializers.random_theta(self.key, self.d))

    @property
    def product(self) -> Float[np.ndarray, "d d"]:
        """Theta Theta^T."""
        return self.root @ self.root.T

    @property
    def start(self) -> LSAWeights:
        """W_PV = sigma e e^T and W_KQ = sigma blockdiag(Theta Theta^T, 0)."""
        return initializers.zhang(self.d, self.sigma, self.root)


class FlowSetting(TrainedSetting, StartSetting):
    """Training from the structured start."""

    @property
    def bounds(self) -> tuple[float, Float[Array, "d d"], int, Float[Array, "d d"]]:
        """(sigma, Lambda, N, Theta Theta^T), the arguments of the theory's bounds."""
        return self.sigma, self.covariance, self.N, self.product

    def validate(self) -> None:
        super().validate()
        theory.zhang2023.check_initialisation(*self.bounds)


class TransferSetting(TrainedSetting):
    """Training at one context length and tests at another."""

    M: int = integer(6, 1, "test context length")


class FixedTaskSetting(TransferSetting):
    """Tests on prompts of one task vector."""

    w: list[float] | None = vector(None, "task vector", "; null: 1, -1/2, 2 and so on")
    samples: int = integer(100_000, 1_000, "number of draws", "of prompts")

    @property
    def vector(self) -> Float[np.ndarray, "d"]:
        """w as an array; null repeats 1, -1/2, 2."""
        return np.resize([1.0, -0.5, 2.0], self.d) if self.w is None else np.asarray(self.w)

    @property
    def one_task(self) -> Float[np.ndarray, "d d"]:
        """w w^T, the covariance of tasks z w with z ~ N(0, 1); the risk is quadratic in the task, so its mean is that of w."""
        return np.outer(self.vector, self.vector)

    def validate(self) -> None:
        super().validate()
        if self.w is not None and len(self.w) != self.d:
            raise InvalidValueError(
                f"`w` must hold d = {self.d} entries; got {len(self.w)}. Set `d` too, or null for the default vector."
            )
        if self.w is not None and not any(self.w):
            raise InvalidValueError("`w` must not be zero; its labels and their errors would all be zero.")


class RandomSetting(Seeded, RegressionSetting):
    """Inputs of a diagonal covariance with independent random eigenvalues, drawn once a prompt."""

    N: int = integer(8, 1, "context length", "of training")
    values: list[list[float]] | None = table(
        None, meaning="values > 0 of each eigenvalue", detail="; null: (1/2, 2), (1, 3), (1/5, 1) and so on"
    )
    probabilities: list[list[float]] | None = table(
        None, 0.0, "probabilities of the values", "; null: the default's own, or equal ones"
    )

    default_rows: ClassVar[tuple[list[list[float]], list[list[float]]]] = (
        [[0.5, 2.0], [1.0, 3.0], [0.2, 1.0]],
        [[0.5, 0.5], [0.7, 0.3], [0.4, 0.6]],
    )
    """Rows of values and of their probabilities, repeated as often as there are dimensions."""

    @property
    def rows(self) -> tuple[Float[np.ndarray, "d m"], Float[np.ndarray, "d m"]]:
        """Values and probabilities of every eigenvalue."""
        if self.values is None:
            values, given = (np.resize(rows, (self.d, len(rows[0]))) for rows in self.default_rows)
        else:
            values = np.asarray(self.values)
            given = np.full(values.shape, 1 / values.shape[1])
        return values, given if self.probabilities is None else np.asarray(self.probabilities)

    @property
    def covariates(self) -> FiniteDiagonal:
        return FiniteDiagonal(*self.rows)

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """E[Lambda]."""
        return np.asarray(self.covariates.covariance)

    @property
    def moments(self) -> theory.random_covariance.DiagonalMoments:
        """What the theory says of the distribution."""
        return theory.random_covariance.diagonal_moments(*self.rows, self.N)

    @property
    def objective(self) -> objectives.RegressionLoss:
        """The exact half loss of the layer, averaged over the support of Lambda."""
        return objectives.RegressionLoss.build(self.task(), MODEL)

    def support(self, rotate: bool) -> tuple[Float[np.ndarray, "S d d"], Float[np.ndarray, "S"]]:
        """Every covariance with its probability; with `rotate`, each has a random basis of its own."""
        spectra, weights = self.covariates.support()
        if not rotate:
            return spectra[:, :, None] * np.eye(self.d), weights
        keys = jax.random.split(self.stream("bases"), len(spectra))
        bases = np.asarray(jax.vmap(lambda key: haar_orthogonal(key, self.d))(keys))
        matrices = (bases * spectra[:, None, :]) @ bases.transpose(0, 2, 1)
        return (matrices + matrices.transpose(0, 2, 1)) / 2, weights

    def validate(self) -> None:
        super().validate()
        distribution = self.covariates
        if distribution.dim != self.d:
            raise InvalidValueError(f"`values` must hold d = {self.d} lists; got {distribution.dim}. Set `d` too.")
        size = np.prod([np.count_nonzero(row) for row in distribution.probabilities], dtype=np.float64)
        if size > LARGEST_SUPPORT:
            raise InvalidValueError(
                f"the distribution has {size:.0f} covariances, over which the loss is averaged; at most {LARGEST_SUPPORT} are "
                "allowed. Take a smaller `d` or fewer values of each eigenvalue."
            )
