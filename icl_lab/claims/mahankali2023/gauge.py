"""Claims about the best layer of Mahankali, Hashimoto, Ma 2023 (arXiv 2307.03576): how unique it is, how far from Bayes."""

from __future__ import annotations

import jax
import numpy as np

from icl_lab import analysis, objectives, theory, training
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, integer, number
from icl_lab.claims.mahankali2023.linear import MODEL, PAPER
from icl_lab.claims.mahankali2023.proof import COMMON, EXACT_TOLERANCE, PAIR, active_rows, bayes_predictor, task_of, validate
from icl_lab.claims.registry import claim
from icl_lab.claims.simulation import simulated_risk
from icl_lab.core import prng
from icl_lab.models import LSAWeights, SeparateWeights, initializers
from icl_lab.objectives.curvature import loss_and_norm
from icl_lab.tasks.regression.linear import LinearRegression
from icl_lab.theory.regression.optimum import balanced_weights

WEIGHT_TOLERANCE = 1e-8
LIMIT_TOLERANCE = 1e-7
RISK_TOLERANCE = 1e-10
LONG = 10**6
"""Context length at which the large-n limits are read."""


@claim(
    "mahankali2023.gauge",
    statement="If B* has rank two or more, the minimisers are p1 = k2 = 0, p2 K1^T = B* up to scaling, unseen entries "
    "and the factors of W_K^T W_Q; at rank one a second branch p2 = K1 = 0, k2 p1^T = B* is as good.",
    source=Source(PAPER, "icl_lab; uniqueness in Theorems 1 and 2", "extended"),
    parameters=COMMON
    | PAIR
    | {
        "sigma": number(0.03, positive=True, meaning="scale of the random starts, times N^{-1/3}"),
        "starts": integer(8, 1, "random starts"),
        "seed": integer(0, 0, "of starts, gauges and bases"),
    },
    validate=validate,
)
def minimisers_up_to_gauge(d, N, s2, Lam, Om, rotate, sigma, starts, seed) -> list[Check]:
    key = jax.random.key(seed)
    task = task_of(d, N, s2, Lam, Om, rotate, seed)
    inputs, tasks = np.asarray(task.covariance), np.asarray(task.task_covariance)
    # One structure of arrays for full and for rank-one tasks, so that both are compiled once.
    values, vectors = np.linalg.eigh(tasks)
    thin = np.outer(vectors[:, -1], vectors[:, -1]) * values[-1]
    checks = []
    for name, second_moment in (("full", tasks), ("rank_one", thin)):
        task = LinearRegression(
            dim=d, context_length=N, covariance=inputs, task_covariance=second_moment, noise_std=np.sqrt(s2)
        )
        objective = objectives.population(task, MODEL)
        best = theory.lsa.optimal_preconditioner(inputs, second_moment, s2, N)
        minimum = theory.lsa.minimum_risk(inputs, second_moment, s2, N)
        w_pv, w_kq = balanced_weights(best / N)
        moved = _other_gauge(prng.stream(key, f"gauge {name}"), LSAWeights(w_pv, w_kq))
        checks += _stationary(f"gauge_orbit_{name}", objective, moved, minimum)
        if name == "rank_one" or d == 1:
            w_pv, w_kq, _ = theory.minima.rank_one_branch(inputs, second_moment, s2, N)
            branch = _other_gauge(prng.stream(key, f"branch {name}"), LSAWeights(w_pv / N, w_kq))
            checks += _stationary(f"second_branch_{name}", objective, branch, minimum)
        else:
            checks += _trained_minimisers(objective, best, minimum, prng.stream(key, "starts"), sigma, starts)
    return checks


def _other_gauge(key, weights: LSAWeights) -> SeparateWeights:
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


def _trained_minimisers(objective, best, minimum: float, key, sigma: float, starts: int) -> list[Check]:
    """Every start that ends at the global minimum ends in the one orbit."""
    task = objective.task
    drawn = initializers.gaussian(key, task.dim + 1, sigma * task.context_length ** (-1 / 3), starts)
    ensemble = training.gradient_flows(objective, drawn, weight_tolerance=WEIGHT_TOLERANCE)
    convergence.rest_on(ensemble, ensemble.best)
    winners = [i for i, name in enumerate(ensemble.outcomes(minimum / 2)) if name == "global minimum"]
    errors, unused = [], []
    for i in winners:
        step = analysis.effective_preconditioner(ensemble.limit(i), MODEL, task.context_length)
        errors.append(np.linalg.norm(step - best) / np.linalg.norm(best))
        p, k = active_rows(ensemble.limit(i))
        unused.append(np.linalg.norm(np.concatenate([p[:-1], k[-1]])) / (np.linalg.norm(p) + np.linalg.norm(k)))
    return [
        check.holds("some_start_finds_it_abs", bool(winners)),
        check.exact("trained_steps_abs", max(errors, default=0.0), 0.0, LIMIT_TOLERANCE),
        check.exact("trained_unused_blocks_abs", max(unused, default=0.0), 0.0, LIMIT_TOLERANCE),
    ]


@claim(
    "mahankali2023.bayes-gap",
    statement="The layer's excess risk d (d+1+s2)/(n+d+1+s2) exceeds the Bayes risk, at the length asked for and in the "
    "limit, where the ratio tends to (d+1+s2)/s2.",
    source=Source(PAPER, "Lemmas 1 and 2; icl_lab", "extended"),
    parameters=COMMON
    | {
        "s2": number(0.5, positive=True, meaning="variance of the label noise"),
        "samples": integer(100_000, 1_000, "prompts"),
        "seed": integer(0, 0, "of prompts"),
    },
)
def the_gap_to_bayes(d, N, s2, samples, seed) -> list[Check]:
    task = LinearRegression(dim=d, context_length=N, noise_std=np.sqrt(s2))
    start = initializers.zhang(d, 0.3 * N ** (-1 / 3))
    objective = objectives.population(task, MODEL)
    layer = objective.risk(convergence.to_limit(objective, start).limit)
    mean, error = simulated_risk(bayes_predictor(task), task, prng.stream(jax.random.key(seed), "prompts"), samples)
    bayes = theory.bayes.isotropic_risk(d, N, s2)
    # The best layer at a length that is nearly infinite.
    long = objectives.population(LinearRegression(dim=d, context_length=LONG, noise_std=np.sqrt(s2)), MODEL)
    best = long.risk(LSAWeights(*balanced_weights(np.eye(d) / (LONG + d + 1 + s2))))
    ratio = best / theory.bayes.isotropic_risk(d, LONG, s2)
    return [
        check.exact("layer_risk", layer, theory.mahankali2023.minimum_risk(d, N, s2), RISK_TOLERANCE, terms=d),
        check.sampled("bayes_risk", mean, bayes, error),
        check.at_least("layer_above_bayes", layer, bayes, terms=d),
        # Corrections to the limit are of order (d + s2) / n.
        check.exact("ratio_at_long_contexts", ratio, theory.mahankali2023.scaled_gap(d, s2), 10 * (d + 1 + s2) / LONG),
    ]
