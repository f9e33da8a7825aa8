"""Claims of the lab about AR(p) series: their moments, their coefficients, and estimators in context."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import estimators, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number, restricted, vector
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.claims.simulation import mean_with_error, simulate
from icl_lab.core import compiled, prng
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.series.autoregressive import Autoregressive, RandomAutoregressive, check_stationary, partial_autocorrelations

PAPER = "icl_lab, on the series of arXiv 2510.09776"
EXACT_TOLERANCE = 1e-10
SERIES = {1: [0.5], 2: [0.5, -0.3], 3: [0.4, -0.2, 0.3]}
"""Coefficients of the examples, by order; higher orders continue the last with zeros."""


class InnovationsSetting(Seeded):
    """Gaussian innovations."""

    sigma: float = number(1.0, positive=True, meaning="standard deviation of the innovations")


class SeriesSetting(InnovationsSetting):
    """A stationary AR(p) series."""

    rho: list[float] | None = vector(SERIES[2], "autoregressive coefficients", ", nearest lag first")
    samples: int = integer(100_000, 0, "number of draws", "of series; 0: no simulation")

    @property
    def coefficients(self) -> np.ndarray:
        """`rho`, or those of the example of order 2 if it is null."""
        return np.asarray(SERIES[2] if self.rho is None else self.rho)

    def validate(self) -> None:
        super().validate()
        check_stationary(self.coefficients)

    def task(self, length: int) -> Autoregressive:
        """The series as prompts of `length` lag windows."""
        return Autoregressive(self.coefficients, context_length=length, noise_std=self.sigma)


@claim(
    "lab.ar-moments",
    SeriesSetting,
    Source(PAPER, "Yule-Walker equations, Durbin-Levinson recursion", "extended"),
    extra_settings=({"rho": [1.2, -0.5], "samples": 0}, {"rho": [0.4, -0.2, 0.3], "samples": 0}),
)
def moments_of_a_series(setting: SeriesSetting) -> list[Check]:
    """The variance of a stationary AR(p) series solves the Yule-Walker and the Lyapunov equations, and is sigma^2 times the
    sum of squared impulse responses, and sigma^2 over the product of 1 - r_k^2, r_k the partial autocorrelations.

    Nothing is trained. The task's own covariance of a window, which solves the Yule-Walker equations, is compared with the
    three other formulas, and with windows at the end of simulated series. A product that leaves out the last partial
    autocorrelation, or series that do not start stationary, would make it fail.
    """
    rho, sigma = setting.coefficients, setting.sigma
    task = setting.task(2 * len(rho) + 5)
    covariance = theory.autoregressive.lyapunov_covariance(rho, sigma**2)
    variance = float(task.autocovariances(1)[0])
    partial = np.asarray(partial_autocorrelations(jnp.asarray(rho)))
    by_impulse = theory.autoregressive.variance_from_impulse_response(rho, sigma**2)
    by_partial = theory.autoregressive.variance_from_partial_autocorrelations(rho, sigma**2)
    checks = [
        check.exact("covariance", task.covariance, covariance, EXACT_TOLERANCE),
        check.exact("variance_by_lyapunov", variance, covariance[0, 0], EXACT_TOLERANCE),
        check.exact("variance_by_impulse_response", variance, by_impulse, EXACT_TOLERANCE),
        check.exact("variance_by_partial_autocorrelations", variance, by_partial, EXACT_TOLERANCE),
        check.exact("partial_autocorrelations", sigma**2 / np.prod(1 - partial**2), covariance[0, 0], EXACT_TOLERANCE),
        check.exact("signal", rho @ task.covariance @ rho, by_impulse - sigma**2, EXACT_TOLERANCE),
    ]
    if not setting.samples:
        return checks
    # The window at the end of a series: what a wrong distribution of the start would spoil.
    windows = simulate(lambda key: jnp.asarray(task.sample(key).query), setting.key, setting.samples)
    mean, error = _second_moments(windows)
    return [*checks, check.sampled("simulated_covariance", mean, covariance, error)]


def _second_moments(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of v v^T over the rows v of a sample, (p, p), and its standard errors."""
    products = draws[:, :, None] * draws[:, None, :]
    return np.mean(products, axis=0), np.std(products, axis=0, ddof=1) / np.sqrt(len(draws))


