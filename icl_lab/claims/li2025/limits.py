"""Claims of Li et al. 2025 (arXiv 2504.04308) at the ends: one task for all, none like the query's, and one example more."""

from __future__ import annotations

import numpy as np

from icl_lab import analysis, models, objectives, theory
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.li2025.optimum import OTHER_KINDS
from icl_lab.claims.li2025.settings import (
    LAB,
    LIMIT_TOLERANCE,
    PAPER,
    RISK_TOLERANCE,
    SEARCH_TOLERANCE,
    Correlated,
    Prompts,
    flow_limit,
    loss_of,
    search_end,
)
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer
from icl_lab.models import StepWeights
from icl_lab.tasks.regression.correlated import CorrelatedRegression
from icl_lab.tasks.regression.linear import LinearRegression

# Sums over the context, as the weights here do.
LAYER = models.LinearSelfAttention(query_in_sum=False, normaliser="none")
NEARLY = 1e-7
"""By how much correlations that are nearly 1 miss it from one example to the next."""


@claim("li2025.one-task", Prompts, Source(PAPER, LAB, "extended"), extra_settings=({"d": 1, "N": 3}, {"N": 40, "s2": 2.0}))
def one_task(setting: Prompts) -> list[Check]:
    """Where all tasks are one, every weight is eta = 1 / (N+d+1+s2), the step of the ordinary theory, with its risk
    d (d+1+s2) / (N+d+1+s2); correlations near 1 lead there.

    Gradient flow on the exact loss of the weights from zero, at correlations 1 and nearly 1, and of a layer of linear attention
    on ordinary prompts from the structured start. A limit with another step, or a layer of another risk, would make it fail.
    """
    d, N, s2 = setting.d, setting.N, setting.s2
    start, noise = StepWeights(np.zeros(N)), np.sqrt(s2)
    same = CorrelatedRegression(d, np.ones((N + 1, N + 1)), noise)
    problem = theory.li2025.CorrelatedTasks.of(same)
    step, minimum = theory.li2025.best_weights(problem), theory.li2025.minimum_risk(problem)
    place = np.arange(N + 1)
    near = CorrelatedRegression(d, (1 - NEARLY) ** np.abs(place[:, None] - place[None, :]), noise)
    limit = flow_limit(same, start)
    loss = objectives.population(LinearRegression(d, N, noise_std=noise), LAYER)
    layer = convergence.to_limit(loss, models.initializers.zhang(d, 0.3 * N ** (-1 / 3)), weight_tolerance=LIMIT_TOLERANCE / 10)
    learned = analysis.effective_preconditioner(layer.limit, LAYER, N) / N
    # R and r change by N times `NEARLY`; across the ones A is smallest, where its inverse is larger by (N + penalty) / penalty.
    distance = 2 * N * NEARLY * (1 + N / problem.penalty)
    return [
        check.exact("weights", limit.lags, np.full(N, theory.mahankali2023.step_size(d, N, s2)), LIMIT_TOLERANCE),
        check.exact("risk", loss_of(same).risk(limit), theory.mahankali2023.minimum_risk(d, N, s2), RISK_TOLERANCE, terms=d),
        check.exact("step_of_the_layer", learned, np.mean(step) * np.eye(d), LIMIT_TOLERANCE),
        check.exact("risk_of_the_layer", loss.risk(layer.limit), minimum, RISK_TOLERANCE, terms=d),
        check.exact("weights_near_one_task", flow_limit(near, start).lags, step, distance),
    ]


@claim("li2025.uncorrelated", Correlated, Source(PAPER, LAB, "extended"), extra_settings=OTHER_KINDS)
def uncorrelated_query(setting: Correlated) -> list[Check]:
    """A context whose tasks say nothing of the query's gets weight zero, however they are correlated among themselves: the
    layer answers 0, at risk d.

    BFGS on the exact loss from random weights, with the query's row and column of the correlations set to zero. Weights
    that stay, or a risk other than d, would make it fail.
    """
    joint = setting.correlations.copy()
    joint[:-1, -1] = joint[-1, :-1] = 0.0
    task = CorrelatedRegression(setting.d, joint, np.sqrt(setting.s2))
    problem, start = theory.li2025.CorrelatedTasks.of(task), setting.start()
    limit = search_end(task, start)
    tolerance = SEARCH_TOLERANCE * float(np.linalg.norm(start.lags))
    return [
        check.exact("weights_abs", limit.lags, theory.li2025.best_weights(problem), tolerance),
        check.exact("risk", loss_of(task).risk(limit), theory.li2025.minimum_risk(problem), RISK_TOLERANCE, terms=setting.d),
        check.at_least("risk_at_the_start", loss_of(task).risk(start), setting.d),
    ]


class Growing(Correlated):
    """A context that grows into the past."""

    N: int = integer(12, 2, "context length", ", at most")


@claim("li2025.length", Growing, Source(PAPER, LAB, "extended"), extra_settings=OTHER_KINDS)
def more_examples_never_hurt(setting: Growing) -> list[Check]:
    """One older example lowers the smallest risk by d (r_1 - a.B^{-1} r_rest)^2 / (A_11 - a.B^{-1} a), which is never
    negative: with free weights the risk falls with the length of the context.

    Gradient flow on the exact loss of the last 1, about N/2, N - 1 and N examples. A risk that rises, or a gain of another
    size, would make it fail.
    """
    N, joint = setting.N, setting.correlations
    lengths = sorted({1, (N + 1) // 2, N - 1, N})
    tasks = [CorrelatedRegression(setting.d, joint[N - n :, N - n :], np.sqrt(setting.s2)) for n in lengths]
    starts = [StepWeights(setting.start().lags[N - n :]) for n in lengths]
    risks = np.array([loss_of(task).risk(flow_limit(task, start)) for task, start in zip(tasks, starts, strict=True)])
    expected = [theory.li2025.minimum_risk(theory.li2025.CorrelatedTasks.of(task)) for task in tasks]
    gain = theory.li2025.gain_of_the_oldest(setting.problem)
    return [
        check.exact("risks", risks, expected, RISK_TOLERANCE, terms=setting.d),
        check.at_most("risks_fall", risks[1:], risks[:-1], terms=setting.d),
        # A small difference of two risks.
        check.exact("gain_of_the_oldest", risks[-2] - risks[-1], gain, RISK_TOLERANCE, terms=setting.d),
    ]
