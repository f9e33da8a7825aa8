"""Claims about the best layer of Mahankali, Hashimoto, Ma 2023 (arXiv 2307.03576): how unique it is, how far from Bayes."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from icl_lab import analysis, models, objectives, theory, training
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.mahankali2023.settings import MODEL, PAPER, Isotropic, Pair, RandomStarts, active_rows, bayes_predictor
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number
from icl_lab.claims.simulation import simulated_risk
from icl_lab.core.typing import Array, Key
from icl_lab.models import LSAWeights, SeparateWeights
from icl_lab.objectives.curvature import loss_and_norm
from icl_lab.tasks.regression.linear import LinearRegression
from icl_lab.theory.regression.optimum import balanced_weights

WEIGHT_TOLERANCE = 1e-8
LIMIT_TOLERANCE = 1e-7
RISK_TOLERANCE = 1e-10
EXACT_TOLERANCE = 1e-11


class Gauge(RandomStarts, Pair):
    """Small random starts on inputs and tasks of any two covariances."""

    sigma = 0.03
    starts: int = integer(8, 1, "number of starts")

    def task_of(self, task_covariance: Array) -> LinearRegression:
        """The task at another task covariance."""
        return LinearRegression(self.d, self.N, self.covariance, task_covariance, noise_std=np.sqrt(self.s2))


@claim("mahankali2023.gauge", Gauge, Source(PAPER, "icl_lab; uniqueness in Theorems 1 and 2", "extended"))
def minimisers_up_to_gauge(setting: Gauge) -> list[Check]:
    """If B* has rank two or more, the minimisers are p1 = k2 = 0, p2 K1^T = B* up to scaling, unseen entries
    and the factors of W_K^T W_Q; at rank one a second branch p2 = K1 = 0, k2 p1^T = B* is as good.

    Exact risks and gradients at weights put on both branches and moved by random gauges, not trained; and gradient flow from
    Gaussian starts of all entries, whose ends at the least risk must lie on the first branch. Another B*, a branch of larger
    risk, or an end with weights in p1 or k2 would make it fail.
    """
    values, vectors = np.linalg.eigh(setting.task_covariance)
    # One structure of arrays for full and for rank-one tasks, so that both are compiled once.
    thin = np.outer(vectors[:, -1], vectors[:, -1]) * values[-1]
    checks = []
    for name, second_moment in (("full", setting.task_covariance), ("rank_one", thin)):
        task = setting.task_of(second_moment)
        objective, problem = objectives.population(task, MODEL), theory.Problem.of(task)
        best, minimum = theory.lsa.optimal_preconditioner(problem), theory.lsa.minimum_risk(problem)
        weights = LSAWeights(*balanced_weights(best / setting.N))
        checks += _stationary(f"gauge_orbit_{name}", objective, _moved(setting.stream(f"gauge {name}"), weights), minimum)
        if name == "rank_one" or setting.d == 1:
            w_pv, w_kq, _ = theory.minima.rank_one_branch(problem)
            branch = LSAWeights(w_pv / setting.N, w_kq)
            checks += _stationary(f"second_branch_{name}", objective, _moved(setting.stream(f"branch {name}"), branch), minimum)
        else:
            checks += _trained_minimisers(setting, objective, best, minimum)
    return checks


def _moved(key: Key, weights: LSAWeights) -> SeparateWeights:
    """The same function: rescaled, unseen entries filled in, W_K^T W_Q and W_P W_V factored through random matrices."""
    width = weights.w_pv.shape[0]
    unseen, keys, values = np.asarray(jax.random.normal(key, (3, width, width)))
    w_pv = np.concatenate([unseen[:-1], 3.0 * weights.w_pv[-1:]])
    w_kq = np.concatenate([weights.w_kq[:, :-1] / 3.0, unseen[:, -1:]], axis=1)
    # Diagonally dominant, so that the factors are well conditioned.
    keys, values = (2 * np.eye(width) + matrix / (2 * width) for matrix in (keys, values))
    return SeparateWeights(w_p=w_pv @ values, w_v=np.linalg.inv(values), w_k=keys, w_q=np.linalg.inv(keys).T @ w_kq)


def _stationary(name: str, objective, weights: SeparateWeights, minimum: float) -> list[Check]:
    loss, slope = loss_and_norm(objective, weights)
    scale = objective.task.context_length**2 * float(objective.task.label_variance)
    return [
        check.exact(f"{name}_risk", 2 * float(loss), minimum, EXACT_TOLERANCE, terms=float(objective.task.signal_variance)),
        check.exact(f"{name}_gradient_abs", float(slope), 0.0, EXACT_TOLERANCE * scale),
    ]


def _trained_minimisers(setting: Gauge, objective: objectives.Objective, best: Array, minimum: float) -> list[Check]:
    """Every start that ends at the global minimum ends in the one orbit."""
    drawn = models.initializers.gaussian(setting.stream("starts"), setting.d + 1, setting.start_scale, setting.starts)
    ensemble = training.gradient_flows(objective, drawn, weight_tolerance=WEIGHT_TOLERANCE)
    convergence.rest_on(ensemble, ensemble.best)
    winners = [i for i, name in enumerate(ensemble.outcomes(minimum / 2)) if name == "global minimum"]
    errors, unused = [], []
    for i in winners:
        step = analysis.effective_preconditioner(ensemble.limit(i), MODEL, setting.N)
        errors.append(np.linalg.norm(step - best) / np.linalg.norm(best))
        p, k = active_rows(ensemble.limit(i))
        unused.append(np.linalg.norm(np.concatenate([p[:-1], k[-1]])) / (np.linalg.norm(p) + np.linalg.norm(k)))
    return [
        check.holds("some_start_finds_it_abs", bool(winners)),
        check.exact("trained_steps_abs", max(errors, default=0.0), 0.0, LIMIT_TOLERANCE),
        check.exact("trained_unused_blocks_abs", max(unused, default=0.0), 0.0, LIMIT_TOLERANCE),
    ]


LONG = 10**6
"""Context length at which the large-n limits are read."""


class GapToBayes(Isotropic):
    """Noisy labels, without which Bayes may be exact."""

    s2: float = number(0.5, positive=True, meaning="variance of the label noise")
    samples: int = integer(100_000, 1_000, "number of draws", "of prompts")


@claim("mahankali2023.bayes-gap", GapToBayes, Source(PAPER, "Lemmas 1 and 2; icl_lab", "extended"))
def the_gap_to_bayes(setting: GapToBayes) -> list[Check]:
    """The layer's excess risk d (d+1+s2)/(n+d+1+s2) exceeds the Bayes risk, at the length asked for and in the
    limit, where the ratio tends to (d+1+s2)/s2.

    The layer is trained by gradient flow on the exact loss from the structured start; the Bayes risk is also simulated. At long
    contexts the layer is not trained but put at its optimum. A layer that reaches Bayes, or a ratio that tends to 1, would make
    it fail.
    """
    d, N, s2, task = setting.d, setting.N, setting.s2, setting.task()
    objective = objectives.population(task, MODEL)
    layer = objective.risk(convergence.to_limit(objective, models.initializers.zhang(d, 0.3 * N ** (-1 / 3))).limit)
    mean, error = simulated_risk(bayes_predictor(task), task, setting.stream("prompts"), setting.samples)
    bayes = theory.bayes.isotropic_risk(d, N, s2)
    # The best layer at a length that is nearly infinite.
    long = objectives.population(dataclasses.replace(setting, N=LONG).task(), MODEL)
    best = long.risk(LSAWeights(*balanced_weights(np.eye(d) / (LONG + d + 1 + s2))))
    ratio = best / theory.bayes.isotropic_risk(d, LONG, s2)
    return [
        check.exact("layer_risk", layer, theory.mahankali2023.minimum_risk(d, N, s2), RISK_TOLERANCE, terms=d),
        check.sampled("bayes_risk", mean, bayes, error),
        check.at_least("layer_above_bayes", layer, bayes, terms=d),
        # Corrections to the limit are of order (d + s2) / n.
        check.exact("ratio_at_long_contexts", ratio, theory.mahankali2023.scaled_gap(d, s2), 10 * (d + 1 + s2) / LONG),
    ]
