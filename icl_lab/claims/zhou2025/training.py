"""Claims of Zhou et al. 2025 (arXiv 2510.09776) about one trained layer: its weights, its gap, and what it is compared with."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import estimators, objectives, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, integer, vector
from icl_lab.claims.registry import claim
from icl_lab.claims.settings.series import (
    LAB,
    LSA,
    MIXED_SERIES,
    PAPER,
    SERIES,
    is_autoregressive,
    mixed_moments,
    mixed_task,
    validate_coefficients,
    validate_mixed,
    window_order,
)
from icl_lab.claims.simulation import mean_with_error, simulate
from icl_lab.claims.zhou2025.flows import ENOUGH_STARTS, STARTS, Limits, best_of_starts, train
from icl_lab.core import prng
from icl_lab.core.errors import AssumptionError
from icl_lab.models import LSAWeights, initializers
from icl_lab.tasks.series.autoregressive import Autoregressive

# The flow stops at an estimated weight error that leaves errors well below these.
GAP_TOLERANCE = 1e-7
COEFFICIENT_TOLERANCE = 1e-5
LOCAL_MINIMUM_TOLERANCE = 1e-6
# Eigenvalues above minus this share of the largest count as not negative.
CURVATURE_TOLERANCE = 1e-7
# Below it, rho(A)^(2N) is lost in the tolerance of theta.
NEGLIGIBLE_MEMORY = 1e-8
# Excesses differ from their leading terms by at most this share of 1/N.
NEXT_TERM = 12.0


def ar_minimum(rho, sigma: float, N: int) -> theory.isserlis.BestLayer:
    """The layer of least risk on an AR series, by theory alone."""
    filters = theory.bartlett.reflected_filters(np.asarray(rho))
    return theory.isserlis.best_layer(mixed_moments(rho, None, len(rho), sigma, N), len(rho), filters)


@claim(
    "zhou2025.no-gain",
    statement="On AR(p) series no layer has a risk below sigma^2, that of linear regression on p lags; on other series the "
    "trained layer can be better than any regression on its window.",
    source=Source(PAPER, "the bound by linear regression, and where it ends"),
    parameters=MIXED_SERIES
    | {
        "theta": vector((0.0, 0.9), "moving-average coefficients, nearest lag first; null: none"),
        "N": integer(10, 2, "windows in the context"),
    }
    | STARTS
    | {"samples": integer(100_000, 10_000, "simulated series of an AR(p)")},
    extra_settings=({"N": 50}, {"N": 200}, {"rho": [0.5, -0.3], "theta": None, "N": 20}),
    validate=lambda rho, theta, **_: validate_mixed(rho, theta),
)
def no_gain_on_autoregressions(rho, theta, p, sigma, N, starts, seed, samples) -> list[Check]:
    order = window_order(rho, p)
    reference = mixed_moments(rho, theta, order, sigma, N)
    best = theory.isserlis.best_layer(
        reference, reference.order, theory.bartlett.reflected_filters(reference.linear_weights[::-1])
    )
    task = mixed_task(rho, theta, order, sigma, N)
    objective = objectives.series_loss(task, LSA)
    limits = best_of_starts(objective, sigma, best.risk, starts, seed)
    covariance = np.asarray(task.autocovariance)
    window = covariance[np.abs(np.subtract.outer(np.arange(order), np.arange(order)))]
    linear = covariance[order - np.arange(order)]
    regression = float(covariance[0] - linear @ np.linalg.solve(window, linear))
    checks = [
        check.exact("risk_of_regression", regression, reference.linear_risk, 1e-10),
        check.at_least("no_start_ends_below_the_minimum", limits.risks, np.full(len(limits.risks), best.risk), 1e-10),
    ]
    if starts >= ENOUGH_STARTS:
        difference = limits.risks[limits.best] - regression
        expected = best.risk - reference.linear_risk
        checks.append(check.exact("trained_risk_minus_regression_abs", difference, expected, GAP_TOLERANCE * sigma**2))
    if is_autoregressive(rho, theta, order):
        ones = np.full(len(limits.risks), sigma**2)
        checks += [check.at_least("no_start_ends_below_regression", limits.risks, ones)]
        checks += _orthogonality_checks(objective, reference, sigma, samples, seed)
    return checks


def _orthogonality_checks(objective, reference, sigma: float, samples: int, seed: int) -> list[Check]:
    """The innovation is uncorrelated with any answer, so that errors add: one layer at random weights, and two."""
    key = jax.random.key(seed)
    order = reference.order
    layers = tuple(initializers.gaussian(prng.stream(key, name), order + 1, 0.3) for name in ("one", "two"))
    linear = jnp.asarray(reference.linear_weights)

    def statistics(one):
        prompt = objective.task.sample(one)
        forecast = linear @ prompt.query
        innovation = prompt.target[0] - forecast
        single, double = LSA(layers[:1], prompt)[0], LSA(layers, prompt)[0]
        return jnp.stack([(single - forecast) ** 2, single * innovation, double * innovation])

    values = simulate(statistics, prng.stream(key, "series"), samples)
    theta = theory.zhou2025.coefficients(layers[0].w_pv[-1], layers[0].w_kq[:, :order])
    excess = reference.risk(theta) - sigma**2
    names = ("excess_of_random_weights", "innovation_times_one_layer_abs", "innovation_times_two_layers_abs")
    pairs = [mean_with_error(column) for column in values.T]
    return [
        check.exact("excess_of_random_weights_exactly", objective.risk(layers[0]) - sigma**2, excess, 1e-10),
        *(
            check.sampled(name, mean, value, error)
            for name, (mean, error), value in zip(names, pairs, (excess, 0.0, 0.0), strict=True)
        ),
    ]


def _validate_closed_form(rho, N, **_) -> None:
    validate_coefficients(rho)
    theory.zhou2025.check_innovation_filter_is_best(rho, N)


@claim(
    "zhou2025.trained-weights",
    statement="The best of several gradient flows ends at pi = N/(N+4) r / sigma^2, Q = r w^T, with excess 2V/(N+4); others "
    "end at the time-reversed filter, with 2V/(N+2), or at further stationary points.",
    source=Source(PAPER, "exact population loss", "extended"),
    parameters=SERIES | {"rho": vector((0.5,), SERIES["rho"].meaning), "N": integer(20, 2, "windows in the context")} | STARTS,
    extra_settings=({"rho": [0.5, -0.3]},),
    validate=_validate_closed_form,
)
def trained_layer_is_known(rho, sigma, N, starts, seed) -> list[Check]:
    known = (rho, sigma, N)
    objective = objectives.series_loss(Autoregressive(np.asarray(rho), N, sigma), LSA)
    minimum = ar_minimum(*known)
    first = near_reversed_filter(rho, sigma, N, seed) if starts >= ENOUGH_STARTS else None
    limits = best_of_starts(objective, sigma, minimum.risk, starts, seed, first)
    gaps = limits.risks - sigma**2
    thetas = [np.asarray(objective.coefficients(limits.of(i)))[0] for i in range(len(gaps))]
    names = np.array([theory.zhou2025.name_limit(theta, *known) for theta in thetas])
    checks = [check.at_least("no_start_ends_below_the_minimum", limits.risks, np.full(len(gaps), minimum.risk), 1e-10)]
    if starts >= ENOUGH_STARTS or theory.zhou2025.GLOBAL_MINIMUM in names:
        checks += _global_checks(objective, limits, minimum, known)
    reversed_ = np.flatnonzero(limits.converged & (names == theory.zhou2025.TIME_REVERSED))
    if starts >= ENOUGH_STARTS:
        checks.append(check.holds("time_reversed_filter_is_found_abs", len(reversed_) > 0))
    if len(reversed_):
        expected = np.full(len(reversed_), theory.zhou2025.reversed_gap(*known))
        curvatures = limits.smallest_curvatures[reversed_]
        checks += [
            check.exact("time_reversed_filter_gap", gaps[reversed_], expected, LOCAL_MINIMUM_TOLERANCE),
            check.at_least("time_reversed_filter_hessian_abs", curvatures, np.zeros(len(reversed_)), CURVATURE_TOLERANCE),
        ]
    others = gaps[names == theory.zhou2025.OTHER]
    if len(others):
        best = np.full(len(others), theory.zhou2025.trained_gap(*known))
        checks.append(check.at_least("other_stationary_point_gap", others, best))
    return checks


def near_reversed_filter(rho, sigma: float, N: int, seed: int) -> LSAWeights:
    """The layer of the backward innovations with both matrices of one norm, a tenth of it away in a random direction."""
    layer = theory.zhou2025.reversed_weights(rho, sigma, N)
    w_pv, w_kq = layer.matrices()
    scale = np.sqrt(np.linalg.norm(w_kq) / np.linalg.norm(w_pv))
    drawn = initializers.gaussian(prng.stream(jax.random.key(seed), "near"), len(w_pv), 1.0)
    size = 0.1 * np.linalg.norm(w_kq) / scale / len(w_pv)
    return LSAWeights(w_pv * scale + size * drawn.w_pv, w_kq / scale + size * drawn.w_kq)


def _global_checks(objective, limits: Limits, minimum, known) -> list[Check]:
    """The best start beside the closed form, and beside the minimum that theory finds without it."""
    rho, sigma, N = known
    best = limits.of(limits.best)
    gap = limits.risks[limits.best] - sigma**2
    theta = np.asarray(objective.coefficients(best))[0]
    closed = theory.zhou2025.trained_gap(*known)
    tolerance = GAP_TOLERANCE + theory.zhou2025.neglected(rho, N)
    bounds = theory.zhou2025.scaled_innovation_gap(*known), mixed_moments(rho, None, len(rho), sigma, N).lifted_gap()
    checks = [
        check.exact("best_gap", gap, closed, tolerance),
        check.exact("best_gap_of_any_layer", gap, minimum.risk - sigma**2, GAP_TOLERANCE),
        check.exact("theta_of_the_best_layer", theta, minimum.theta, COEFFICIENT_TOLERANCE),
        check.at_most("best_gap_is_at_most_that_of_the_scaled_filter", gap, bounds[0], GAP_TOLERANCE),
        check.at_least("best_gap_is_at_least_the_lifted_one", gap, bounds[1], GAP_TOLERANCE),
    ]
    if theory.bartlett.spectral_radius(np.asarray(rho)) ** (2 * N) < NEGLIGIBLE_MEMORY:
        expected = theory.zhou2025.trained_weights(*known).coefficients
        checks.append(check.exact("theta", theta, expected, COEFFICIENT_TOLERANCE))
    return checks


def _lengths(N: int) -> list[int]:
    return [N * 2**k for k in range(4)]


def _validate_lengths(rho, N, **_) -> None:
    validate_coefficients(rho)
    theory.zhou2025.check_memory(rho, N)


@claim(
    "zhou2025.consistency",
    statement="The risk of the trained layer tends to sigma^2 at the rate 1/n, from above.",
    source=Source(PAPER, "excess 2V/(N+4) of the trained layer"),
    parameters=SERIES
    | {"rho": vector((0.5,), SERIES["rho"].meaning), "N": integer(20, 2, "the shortest context; then 2N, 4N and 8N")}
    | STARTS
    | {"starts": integer(8, ENOUGH_STARTS, "random starts at the shortest context, whose limits are trained on at the next")},
    validate=_validate_lengths,
)
def trained_risk_tends_to_noise(rho, sigma, N, starts, seed) -> list[Check]:
    limits, gaps, least = None, [], []
    for length in _lengths(N):
        objective = objectives.series_loss(Autoregressive(np.asarray(rho), length, sigma), LSA)
        least.append(ar_minimum(rho, sigma, length).risk - sigma**2)
        if limits is None:
            limits = best_of_starts(objective, sigma, least[0] + sigma**2, starts, seed)
        else:
            limits = train(objective, limits.weights)
        gaps.append(limits.risks[limits.best] - sigma**2)
    lengths = np.array(_lengths(N))
    checks = [
        check.exact("gaps_of_any_layer", gaps, least, GAP_TOLERANCE),
        check.at_least("risks_minus_noise_abs", gaps, np.zeros(len(gaps))),
        check.at_most("N_gap_over_2V", lengths * gaps / (2 * theory.zhou2025.signal_variance(rho, sigma)), np.ones(len(gaps))),
    ]
    if all(theory.zhou2025.innovation_filter_is_best(rho, length) for length in _lengths(N)):
        closed = np.array([theory.zhou2025.trained_gap(rho, sigma, length) for length in _lengths(N)])
        tolerance = GAP_TOLERANCE + theory.zhou2025.neglected(rho, N)
        exponent = np.polyfit(np.log(lengths + 4), np.log(gaps), 1)[0]
        checks += [
            check.exact("gaps", gaps, closed, tolerance),
            check.exact("power_of_N_plus_4", exponent, -1.0, tolerance),
        ]
    return checks


def _validate_crossover(rho, sigma, N, **_) -> None:
    validate_coefficients(rho)
    theory.zhou2025.check_memory(rho, N)
    ratio = 2 * theory.zhou2025.signal_variance(rho, 1.0) / len(rho)
    if abs(ratio - 1) < NEXT_TERM / N:
        raise AssumptionError(
            f"At `rho` = {rho} the leading terms of the excesses, 2V / N and p sigma^2 / N, have the ratio {ratio:.4g}; at "
            f"N = {N} the next terms decide which is larger. Take a longer context, or other coefficients."
        )


@claim(
    "zhou2025.ols-crossover",
    statement="A trained layer, with the coefficients in its weights, loses to in-context least squares, which has to estimate "
    "them, as soon as 2V > p sigma^2.",
    source=Source(LAB, "leading terms of the two excesses, 2V/N and p sigma^2/N", "extended"),
    parameters=SERIES
    | {"rho": vector((0.9,), SERIES["rho"].meaning), "N": integer(100, 20, "windows in the context")}
    | STARTS
    | {
        "starts": integer(8, ENOUGH_STARTS, STARTS["starts"].meaning),
        "samples": integer(40_000, 10_000, "simulated series for least squares"),
    },
    extra_settings=({"rho": [0.5]},),
    validate=_validate_crossover,
)
def layer_loses_to_least_squares(rho, sigma, N, starts, seed, samples) -> list[Check]:
    task = Autoregressive(np.asarray(rho), N, sigma)
    objective = objectives.series_loss(task, LSA)
    minimum = ar_minimum(rho, sigma, N).risk
    limits = best_of_starts(objective, sigma, minimum, starts, seed)
    gap = limits.risks[limits.best] - sigma**2
    forecast = jnp.asarray(theory.zhou2025.bayes_weights(rho).copy())

    def squared_distance(one):
        prompt = task.sample(one)
        return (estimators.ols(prompt)[0] - forecast @ prompt.query) ** 2

    excess, error = mean_with_error(simulate(squared_distance, prng.stream(jax.random.key(seed), "series"), samples))
    unit = theory.autoregressive.least_squares_excess(len(rho), N, sigma**2)
    loses = 2 * theory.zhou2025.signal_variance(rho, sigma) > len(rho) * sigma**2
    closed = theory.zhou2025.trained_gap(rho, sigma, N)
    checks = [
        check.exact("trained_gap_of_any_layer", gap, minimum - sigma**2, GAP_TOLERANCE),
        check.exact(
            "least_squares_excess_in_leading_terms_abs", excess / unit, 1.0, NEXT_TERM / N + check.SIGMAS * error / unit
        ),
        check.exact("layer_loses_abs", float(gap > excess), float(loses), 0.0),
    ]
    if theory.zhou2025.innovation_filter_is_best(rho, N):
        checks.append(check.exact("trained_gap", gap, closed, GAP_TOLERANCE + theory.zhou2025.neglected(rho, N)))
    return checks
