"""Claims about when things happen in the flow from small structured starts: the plateau, the drop, overshoot and the tail."""

from __future__ import annotations

import numpy as np
import scipy.optimize

from icl_lab import theory
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.lab.settings import CommutingSetting, FlowSetting
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import check_spectrum, flag, integer, number, spectrum
from icl_lab.claims.settings.flow_paths import Integrator, exact, structured
from icl_lab.claims.settings.regression import NoisySetting, SpectralSetting
from icl_lab.claims.settings.seeded import Seeded
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


class PlateauSetting(FlowSetting):
    """Starts so small that the plateau's length is known up to terms of their order."""

    sigma: float = number(1e-6, positive=True, meaning="initial scale", detail=", the larger of two; the other is a hundredth")
    fraction: float = number(0.5, positive=True, meaning="share of the limit of u at which the plateau ends")

    @property
    def level(self) -> float:
        """u at the end of the plateau, by the limit from balanced starts."""
        return self.fraction * float(np.sqrt(np.linalg.norm(theory.lsa.optimal_preconditioner(self.problem))))

    def validate(self) -> None:
        super().validate()
        if self.sigma > LARGEST_PLATEAU_SCALE:
            raise AssumptionError(
                f"the plateau's length is known up to terms of order `sigma`; got {self.sigma:g}, which must be at most "
                f"{LARGEST_PLATEAU_SCALE:g}."
            )
        if not 0 < self.fraction < 1:
            raise AssumptionError(
                f"`fraction` must be between 0 and 1; got {self.fraction:g}. u does not reach more than its limit."
            )
        if (share := self.level / theory.timecourse.drop_value(self.problem)) > LARGEST_SHARE_OF_DROP:
            raise AssumptionError(
                f"u reaches `fraction` = {self.fraction:g} of its limit in the tail after the drop, at {share:.3g} times what "
                f"the drop takes it to; take at most {self.fraction / share * LARGEST_SHARE_OF_DROP:.3g}."
            )


@claim(
    "lab.plateau",
    PlateauSetting,
    Source("icl_lab", "leading term in arXiv 2501.16265; the constant is the lab's", "extended"),
)
def plateau(setting: PlateauSetting) -> list[Check]:
    """From a start of size sigma the plateau lasts ln(1/sigma) / ||D||_F plus a constant in which the start enters by its
    angle to D alone, and all modes leave it together, in proportion to D.

    Gradient flow of the exact loss in all entries, with events of the solver, starts from U along the identity at two scales
    and from a random positive U at the smaller one. A constant that ignores the angle of the start, another slope in
    ln(1/sigma), or modes that leave one after another, would make it fail.
    """
    d, sigma, level, drive = setting.d, setting.sigma, setting.level, setting.drive
    norm = float(np.linalg.norm(drive))
    root = initializers.random_theta(setting.key, d)
    thetas = {"identity": np.eye(d) / np.sqrt(d), "random": root @ root.T}
    small = sigma / 100
    starts = {
        "larger": structured(sigma, sigma * thetas["identity"]),
        "identity": structured(small, small * thetas["identity"]),
        "random": structured(small, small * thetas["random"]),
    }
    integrate = Integrator(exact(setting.task()), starts["larger"])
    expected = {
        name: theory.timecourse.plateau_time(setting.problem, small, theta, setting.fraction) for name, theta in thetas.items()
    }
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
        *(check.exact(f"time_from_{name}", times[name], time, 1e-6) for name, time in expected.items()),
        check.exact(
            "difference_of_starts_abs", times["random"] - times["identity"], expected["random"] - expected["identity"], 1e-6
        ),
        check.exact("escape_direction", escaped / np.linalg.norm(escaped), drive / norm, 1e-4),
    ]


class OvershootSetting(SpectralSetting, NoisySetting):
    """Isotropic tasks, so that modes are eigenvectors of the input covariance."""

    sigma: float = number(1e-4, positive=True, meaning="initial scale")


@claim(
    "lab.overshoot", OvershootSetting, Source("icl_lab", "numerical solution of the d + 1 equations of the modes", "extended")
)
def overshoot(setting: OvershootSetting) -> list[Check]:
    """Modes leave the plateau in proportion to D and end in the reverse order, so the large ones overshoot.

    Gradient flow of the exact loss in all entries, from u = sigma and U = sigma I / sqrt d, gives each mode's largest share
    of its limit and the time at which it reaches 90 per cent of it; expected are those of the d + 1 equations of the modes.
    Modes that rise to their limits without exceeding them would make it fail.
    """
    d, sigma = setting.d, setting.sigma
    values, basis = np.linalg.eigh(setting.covariance)
    limit = np.diag(basis.T @ theory.lsa.optimal_preconditioner(setting.problem) @ basis)
    start = initializers.zhang(d, sigma)
    end = theory.timecourse.plateau_time(setting.problem, sigma, np.eye(d) / np.sqrt(d), 0.5)
    end = max(end, 0.0) + SETTLED / theory.stability.late_rates(setting.problem).slowest

    def shares(weights: LSAWeights) -> np.ndarray:
        return _u(weights) * np.diag(basis.T @ weights.w_kq[:d, :d] @ basis) / limit

    arrivals = [lambda w, mode=mode: shares(w)[mode] - 0.9 for mode in range(d)]
    path = Integrator(exact(setting.task()), start)(start, end, arrivals, method="LSODA")
    peaks = np.array([_maximum(lambda time, mode=mode: shares(path.at(time))[mode], end) for mode in range(d)])
    expected_peaks, expected_times = theory.timecourse.overshoot(sigma, values, setting.s2, setting.N, end)
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


