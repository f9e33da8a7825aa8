"""Settings that several of the lab's claims on linear regression share."""

from __future__ import annotations

from jaxtyping import Float

from icl_lab import theory
from icl_lab.claims.setting import choice, integer, spectrum
from icl_lab.claims.settings.regression import GeneralSetting, covariance
from icl_lab.core.typing import Array


class AnisotropicSetting(GeneralSetting):
    """Noisy labels, and covariances of inputs and tasks that do not commute."""

    s2 = 0.25
    Om: list[float] | None = spectrum("eigenvalues of the task covariance", "; null: 3/2 down to 1/2")
    rotate = True

    @property
    def task_covariance(self) -> Float[Array, "d d"]:
        return covariance(self.Om, self.d, self.rotate, self.seed, self.tasks_basis, largest=1.5)


class LayerSetting(AnisotropicSetting):
    """One layer on a short context."""

    N = 5
    normaliser: str = choice("context_length", ("context_length", "none"), "what the attention sum is divided by")

    @property
    def divisor(self) -> float:
        """What the attention sum is divided by."""
        return float(self.N) if self.normaliser == "context_length" else 1.0


class RiskSetting(AnisotropicSetting):
    """Simulated risks."""

    d = 5
    samples: int = integer(100_000, 10_000, "number of draws", "of prompts")


class FlowSetting(GeneralSetting):
    """A gradient flow of the exact loss."""

    @property
    def drive(self) -> Float[Array, "d d"]:
        """D = Lambda Omega Lambda, along which weights leave zero."""
        return theory.timecourse.signal(self.covariance, self.task_covariance)


class CommutingSetting(FlowSetting):
    """Inputs and tasks whose covariances have the same eigenvectors."""

    Om: list[float] | None = spectrum(
        "eigenvalues of the task covariance", ", whose eigenvectors are those of Lam; null: all 1"
    )
    tasks_basis = "inputs"
