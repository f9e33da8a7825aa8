"""Settings of the claims of Zheng et al. 2024 (arXiv 2405.16845): diagonal unitary W, the distribution of x_1, the start."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import models, objectives, theory
from icl_lab.claims.setting import Setting, choice, integer, number, optional
from icl_lab.claims.settings.dynamics import DynamicsSetting
from icl_lab.core.typing import Array, Key
from icl_lab.models import PairedWeights
from icl_lab.tasks import (
    ComplexGaussianStart,
    ConstantStart,
    DiagonalUnitary,
    GaussianStart,
    RademacherStart,
    SparseStart,
    StartDistribution,
)
from icl_lab.tasks.distributions.starts import IndependentStart
from icl_lab.theory.dynamics.zheng2024 import DISTRIBUTIONS, SYMMETRIC_DISTRIBUTIONS

PAPER = "Zheng et al. 2024, arXiv 2405.16845"
MODEL = models.LinearSelfAttention(causal=True, embedding="paired")
INITS = ((0.1, 0.1), (0.5, 1.5), (2.0, 2.0))
"""The starts (a0, b0) of the paper's experiments."""

EXACT_TOLERANCE = 1e-10
# Blocks that the theorem says stay at zero, and zero gradients.
INACTIVE_TOLERANCE = 1e-10
# The flow stops at an estimated weight error of a tenth of this, or after this many steps: a start close to the minimum leaves
# the loss too little to fall for the verdict.
LIMIT_TOLERANCE = 1e-7
MOST_STEPS = 10_000
# A sparse distribution's Gram is singular, which says nothing about stiffness.
TO_THE_LIMIT: Any = {"weight_tolerance": 1e-8, "solver": "tsit5", "rtol": 1e-11, "max_steps": MOST_STEPS}
# With more features, or pairs of positions to count, all blocks take minutes; the active ones take a second.
MOST_FEATURES, LONGEST_FULL = 216, 40


class SkewStart(IndependentStart):
    """x_1 with independent coordinates 2 scale with probability 1/3, else -scale: mean zero, third moment 2 scale^3."""

    sign_symmetric: bool = eqx.field(static=True, default=False, init=False)

    def sample(self, key: Key, dim: int) -> Array:
        """One x_1."""
        high = jax.random.bernoulli(key, 1 / 3, (dim,))
        return jnp.asarray(self.scale, float) * jnp.where(high, 2.0, -1.0)

    def coordinate_moment(self, u: int, v: int) -> Array | float:
        """(2^n + 2 (-1)^n) scale^n / 3, n = u + v."""
        n = u + v
        return (2.0**n + 2 * (-1.0) ** n) / 3 * self.scale**n


STARTS: dict[str, type[StartDistribution]] = {
    "gaussian": GaussianStart,
    "sparse": SparseStart,
    "rademacher": RademacherStart,
    "complex_gaussian": ComplexGaussianStart,
    "constant": ConstantStart,
    "skew": SkewStart,
}


class PhaseSetting(DynamicsSetting):
    """Gaussian x_1 of any scale, and what theory and the exact loss say of them."""

    d = 2
    T: int = integer(5, 3, "states of a sequence", "in training, x_1 .. x_T")
    sigma: float = number(1.0, positive=True, meaning="scale of the start distribution")

    transitions = DiagonalUnitary()

    @property
    def start_name(self) -> str:
        """The name of the distribution of x_1."""
        return "gaussian"

    @property
    def scale(self) -> float:
        """The scale of the distribution of x_1."""
        return self.sigma

    @property
    def start(self) -> StartDistribution:
        return STARTS[self.start_name](self.scale)

    @property
    def constants(self) -> theory.zheng2024.Constants:
        """The moments of x_1."""
        return theory.zheng2024.constants(self.start_name, self.d, self.scale)

    @property
    def limit_product(self) -> float:
        """The limit of ab."""
        return theory.zheng2024.limit_product(self.constants, self.T)

    @property
    def minimum_loss(self) -> float:
        """The loss at the limit."""
        return theory.zheng2024.minimum_loss(self.constants, self.d, self.T)

    @property
    def zero_loss(self) -> float:
        """The loss of predicting zero."""
        return self.d / 2 * (self.T - 2) * self.constants.m2

    @property
    def affords_all_blocks(self) -> bool:
        """Whether the loss of all blocks takes seconds only."""
        return 8 * self.d**3 <= MOST_FEATURES and self.T <= LONGEST_FULL

    def loss(self, active: bool = True) -> objectives.MomentLoss:
        """The exact loss of training, of P and K alone or of all blocks."""
        return objectives.phase_loss(self.task_at(self.T - 1), MODEL, active=active)

    def error_at(self, t: int) -> objectives.MomentLoss:
        """The exact squared error at position t alone, of P and K."""
        return objectives.phase_loss(self.task_at(t), MODEL, lengths=[t - 1], active=True)

    def identities(self, a: float, b: float) -> PairedWeights:
        """K = a I and P = b I, complex, so that the flow moves real and imaginary parts."""
        return PairedWeights(b * np.eye(self.d) + 0j, a * np.eye(self.d) + 0j)


class ScaledSetting(PhaseSetting):
    """The scale under either of its names."""

    c: float | None = optional(
        number(
            1.0,
            positive=True,
            meaning="scale of the start distribution",
            detail=", under its name for the sparse and the constant one; null: sigma",
        )
    )

    @property
    def scale(self) -> float:
        return self.sigma if self.c is None else self.c


class StartSetting(ScaledSetting):
    """x_1 of any distribution of Assumption 4.1."""

    distribution: str = choice("gaussian", SYMMETRIC_DISTRIBUTIONS, "distribution of x_1", ", one of Assumption 4.1")

    @property
    def start_name(self) -> str:
        return self.distribution


class AnyStart(StartSetting):
    """x_1 of any distribution, whether Assumption 4.1 holds or not."""

    distribution: str = choice("gaussian", DISTRIBUTIONS, "distribution of x_1")


class EveryStart(AnyStart):
    """x_1 of one distribution or of each in turn."""

    distributions: ClassVar[tuple[str, ...]] = DISTRIBUTIONS
    distribution: str = choice("all", ("all", *distributions), "distribution of x_1")


Each = TypeVar("Each", bound=EveryStart)


def each(setting: Each) -> list[Each]:
    """The same setting at each of its distributions of x_1."""
    names = setting.distributions if setting.distribution == "all" else (setting.distribution,)
    return [dataclasses.replace(setting, distribution=name) for name in names]


class InitialScales(Setting):
    """Starts K = a0 I and P = b0 I off the stable set of the saddle, which Theorem 4.1 needs."""

    a0: float | None = optional(
        number(0.5, meaning="initial scale of K", detail=", K = a0 I; null: 0.5 if b0 is given, else the paper's three starts")
    )
    b0: float | None = optional(number(1.5, meaning="initial scale of P", detail=", P = b0 I; null: 1.5 if a0 is given"))

    def validate(self) -> None:
        super().validate()
        for start in self.inits:
            theory.zheng2024.check_start(*start)

    @property
    def inits(self) -> tuple[tuple[float, float], ...]:
        """The starts (a0, b0)."""
        if self.a0 is None and self.b0 is None:
            return INITS
        return ((0.5 if self.a0 is None else self.a0, 1.5 if self.b0 is None else self.b0),)
