"""Layers that are gradient steps, as functions of their coefficients, and their losses on rules and on prompts."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Float

from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.simulation import CHUNK, mean_with_error
from icl_lab.claims.vonoswald2022.settings import UNNORMALISED, SimulatedSetting
from icl_lab.core import compiled
from icl_lab.core.typing import Array, Key
from icl_lab.models import LSAWeights, constructions
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.regression.linear import LinearRegression
from icl_lab.theory.descent.descent_steps import Descent, Rule


def stack(step_sizes: Array, curvatures: Array, dim: int, context_length: int) -> tuple[LSAWeights, ...]:
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
    weights = stack(step_sizes / rule.context_length, curvatures, 1, 1)

    def answer(root):
        return UNNORMALISED(weights, Prompt(root[None, None], root[None, None], jnp.ones(1), jnp.ones(1)))[0]

    errors = 1 - jax.vmap(answer)(jnp.sqrt(jnp.asarray(rule.nodes)))
    return rule.variance / 2 * jnp.sum(jnp.asarray(rule.weights) * errors**2)


# Slopes by both kinds of coefficients.
slope_on_rule = compiled.jit(jax.value_and_grad(loss_on_rule, argnums=(0, 1)))


def descend(rule: Rule, steps: int, tied: bool, start: np.ndarray) -> Descent:
    """The stationary coefficients of the layers themselves on a rule, by a quasi-Newton search on their autodiff gradient.

    Args:
      rule: nodes and weights.
      steps: K.
      tied: whether all layers are the same.
      start: eta sig2 of each layer (one if tied), then gamma N sig2 of the layers that have a curvature.
    """
    variance, scale = float(rule.variance), rule.context_length * float(rule.variance)
    count = 1 if tied else steps
    bends = len(start) - count

    def unpack(point):
        gammas = np.append(point[count:], np.zeros(count - bends)) / scale
        return np.array(np.broadcast_to(point[:count] / variance, (steps,))), np.array(np.broadcast_to(gammas, (steps,)))

    def objective(point):
        value, (by_eta, by_gamma) = slope_on_rule(*unpack(point), rule)
        by_eta, by_gamma = np.asarray(by_eta) / variance, np.asarray(by_gamma) / scale
        if tied:
            by_eta, by_gamma = by_eta.sum(keepdims=True), by_gamma.sum(keepdims=True)
        return 2 * float(value) / variance, np.concatenate([by_eta, by_gamma[:bends]]) * 2 / variance

    found = scipy.optimize.minimize(objective, start, method="BFGS", jac=True, options={"gtol": 1e-9})
    solved = scipy.optimize.root(lambda point: objective(point)[1], found.x, tol=1e-13)
    etas, gammas = unpack(solved.x)
    return Descent(etas, gammas, objective(solved.x)[0] * variance / 2)


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
    keys = [jax.random.split(jax.random.fold_in(setting.key, int(chunk[0])), CHUNK) for chunk in chunks]
    # Everything but the sizes is an argument, so that settings of the same sizes share one compilation.
    weights, task, metric = jax.tree.map(jnp.asarray, (tuple(weights), task, task.covariance))
    losses = [
        np.asarray(_half_losses(weights, task, metric, one))[: len(chunk)] for one, chunk in zip(keys, chunks, strict=True)
    ]
    return mean_check(name, np.concatenate(losses), expected)


def mean_check(name: str, values: Float[np.ndarray, "S"], expected: float) -> Check:
    """The check of the mean of independent draws."""
    mean, error = mean_with_error(values)
    return check.sampled(name, mean, expected, error)
