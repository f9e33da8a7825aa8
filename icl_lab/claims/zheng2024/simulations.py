"""The experiments of Zheng et al. 2024 (arXiv 2405.16845): gradient descent on the exact loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import choice, integer
from icl_lab.claims.settings.dynamics import DynamicsSetting
from icl_lab.claims.zheng2024.settings import INITS, PAPER, AnyStart
from icl_lab.core import compiled
from icl_lab.core.typing import Array
from icl_lab.models import PairedWeights

MAP_TOLERANCE = 1e-8

SIMULATIONS = {
    ("gaussian", 0.5): (1e-3, 200),
    ("gaussian", 1.0): (1e-4, 150),
    ("gaussian", 2.0): (2e-6, 200),
    ("sparse", 0.5): (3e-2, 200),
    ("sparse", 1.0): (1e-3, 200),
    ("sparse", 2.0): (1e-4, 120),
    ("constant", 1.0): (5e-4, 200),
}
"""Step size and number of steps of each experiment of the paper, by start distribution and scale."""
LONGEST_DESCENT = max(steps for _, steps in SIMULATIONS.values())


class Experiments(DynamicsSetting):
    """The paper's size, and all of its start distributions or one."""

    d: int = integer(5, 2, "dimension", "of the states")
    T: int = integer(100, 3, "states of a sequence", "in training, x_1 .. x_T")
    distribution: str = choice("all", ("all", "gaussian", "sparse", "constant"), "distribution of x_1")


@claim("zheng2024.sims", Experiments, Source(PAPER, "Section 5, experiments; the map: icl_lab"))
def simulated_curves(setting: Experiments) -> list[Check]:
    """Plain gradient descent on the exact loss follows a map of (a, b), for all-ones starts of (a, a', b, b'), which gives
    every curve of the experiments; their reference lines are its limits for infinite T.

    Gradient descent on the exact loss of P and K is run from the paper's three starts with its step sizes and numbers of steps,
    by differentiating the loss at every step; the map is iterated beside it. A wrong moment of x_1, a wrong sum over positions,
    or coordinates counted twice in the map would make it fail.
    """
    checks = []
    for (name, scale), (step_size, steps) in SIMULATIONS.items():
        if setting.distribution not in ("all", name):
            continue
        one = AnyStart(d=setting.d, T=setting.T, distribution=name, sigma=scale)
        objective = one.loss()
        measured = np.asarray(_descents(objective, jnp.asarray(INITS), jnp.asarray(step_size), LONGEST_DESCENT))[:, : steps + 1]
        expected = np.array([_expected_curve(one, start, step_size, steps) for start in INITS])
        for (a0, b0), curve, line in zip(INITS, measured, expected, strict=True):
            shown = np.unique(np.append(np.arange(0, steps, 10), steps))
            checks.append(check.exact(f"{name}_{scale:g}_a0={a0:g},b0={b0:g}", curve[shown], line[shown], MAP_TOLERANCE))
    return checks


@compiled.jit
def _descents(objective, inits: Array, step_size: Array, steps: int) -> Array:
    """The mean diagonal of the elementwise product P K along gradient descent from each (a0, b0), (S, steps + 1)."""

    def step(weights, _):
        moved = jax.tree.map(lambda w, g: w - step_size * g, weights, jax.grad(objective)(weights))
        return moved, jnp.mean(jnp.diag(weights.value * weights.key_query))

    def curve(init):
        start = PairedWeights(init[1] * jnp.eye(objective.task.dim), init[0] * jnp.eye(objective.task.dim))
        return jax.lax.scan(step, start, length=steps + 1)[1]

    return jax.vmap(curve)(inits)


def _expected_curve(setting: AnyStart, start: tuple[float, float], step_size: float, steps: int) -> Array:
    """The product a b along the map, from the start (a0, b0)."""
    d, T = setting.d, setting.T
    if setting.distribution == "constant":
        path = theory.all_ones.descent(theory.all_ones.quadratic(d, T, setting.scale), d, *start, step_size, steps)
        return path[:, 0] * path[:, 2]
    a, b = theory.zheng2024.descent(setting.constants, T, *start, step_size, steps)
    return a * b
