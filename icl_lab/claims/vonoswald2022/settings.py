"""Layers that are gradient steps, as functions of their coefficients, and their losses on rules and on prompts."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import models
from icl_lab.claims.claim import choice, number
from icl_lab.claims.simulation import CHUNK, mean_with_error
from icl_lab.core import compiled
from icl_lab.core.typing import Array, Key
from icl_lab.models import LSAWeights, constructions
from icl_lab.tasks.distributions.covariates import Gaussian, Uniform
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.regression.linear import LinearRegression
from icl_lab.theory.descent.descent_steps import Rule

# Weights hold eta / N themselves, so that a layer made for N examples can be shown any number of them.
MODEL = models.LinearSelfAttention(query_in_sum=False, readout_sign=-1.0, normaliser="none")

DISTRIBUTION = {
    "distribution": choice("uniform", ("gaussian", "uniform"), "of an input coordinate"),
    "sigma": number(0.5, positive=True, meaning="standard deviation if gaussian, half-width if uniform"),
}


def covariates(distribution: str, dim: int, sigma: float) -> Gaussian | Uniform:
    """The distribution of the inputs."""
    return Gaussian(np.full(dim, sigma**2)) if distribution == "gaussian" else Uniform(dim, half_width=sigma)


def input_moments(distribution: str, sigma: float) -> tuple[float, float]:
    """Variance and kurtosis of a coordinate."""
    return (sigma**2, 3.0) if distribution == "gaussian" else (sigma**2 / 3, 9 / 5)


def draw_inputs(distribution: str, sigma: float, shape: tuple[int, ...], generator: int | np.random.Generator) -> np.ndarray:
    """Inputs of a shape from numpy, for what has no closed form: streams apart from those of the prompts."""
    generator = np.random.default_rng(generator)
    unit = generator.standard_normal(shape) if distribution == "gaussian" else generator.uniform(-1.0, 1.0, shape)
    return sigma * unit


def sampled_rule(distribution: str, d: int, N: int, sigma: float, samples: int, seed: int) -> Rule:
    """The eigenvalues of the Gram matrices of contexts from `draw_inputs`."""
    inputs = draw_inputs(distribution, sigma, (samples, N, d), seed)
    return Rule.of_contexts(inputs, input_moments(distribution, sigma)[0])


def layers(step_sizes: Array, curvatures: Array, dim: int, context_length: int) -> tuple[LSAWeights, ...]:
    """The layers of `constructions.gd_plus_plus` as a function of traced coefficients, in which each layer is linear.

    Args:
      step_sizes: (K,), eta.
      curvatures: (K,), gamma.
      dim: d.
      context_length: N, by which eta is divided.
    """
    step, bend = (
        constructions.gd_plus_plus(MODEL, dim, context_length, np.array([eta]), np.array([gamma]))
        for eta, gamma in ((1.0, 0.0), (0.0, 1.0))
    )
    assert isinstance(step, LSAWeights)
    assert isinstance(bend, LSAWeights)
    return tuple(
        LSAWeights(step_sizes[k] * step.w_pv + curvatures[k] * bend.w_pv, jnp.asarray(step.w_kq))
        for k in range(step_sizes.shape[0])
    )


def query_weights(weights: Sequence[LSAWeights], prompt: Prompt) -> Array:
    """The vector v (d,) of a prompt's answer v.x_q, which is linear in the query."""
    return jax.grad(lambda query: MODEL(tuple(weights), Prompt(prompt.inputs, prompt.labels, query, prompt.target))[0])(
        prompt.query
    )


@compiled.jit
def loss_on_rule(step_sizes: Array, curvatures: Array, rule: Rule) -> Array:
    """Half loss of the layers themselves on a rule: a context of the one example sqrt(s) has the Gram matrix s."""
    weights = layers(step_sizes / rule.context_length, curvatures, 1, 1)

    def answer(root):
        return MODEL(weights, Prompt(root[None, None], root[None, None], jnp.ones(1), jnp.ones(1)))[0]

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


def simulated_loss(weights: Sequence[LSAWeights], task: LinearRegression, samples: int, seed: int) -> tuple[float, float]:
    """Half loss of a model on a task's prompts, averaged over the query given the rest, and its standard error."""
    chunks = np.array_split(np.asarray(range(samples)), -(-samples // CHUNK))
    keys = [jax.random.split(jax.random.fold_in(jax.random.key(seed), int(chunk[0])), CHUNK) for chunk in chunks]
    # Everything but the sizes is an argument, so that settings of the same sizes share one compilation.
    stack, task, metric = jax.tree.map(jnp.asarray, (tuple(weights), task, task.covariance))
    losses = [np.asarray(_half_losses(stack, task, metric, one))[: len(chunk)] for one, chunk in zip(keys, chunks, strict=True)]
    return mean_with_error(np.concatenate(losses))


def one_step(eta: float, dim: int, context_length: int) -> tuple[LSAWeights, ...]:
    """One layer that is one step of gradient descent."""
    weights = constructions.gradient_descent(MODEL, dim, context_length, eta)
    assert isinstance(weights, LSAWeights)
    return (weights,)
