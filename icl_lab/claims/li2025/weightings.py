"""Claims of Li et al. 2025 (arXiv 2504.04308) about weights with less freedom than the best ones: all equal, or one decay."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab import estimators, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.li2025.optimum import OTHER_KINDS, Simulated
from icl_lab.claims.li2025.settings import (
    LAB,
    LIMIT_TOLERANCE,
    PAPER,
    RISK_TOLERANCE,
    SEARCH_TOLERANCE,
    TwoGroups,
    flow_limit,
    gated_lags,
    loss_of,
    search_end,
)
from icl_lab.claims.quasi_newton import minimise
from icl_lab.claims.registry import claim
from icl_lab.claims.settings.flow_paths import Reparametrised
from icl_lab.claims.simulation import simulated_risk
from icl_lab.core.typing import Array
from icl_lab.models import StepWeights

# Decays whose memory is a few examples up to many, of which the lowest end of the search counts.
DECAY_STARTS = np.array([-2.0, 0.0, 2.0])


@claim("li2025.equal", Simulated, Source(PAPER, LAB, "extended"), extra_settings=OTHER_KINDS)
def equal_weights(setting: Simulated) -> list[Check]:
    """The best equal weight is sum(r) / sum(R + (d+1+s2) I): one step of plain gradient descent, whose risk
    d (1 - sum(r)^2 / sum(A)) is above that of c* unless the rows of A treat all examples alike.

    BFGS on the exact loss over one number, and the risk of the library's gradient descent with that step on simulated prompts.
    A step of the ordinary theory, which takes all tasks for one, or a risk below that of c*, would make it fail.
    """
    task, problem = setting.task(), setting.problem
    weight, risk = theory.li2025.best_equal_weight(problem)
    equal = Reparametrised(loss_of(task), lambda shared: StepWeights(jnp.broadcast_to(shared["c"], (setting.N,))))
    found = minimise(equal, {"c": np.zeros((1, 1))})

    def descent(prompt):
        return estimators.gradient_descent(prompt, setting.N * weight)

    mean, error = simulated_risk(descent, task, setting.stream("prompts"), setting.samples)
    best = loss_of(task).risk(search_end(task, setting.start()))
    excess = risk - theory.li2025.minimum_risk(problem)
    return [
        check.exact("weight", found.lowest["c"][0], weight, SEARCH_TOLERANCE),
        check.exact("risk", 2 * found.losses[0], risk, RISK_TOLERANCE, terms=setting.d),
        check.sampled("risk_of_gradient_descent", mean, risk, error),
        check.exact("risk_above_the_best", 2 * found.losses[0] - best, excess, RISK_TOLERANCE, terms=setting.d),
        check.at_least("no_better_than_the_best", 2 * found.losses[0], best, terms=setting.d),
    ]


@claim(
    "li2025.groups",
    TwoGroups,
    Source(PAPER, f"{LAB}; gates that tell groups of tasks apart", "extended"),
    extra_settings=({"N": 5, "d": 2, "rho1": 0.6}, {"N": 30, "s2": 0.0, "rho1": 0.05, "rho2": 1.0}),
)
def two_groups(setting: TwoGroups) -> list[Check]:
    """In a context of two groups of equal tasks the best weights are one number a group, larger for the group nearer to the
    query's task. No single decay gives them, and its best risk is higher; one gate that closes between the groups does.

    Gradient flow on the exact loss over free weights; BFGS over decay and scale of a gated layer; the gated layer, not trained,
    with one gate at the boundary. Weights in the other order, or a decay as good as free weights, would make it fail.
    """
    task, N, d = setting.task(), setting.N, setting.d
    first, second = setting.sizes
    pair = theory.li2025.group_weights(setting.sizes, (setting.rho1, setting.rho2), setting.between, d, setting.s2)
    best, problem = np.repeat(pair, setting.sizes), theory.li2025.CorrelatedTasks.of(task)
    minimum, (_, decayed) = theory.li2025.minimum_risk(problem), theory.li2025.best_decay(problem)
    loss = loss_of(task)
    limit = flow_limit(task, StepWeights(np.zeros(N)))
    trained = loss.risk(limit)
    ends = minimise(Reparametrised(loss, lambda gate: _one_decay(gate, N)), _decays(float(N + d)))
    gates = np.zeros(N)
    gates[first] = np.log(pair[0] / pair[1])
    gated = np.asarray(gated_lags(gates, jnp.asarray(pair[1]), N))
    return [
        check.exact("weights", limit.lags, best, LIMIT_TOLERANCE),
        check.exact("risk", trained, minimum, RISK_TOLERANCE, terms=d),
        check.at_least("second_group_counts_more", np.min(limit.lags[-second:]), np.max(limit.lags[:-second])),
        check.exact("risk_of_one_decay", 2 * np.min(ends.losses), decayed, RISK_TOLERANCE, terms=d),
        check.at_least("what_one_decay_costs", 2 * np.min(ends.losses) - trained, (decayed - minimum) / 2, terms=d),
        check.exact("risk_of_one_gate", loss.risk(StepWeights(gated)), minimum, RISK_TOLERANCE, terms=d),
    ]


def _decays(size: float) -> dict[str, Array]:
    """Starts of a search over one decay and its scale."""
    return {"decay": DECAY_STARTS[:, None], "scale": np.full((len(DECAY_STARTS), 1), 1 / size)}


def _one_decay(gate: dict[str, Float[Array, "1"]], length: int) -> StepWeights:
    """The weights of a decay sigmoid(x), the same at every token."""
    return StepWeights(gated_lags(jax.nn.log_sigmoid(gate["decay"][0]), gate["scale"][0], length))
