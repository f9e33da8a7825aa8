"""Claims of Li et al. 2025 (arXiv 2504.04308) about the best weights of a context, which training finds."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from icl_lab import objectives, theory, training
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.li2025.settings import (
    LAB,
    LIMIT_TOLERANCE,
    MODEL,
    PAPER,
    RISK_TOLERANCE,
    SEARCH_TOLERANCE,
    Correlated,
    flow_limit,
    loss_of,
    search_end,
)
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number
from icl_lab.claims.simulation import simulate
from icl_lab.core.errors import InvalidValueError
from icl_lab.models import StepWeights
from icl_lab.tasks.regression.correlated import CorrelatedRegression

OTHER_KINDS = ({"kind": "groups"}, {"kind": "random", "d": 2, "N": 5})
LEAST_COSINE = 0.999
MOST_PROMPTS = 10_000_000
RATE = 0.001
"""Of Adam at the start: larger ones forget all but the last few hundred prompts, whose noise then shows in the weights."""


class Simulated(Correlated):
    """Prompts that are drawn."""

    samples: int = integer(200_000, 1_000, "number of draws", "of prompts")


@claim(
    "li2025.wpgd",
    Simulated,
    Source(PAPER, f"{LAB}; the best weighting of one step", "extended"),
    extra_settings=(*OTHER_KINDS, {"d": 3, "N": 6, "a": 0.7, "s2": 0.0}, {"d": 8, "N": 24, "a": 0.95, "s2": 0.25}),
)
def best_weighting(setting: Simulated) -> list[Check]:
    """Among all weights c of one linear layer the best are c* = (R + (d+1+s2) I)^{-1} r, with risk d (1 - r.c*).

    Risk and its slope at c*, and the risk at random weights, averaged over simulated prompts without training; BFGS on the
    exact loss from a random start. Another penalty than d + 1 + s2, or correlations of the wrong order, would make it fail.
    """
    task, problem = setting.task(), setting.problem
    best, minimum = theory.li2025.best_weights(problem), theory.li2025.minimum_risk(problem)
    other = setting.start().lags

    def statistic(one):
        prompt = task.sample(one)
        at_best = MODEL(StepWeights(best), prompt) - prompt.target
        elsewhere = MODEL(StepWeights(other), prompt) - prompt.target
        terms = prompt.labels[:, 0] * (prompt.inputs @ prompt.query)
        return jnp.concatenate([at_best**2, elsewhere**2, at_best[0] * terms])

    drawn = simulate(statistic, setting.stream("prompts"), setting.samples)
    mean, error = np.mean(drawn, axis=0), np.std(drawn, axis=0, ddof=1) / np.sqrt(setting.samples)
    found = search_end(task, setting.start())
    return [
        check.sampled("risk", mean[0], minimum, error[0]),
        check.sampled("risk_of_other_weights", mean[1], theory.li2025.risk(problem, other), error[1]),
        check.sampled("slope_abs", mean[2:], np.zeros(setting.N), error[2:]),
        check.exact("weights", found.lags, best, SEARCH_TOLERANCE),
        check.exact("minimum", loss_of(task).risk(found), minimum, RISK_TOLERANCE, terms=setting.d),
    ]


class Trained(Correlated):
    """A layer trained on prompts that are drawn afresh, as many as the cosine asks for."""

    steps: int = integer(1_000, 1, "number of updates", "of Adam, its rate falling to 0 by a cosine")

    def validate(self) -> None:
        super().validate()
        if self.batch * self.steps > MOST_PROMPTS:
            raise InvalidValueError(
                f"the tasks of the context say so little of the query's that {self.batch * self.steps:.2g} prompts would be "
                f"needed, more than {MOST_PROMPTS:.2g}. Raise their correlation, or lower `N`."
            )

    @property
    def batch(self) -> int:
        """Prompts of an update.

        After n prompts a weight is off by about 1 / (penalty n)^(1/2), at a risk near d; this leaves a quarter of the angle.
        """
        angle = self.problem.penalty * theory.li2025.weights_norm(self.problem) ** 2
        return max(32, math.ceil(2 * self.N / (angle * (1 - LEAST_COSINE)) / self.steps))


@claim("li2025.trained", Trained, Source(PAPER, f"{LAB}; training finds the best weighting", "extended"))
def training_finds_the_best_weights(setting: Trained) -> list[Check]:
    """Free weights of the positions, trained, land on c*.

    Gradient flow on the exact loss from random weights, and Adam on fresh prompts from zero. A flow that ends elsewhere, as it
    does for other correlations than the prompts have, or a cosine with c* below 0.999, would make it fail.
    """
    task, best = setting.task(), theory.li2025.best_weights(setting.problem)
    limit = flow_limit(task, setting.start())
    loss = objectives.StreamedLoss.build(task, MODEL, setting.stream("fixed"), batch=setting.batch)
    adam = optax.adam(optax.cosine_decay_schedule(RATE, setting.steps))
    end = training.descend(loss, StepWeights(np.zeros(setting.N)), adam, setting.steps, key=setting.stream("fresh"))
    lags = end.limit.lags
    cosine = lags @ best / (np.linalg.norm(lags) * np.linalg.norm(best))
    return [
        check.exact("weights_of_the_flow", limit.lags, best, LIMIT_TOLERANCE),
        check.exact(
            "risk_of_the_flow",
            loss_of(task).risk(limit),
            theory.li2025.minimum_risk(setting.problem),
            RISK_TOLERANCE,
            terms=setting.d,
        ),
        check.at_least("cosine_after_adam", cosine, LEAST_COSINE),
    ]


@claim("li2025.preconditioner", Correlated, Source(PAPER, LAB, "extended"), extra_settings=OTHER_KINDS)
def identity_is_the_best_preconditioner(setting: Correlated) -> list[Check]:
    """With a free matrix P beside the weights, trained together, the layer ends at P c = I c*: correlated tasks with isotropic
    inputs need no preconditioner.

    Gradient flow on the exact loss over all entries of P and c from random starts of both; P is compared at the scale at which
    its trace is d. A matrix that is no multiple of the identity, or a smaller risk, would make it fail.
    """
    d, task, problem = setting.d, setting.task(), setting.problem
    # Balanced, as the flow keeps |P|^2 - |c|^2: from unequal norms the smaller factor decides, and the larger waits for it.
    lags, matrix = setting.start().lags, np.eye(d) + setting.normals("matrix", d, d) / np.sqrt(4 * d)
    # Of the sign with which the loss falls: with the other one the two can meet at zero, which is a saddle.
    lags = lags * np.where(lags @ problem.query < 0, -1.0, 1.0)
    size = (d / (setting.N + d)) ** 0.25
    begin = StepWeights(size * lags / np.linalg.norm(lags), size * matrix / np.linalg.norm(matrix))
    limit = flow_limit(task, begin)
    assert limit.preconditioner is not None
    scale = float(np.trace(limit.preconditioner)) / d
    return [
        check.exact("preconditioner", limit.preconditioner / scale, np.eye(d), LIMIT_TOLERANCE),
        check.exact("weights", scale * limit.lags, theory.li2025.best_weights(problem), LIMIT_TOLERANCE),
        check.exact("risk", loss_of(task).risk(limit), theory.li2025.minimum_risk(problem), RISK_TOLERANCE, terms=d),
    ]


@claim("li2025.permuted", Correlated, Source(PAPER, LAB, "extended"), extra_settings=OTHER_KINDS)
def weights_follow_their_examples(setting: Correlated) -> list[Check]:
    """Examples in another order have the same weights, each at its new place, and the same risk: a place means nothing but
    how its task is correlated.

    Gradient flow on the exact loss of prompts whose examples were shuffled, beside c* of the order before. Weights that depend
    on the place itself, as those of any decay do, would make it fail.
    """
    order = np.asarray(jax.random.permutation(setting.stream("order"), setting.N))
    joint = np.append(order, setting.N)
    shuffled = CorrelatedRegression(setting.d, setting.correlations[joint[:, None], joint[None, :]], np.sqrt(setting.s2))
    limit = flow_limit(shuffled, setting.start())
    risk = loss_of(shuffled).risk(limit)
    return [
        check.exact("weights", limit.lags, theory.li2025.best_weights(setting.problem)[order], LIMIT_TOLERANCE),
        check.exact("risk", risk, theory.li2025.minimum_risk(setting.problem), RISK_TOLERANCE, terms=setting.d),
    ]


class Noises(Correlated):
    """Four levels of noise, s2 the lowest."""

    step: float = number(2.0, positive=True, meaning="distance of noise levels", detail=": s2 plus 0, 1, 3 and 7 of them")


LOUD = 1e6
"""A noise variance beside which correlations and dimension are small."""


@claim("li2025.noise", Noises, Source(PAPER, LAB, "extended"), extra_settings=OTHER_KINDS)
def noise_shrinks_the_weights(setting: Noises) -> list[Check]:
    """The louder the noise, the shorter c* and the larger the risk, which stays below d; loud noise leaves r / s2, in which
    the correlations within the context no longer count.

    Gradient flow on the exact loss at four levels of noise, and BFGS at a loud one, from random weights. Weights of one length
    at all levels, or risks that are not in order, would make it fail.
    """
    levels = [setting.s2 + setting.step * k for k in (0, 1, 3, 7)]
    each = [dataclasses.replace(setting, s2=level) for level in levels]
    limits = [flow_limit(one.task(), one.start()) for one in each]
    norms = np.array([np.linalg.norm(limit.lags) for limit in limits])
    risks = np.array([loss_of(one.task()).risk(limit) for one, limit in zip(each, limits, strict=True)])
    loud = dataclasses.replace(setting, s2=LOUD)
    query, context = setting.correlations[:-1, -1], setting.correlations[:-1, :-1]
    first_left_out = (float(np.linalg.norm(context, 2)) + setting.d + 1) / LOUD
    loud_lags = LOUD * search_end(loud.task(), loud.start()).lags
    return [
        check.exact("lengths", norms, [theory.li2025.weights_norm(one.problem) for one in each], LIMIT_TOLERANCE),
        check.at_most("lengths_fall", norms[1:], norms[:-1]),
        check.at_least("risks_rise", np.append(risks[1:], setting.d), risks),
        check.exact("loud_noise", loud_lags, query, first_left_out + SEARCH_TOLERANCE),
    ]
