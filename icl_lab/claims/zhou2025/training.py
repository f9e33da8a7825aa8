"""Claims of Zhou et al. 2025 (arXiv 2510.09776) about one trained layer: its weights, its gap, and what it is compared with."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from icl_lab import estimators, objectives, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer
from icl_lab.claims.simulation import mean_with_error, simulate
from icl_lab.claims.zhou2025.flows import ENOUGH_STARTS, GAP_TOLERANCE, Limits, StartsSetting, best_of_starts, train
from icl_lab.claims.zhou2025.settings import LAB, PAPER, SignalSetting
from icl_lab.core.errors import AssumptionError
from icl_lab.core.typing import Array
from icl_lab.models import LSAWeights, initializers

# The flow stops at an estimated weight error that leaves errors well below these.
COEFFICIENT_TOLERANCE = 1e-5
LOCAL_MINIMUM_TOLERANCE = 1e-6
# Eigenvalues above minus this share of the largest count as not negative.
CURVATURE_TOLERANCE = 1e-7
# Below it, rho(A)^(2N) is lost in the tolerance of theta.
NEGLIGIBLE_MEMORY = 1e-8
# Excesses differ from their leading terms by at most this share of 1/N.
NEXT_TERM = 12.0


class TrainedSetting(StartsSetting, SignalSetting):
    """One layer on an AR(p) series, and what theory says of the layers at rest."""

    rho = (0.5,)
    N: int = integer(20, 2, "context length", ", in windows")

    @property
    def known(self) -> tuple[Array, float, int]:
        """(rho, sigma, N), of which the closed forms are functions."""
        return self.coefficients, self.sigma, self.N

    def minimum(self, length: int) -> theory.isserlis.BestLayer:
        """The layer of least risk on contexts of `length` windows, by theory alone."""
        filters = theory.bartlett.reflected_filters(self.coefficients)
        return theory.isserlis.best_layer(self.moments(length), self.order, filters)


class ClosedFormSetting(TrainedSetting):
    """A series and a context for which the innovation filter is the best layer."""

    def validate(self) -> None:
        super().validate()
        theory.zhou2025.check_innovation_filter_is_best(self.coefficients, self.N)


@claim(
    "zhou2025.trained-weights",
    ClosedFormSetting,
    Source(PAPER, "exact population loss", "extended"),
    extra_settings=({"rho": [0.5, -0.3]},),
)
def trained_layer_is_known(setting: ClosedFormSetting) -> list[Check]:
    """The best of several gradient flows ends at pi = N/(N+4) r / sigma^2, Q = r w^T, with excess 2V/(N+4); others end at the
    time-reversed filter, with 2V/(N+2), or at further stationary points.

    Gradient flows of the exact loss run to rest from random starts of scale 0.1 / sqrt(gamma_0), and from one beside the
    time-reversed filter where there are eight or more; their ends are named by the closed weights. A factor N/(N+2), a gap
    2V/(N+5), or a risk below the minimum that theory finds by Isserlis' theorem would make it fail.
    """
    known, sigma, objective, minimum = setting.known, setting.sigma, setting.loss(setting.N), setting.minimum(setting.N)
    first = near_reversed_filter(setting) if setting.are_enough else None
    limits = best_of_starts(objective, setting, sigma, minimum.risk, first)
    gaps = limits.risks - sigma**2
    thetas = [np.asarray(objective.coefficients(limits.of(i)))[0] for i in range(len(gaps))]
    names = np.array([theory.zhou2025.name_limit(theta, *known) for theta in thetas])
    checks = [check.at_least("no_start_ends_below_the_minimum", limits.risks, np.full(len(gaps), minimum.risk), 1e-10)]
    if setting.are_enough or theory.zhou2025.GLOBAL_MINIMUM in names:
        checks += _global_checks(objective, limits, minimum, setting)
    reversed_ = np.flatnonzero(limits.converged & (names == theory.zhou2025.TIME_REVERSED))
    if setting.are_enough:
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


def near_reversed_filter(setting: TrainedSetting) -> LSAWeights:
    """The layer of the backward innovations with both matrices of one norm, a tenth of it away in a random direction."""
    layer = theory.zhou2025.reversed_weights(*setting.known)
    w_pv, w_kq = layer.matrices()
    scale = np.sqrt(np.linalg.norm(w_kq) / np.linalg.norm(w_pv))
    drawn = initializers.gaussian(setting.stream("near"), len(w_pv), 1.0)
    size = 0.1 * np.linalg.norm(w_kq) / scale / len(w_pv)
    return LSAWeights(w_pv * scale + size * drawn.w_pv, w_kq / scale + size * drawn.w_kq)


def _global_checks(
    objective: objectives.MomentLoss, limits: Limits, minimum: theory.isserlis.BestLayer, setting: TrainedSetting
) -> list[Check]:
    """The best start beside the closed form, and beside the minimum that theory finds without it."""
    known, sigma, N = setting.known, setting.sigma, setting.N
    best = limits.of(limits.best)
    gap = limits.risks[limits.best] - sigma**2
    theta = np.asarray(objective.coefficients(best))[0]
    closed = theory.zhou2025.trained_gap(*known)
    tolerance = GAP_TOLERANCE + theory.zhou2025.neglected(setting.coefficients, N)
    bounds = theory.zhou2025.scaled_innovation_gap(*known), setting.moments(N).lifted_gap()
    checks = [
        check.exact("best_gap", gap, closed, tolerance),
        check.exact("best_gap_of_any_layer", gap, minimum.risk - sigma**2, GAP_TOLERANCE),
        check.exact("theta_of_the_best_layer", theta, minimum.theta, COEFFICIENT_TOLERANCE),
        check.at_most("best_gap_is_at_most_that_of_the_scaled_filter", gap, bounds[0], GAP_TOLERANCE),
        check.at_least("best_gap_is_at_least_the_lifted_one", gap, bounds[1], GAP_TOLERANCE),
    ]
    if theory.bartlett.spectral_radius(setting.coefficients) ** (2 * N) < NEGLIGIBLE_MEMORY:
        expected = theory.zhou2025.trained_weights(*known).coefficients
        checks.append(check.exact("theta", theta, expected, COEFFICIENT_TOLERANCE))
    return checks


class LengthsSetting(TrainedSetting):
    """Four context lengths, each twice the one before."""

    N: int = integer(20, 2, "context length", ", in windows, of the shortest; then 2N, 4N and 8N")
    starts: int = integer(
        8, ENOUGH_STARTS, "number of starts", ", random, at the shortest context, whose limits are trained on at the next"
    )

    def validate(self) -> None:
        super().validate()
        theory.zhou2025.check_memory(self.coefficients, self.N)

    @property
    def lengths(self) -> list[int]:
        """N, 2N, 4N and 8N."""
        return [self.N * 2**k for k in range(4)]


@claim("zhou2025.consistency", LengthsSetting, Source(PAPER, "excess 2V/(N+4) of the trained layer"))
def trained_risk_tends_to_noise(setting: LengthsSetting) -> list[Check]:
    """The risk of the trained layer tends to sigma^2 at the rate 1/n, from above.

    Gradient flows of the exact loss run to rest from random starts of scale 0.1 / sqrt(gamma_0) at the shortest context, and
    from each limit at the next length; the best risks are compared with the minima that theory finds and with 2V/(N+4). An
    excess that does not fall as 1/(N+4), or a risk below sigma^2, would make it fail.
    """
    rho, sigma = setting.coefficients, setting.sigma
    limits, gaps, least = None, [], []
    for length in setting.lengths:
        objective = setting.loss(length)
        minimum = setting.minimum(length).risk
        least.append(minimum - sigma**2)
        limits = train(objective, limits.weights) if limits else best_of_starts(objective, setting, sigma, minimum)
        gaps.append(limits.risks[limits.best] - sigma**2)
    lengths = np.array(setting.lengths)
    checks = [
        check.exact("gaps_of_any_layer", gaps, least, GAP_TOLERANCE),
        check.at_least("risks_minus_noise_abs", gaps, np.zeros(len(gaps))),
        check.at_most("N_gap_over_2V", lengths * gaps / (2 * theory.zhou2025.signal_variance(rho, sigma)), np.ones(len(gaps))),
    ]
    if all(theory.zhou2025.innovation_filter_is_best(rho, length) for length in setting.lengths):
        closed = np.array([theory.zhou2025.trained_gap(rho, sigma, length) for length in setting.lengths])
        tolerance = GAP_TOLERANCE + theory.zhou2025.neglected(rho, setting.N)
        exponent = np.polyfit(np.log(lengths + 4), np.log(gaps), 1)[0]
        checks += [
            check.exact("gaps", gaps, closed, tolerance),
            check.exact("power_of_N_plus_4", exponent, -1.0, tolerance),
        ]
    return checks


class CrossoverSetting(TrainedSetting):
    """A context so long that the leading terms decide which excess is larger."""

    rho = (0.9,)
    N: int = integer(100, 20, "context length", ", in windows")
    starts: int = integer(8, ENOUGH_STARTS, "number of starts", ", random; further ones are drawn until one finds the minimum")
    samples: int = integer(40_000, 10_000, "number of draws", "of series, for least squares")

    def validate(self) -> None:
        super().validate()
        theory.zhou2025.check_memory(self.coefficients, self.N)
        ratio = 2 * theory.zhou2025.signal_variance(self.coefficients, 1.0) / self.order
        if abs(ratio - 1) < NEXT_TERM / self.N:
            raise AssumptionError(
                f"At `rho` = {self.rho} the leading terms of the excesses, 2V / N and p sigma^2 / N, have the ratio "
                f"{ratio:.4g}; at N = {self.N} the next terms decide which is larger. Take a longer context, or other "
                "coefficients."
            )


@claim(
    "zhou2025.ols-crossover",
    CrossoverSetting,
    Source(LAB, "leading terms of the two excesses, 2V/N and p sigma^2/N", "extended"),
    extra_settings=({"rho": [0.5]},),
)
def layer_loses_to_least_squares(setting: CrossoverSetting) -> list[Check]:
    """A trained layer, with the coefficients in its weights, loses to in-context least squares, which has to estimate them, as
    soon as 2V > p sigma^2.

    Gradient flows of the exact loss run to rest from random starts of scale 0.1 / sqrt(gamma_0), and the best is the trained
    layer; the excess of least squares is a mean over simulated series. A V ten times too small, or an excess of least squares
    other than p sigma^2 / N to leading order, would make it fail.
    """
    rho, sigma, N = setting.coefficients, setting.sigma, setting.N
    task, objective, minimum = setting.task(N), setting.loss(N), setting.minimum(N).risk
    limits = best_of_starts(objective, setting, sigma, minimum)
    gap = limits.risks[limits.best] - sigma**2
    forecast = jnp.asarray(setting.best_weights)

    def squared_distance(one):
        prompt = task.sample(one)
        return (estimators.ols(prompt)[0] - forecast @ prompt.query) ** 2

    excess, error = mean_with_error(simulate(squared_distance, setting.stream("series"), setting.samples))
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