class LateSetting(CommutingSetting):
    """A start from which the optimum is reached."""

    sigma: float = number(0.1, positive=True, meaning="initial scale")


@claim("lab.late-rate", LateSetting, Source("icl_lab", "eigenvalues of an arrow matrix", "extended"))
def late_rate(setting: LateSetting) -> list[Check]:
    """At the balanced optimum the Hessian splits into off-diagonal modes and an arrow matrix; its smallest eigenvalue but for
    the gauge is the rate at which weights converge, its largest sets the stable step of gradient descent.

    Gradient flow of the exact loss runs to rest from a random structured start of scale sigma; the Hessian there is one of
    differences of gradients, the rate is fitted to two late times, and descent with steps 2 per cent below and above the
    largest stable one starts 1e-8 beside the limit. An eigenvalue missed, or a rate twice too fast, would make it fail.
    """
    d, sigma, objective = setting.d, setting.sigma, exact(setting.task())
    rates = theory.stability.late_rates(setting.problem)
    root = initializers.random_theta(setting.key, d)
    plateau_time = max(theory.timecourse.plateau_time(setting.problem, sigma, root @ root.T, 0.5), 0.0)
    times = plateau_time + np.array([10.0, 14.0]) / rates.slowest
    flow = convergence.to_limit(objective, initializers.zhang(d, sigma, root), times=times, weight_tolerance=1e-11)
    integrate = Integrator(objective, flow.limit)
    # Where the structured entries are in the vector of all weights.
    active = np.flatnonzero(integrate.flat(structured(1.0, np.ones((d, d)))))
    limit = integrate.flat(flow.limit)
    values, vectors = np.linalg.eigh(integrate.hessian(limit)[np.ix_(active, active)])
    # In the slowest mode itself nothing else decays, however close the next rate is.
    left = [abs(vectors[:, 1] @ (integrate.flat(flow.trajectory.at(index)) - limit)[active]) for index in range(2)]
    nearby = limit.copy()
    nearby[active] += 1e-8 * np.random.default_rng(setting.seed).standard_normal(len(active))
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


class TwoModes(Seeded):
    """Two dimensions, one with a much smaller eigenvalue of the input covariance."""

    N: int = integer(400, 1, "context length")
    s2: float = number(0.0, 0.0, "variance of the label noise")
    Lam: list[float] | None = spectrum(
        "eigenvalues of the input covariance", ", two, one at most 0.3 of the other; null: 1 and 0.1"
    )
    rotate: bool = flag(False, "random eigenvectors", "of the covariance")
    sigma: float = number(1e-3, positive=True, meaning="initial scale")
    low: float = number(0.25, positive=True, meaning="share of the limit at which the clock starts")
    high: float = number(0.75, positive=True, meaning="share of the limit at which the clock stops")

    def validate(self) -> None:
        super().validate()
        check_spectrum(self.Lam, 2, "Lam")
        if min(self.spectrum) > LARGEST_RATIO * max(self.spectrum):
            raise AssumptionError(
                f"`Lam` must hold two eigenvalues, one at most {LARGEST_RATIO:g} of the other; got {self.Lam}."
            )
        if not 0 < self.low < self.high < 1:
            raise AssumptionError(f"`low` and `high` must satisfy 0 < low < high < 1; got {self.low:g} and {self.high:g}.")

    @property
    def spectrum(self) -> list[float]:
        """Both eigenvalues, the larger first."""
        return sorted([1.0, 0.1] if self.Lam is None else self.Lam, reverse=True)

    def regression(self) -> CommutingSetting:
        """The problem in two dimensions."""
        return CommutingSetting(d=2, N=self.N, s2=self.s2, Lam=self.spectrum, Om=None, rotate=self.rotate, seed=self.seed)


@claim("lab.slow-mode", TwoModes, Source("icl_lab", "elimination of the settled mode", "extended"))
def slow_mode(setting: TwoModes) -> list[Check]:
    """After the drop a weak mode goes on alone for a time of order 1 / lambda_2^2, by an equation of its own.

    Gradient flow of the exact loss in all entries, from u = sigma and U = sigma I / sqrt 2, is stopped by events of the solver
    where the weak mode reaches the shares `low` and `high` of its limit; expected is an integral over that mode alone. A time
    that is off by more than a per cent would make it fail.
    """
    regression, sigma, low, high = setting.regression(), setting.sigma, setting.low, setting.high
    slow = np.linalg.eigh(regression.covariance)[1][:, 0]
    limit = slow @ theory.lsa.optimal_preconditioner(regression.problem) @ slow
    start = initializers.zhang(2, sigma)

    def share(weights: LSAWeights) -> float:
        return float(_u(weights) * (slow @ weights.w_kq[:2, :2] @ slow) / limit)

    def time_between(low: float, high: float) -> float:
        large, small = setting.spectrum
        return theory.timecourse.slow_mode_time(large, small, setting.s2, setting.N, low, high)

    drop = theory.timecourse.plateau_time(regression.problem, sigma, np.eye(2) / np.sqrt(2), 0.5)
    end = max(drop, 0.0) + 3 * time_between(0.0, high)
    events = [lambda w, level=level: share(w) - level for level in (low, high)]
    path = Integrator(exact(regression.task()), start)(start, end, events, method="LSODA", rtol=1e-9, stop=True)
    return [check.exact("time_between_shares", path.crossings[1][0] - path.crossings[0][0], time_between(low, high), 0.01)]
