"""Settings of claims on sequences x_{t+1} = W x_t + noise: their size, the distributions of W and x_1, and the prompts."""

from __future__ import annotations

from typing import ClassVar

from icl_lab.claims.setting import Setting, integer, number
from icl_lab.tasks.distributions.starts import GaussianStart, StartDistribution
from icl_lab.tasks.dynamics.linear import HaarOrthogonal, LinearDynamics, TransitionDistribution


class DynamicsSetting(Setting):
    """Sequences without noise from x_1 ~ N(0, I)."""

    d: int = integer(3, 1, "dimension", "of the states")
    T: int = integer(12, 3, "states of a sequence")

    transitions: ClassVar[TransitionDistribution] = HaarOrthogonal()
    """The distribution of W, drawn once per sequence."""

    @property
    def start(self) -> StartDistribution:
        """The distribution of x_1."""
        return GaussianStart()

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise of a coordinate."""
        return 0.0

    def task_at(self, t: int) -> LinearDynamics:
        """What position t >= 2 is asked: x_{t+1}, from the t - 1 pairs that x_1 .. x_t make."""
        return LinearDynamics(self.d, t - 1, self.transitions, self.start, self.noise_std)


class NoisyDynamicsSetting(DynamicsSetting):
    """The same with noise."""

    sigma: float = number(0.1, 0.0, "standard deviation of the noise")

    @property
    def noise_std(self) -> float:
        return self.sigma
