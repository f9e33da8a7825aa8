"""Complex weights as pairs of real arrays: the same flow, since dz/dt = -(dL/dRe z + i dL/dIm z), without the conjugate that
JAX's gradient of a complex argument carries."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Float, Inexact

from icl_lab.core.typing import Array, Key, Weights
from icl_lab.objectives.objective import Objective
from icl_lab.tasks.prompt import Task


class RealifiedObjective(Objective):
    """An objective as a function of (real part, imaginary part) trees."""

    task: Task
    model: eqx.Module
    complex_objective: Objective

    def __call__(self, weights: Weights, key: Key | None = None) -> Float[Array, ""]:
        return self.complex_objective(join(weights), key)

    def risk(self, weights: Weights) -> float:
        return self.complex_objective.risk(join(weights))

    def standard_error(self, weights: Weights) -> float:
        return self.complex_objective.standard_error(join(weights))

    @property
    def rate_spread(self) -> float:
        return self.complex_objective.rate_spread

    @property
    def graded(self) -> bool:
        return self.complex_objective.graded

    def coefficients(self, weights: Weights) -> Inexact[Array, "..."] | None:
        return self.complex_objective.coefficients(join(weights))


def join(pair: tuple[Weights, Weights]) -> Weights:
    """The complex tree of a (real part, imaginary part) pair."""
    return jax.tree.map(lambda real, imaginary: jax.lax.complex(jnp.asarray(real), jnp.asarray(imaginary)), *pair)


def unchanged(weights: Weights) -> Weights:
    """The weights themselves."""
    return weights


def realified(objective: Objective, weights: Weights) -> tuple[Objective, Weights, Callable[[Weights], Weights]]:
    """A form of the problem with real unknowns: itself if the weights are real, else real and imaginary parts."""
    if not any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(weights)):
        return objective, weights, unchanged
    pair = jax.tree.map(lambda w: w.real.copy(), weights), jax.tree.map(lambda w: w.imag.copy(), weights)
    return RealifiedObjective(objective.task, objective.model, objective), pair, join
