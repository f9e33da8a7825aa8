"""Claims about when things happen in the flow from small structured starts: the plateau, the drop, overshoot and the tail."""

from __future__ import annotations

import jax
import numpy as np
import scipy.optimize

from icl_lab import theory
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, flag, integer, number, spectrum
from icl_lab.claims.registry import claim
from icl_lab.claims.settings.flow_paths import SIZES, Integrator, exact, problem_of, regression, structured, validate_spectra
from icl_lab.claims.settings.regression import check_spectrum
from icl_lab.core.errors import AssumptionError
from icl_lab.models import initializers
from icl_lab.models.weights import LSAWeights

LARGEST_PLATEAU_SCALE = 1e-6
LARGEST_SHARE_OF_DROP = 2.0
LARGEST_RATIO = 0.3
SETTLED = 30.0
"""A flow counts as settled after this many times of its slowest mode."""


def _u(weights: LSAWeights) -> float:
    return float(weights.w_pv[-1, -1])


def _limit(problem) -> float:
    """The limit of u from balanced starts."""
    return float(np.sqrt(np.linalg.norm(theory.lsa.optimal_preconditioner(*problem))))


def _validate_plateau(sigma, fraction, **sizes) -> None:
    validate_spectra(**sizes)
    if sigma > LARGEST_PLATEAU_SCALE:
        raise AssumptionError(
            f"the plateau's length is known up to terms of order `sigma`; got {sigma:g}, which must be at most "
            f"{LARGEST_PLATEAU_SCALE:g}."
        )
    if not 0 < fraction < 1:
        raise AssumptionError(f"`fraction` must be between 0 and 1; got {fraction:g}. u does not reach more than its limit.")
    problem = problem_of(regression(**sizes, commuting=False))
    share = fraction * _limit(problem) / theory.timecourse.drop_value(*problem)
    if share > LARGEST_SHARE_OF_DROP:
        raise AssumptionError(
            f"u reaches `fraction` = {fraction:g} of its limit in the tail after the drop, at {share:.3g} times what the drop "
            f"takes it to; take at most {fraction / share * LARGEST_SHARE_OF_DROP:.3g}."
        )


@claim(
    "lab.plateau",
    statement="From a start of size sigma the plateau lasts ln(1/sigma) / ||D||_F plus a constant in which the start enters by "
    "its angle to D alone, and all modes leave it together, in proportion to D.",
    source=Source("icl_lab", "leading term in arXiv 2501.16265; the constant is the lab's", "extended"),
    parameters=SIZES
    | {
        "sigma": number(1e-6, positive=True, meaning="the larger of the two initial scales, the other is a hundredth"),
        "fraction": number(0.5, positive=True, meaning="the plateau ends where u is this share of its limit"),
    },
    validate=_validate_plateau,
)
def plateau(d, N, s2, Lam, Om, rotate, seed, sigma, fraction) -> list[Check]:
    task = regression(d, N, s2, Lam, Om, rotate, seed, commuting=False)
    problem = problem_of(task)
    drive = theory.timecourse.signal(*problem[:2])
    norm = float(np.linalg.norm(drive))
    level = fraction * _limit(problem)
    root = initializers.random_theta(jax.random.key(seed), d)
    thetas = {"identity": np.eye(d) / np.sqrt(d), "random": root @ root.T}
    small = sigma / 100
    starts = {
        "larger": structured(sigma, sigma * thetas["identity"]),
        "identity": structured(small, small * thetas["identity"]),
        "random": structured(small, small * thetas["random"]),
    }
    integrate = Integrator(exact(task), starts["larger"])
    expected = {name: theory.timecourse.plateau_time(small, theta, fraction, *problem) for name, theta in thetas.items()}
    end = 1.5 * max(expected.values()) + 1 / norm
    # Half way between the start and the limit, on the scale of logarithms, both kinds of neglected terms are small.
    halfway = small ** (1 / 3)
    paths = {
        name: integrate(start, end, [lambda w: _u(w) - level, lambda w: _u(w) - halfway]) for name, start in starts.items()
    }
    times = {name: path.crossings[0][0] for name, path in paths.items()}
    escaped = paths["random"].states[1][0].w_kq[:d, :d]
    grid = np.log([10.0, 100.0, 1000.0]) / norm
    measured = [_u(paths["random"].at(time)) for time in grid]
    return [
        check.exact("linear_phase", measured, theory.timecourse.linear_phase(grid, small, thetas["random"], drive), 1e-8),
        check.exact("slope", (times["identity"] - times["larger"]) / np.log(100), 1 / norm, 1e-5),
        check.exact("time_from_identity", times["identity"], expected["identity"], 1e-6),
        check.exact("time_from_random", times["random"], expected["random"], 1e-6),
        check.exact(
            "difference_of_starts_abs", times["random"] - times["identity"], expected["random"] - expected["identity"], 1e-6
        ),
        check.exact("escape_direction", escaped / np.linalg.norm(escaped), drive / norm, 1e-4),
    ]


