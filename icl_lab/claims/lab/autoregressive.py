"""Claims of the lab about AR(p) series: their moments, their coefficients, and estimators in context."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import estimators, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Parameter, Source, integer, number, vector
from icl_lab.claims.registry import claim
from icl_lab.claims.simulation import mean_with_error, simulate
from icl_lab.core import compiled, prng
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.series.autoregressive import Autoregressive, RandomAutoregressive, check_stationary, partial_autocorrelations

PAPER = "icl_lab, on the series of arXiv 2510.09776"
EXACT_TOLERANCE = 1e-10
SERIES = {1: [0.5], 2: [0.5, -0.3], 3: [0.4, -0.2, 0.3]}
"""Coefficients of the examples, by order; higher orders continue the last with zeros."""

SIGMA = number(1.0, positive=True, meaning="standard deviation of the innovations")
SEED = integer(0, 0, "of weights and prompts")
SAMPLES = integer(100_000, 0, "simulated series; 0: no simulation")
RHO = vector(SERIES[2], "AR coefficients, nearest lag first")


def _share(value) -> float:
    share = number(1.0, positive=True).convert(value)
    if share > 1:
        raise ValueError
    return share


def _coefficients(rho, p: int) -> np.ndarray:
    """`rho`, or the example of order p if it is null."""
    if rho is not None:
        return np.asarray(rho)
    example = SERIES[min(p, 3)]
    return np.array(example + [0.0] * (p - len(example)))


def validate_series(rho, **_) -> None:
    if rho is not None:
        check_stationary(np.asarray(rho))


@claim(
    "lab.ar-moments",
    statement="The variance of a stationary AR(p) series solves the Yule-Walker and the Lyapunov equations, and is sigma^2 "
    "times the sum of squared impulse responses, and sigma^2 over the product of 1 - r_k^2, r_k the partial autocorrelations.",
    source=Source(PAPER, "Yule-Walker equations, Durbin-Levinson recursion", "extended"),
    parameters={"rho": RHO, "sigma": SIGMA, "samples": SAMPLES, "seed": SEED},
    validate=validate_series,
    extra_settings=({"rho": [1.2, -0.5], "samples": 0}, {"rho": [0.4, -0.2, 0.3], "samples": 0}),
)
def moments_of_a_series(rho, sigma, samples, seed) -> list[Check]:
    rho = _coefficients(rho, 2)
    task = Autoregressive(rho, context_length=2 * len(rho) + 5, noise_std=sigma)
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
    if not samples:
        return checks
    # The window at the end of a series: what a wrong distribution of the start would spoil.
    windows = simulate(lambda key: jnp.asarray(task.sample(key).query), jax.random.key(seed), samples)
    products = windows[:, :, None] * windows[:, None, :]
    error = np.std(products, axis=0, ddof=1) / np.sqrt(samples)
    return [*checks, check.sampled("simulated_covariance", np.mean(products, axis=0), covariance, error)]


@claim(
    "lab.ar-prior",
    statement="Independent partial autocorrelations, (r_k + 1)/2 ~ Beta(floor((k+1)/2), floor(k/2) + 1), make the coefficients "
    "uniform on the region of stationary ones.",
    source=Source(
        PAPER, "the uniform distribution on the stationary region, one partial autocorrelation at a time", "extended"
    ),
    parameters={
        "p": integer(2, 1, "order"),
        "bound": Parameter(1.0, "a number in (0, 1]", _share, "rho_j = bound^j phi_j"),
        "samples": integer(400_000, 10_000, "draws of the coefficients"),
        "seed": SEED,
    },
    extra_settings=({"p": 1}, {"p": 3}),
)
def uniform_coefficients(p, bound, samples, seed) -> list[Check]:
    task = RandomAutoregressive(p, context_length=1, bound=bound)
    key = jax.random.key(seed)
    drawn = simulate(task.sample_coefficients, prng.stream(key, "coefficients"), samples)
    products = drawn[:, :, None] * drawn[:, None, :]
    mean, error = np.mean(products, axis=0), np.std(products, axis=0, ddof=1) / np.sqrt(samples)
    expected = theory.autoregressive.uniform_second_moments(p, bound)
    largest = max(float(np.max(np.abs(np.linalg.eigvals(_companions(part))))) for part in np.array_split(drawn, 8))
    checks = [
        check.sampled("second_moments", np.diag(mean), np.diag(expected), np.diag(error)),
        check.sampled("all_second_moments_abs", mean, expected, error),
        check.at_most("largest_modulus", largest, bound, 1e-6),
    ]
    if p <= 3:  # rejection from the box |phi_j| <= binom(p, j), beyond which nothing is stationary
        box = np.array([math.comb(p, j) for j in range(1, p + 1)])
        inside = _stationary(box[None, :] * np.random.default_rng(seed).uniform(-1, 1, (samples, p)))
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


@claim(
    "lab.ar-ols",
    statement="In-context least squares on N lag windows predicts the next value with excess p sigma^2 / N (1 + O(1/N)), and "
    "so does Yule-Walker.",
    source=Source(PAPER, "asymptotic normality of least squares", "extended"),
    parameters={
        "p": integer(1, 1, "order of the example series, where rho is null"),
        "rho": vector(None, "AR coefficients, nearest lag first; null: those of an example of order p"),
        "N": integer(200, 20, "lag windows in the context"),
        "sigma": SIGMA,
        "samples": integer(40_000, 1_000, "simulated series"),
        "seed": SEED,
    },
    validate=validate_series,
    extra_settings=({"p": 2}, {"p": 3}),
)
def least_squares_in_context(p, rho, N, sigma, samples, seed) -> list[Check]:
    rho = _coefficients(rho, p)
    order = len(rho)
    task = Autoregressive(rho, context_length=N, noise_std=sigma)

    prompts = compiled.jit(lambda key: task.sample_batch(key, samples))(jax.random.key(seed))
    best = np.asarray(prompts.query) @ rho[::-1]
    leading = theory.autoregressive.least_squares_excess(order, N, sigma**2)
    checks = []
    for name, estimator in (("least_squares", estimators.ols), ("yule_walker", estimators.yule_walker)):
        answers = np.asarray(compiled.jit(jax.vmap(estimator))(prompts))[:, 0]
        mean, error = mean_with_error((answers - best) ** 2 / leading)
        checks.append(check.exact(f"{name}_over_leading_term", mean, 1.0, max(12 / N, check.SIGMAS * error)))
    return checks


@claim(
    "lab.ridge-bayes",
    statement="For x_{t+1} = W x_t + noise with Gaussian entries of W, and for AR(p) with Gaussian coefficients, ridge with "
    "penalty sigma^2 / tau^2 on the context is the exact posterior mean, although the inputs are past outputs.",
    source=Source(PAPER, "Bayes' rule; the likelihood of a sequence is that of a regression", "extended"),
    parameters={
        "d": integer(1, 1, "dimension of the state, and order of the AR series"),
        "T": integer(6, 2, "observed states, so T - 1 observations of W"),
        "sigma": number(0.7, positive=True, meaning="standard deviation of the noise"),
        "tau": number(0.8, positive=True, meaning="standard deviation of an entry of W"),
        "seed": SEED,
    },
    extra_settings=({"d": 2, "T": 9}, {"d": 4, "T": 12}),
)
def ridge_is_bayes(d, T, sigma, tau, seed) -> list[Check]:
    generator = np.random.default_rng(seed)
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