class PriorSetting(Seeded):
    """Random coefficients of a stationary series."""

    p: int = integer(2, 1, "order of the series")
    bound: float = restricted(
        number(
            1.0,
            positive=True,
            meaning="bound on the moduli of the companion matrix's eigenvalues",
            detail="; rho_j = bound^j phi_j",
        ),
        "a number in (0, 1]",
        lambda value: value <= 1,
    )
    samples: int = integer(400_000, 10_000, "number of draws", "of the coefficients")


@claim(
    "lab.ar-prior",
    PriorSetting,
    Source(PAPER, "the uniform distribution on the stationary region, one partial autocorrelation at a time", "extended"),
    extra_settings=({"p": 1}, {"p": 3}),
)
def uniform_coefficients(setting: PriorSetting) -> list[Check]:
    """Independent partial autocorrelations, (r_k + 1)/2 ~ Beta(floor((k+1)/2), floor(k/2) + 1), make the coefficients
    uniform on the region of stationary ones.

    Nothing is trained. Second moments of coefficients drawn through their partial autocorrelations, times powers of the
    bound, are compared with those of the uniform distribution, and up to order 3 the region's volume with the share of a box
    that is stationary. Beta parameters exchanged, or a power of the bound missing, would make it fail.
    """
    p, bound, samples = setting.p, setting.bound, setting.samples
    task = RandomAutoregressive(p, context_length=1, bound=bound)
    key = setting.key
    drawn = simulate(task.sample_coefficients, prng.stream(key, "coefficients"), samples)
    mean, error = _second_moments(drawn)
    expected = theory.autoregressive.uniform_second_moments(p, bound)
    largest = max(float(np.max(np.abs(np.linalg.eigvals(_companions(part))))) for part in np.array_split(drawn, 8))
    checks = [
        check.sampled("second_moments", np.diag(mean), np.diag(expected), np.diag(error)),
        check.sampled("all_second_moments_abs", mean, expected, error),
        check.at_most("largest_modulus", largest, bound, 1e-6),
    ]
    if p <= 3:  # rejection from the box |phi_j| <= binom(p, j), beyond which nothing is stationary
        box = np.array([math.comb(p, j) for j in range(1, p + 1)])
        inside = _stationary(box[None, :] * np.random.default_rng(setting.seed).uniform(-1, 1, (samples, p)))
        share, error = mean_with_error(inside.astype(float))
        if error > 0:
            volume = theory.autoregressive.stationary_volume(p)
            checks.append(check.sampled("volume", share * np.prod(2.0 * box), volume, error * np.prod(2.0 * box)))
    return checks


def _companions(coefficients: np.ndarray) -> np.ndarray:
    order = coefficients.shape[1]
    matrices = np.tile(np.eye(order, k=-1), (len(coefficients), 1, 1))
    matrices[:, 0] = coefficients
    return matrices


def _stationary(coefficients: np.ndarray) -> np.ndarray:
    return np.max(np.abs(np.linalg.eigvals(_companions(coefficients))), axis=1) < 1


class InContext(SeriesSetting):
    """The example of an order, unless coefficients are given, and contexts long enough for a leading term."""

    p: int = integer(1, 1, "order of the series", ", the example's, where rho is null")
    rho: list[float] | None = vector(
        None, "autoregressive coefficients", ", nearest lag first; null: those of an example of order p"
    )
    N: int = integer(200, 20, "context length", ", in windows")
    samples: int = integer(40_000, 1_000, "number of draws", "of series")

    @property
    def coefficients(self) -> np.ndarray:
        if self.rho is not None:
            return np.asarray(self.rho)
        example = SERIES[min(self.p, 3)]
        return np.array(example + [0.0] * (self.p - len(example)))


