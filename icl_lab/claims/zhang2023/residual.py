"""Claims about layers trained on exponential or rotated covariances: errors that no context length removes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number, spectrum, table
from icl_lab.claims.settings.flow_paths import structured
from icl_lab.claims.settings.regression import NoisySetting, RegressionSetting, covariance
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.claims.simulation import simulate, simulated_risk
from icl_lab.claims.zhang2023.measurements import LIMIT_TOLERANCE, gradient, minimiser, no_gradient, prompts, risk_on, trained
from icl_lab.claims.zhang2023.settings import INFINITE, INFINITE_TOLERANCE, INFINITE_TRAINING, MODEL, PAPER, RandomSetting
from icl_lab.core.typing import Array
from icl_lab.objectives import RegressionLoss
from icl_lab.tasks import ExponentialDiagonal, RotatedSpectrum
from icl_lab.tasks.regression.linear import LinearRegression

# Factors c of the test covariances in the paper's experiment.
FACTORS = (1.0, 4.0, 9.0)


class ExponentialSetting(Seeded, RegressionSetting):
    """Covariances with independent exponential eigenvalues, and beside them the identity, which is their mean."""

    d = 4
    N: int = integer(10, 1, "context length", "of training")
    M: int = integer(10, 1, "test context length")
    c: float = number(1.0, positive=True, meaning="scale of the test inputs", detail=": the mean of their eigenvalues")
    samples: int = integer(400_000, 1_000, "number of draws", "of prompts")

    def exponential(self, length: int, factor: float = 1.0) -> RegressionLoss:
        """The exact half loss for independent exponential eigenvalues of mean c, on prompts of one length.

        Given the eigenvalues the loss is a polynomial of degree three in them, so that a cubature of that degree averages it
        exactly: the mean and two points on a line along each axis, which match the central moments 0, 1, 2 of Exp(1).
        """
        d = self.d
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


@claim("zhang2023.residual", ExponentialSetting, Source(PAPER, "discussion of Theorem 4.5 and Figure 1"))
def residual_error(setting: ExponentialSetting) -> list[Check]:
    """Trained on exponential covariances the layer becomes N/(3N+d+5) I, and its error per coordinate tends to
    c (2c^2/3 - 4c/3 + 1) instead of 0.

    One Newton step on the exact loss from u = 1, U = 0 finds the layer, where the gradient has to vanish (no flow is run); its
    risk is exact at several M and c, and simulated. A second layer, from gradient flow on the identity, is tested beside it.
    A preconditioner that tends to I/2 in place of I/3, or a risk that tends to 0, would make it fail.
    """
    d, N, M, c, eye = setting.d, setting.N, setting.M, setting.c, np.eye(setting.d)
    exponential = setting.exponential
    objective = exponential(N)
    weights = minimiser(objective)
    fixed = trained(setting.task()).limit
    key = setting.key
    mean, error = simulated_risk(lambda prompt: MODEL(weights, prompt), exponential(M, c).task, key, setting.samples)
    risk, best = theory.random_covariance.exponential_risk, theory.random_covariance.exponential_preconditioner(d, N)
    best_fixed = 1 / float(theory.zhang2023.gamma(eye, N)[0, 0])
    on_identity = risk_on(weights, prompts(eye, M)), theory.lsa.risk(theory.Problem(eye, eye, 0.0, M), best * eye)
    identity = RegressionLoss.build(prompts(eye, INFINITE_TRAINING), MODEL)
    infinite, infinite_fixed = map(_best_step, (exponential(INFINITE_TRAINING), identity))
    limits, fixed_limits = (
        [exponential(INFINITE, factor).risk(structured(1.0, step * eye)) / d for factor in FACTORS]
        for step in (infinite, infinite_fixed)
    )
    limit_on_identity = risk_on(structured(1.0, infinite * eye), prompts(eye, INFINITE)) / d
    third = theory.random_covariance.exponential_preconditioner(d, np.inf)
    expected_limits, expected_fixed_limits = ([risk(step, 1, np.inf, factor) for factor in FACTORS] for step in (third, 1.0))
    return [
        *no_gradient(gradient(objective, weights), LIMIT_TOLERANCE * d),
        check.exact("preconditioner", weights.w_kq[:d, :d], best * eye, LIMIT_TOLERANCE),
        *(
            check.exact(name, exponential(m, factor).risk(weights), risk(best, d, m, factor), LIMIT_TOLERANCE)
            for name, m, factor in (("risk", M, c), ("risk_at_4M", 4 * M, c), ("risk_at_2c", M, 2 * c))
        ),
        check.sampled("simulated_risk", mean, risk(best, d, M, c), error),
        check.exact("risk_on_identity", *on_identity, LIMIT_TOLERANCE),
        check.exact("fixed_preconditioner", fixed.w_pv[-1, -1] * fixed.w_kq[:d, :d], best_fixed * eye, LIMIT_TOLERANCE),
        check.exact("fixed_risk", exponential(M, c).risk(fixed), risk(best_fixed, d, M, c), LIMIT_TOLERANCE),
        check.exact(
            "fixed_risk_on_identity", risk_on(fixed, prompts(eye, M)), theory.transfer.isotropic_risk(d, N, M), LIMIT_TOLERANCE
        ),
        check.exact("limits_per_coordinate_c_1_4_9", limits, expected_limits, INFINITE_TOLERANCE),
        check.exact("limit_per_coordinate_on_identity", limit_on_identity, (1 - third) ** 2, INFINITE_TOLERANCE),
        check.exact("fixed_limits_per_coordinate_c_1_4_9", fixed_limits, expected_fixed_limits, INFINITE_TOLERANCE),
    ]


class RotatedSetting(RandomSetting, NoisySetting):
    """Covariances with random eigenvectors, tasks of any covariance, and noisy labels."""

    N: int = integer(6, 1, "context length", "of training")
    values: list[list[float]] | None = table(
        None, meaning="values > 0 of each eigenvalue", detail="; null: (1, 3), (1/2, 2), (1/5, 7/10) and so on"
    )
    Om: list[float] | None = spectrum(
        "eigenvalues of the task covariance", "where the covariances are finitely many; null: all 1"
    )
    samples: int = integer(200_000, 1_000, "number of draws", "of prompts with Haar-random eigenvectors")

    default_rows = ([[1.0, 3.0], [0.5, 2.0], [0.2, 0.7]], [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])

    @property
    def task_covariance(self) -> Array:
        return np.eye(self.d) if self.Om is None else covariance(self.Om, self.d, True, self.seed, "tasks")


@claim(
    "lab.rotated-covariance",
    RotatedSetting,
    Source("icl_lab, extending arXiv 2306.09927 Theorem 4.5", "second moments, averaged over the covariance", "extended"),
)
def rotated_covariance(setting: RotatedSetting) -> list[Check]:
    """With Haar-random eigenvectors the best preconditioner is a multiple beta of the identity; for any distribution of
    covariances it solves E[C_N (x) Lam] vec B = vec E[Lam Om Lam].

    For finitely many covariances, each with a random basis, one Newton step on the exact loss from u = 1, U = 0 finds the best
    weights; for Haar-random ones beta and the gradient at it are means over simulated prompts. Nothing is trained. The
    transposed solution, or a beta without the third moment of the eigenvalues, would make it fail.
    """
    d, N, s2, samples = setting.d, setting.N, setting.s2, setting.samples
    covariances, weights = setting.support(rotate=True)
    finite = RegressionLoss(setting.task(), MODEL, covariances, weights)
    best = minimiser(finite)
    problems = [theory.Problem(matrix, setting.task_covariance, s2, N) for matrix in covariances]
    step = theory.random_covariance.optimal_preconditioner(problems, weights)
    beta = theory.random_covariance.rotated_scale(*setting.rows, s2, N)
    haar = LinearRegression(dim=d, context_length=N, covariates=RotatedSpectrum(*setting.rows), noise_std=np.sqrt(s2))
    at_beta = structured(np.sqrt(beta), np.sqrt(beta) * np.eye(d))

    def statistics(key):
        prompt = haar.sample(key)
        slope = jax.grad(lambda w: 0.5 * jnp.sum((MODEL(w, prompt) - prompt.target) ** 2))(at_beta)
        unit = MODEL(structured(1.0, np.eye(d)), prompt)[0]
        return jnp.concatenate([jnp.stack([unit * prompt.target[0], unit**2]), slope.w_kq[:d, :d].ravel()])

    drawn = simulate(statistics, setting.stream("prompts"), samples)
    ratio = np.mean(drawn[:, 0]) / np.mean(drawn[:, 1])
    spread = np.std(drawn[:, 0] - ratio * drawn[:, 1], ddof=1) / np.sqrt(samples) / np.mean(drawn[:, 1])
    slopes, errors = np.mean(drawn[:, 2:], axis=0), np.std(drawn[:, 2:], axis=0, ddof=1) / np.sqrt(samples)
    return [
        *no_gradient(gradient(finite, best), LIMIT_TOLERANCE * float(finite.task.label_variance)),
        check.exact("preconditioner", best.w_kq[:d, :d].T, step, LIMIT_TOLERANCE),
        check.sampled("beta", ratio, beta, spread),
        check.sampled("gradient_at_beta_abs", slopes, np.zeros(d**2), errors),
    ]
