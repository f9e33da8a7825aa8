"""What claims of Li et al. 2025 (arXiv 2504.04308) share: how the tasks of a prompt are correlated, and the layer's flow."""

from __future__ import annotations

from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab import models, objectives, theory
from icl_lab.claims import convergence
from icl_lab.claims.quasi_newton import minimise
from icl_lab.claims.setting import choice, integer, number, restricted
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.mixers import named
from icl_lab.models import StepWeights
from icl_lab.objectives import Objective
from icl_lab.tasks.regression.correlated import CorrelatedRegression

PAPER = "Li, Tarzanagh, Rawat, Fazel, Oymak 2025 (arXiv 2504.04308)"
LAB = "icl_lab"
"""Who words a statement here: that of the paper was not at hand."""
MODEL = models.WeightedStep()

LIMIT_TOLERANCE = 1e-8
"""Of weights that a flow ends at: ten times what the flow estimates of its own error."""
SEARCH_TOLERANCE = 1e-6
"""Of weights that BFGS ends at: it compares losses, in which an error of weights below the root of rounding does not show."""
RISK_TOLERANCE = 1e-12
"""Risks are flat at the optimum, so that only rounding is left."""

KINDS = ("drift", "groups", "random")


class Prompts(Seeded):
    """Sizes of a prompt, and its noise."""

    d: int = integer(4, 1, "dimension", "of the inputs")
    N: int = integer(12, 1, "context length")
    s2: float = number(0.2, 0.0, "variance of the label noise")


class Correlated(Prompts):
    """Tasks that drift along the context, that come in two groups, or that are correlated at random, some negatively."""

    kind: str = choice("drift", KINDS, "kind of correlations", ", of the task vectors")
    a: float = restricted(
        number(0.9, meaning="correlation of successive tasks", detail=", if they drift"),
        "a number in (0, 1]",
        lambda value: 0 < value <= 1,
    )

    @cached_property
    def correlations(self) -> Float[np.ndarray, "M M"]:
        """Those of all task vectors, the query's last."""
        if self.kind == "drift":
            place = np.arange(self.N + 1)
            return self.a ** np.abs(place[:, None] - place[None, :])
        if self.kind == "groups":
            return grouped(self.N, 0.3, 0.9, 0.27)
        rows = self.normals("correlations", self.N + 1, self.N + 1)
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        joint = rows @ rows.T
        np.fill_diagonal(joint, 1.0)
        return joint

    def task(self) -> CorrelatedRegression:
        """The distribution of prompts."""
        return CorrelatedRegression(self.d, self.correlations, np.sqrt(self.s2))

    @property
    def problem(self) -> theory.li2025.CorrelatedTasks:
        """What the closed forms depend on."""
        return theory.li2025.CorrelatedTasks.of(self.task())

    def start(self) -> StepWeights:
        """Random weights of the size of the best ones, from which training starts."""
        return StepWeights(self.normals("start", self.N) / (self.N + self.d + self.s2))


class TwoGroups(Prompts):
    """A context of two halves, each with one task throughout."""

    N: int = integer(12, 3, "context length")
    rho1: float = restricted(
        number(0.3, meaning="correlation of the first group's task with the query's"),
        "a number in (0, 1]",
        lambda x: 0 < x <= 1,
    )
    rho2: float = restricted(
        number(0.9, meaning="correlation of the second group's task with the query's"),
        "a number in (0, 1]",
        lambda x: 0 < x <= 1,
    )

    def validate(self) -> None:
        super().validate()
        if not self.rho1 < self.rho2:
            raise InvalidValueError(
                f"`rho1` must be below `rho2`, since the claim is about old tasks that matter less; got {self.rho1!r} and "
                f"{self.rho2!r}."
            )

    @property
    def sizes(self) -> tuple[int, int]:
        """Of the groups; of an odd number of examples the first has one more."""
        return self.N - self.N // 2, self.N // 2

    @property
    def between(self) -> float:
        """The correlation of the two groups' tasks: what they share is the query's."""
        return self.rho1 * self.rho2

    def task(self) -> CorrelatedRegression:
        """The distribution of prompts."""
        return CorrelatedRegression(self.d, grouped(self.N, self.rho1, self.rho2, self.between), np.sqrt(self.s2))


def grouped(N: int, rho1: float, rho2: float, between: float) -> Float[np.ndarray, "M M"]:
    """Correlations of two groups of equal tasks and the query's; of an odd number of examples the first has one more."""
    member = np.array([0] * (N - N // 2) + [1] * (N // 2) + [2])
    of_tasks = np.array([[1.0, between, rho1], [between, 1.0, rho2], [rho1, rho2, 1.0]])
    return of_tasks[member[:, None], member[None, :]]


def loss_of(task: CorrelatedRegression) -> Objective:
    """The exact half loss of the layer."""
    return objectives.population(task, MODEL)


def flow_limit(task: CorrelatedRegression, start: StepWeights) -> StepWeights:
    """Where gradient flow on the exact loss ends."""
    return convergence.to_limit(loss_of(task), start, weight_tolerance=LIMIT_TOLERANCE / 10).limit


def search_end(task: CorrelatedRegression, start: StepWeights) -> StepWeights:
    """Where BFGS on the exact loss ends; a flow cannot say that it has come to weights that are zero, or nearly."""
    return minimise(loss_of(task), jax.tree.map(lambda w: w[None], start)).lowest


def gated_lags(log_decay: Float[Array, "*N"], scale: Float[Array, ""], length: int) -> Float[Array, "N"]:
    """The weights that gated linear attention gives the positions of a context, read off its answer to unit values."""
    mixer = named("simple_gla", scale=1.0)
    ones = jnp.ones((length, 1))
    return scale * mixer.read(ones[0], ones, jnp.eye(length), log_decay=log_decay)
