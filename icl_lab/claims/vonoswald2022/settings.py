"""Settings of the claims on layers that take gradient steps: the task of a layer, one prompt of it, or draws of many."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from icl_lab import models, theory
from icl_lab.claims.setting import choice, integer, number
from icl_lab.claims.settings.regression import RegressionSetting
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.core import prng
from icl_lab.core.typing import Array
from icl_lab.tasks.distributions.covariates import Gaussian
from icl_lab.tasks.distributions.independent import Uniform
from icl_lab.tasks.prompt import Prompt, check_prompt_fits
from icl_lab.theory.descent.descent_steps import Rule

PAPER = "von Oswald et al. 2022, arXiv 2212.07677"
MODEL = models.LinearSelfAttention(query_in_sum=False, readout_sign=-1.0)
# Weights hold eta / N themselves, so that a layer made for N examples can be shown any number of them.
UNNORMALISED = models.LinearSelfAttention(query_in_sum=False, readout_sign=-1.0, normaliser="none")
ROUNDING = 1e-12
"""Two orders of summation of the same few hundred products."""


class LayerSetting(RegressionSetting):
    """Inputs of independent coordinates, uniform or Gaussian."""

    d = 10
    distribution: str = choice("uniform", ("gaussian", "uniform"), "distribution of an input coordinate")
    sigma: float = number(
        0.5,
        positive=True,
        meaning="scale of an input coordinate",
        detail=": standard deviation if gaussian, half-width if uniform",
    )

    @property
    def covariates(self) -> Gaussian | Uniform:
        if self.distribution == "gaussian":
            return Gaussian(np.full(self.d, self.sigma**2))
        return Uniform(self.d, half_width=self.sigma)

    @property
    def variance(self) -> float:
        """sig2, of a coordinate."""
        return self.sigma**2 if self.distribution == "gaussian" else self.sigma**2 / 3

    @property
    def covariance(self) -> Float[Array, "d d"]:
        return self.variance * np.eye(self.d)

    @property
    def step_problem(self) -> tuple[Any, ...]:
        """d, N, and variance and kurtosis of a coordinate: what the loss of a step depends on."""
        return self.d, self.N, self.variance, 3.0 if self.distribution == "gaussian" else 9 / 5

    @property
    def best_step(self) -> float:
        """The step size of least loss."""
        return theory.vonoswald2022.optimal_step_size(*self.step_problem)

    def step_loss(self, step_size: float) -> float:
        """The half loss of one step of gradient descent from zero."""
        return theory.vonoswald2022.one_step_loss(step_size, *self.step_problem)

    @property
    def least_loss(self) -> float:
        """The half loss of the best step."""
        return self.step_loss(self.best_step)

    def draw_inputs(self, count: int, length: int, generator: int | np.random.Generator) -> Float[np.ndarray, "count length d"]:
        """Inputs from numpy, for what has no closed form: streams apart from those of the prompts."""
        generator, shape = np.random.default_rng(generator), (count, length, self.d)
        unit = generator.standard_normal(shape) if self.distribution == "gaussian" else generator.uniform(-1.0, 1.0, shape)
        return self.sigma * unit

    def rule(self, degree: int) -> Rule:
        """The rule that integrates polynomials up to a degree over the Gram matrix's spectrum."""
        return Rule.exact(self.distribution, self.d, self.N, self.sigma, degree)


class SimulatedSetting(Seeded, RegressionSetting):
    """A task whose prompts are drawn."""

    d = 10
    samples: int = integer(20_000, 1_000, "number of draws", "of prompts")


class SimulatedLayer(LayerSetting, SimulatedSetting):
    """A layer on drawn prompts."""

    def other_rule(self) -> Rule:
        """The eigenvalues of as many other contexts."""
        return Rule.of_contexts(self.draw_inputs(self.samples, self.N, self.seed + 1), self.variance)


class PromptSetting(Seeded, LayerSetting):
    """One prompt, whose labels no linear map gives."""

    d = 4
    N = 7
    distribution = "gaussian"
    sigma = 1.0

    @property
    def label_dim(self) -> int:
        """Width of a label."""
        return 1

    def instance(self) -> tuple[Prompt, Float[Array, "k d"]]:
        """The prompt and W_0, a start that is not zero, so that no term of a step is missing."""
        check_prompt_fits(self.N, self.d)
        key, k = self.key, self.label_dim
        inputs = np.asarray(self.covariates.sample(prng.stream(key, "inputs"), self.N + 1))
        labels = np.asarray(jax.random.normal(prng.stream(key, "labels"), (self.N, k)))
        initial = np.asarray(jax.random.normal(prng.stream(key, "initial"), (k, self.d)))
        return Prompt(inputs=inputs[:-1], labels=labels, query=inputs[-1], target=np.zeros(k)), initial


class OutputsSetting(PromptSetting):
    """The same with several outputs."""

    k: int = integer(3, 1, "number of outputs", ", the paper's N_y")

    @property
    def label_dim(self) -> int:
        return self.k


class StepSetting(OutputsSetting):
    """One step of gradient descent on the prompt."""

    eta: float = number(0.6, meaning="step size", detail="of the mean gradient")


class LayersSetting(StepSetting):
    """Several steps, a layer for each."""

    K: int = integer(5, 1, "number of layers", ", one step each")