@claim(
    "lab.ar-ols",
    InContext,
    Source(PAPER, "asymptotic normality of least squares", "extended"),
    extra_settings=({"p": 2}, {"p": 3}),
)
def least_squares_in_context(setting: InContext) -> list[Check]:
    """In-context least squares on N lag windows predicts the next value with excess p sigma^2 / N (1 + O(1/N)), and so does
    Yule-Walker.

    Nothing is trained. Both estimators are run on the same simulated series; the mean squared distance of their predictions
    from those of the true coefficients, over the leading term, must be 1 to within 12/N or four standard errors. Twice the
    excess, or one order counted too many, would make it fail.
    """
    rho, N = setting.coefficients, setting.N
    task = setting.task(N)
    prompts = compiled.jit(lambda key: task.sample_batch(key, setting.samples))(setting.key)
    best = np.asarray(prompts.query) @ rho[::-1]
    leading = theory.autoregressive.least_squares_excess(len(rho), N, setting.sigma**2)
    checks = []
    for name, estimator in (("least_squares", estimators.ols), ("yule_walker", estimators.yule_walker)):
        answers = np.asarray(compiled.jit(jax.vmap(estimator))(prompts))[:, 0]
        mean, error = mean_with_error((answers - best) ** 2 / leading)
        checks.append(check.exact(f"{name}_over_leading_term", mean, 1.0, max(12 / N, check.SIGMAS * error)))
    return checks


class ConjugateSetting(Seeded):
    """Gaussian entries of W, and Gaussian coefficients of a series."""

    d: int = integer(1, 1, "dimension", "of the states, and order of the AR series")
    T: int = integer(6, 2, "states of a sequence", ", so T - 1 observations of W")
    sigma: float = number(0.7, positive=True, meaning="standard deviation of the noise")
    tau: float = number(0.8, positive=True, meaning="standard deviation of an entry of W")


@claim(
    "lab.ridge-bayes",
    ConjugateSetting,
    Source(PAPER, "Bayes' rule; the likelihood of a sequence is that of a regression", "extended"),
    extra_settings=({"d": 2, "T": 9}, {"d": 4, "T": 12}),
)
def ridge_is_bayes(setting: ConjugateSetting) -> list[Check]:
    """For x_{t+1} = W x_t + noise with Gaussian entries of W, and for AR(p) with Gaussian coefficients, ridge with penalty
    sigma^2 / tau^2 on the context is the exact posterior mean, although the inputs are past outputs.

    Nothing is trained. On one drawn sequence of states and one series, ridge's weights are compared with conditioning in the
    joint Gaussian distribution and, in up to two dimensions, with the posterior mean by quadrature of the likelihood. The
    penalty sigma^2 / tau, or a prior variance that is a standard deviation, would make it fail.
    """
    d, T, sigma, tau = setting.d, setting.T, setting.sigma, setting.tau
    generator = np.random.default_rng(setting.seed)
    lam = sigma**2 / tau**2
    transition = tau * generator.standard_normal((d, d))
    states = [generator.standard_normal(d)]
    for _ in range(T):
        states.append(transition @ states[-1] + sigma * generator.standard_normal(d))
    states = np.array(states)
    values = list(generator.standard_normal(d))
    for _ in range(T):
        values.append(transition[0] @ values[-d:] + sigma * generator.standard_normal())
    windows = np.lib.stride_tricks.sliding_window_view(np.array(values), d).copy()
    prompts = {
        "state": Prompt(states[: T - 1], states[1:T], states[T - 1], states[T]),
        "series": Prompt(windows[: T - 1], np.array(values)[d : d + T - 1, None], windows[T - 1], np.array(values)[-1:]),
    }
    checks = []
    for name, prompt in prompts.items():
        fitted = estimators.ridge_weights(prompt, lam)
        data = np.asarray(prompt.inputs), np.asarray(prompt.labels)
        conditioned = theory.autoregressive.conditioned_mean(*data, sigma**2, tau**2)
        checks.append(check.exact(f"{name}_by_conditioning", fitted, conditioned, EXACT_TOLERANCE))
        if d <= 2:
            integrated = theory.autoregressive.integrated_mean(*data, sigma**2, tau**2)
            checks.append(check.exact(f"{name}_by_bayes_rule", fitted, integrated, EXACT_TOLERANCE))
    return checks