@claim(
    "lab.overshoot",
    statement="Modes leave the plateau in proportion to D and end in the reverse order, so the large ones overshoot.",
    source=Source("icl_lab", "numerical solution of the d + 1 equations of the modes", "extended"),
    parameters={name: parameter for name, parameter in SIZES.items() if name != "Om"}
    | {"sigma": number(1e-4, positive=True, meaning="initial scale")},
    validate=lambda d, Lam, **_: check_spectrum(Lam, d, "Lam"),
)
def overshoot(d, N, s2, Lam, rotate, seed, sigma) -> list[Check]:
    task = regression(d, N, s2, Lam, None, rotate, seed, commuting=True)
    problem = problem_of(task)
    values, basis = np.linalg.eigh(problem[0])
    limit = np.diag(basis.T @ theory.lsa.optimal_preconditioner(*problem) @ basis)
    start = initializers.zhang(d, sigma)
    end = theory.timecourse.plateau_time(sigma, np.eye(d) / np.sqrt(d), 0.5, *problem)
    end = max(end, 0.0) + SETTLED / theory.stability.late_rates(*problem).slowest

    def shares(weights: LSAWeights) -> np.ndarray:
        return _u(weights) * np.diag(basis.T @ weights.w_kq[:d, :d] @ basis) / limit

    arrivals = [lambda w, mode=mode: shares(w)[mode] - 0.9 for mode in range(d)]
    path = Integrator(exact(task), start)(start, end, arrivals, method="LSODA")
    peaks = np.array([_maximum(lambda time, mode=mode: shares(path.at(time))[mode], end) for mode in range(d)])
    expected_peaks, expected_times = theory.timecourse.overshoot(sigma, values, s2, N, end)
    return [
        check.exact("peaks", peaks, expected_peaks, 1e-8),
        check.exact("times_to_90_percent", [times[0] for times in path.crossings], expected_times, 1e-8),
    ]


