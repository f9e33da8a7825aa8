"""Settings of the claims on layers that take gradient steps, and such layers as functions of their coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab import models, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.setting import choice, integer, number
from icl_lab.claims.settings.regression import RegressionSetting
from icl_lab.claims.simulation import CHUNK, mean_with_error
from icl_lab.core import compiled, prng
from icl_lab.core.typing import Array, Key
from icl_lab.models import LSAWeights, constructions
from icl_lab.tasks.distributions.covariates import Gaussian, Uniform
from icl_lab.tasks.prompt import Prompt, check_prompt_fits
from icl_lab.tasks.regression.linear import LinearRegression
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
        """The distribution of an input."""
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
    def problem(self) -> tuple[Any, ...]:
        """d, N, and variance and kurtosis of a coordinate: what the loss of a step depends on."""
        return self.d, self.N, self.variance, 3.0 if self.distribution == "gaussian" else 9 / 5

    @property
    def best_step(self) -> float:
        """The step size of least loss."""
        return theory.vonoswald2022.optimal_step_size(*self.problem)

    def step_loss(self, step_size: float) -> float:
        """The half loss of one step of gradient descent from zero."""
        return theory.vonoswald2022.one_step_loss(step_size, *self.problem)

    @property
    def least_loss(self) -> float:
        """The half loss of the best step."""
        return self.step_loss(self.best_step)

    def task(self) -> LinearRegression:
        return LinearRegression(
            dim=self.d,
            context_length=self.N,
            covariates=self.covariates,
            task_covariance=self.task_covariance,
            noise_std=np.sqrt(self.noise_variance),
        )

    def rule(self, degree: int) -> Rule:
        """The rule that integrates polynomials up to a degree over the Gram matrix's spectrum."""
        return Rule.exact(self.distribution, self.d, self.N, self.sigma, degree)


class SimulatedSetting(RegressionSetting):
    """A task whose prompts are drawn."""

    d = 10
    samples: int = integer(20_000, 1_000, "number of draws", "of prompts")
    seed: int = integer(0, 0, "random seed", "of the prompts")


class SimulatedLayer(LayerSetting, SimulatedSetting):
    """A layer on drawn prompts."""

    def other_rule(self) -> Rule:
        """The eigenvalues of as many other contexts."""
        return Rule.sampled(self.distribution, self.d, self.N, self.sigma, self.samples, self.seed + 1)


class PromptSetting(LayerSetting):
    """One prompt, whose labels no linear map gives."""

    d = 4
    N = 7
    distribution = "gaussian"
    sigma = 1.0
    seed: int = integer(0, 0, "random seed", "of inputs, labels and W_0")

    @property
    def label_dim(self) -> int:
        """Width of a label."""
        return 1

    def instance(self) -> tuple[Prompt, Float[Array, "k d"]]:
        """The prompt and W_0, a start that is not zero, so that no term of a step is missing."""
        check_prompt_fits(self.N, self.d)
        key, k = jax.random.key(self.seed), self.label_dim
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


def layers(step_sizes: Array, curvatures: Array, dim: int, context_length: int) -> tuple[LSAWeights, ...]:
    """The layers of `constructions.gd_plus_plus` as a function of traced coefficients, in which each layer is linear.

    Args:
      step_sizes: (K,), eta.
      curvatures: (K,), gamma.
      dim: d.
      context_length: N, by which eta is divided.
    """
    step, bend = (
        constructions.gd_plus_plus(UNNORMALISED, dim, context_length, np.array([eta]), np.array([gamma]))
        for eta, gamma in ((1.0, 0.0), (0.0, 1.0))
    )
    assert isinstance(step, LSAWeights)
    assert isinstance(bend, LSAWeights)
    return tuple(
        LSAWeights(step_sizes[k] * step.w_pv + curvatures[k] * bend.w_pv, jnp.asarray(step.w_kq))
        for k in range(step_sizes.shape[0])
    )


def one_step(eta: float, dim: int, context_length: int) -> tuple[LSAWeights, ...]:
    """One layer that is one step of gradient descent."""
    weights = constructions.gradient_descent(UNNORMALISED, dim, context_length, eta)
    assert isinstance(weights, LSAWeights)
    return (weights,)


def query_weights(weights: Sequence[LSAWeights], prompt: Prompt) -> Array:
    """The vector v (d,) of a prompt's answer v.x_q, which is linear in the query."""
    return jax.grad(lambda query: UNNORMALISED(tuple(weights), Prompt(prompt.inputs, prompt.labels, query, prompt.target))[0])(
        prompt.query
    )


@compiled.jit
def loss_on_rule(step_sizes: Array, curvatures: Array, rule: Rule) -> Array:
    """Half loss of the layers themselves on a rule: a context of the one example sqrt(s) has the Gram matrix s."""
    weights = layers(step_sizes / rule.context_length, curvatures, 1, 1)

    def answer(root):
        return UNNORMALISED(weights, Prompt(root[None, None], root[None, None], jnp.ones(1), jnp.ones(1)))[0]

    errors = 1 - jax.vmap(answer)(jnp.sqrt(jnp.asarray(rule.nodes)))
    return rule.variance / 2 * jnp.sum(jnp.asarray(rule.weights) * errors**2)


# Slopes by both kinds of coefficients.
slope_on_rule = compiled.jit(jax.value_and_grad(loss_on_rule, argnums=(0, 1)))


@compiled.jit
def _half_losses(weights: Sequence[LSAWeights], task: LinearRegression, metric: Array, keys: Key) -> Array:
    def half_loss(one):
        prompt = task.sample(one)
        missed = prompt.latent - query_weights(weights, prompt)
        return missed @ metric @ missed / 2

    return jax.vmap(half_loss)(keys)


def simulated_loss(name: str, weights: Sequence[LSAWeights], setting: SimulatedSetting, expected: float) -> Check:
    """The check of a model's half loss on the setting's prompts, averaged over the query given the rest."""
    samples, task = setting.samples, setting.task()
    chunks = np.array_split(np.asarray(range(samples)), -(-samples // CHUNK))
    keys = [jax.random.split(jax.random.fold_in(jax.random.key(setting.seed), int(chunk[0])), CHUNK) for chunk in chunks]
    # Everything but the sizes is an argument, so that settings of the same sizes share one compilation.
    stack, task, metric = jax.tree.map(jnp.asarray, (tuple(weights), task, task.covariance))
    losses = [np.asarray(_half_losses(stack, task, metric, one))[: len(chunk)] for one, chunk in zip(keys, chunks, strict=True)]
    return mean_check(name, np.concatenate(losses), expected)


def mean_check(name: str, values: Float[np.ndarray, "S"], expected: float) -> Check:
    """The check of the mean of independent draws."""
    mean, error = mean_with_error(values)
    return check.sampled(name, mean, expected, error)
