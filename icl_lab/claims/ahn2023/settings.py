"""Layers of the sparse form of arXiv 2306.00297, Q_l = -diag(A_l, 0) and P_l = diag(B_l, 1), as trained by claims: their
answers, and the settings with their exact losses and the starts of searches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from icl_lab import models, theory
from icl_lab.claims import check
from icl_lab.claims.quasi_newton import Ends, minimise
from icl_lab.claims.setting import integer, table
from icl_lab.claims.settings.regression import RegressionSetting, covariance
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import check_covariance, inverse_covariance
from icl_lab.core.typing import Array
from icl_lab.models import LSAWeights
from icl_lab.objectives.exact import wishart
from icl_lab.objectives.exact.cubature import CubatureLoss
from icl_lab.tasks.prompt import Prompt

PAPER = "Ahn, Cheng, Daneshmand, Sra 2023 (arXiv 2306.00297)"
# The paper's layer: a mean over the context, and the answer is minus the query's label slot.
MODEL = models.LinearSelfAttention(query_in_sum=False, readout_sign=-1.0)
LARGEST_SEARCH = 3_000
"""Prompts beyond which a search over all entries takes minutes."""


def stack(A: Array, B: Array) -> tuple[LSAWeights, ...]:
    """Layers with Q_l = -diag(A_l, 0) and P_l = diag(B_l, 1), A (L, d, d); the last of the B may be left out."""
    dim = A.shape[1]
    moves = jnp.pad(B, ((0, len(A) - len(B)), (0, 1), (0, 1)))
    one = jnp.zeros((dim + 1, dim + 1)).at[dim, dim].set(1.0)
    return tuple(LSAWeights(one + moves[i], jnp.pad(-A[i], ((0, 1), (0, 1)))) for i in range(len(A)))


def free_answer(weights: dict, prompt: Prompt) -> Array:
    """Prediction of layers given by the matrices A and, for GD++, B."""
    A = jnp.asarray(weights["A"])
    return MODEL(stack(A, jnp.asarray(weights["B"]) if "B" in weights else jnp.zeros_like(A)), prompt)


def scaled_answer(metric: Array, weights: dict, prompt: Prompt) -> Array:
    """Prediction of layers with A_l = a_l `metric` and, for GD++, B_l = b_l I."""
    base = jnp.asarray(metric)
    matrices = {"A": jnp.asarray(weights["a"])[:, None, None] * base[None]}
    if "b" in weights:
        matrices["B"] = jnp.asarray(weights["b"])[:, None, None] * jnp.eye(len(base))[None]
    return free_answer(matrices, prompt)


def shared_answer(L: int, weights: dict, prompt: Prompt) -> Array:
    """Prediction of L layers with A_l = a I and B_l = 0, on prompts of one dimension."""
    return scaled_answer(np.eye(1), {"a": jnp.broadcast_to(jnp.asarray(weights["a"]), (L,))}, prompt)


def spectral_loss(d: int, N: int, degree: int, answer: Callable) -> CubatureLoss:
    """The half loss of layers that are multiples of the identity in whitened inputs, on prompts of one dimension."""
    return wishart.spectral_cubature(d, N, answer, degree)


def degree_of(L: int, moving: bool) -> int:
    """The degree of the squared error of L layers in the Gram matrix of the inputs."""
    return 3**L - 1 if moving else 2 * L


def _growing(L: int) -> np.ndarray:
    return np.geomspace(0.5, 0.5 * 4 ** (L - 1), L)


class Layers(Seeded, RegressionSetting):
    """L layers; they are called moving if B_l is free, and not 0."""

    d = 2
    N = 4
    L: int = integer(2, 1, "number of layers")

    all_entries: ClassVar[bool] = True
    """Whether the claim needs the exact loss at any matrices A, whose prompts are limited in number."""

    def validate(self) -> None:
        super().validate()
        if self.all_entries and (size := self._prompts(moving=False)) > wishart.LARGEST_RULE:
            raise InvalidValueError(
                f"d = {self.d} and L = {self.L} need {size} prompts, more than {wishart.LARGEST_RULE}; lower them."
            )

    @property
    def moving_search(self) -> bool:
        """Whether moving layers are searched over all entries in seconds."""
        return self._prompts(moving=True) <= LARGEST_SEARCH

    def _prompts(self, moving: bool) -> int:
        return wishart.wishart_size(self.d, self.N, degree_of(self.L, moving))

    def loss(self, moving: bool = False, answer: Callable = free_answer) -> CubatureLoss:
        """The exact half loss of the layers, by default over all entries of A and, if moving, B."""
        return wishart.wishart_cubature(self.task(), answer, degree_of(self.L, moving))

    def best(self, moving: bool = False) -> tuple[Array, Array, float]:
        """`theory.ahn2023.best_stack`; raises `PrecisionError` where training cannot find it."""
        a, b, minimum = theory.ahn2023.best_stack(self.d, self.N, self.L, moving)
        check.require_shown(minimum, self.d)
        return a, b, minimum

    def multiples(self, count: int) -> dict:
        """Starts of a search over a in A_l = a_l Sigma^{-1}."""
        return {"a": np.linspace(0.5, 1.5, self.L)[None] + 0.2 * self.normals("a", count, self.L)}

    def moving_multiples(self) -> Ends:
        """The best a and b of moving layers, A_l = a_l I and B_l = b_l I in whitened inputs."""
        L, many = self.L, 16 if self.L == 2 else 40
        begin = {
            "a": _growing(L)[None] * np.exp(0.5 * self.normals("a", many, L)),
            "b": np.abs(0.5 + 0.5 * self.normals("b", many, L - 1)),
        }
        return minimise(spectral_loss(self.d, self.N, degree_of(L, True), Partial(scaled_answer, np.eye(1))), begin)


class Search(Layers):
    """A search over all entries."""

    starts: int = integer(8, 1, "number of starts", "of BFGS, of which the best counts")

    def random_starts(self, moving: bool = False) -> dict:
        """Multiples of Sigma^{-1} that differ from layer to layer, and noise in every entry."""
        d, L, starts = self.d, self.L, self.starts
        # Moved inputs are small in later layers, whose steps are then long; without moves any order is as good.
        sizes = _growing(L) if moving else np.linspace(0.5, 1.5, L)
        # Among local minima, the first start is the one that is nearly isotropic.
        noise = np.append(0.05, np.full(starts - 1, 0.4))[:, None, None, None]
        white = sizes[None, :, None, None] * np.eye(d)[None, None] + noise * self.normals("A", starts, L, d, d)
        begin = {"A": white @ self.task_covariance}
        return begin | ({"B": 0.3 * np.eye(d) + noise * self.normals("B", starts, L - 1, d, d)} if moving else {})


class Correlated(Layers):
    """Inputs N(0, Sigma) and tasks N(0, Sigma^{-1})."""

    Sig: list[list[float]] | None = table(
        None, meaning="input covariance", detail=", Sigma; null: [[1, .6], [.6, .5]], or 2 down to 1/2 in a random basis"
    )

    @property
    def covariance(self) -> Array:
        if self.Sig is not None:
            return np.array(self.Sig)
        return np.array([[1.0, 0.6], [0.6, 0.5]]) if self.d == 2 else covariance(None, self.d, True, self.seed)

    @property
    def task_covariance(self) -> Array:
        return inverse_covariance(self.covariance)

    def validate(self) -> None:
        super().validate()
        if self.Sig is not None:
            if np.shape(self.Sig) != (self.d, self.d):
                raise InvalidValueError(
                    f"`Sig` must be d x d = {self.d} x {self.d}; got shape {np.shape(self.Sig)}. Set `d` too."
                )
            check_covariance(np.array(self.Sig), "Sig")


class CorrelatedSearch(Correlated, Search):
    """A search over all entries on such inputs."""


def by_size(matrices: np.ndarray) -> np.ndarray:
    """Layers in ascending order of their traces."""
    return matrices[np.argsort(np.trace(matrices, axis1=1, axis2=2))]