def _maximum(function, end: float) -> float:
    """The maximum over [0, end] of a function of time with one hump."""
    grid = np.linspace(0.0, end, 2000)
    best = int(np.argmax([function(time) for time in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = scipy.optimize.minimize_scalar(lambda time: -function(time), bounds=(low, high), method="bounded")
    return max(-float(found.fun), function(grid[best]))


@claim(
    "lab.late-rate",
    statement="At the balanced optimum the Hessian splits into off-diagonal modes and an arrow matrix; its smallest eigenvalue "
    "but for the gauge is the rate at which weights converge, its largest sets the stable step of gradient descent.",
    source=Source("icl_lab", "eigenvalues of an arrow matrix", "extended"),
    parameters=SIZES
    | {
        "Om": spectrum("eigenvalues of the task covariance, whose eigenvectors are those of Lam; null: all 1"),
        "sigma": number(0.1, positive=True, meaning="initial scale"),
    },
    validate=lambda sigma, **sizes: validate_spectra(**sizes),
)
def late_rate(d, N, s2, Lam, Om, rotate, seed, sigma) -> list[Check]:
    task = regression(d, N, s2, Lam, Om, rotate, seed, commuting=True)
    problem = problem_of(task)
    rates = theory.stability.late_rates(*problem)
    root = initializers.random_theta(jax.random.key(seed), d)
    plateau_time = max(theory.timecourse.plateau_time(sigma, root @ root.T, 0.5, *problem), 0.0)
    times = plateau_time + np.array([10.0, 14.0]) / rates.slowest
    objective = exact(task)
    flow = convergence.to_limit(objective, initializers.zhang(d, sigma, root), times=times, weight_tolerance=1e-11)

    integrate = Integrator(objective, flow.limit)
    # Where the structured entries are in the vector of all weights.
    active = np.flatnonzero(integrate.flat(structured(1.0, np.ones((d, d)))))
    limit = integrate.flat(flow.limit)
    values, vectors = np.linalg.eigh(integrate.hessian(limit)[np.ix_(active, active)])
    # In the slowest mode itself nothing else decays, however close the next rate is.
    left = [abs(vectors[:, 1] @ (integrate.flat(flow.trajectory.at(index)) - limit)[active]) for index in range(2)]
    nearby = limit.copy()
    nearby[active] += 1e-8 * np.random.default_rng(seed).standard_normal(len(active))
    growth = [_growth(integrate, nearby, share * rates.largest_step) for share in (0.98, 1.02)]
    return [
        check.holds("flow_converged_abs", flow.converged),
        check.exact("hessian_spectrum", values, rates.spectrum, 1e-9),
        check.exact("fitted_rate", np.log(left[0] / left[1]) / (times[1] - times[0]), rates.slowest, 1e-3),
        check.exact("largest_stable_step", 2 / values[-1], rates.largest_step, 1e-9),
        check.holds("descent_stable_just_below_abs", growth[0] < 1),
        check.holds("descent_unstable_just_above_abs", growth[1] > 1),
    ]


def _growth(integrate: Integrator, state: np.ndarray, step: float, steps: int = 400) -> float:
    """How much the gradient grows in some steps of gradient descent."""
    first = np.linalg.norm(integrate.gradient(state))
    for _ in range(steps):
        state = state - step * integrate.gradient(state)
    return float(np.linalg.norm(integrate.gradient(state)) / first)


def _validate_slow(Lam, low, high, **_) -> None:
    check_spectrum(Lam, 2, "Lam")
    if Lam is not None and min(Lam) > LARGEST_RATIO * max(Lam):
        raise AssumptionError(f"`Lam` must hold two eigenvalues, one at most {LARGEST_RATIO:g} of the other; got {Lam}.")
    if not 0 < low < high < 1:
        raise AssumptionError(f"`low` and `high` must satisfy 0 < low < high < 1; got {low:g} and {high:g}.")


@claim(
    "lab.slow-mode",
    statement="After the drop a weak mode goes on alone for a time of order 1 / lambda_2^2, by an equation of its own.",
    source=Source("icl_lab", "elimination of the settled mode", "extended"),
    parameters={
        "N": integer(400, 1, "context length"),
        "s2": number(0.0, 0.0, "variance of the label noise"),
        "Lam": spectrum("two eigenvalues, one at most 0.3 of the other; null: 1 and 0.1"),
        "rotate": flag(False, "random eigenvectors of the covariance"),
        "sigma": number(1e-3, positive=True, meaning="initial scale"),
        "low": number(0.25, positive=True, meaning="share of the limit at which the clock starts"),
        "high": number(0.75, positive=True, meaning="share of the limit at which the clock stops"),
        "seed": integer(0, 0, "of the basis"),
    },
    validate=_validate_slow,
)
def slow_mode(N, s2, Lam, rotate, sigma, low, high, seed) -> list[Check]:
    small, large = sorted([1.0, 0.1] if Lam is None else Lam)
    task = regression(2, N, s2, [large, small], None, rotate, seed, commuting=True)
    problem = problem_of(task)
    slow = np.linalg.eigh(problem[0])[1][:, 0]
    limit = slow @ theory.lsa.optimal_preconditioner(*problem) @ slow
    start = initializers.zhang(2, sigma)
    expected = theory.timecourse.slow_mode_time(large, small, s2, N, low, high)

    def share(weights: LSAWeights) -> float:
        return float(_u(weights) * (slow @ weights.w_kq[:2, :2] @ slow) / limit)

    drop = theory.timecourse.plateau_time(sigma, np.eye(2) / np.sqrt(2), 0.5, *problem)
    end = max(drop, 0.0) + 3 * theory.timecourse.slow_mode_time(large, small, s2, N, 0.0, high)
    path = Integrator(exact(task), start)(
        start, end, [lambda w: share(w) - low, lambda w: share(w) - high], method="LSODA", rtol=1e-9, stop=True
    )
    return [check.exact("time_between_shares", path.crossings[1][0] - path.crossings[0][0], expected, 0.01)]
