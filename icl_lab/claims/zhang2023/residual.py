"""Claims about layers trained on exponential or rotated covariances: errors that no context length removes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, integer, number, spectrum, table
from icl_lab.claims.registry import claim
from icl_lab.claims.settings.flow_paths import structured
from icl_lab.claims.settings.regression import check_spectrum, covariance
from icl_lab.claims.simulation import mean_with_error, simulate
from icl_lab.claims.zhang2023.flow import gradient
from icl_lab.claims.zhang2023.limit import PAPER
from icl_lab.claims.zhang2023.random import covariances_of, distribution_of, minimiser, validate_distribution
from icl_lab.claims.zhang2023.risk import INFINITE, INFINITE_TOLERANCE, INFINITE_TRAINING, MODEL, risk_on, trained
from icl_lab.core import prng
from icl_lab.core.typing import Array
from icl_lab.objectives import RegressionLoss
from icl_lab.tasks import ExponentialDiagonal, FiniteDiagonal, RotatedSpectrum
from icl_lab.tasks.distributions.covariates import CovariateDistribution
from icl_lab.tasks.regression.linear import LinearRegression

LIMIT_TOLERANCE = 1e-9
# Factors c of the test covariances in the paper's experiment.
FACTORS = (1.0, 4.0, 9.0)
ROTATED_DISTRIBUTION = ([[1.0, 3.0], [0.5, 2.0], [0.2, 0.7]], [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])


def _exponential(d: int, length: int, factor: float = 1.0) -> RegressionLoss:
    """The exact half loss for independent exponential eigenvalues of mean c.

    Given the eigenvalues the loss is a polynomial of degree three in them, so that a cubature of that degree averages it
    exactly: the mean and two points on a line along each axis, which match the central moments 0, 1, 2 of Exp(1).
    """
    ends = np.array([1 + np.sqrt(2), 1 - np.sqrt(2)])
    shares = 1 / (ends * (ends - ends[::-1]))
    spectra = np.concatenate([np.ones((1, d)), *(1 + end * np.eye(d) for end in ends)])
    weights = np.concatenate([[1 - d * np.sum(shares)], np.repeat(shares, d)])
    task = LinearRegression(dim=d, context_length=length, covariates=ExponentialDiagonal(d, factor))
    return RegressionLoss(task, MODEL, factor * spectra[:, :, None] * np.eye(d), weights)


def _best_step(objective: RegressionLoss) -> float:
    """The best multiple of the identity as preconditioner: the risk is a parabola in it."""
    d = objective.task.dim
    low, zero, high = (objective.risk(structured(1.0, step * np.eye(d))) for step in (-1.0, 0.0, 1.0))
    return (low - high) / (2 * (low + high - 2 * zero))


def _simulated_risk(weights, task: LinearRegression, key, samples: int) -> tuple[float, float]:
    def squared_error(one):
        prompt = task.sample(one)
        return jnp.sum((MODEL(weights, prompt) - prompt.target) ** 2)

    return mean_with_error(simulate(squared_error, key, samples))


@claim(
    "zhang2023.residual",
    statement="Trained on exponential covariances the layer becomes N/(3N+d+5) I, and its error per coordinate tends to "
    "c (2c^2/3 - 4c/3 + 1) instead of 0.",
    source=Source(PAPER, "discussion of Theorem 4.5 and Figure 1"),
    parameters={
        "d": integer(4, 1, "input dimension"),
        "N": integer(10, 1, "training context length"),
        "M": integer(10, 1, "test context length"),
        "c": number(1.0, positive=True, meaning="mean of the test eigenvalues"),
        "samples": integer(400_000, 1_000, "test prompts"),
        "seed": integer(0, 0, "of the prompts"),
    },
)
def residual_error(d, N, M, c, samples, seed) -> list[Check]:
    eye = np.eye(d)
    objective = _exponential(d, N)
    weights = minimiser(objective)
    slope = gradient(objective, weights)
    fixed = trained(eye, N)
    mean, error = _simulated_risk(weights, _exponential(d, M, c).task, jax.random.key(seed), samples)
    risk, best = theory.random_covariance.exponential_risk, theory.random_covariance.exponential_preconditioner(d, N)
    best_fixed = 1 / float(theory.zhang2023.gamma(eye, N)[0, 0])
    identity = LinearRegression(dim=d, context_length=INFINITE_TRAINING)
    infinite, infinite_fixed = map(_best_step, (_exponential(d, INFINITE_TRAINING), RegressionLoss.build(identity, MODEL)))
    limits, fixed_limits = (
        [_exponential(d, INFINITE, factor).risk(structured(1.0, step * eye)) / d for factor in FACTORS]
        for step in (infinite, infinite_fixed)
    )
    third = theory.random_covariance.exponential_preconditioner(d, np.inf)
    return [
        check.exact("gradient_of_w_pv_abs", slope.w_pv, np.zeros((d + 1, d + 1)), LIMIT_TOLERANCE * d),
        check.exact("gradient_of_w_kq_abs", slope.w_kq, np.zeros((d + 1, d + 1)), LIMIT_TOLERANCE * d),
        check.exact("preconditioner", weights.w_kq[:d, :d], best * eye, LIMIT_TOLERANCE),
        check.exact("risk", _exponential(d, M, c).risk(weights), risk(best, d, M, c), LIMIT_TOLERANCE),
        check.exact("risk_at_4M", _exponential(d, 4 * M, c).risk(weights), risk(best, d, 4 * M, c), LIMIT_TOLERANCE),
        check.exact("risk_at_2c", _exponential(d, M, 2 * c).risk(weights), risk(best, d, M, 2 * c), LIMIT_TOLERANCE),
        check.sampled("simulated_risk", mean, risk(best, d, M, c), error),
        check.exact(
            "risk_on_identity", risk_on(weights, eye, M), theory.lsa.risk(best * eye, eye, eye, 0.0, M), LIMIT_TOLERANCE
        ),
        check.exact(
            "fixed_preconditioner", fixed.limit.w_pv[-1, -1] * fixed.limit.w_kq[:d, :d], best_fixed * eye, LIMIT_TOLERANCE
        ),
        check.exact("fixed_risk", _exponential(d, M, c).risk(fixed.limit), risk(best_fixed, d, M, c), LIMIT_TOLERANCE),
        check.exact(
            "fixed_risk_on_identity",
            risk_on(fixed.limit, eye, M),
            theory.transfer.isotropic_risk(d, N, M),
            LIMIT_TOLERANCE,
        ),
        check.exact(
            "limits_per_coordinate_c_1_4_9", limits, [risk(third, 1, np.inf, factor) for factor in FACTORS], INFINITE_TOLERANCE
        ),
        check.exact(
            "limit_per_coordinate_on_identity",
            risk_on(structured(1.0, infinite * eye), eye, INFINITE) / d,
            (1 - third) ** 2,
            INFINITE_TOLERANCE,
        ),
        check.exact(
            "fixed_limits_per_coordinate_c_1_4_9",
            fixed_limits,
            [risk(1.0, 1, np.inf, factor) for factor in FACTORS],
            INFINITE_TOLERANCE,
        ),
    ]


def _validate_rotated(d, Om, **distribution) -> None:
    check_spectrum(Om, d, "Om")
    validate_distribution(d, **distribution)


@claim(
    "lab.rotated-covariance",
    statement="With Haar-random eigenvectors the best preconditioner is a multiple beta of the identity; for any distribution "
    "of "
    "covariances it solves E[C_N (x) Lam] vec B = vec E[Lam Om Lam].",
    source=Source(
        "icl_lab, extending arXiv 2306.09927 Theorem 4.5", "second moments, averaged over the covariance", "extended"
    ),
    parameters={
        "d": integer(3, 1, "input dimension"),
        "N": integer(6, 1, "training context length"),
        "values": table(None, meaning="values > 0 of each eigenvalue; null: (1, 3), (1/2, 2), (1/5, 7/10) and so on"),
        "probabilities": table(None, 0.0, meaning="their probabilities; null: equal ones"),
        "Om": spectrum("eigenvalues of the tasks' covariance where the covariances are finitely many; null: all 1"),
        "s2": number(0.0, 0.0, "variance of the label noise"),
        "samples": integer(200_000, 1_000, "prompts with Haar-random eigenvectors"),
        "seed": integer(0, 0, "of bases and prompts"),
    },
    validate=_validate_rotated,
)
def rotated_covariance(d, N, values, probabilities, Om, s2, samples, seed) -> list[Check]:
    distribution = distribution_of(d, values, probabilities, ROTATED_DISTRIBUTION)
    tasks = np.eye(d) if Om is None else covariance(Om, d, True, seed, "tasks")
    diagonal = FiniteDiagonal(*distribution)
    covariances, weights = covariances_of(diagonal, True, seed)
    finite = RegressionLoss(_task(diagonal, N, s2, tasks), MODEL, covariances, weights)
    best = minimiser(finite)
    slope = gradient(finite, best)
    step = theory.random_covariance.optimal_preconditioner(covariances, weights, tasks, s2, N)
    beta = theory.random_covariance.rotated_scale(*distribution, s2, N)
    task = _task(RotatedSpectrum(*distribution), N, s2, np.eye(d))
    at_beta = structured(np.sqrt(beta), np.sqrt(beta) * np.eye(d))

    def statistics(key):
        prompt = task.sample(key)
        slope = jax.grad(lambda w: 0.5 * jnp.sum((MODEL(w, prompt) - prompt.target) ** 2))(at_beta)
        unit = MODEL(structured(1.0, np.eye(d)), prompt)[0]
        return jnp.concatenate([jnp.stack([unit * prompt.target[0], unit**2]), slope.w_kq[:d, :d].ravel()])

    drawn = simulate(statistics, prng.stream(jax.random.key(seed), "prompts"), samples)
    ratio = np.mean(drawn[:, 0]) / np.mean(drawn[:, 1])
    spread = np.std(drawn[:, 0] - ratio * drawn[:, 1], ddof=1) / np.sqrt(samples) / np.mean(drawn[:, 1])
    slopes, errors = np.mean(drawn[:, 2:], axis=0), np.std(drawn[:, 2:], axis=0, ddof=1) / np.sqrt(samples)
    scale = float(finite.task.label_variance)
    return [
        check.exact("gradient_of_w_pv_abs", slope.w_pv, np.zeros((d + 1, d + 1)), LIMIT_TOLERANCE * scale),
        check.exact("gradient_of_w_kq_abs", slope.w_kq, np.zeros((d + 1, d + 1)), LIMIT_TOLERANCE * scale),
        check.exact("preconditioner", best.w_kq[:d, :d].T, step, LIMIT_TOLERANCE),
        check.sampled("beta", ratio, beta, spread),
        check.sampled("gradient_at_beta_abs", slopes, np.zeros(d**2), errors),
    ]


def _task(distribution: CovariateDistribution, N: int, noise_variance: float, tasks: Array) -> LinearRegression:
    return LinearRegression(
        dim=distribution.dim,
        context_length=N,
        covariates=distribution,
        task_covariance=tasks,
        noise_std=np.sqrt(noise_variance),
    )
