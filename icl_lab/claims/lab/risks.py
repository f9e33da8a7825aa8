"""Claims about risks: the layer under any shift, the Bayes predictor, and where the layer wins or loses."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab import estimators, models, objectives, theory
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.lab.settings import AnisotropicSetting, RiskSetting
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number, spectrum
from icl_lab.claims.settings.regression import GeneralSetting, NoisySetting, covariance
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.claims.simulation import mean_with_error, normal_batches, simulate, simulated_risk
from icl_lab.core import prng
from icl_lab.core.linalg import psd_root
from icl_lab.core.typing import Array
from icl_lab.models import LSAWeights, initializers
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.regression.linear import LinearRegression

MODEL = models.LinearSelfAttention()
EXACT_TOLERANCE = 1e-11
# The flow stops at this relative weight error, and the risk is quadratic around its end.
RISK_TOLERANCE = 1e-10
# With fewer examples beyond d to spare, squared errors of least squares have infinite or wild variance.
SPARE_FOR_PLAIN_SAMPLING = 6
SHORTEST_LIMIT = 100


def _step(preconditioner: Float[Array, "d d"]) -> LSAWeights:
    """The structured weights of yhat = x_q^T B (1/M) sum_i y_i x_i."""
    dim = len(preconditioner)
    return LSAWeights(np.diag(np.append(np.zeros(dim), 1.0)), np.pad(np.asarray(preconditioner).T, ((0, 1), (0, 1))))


class ShiftSetting(RiskSetting):
    """Prompts of a test length, and queries of a distribution of their own."""

    d = 3
    M: int = integer(6, 1, "test context length")
    Lam_q: list[float] | None = spectrum("eigenvalues of the query's second moment", "; null: 3 down to 1/2")

    @property
    def query_moment(self) -> Float[Array, "d d"]:
        """E[x_q x_q^T] of a shifted query."""
        return covariance(self.Lam_q, self.d, self.rotate, self.seed, "query", largest=3.0)


@claim(
    "lab.risk-shift",
    ShiftSetting,
    Source("icl_lab, extending arXiv 2306.09927 section 4.2", "second moments of the mean of y x", "extended"),
)
def risk_under_shift(setting: ShiftSetting) -> list[Check]:
    """The risk of any bilinear predictor under any shift of inputs, tasks, noise, length, query or label distribution is a
    closed form in second moments.

    Nothing is trained: the predictor is the optimum for Lam = I at length N, disturbed at random. Its exact loss at length M
    for random tasks and for one task, and the mean squared error on simulated prompts with queries of another second moment
    and with rectified labels, are compared with the formula. A covariance in place of a second moment would make it fail.
    """
    d, M, s2, inputs, tasks = setting.d, setting.M, setting.s2, setting.covariance, setting.task_covariance
    key = setting.key
    # Neither trained on the test distribution nor symmetric: the optimum of Lam = I at length N, disturbed.
    disturbance = np.asarray(jax.random.normal(prng.stream(key, "disturbance"), (d, d)))
    step = np.asarray(theory.lsa.optimal_preconditioner(theory.Problem(np.eye(d), np.eye(d), 0.0, setting.N)))
    step = step + 0.3 * disturbance / np.sqrt(d)
    weights = _step(step)
    vector = np.asarray(psd_root(tasks) @ jax.random.normal(prng.stream(key, "vector"), (d,)))
    checks = []
    for name, second_moment in (("random_tasks", tasks), ("one_task", np.outer(vector, vector))):
        task = LinearRegression(d, M, inputs, second_moment, np.sqrt(s2))
        expected = theory.lsa.risk(theory.Problem(inputs, second_moment, s2, M), step)
        checks.append(check.exact(f"risk_{name}", objectives.population(task, MODEL).risk(weights), expected, EXACT_TOLERANCE))
    at_test = dataclasses.replace(setting, N=M)
    task = at_test.task()
    root, roots = jnp.asarray(psd_root(inputs)), jnp.asarray(psd_root(setting.query_moment))

    def shifted_query(one):
        prompt = task.sample(one)
        # The first coordinate is constant: a second moment of Lam_q, but not a covariance.
        white = jax.random.normal(prng.stream(one, "query"), (d,)).at[0].set(1.0)
        moved = Prompt(prompt.inputs, prompt.labels, roots @ white, (roots @ white @ prompt.latent)[None])
        return jnp.sum((MODEL(weights, moved) - moved.target) ** 2)

    def rectified_labels(one):
        rows = jax.random.normal(prng.stream(one, "inputs"), (M + 1, d)) @ root
        labels = jnp.maximum(rows @ vector, 0.0)[:, None]
        noisy = labels[:-1] + np.sqrt(s2) * jax.random.normal(prng.stream(one, "noise"), (M, 1))
        prompt = Prompt(rows[:-1], noisy, rows[-1], labels[-1])
        return jnp.sum((MODEL(weights, prompt) - prompt.target) ** 2)

    mean, error = mean_with_error(simulate(shifted_query, prng.stream(key, "shifted query"), setting.samples))
    expected = theory.lsa.risk(at_test.problem, step, setting.query_moment)
    checks.append(check.sampled("risk_shifted_query", mean, expected, error))
    mean, error = mean_with_error(simulate(rectified_labels, prng.stream(key, "rectified"), setting.samples))
    expected = theory.nonlinear.bilinear_risk(step, inputs, *theory.nonlinear.rectified_distribution(inputs, vector, s2), M)
    return [*checks, check.sampled("risk_rectified_labels", mean, expected, error)]


class BayesSetting(GeneralSetting):
    """Isotropic inputs and tasks, unless spectra are given."""

    d = 5
    N = 8
    s2: float = number(0.25, positive=True, meaning="variance of the label noise")
    Lam: list[float] | None = spectrum("eigenvalues of the input covariance", "; null: all 1")
    penalty: float = number(1.0, positive=True, meaning="penalty of the other ridge predictor", detail=", for Lam = Om = I")
    samples: int = integer(100_000, 10_000, "number of draws", "of prompts")

    @property
    def covariance(self) -> Float[Array, "d d"]:
        return covariance(self.Lam or [1.0] * self.d, self.d, self.rotate, self.seed, self.inputs_basis)


@claim(
    "lab.bayes",
    BayesSetting,
    Source(
        "icl_lab; Bayes predictor of arXiv 2307.03576 Lemma 1",
        "Lemma 1 of arXiv 2307.03576; de Bruijn's Pfaffian formula",
        "extended",
    ),
)
def bayes(setting: BayesSetting) -> list[Check]:
    """The Bayes predictor is ridge with penalty s2 Om^{-1}; on isotropic problems its risk, and that of any ridge,
    is an integral over Wishart eigenvalues, always below that of the layer.

    Ridge is run on simulated prompts, with the Bayes penalty and with another one; the layer's risk is that of the exact loss
    where gradient flow from a structured start of a third of the limit's scale ends. Another penalty, half the noise in the
    formula, or a layer below the Bayes risk would make it fail.
    """
    key, samples = setting.key, setting.samples
    task = setting.task()
    plain = NoisySetting(d=setting.d, N=setting.N, s2=setting.s2).task()

    def ridge(penalty, on: LinearRegression, stream: str) -> tuple[float, float]:
        return simulated_risk(lambda prompt: estimators.ridge(prompt, penalty), on, prng.stream(key, stream), samples)

    mean, error = ridge(_bayes_penalty(setting), task, "bayes")
    contexts = normal_batches(samples, setting.N, setting.d, seed=setting.seed)
    expected, uncertainty = theory.bayes.risk(setting.problem, contexts)
    other, other_error = ridge(setting.penalty, plain, "ridge")
    integral = theory.bayes.isotropic_ridge_risk(setting.d, setting.N, setting.s2, setting.penalty)
    layer = _trained_risk(task)
    return [
        check.sampled("bayes_risk", mean, expected, math.hypot(error, uncertainty)),
        check.sampled("ridge_risk", other, integral, other_error),
        check.exact("layer_risk", layer, theory.lsa.minimum_risk(setting.problem), RISK_TOLERANCE),
        check.at_least("layer_above_bayes", layer, expected - check.SIGMAS * uncertainty),
    ]


def _bayes_penalty(setting: GeneralSetting) -> Float[Array, "d d"]:
    """The penalty s2 Om^{-1} with which ridge is the Bayes predictor."""
    inverse = np.linalg.inv(setting.task_covariance)
    return setting.s2 * (inverse + inverse.T) / 2


def _trained_risk(task: LinearRegression) -> float:
    """The layer's risk after gradient flow from the structured start on the scale of the limit: no plateau is asked about."""
    scale = float(np.linalg.norm(np.linalg.inv(task.covariance))) ** 0.5
    objective = objectives.population(task, MODEL)
    return objective.risk(convergence.to_limit(objective, initializers.zhang(task.dim, 0.3 * scale)).limit)


class CrossoverSetting(Seeded):
    """Isotropic inputs and tasks, at context lengths around those where the better predictor changes."""

    d: int = integer(5, 1, "dimension", "of the inputs")
    s2: float = number(4.0, 0.0, "variance of the label noise")
    samples: int = integer(100_000, 10_000, "number of draws", "of prompts")

    def at(self, length: int) -> NoisySetting:
        """The problem at a context length."""
        return NoisySetting(d=self.d, N=length, s2=self.s2)


@claim(
    "lab.crossover",
    CrossoverSetting,
    Source("icl_lab", "comparison of d (d + 1 + s2) / (N + d + 1 + s2) and s2 d / (N - d - 1)", "extended"),
)
def crossover(setting: CrossoverSetting) -> list[Check]:
    """On Lam = Om = I the layer beats least squares exactly at context lengths d + 2 <= N < d + 1 + 2 s2 + s2^2/(d+1)
    if trained at N, and at M < d + 1 + s2 if trained on infinite contexts.

    Nothing is trained: the exact loss of one gradient step is a parabola in its size, minimised (or taken at size 1) at the
    lengths around both thresholds, and least squares is an integral over Wishart eigenvalues; at one length both predictors
    are also simulated on the same prompts. A threshold that is one too early or too late would make it fail.
    """
    d, s2 = setting.d, setting.s2
    trained, infinite = theory.bayes.longest_winning_context(d, s2), theory.bayes.longest_winning_test(d, s2)
    around = [d + 2, math.floor(infinite), math.floor(infinite) + 1, math.ceil(trained) - 1, math.floor(trained) + 1]
    # A length at which the two are equal decides nothing.
    lengths = sorted({n for n in around if n >= d + 2 and min(abs(n - trained), abs(n - infinite)) > 1e-6})
    wins = np.zeros((len(lengths), 2))
    for i, length in enumerate(lengths):
        objective = objectives.population(setting.at(length).task(), MODEL)
        # The risk is a parabola in the step size of one GD step, the best layer.
        low, start, high = (objective.risk(_step(step * np.eye(d))) for step in (-1.0, 0.0, 1.0))
        best = start - (high - low) ** 2 / (8 * (high + low - 2 * start))
        # Least squares as ridge without penalty: an integral over eigenvalues, not the formula that is compared.
        rival = theory.bayes.isotropic_ridge_risk(d, length, s2, 0.0)
        wins[i] = best < rival, high < rival
    expected = np.array([[n < trained, n < infinite] for n in lengths], dtype=float)
    # One length of the comparison, simulated with both predictors on the same prompts.
    one_length = setting.at(max(math.floor(trained), d + SPARE_FOR_PLAIN_SAMPLING))
    task, step = one_length.task(), _step(theory.lsa.optimal_preconditioner(one_length.problem))

    def lead(one):
        prompt = task.sample(one)
        layer, rival = MODEL(step, prompt), estimators.ols(prompt)
        return jnp.sum((layer - prompt.target) ** 2 - (rival - prompt.target) ** 2)

    mean, error = mean_with_error(simulate(lead, setting.key, setting.samples))
    difference = theory.lsa.minimum_risk(one_length.problem) - theory.bayes.ols_risk(d, one_length.N, s2)
    return [
        check.exact("who_wins_at_each_length_abs", wins, expected, 0.0),
        check.sampled("simulated_difference_abs", mean, difference, error),
    ]


class LongContexts(AnisotropicSetting):
    """Contexts long enough for their limit to be read off two of them."""

    N: int = integer(
        200, 1, "context length", "of the shorter simulations, of which the others have twice; never below 100 and 200"
    )
    s2: float = number(0.25, positive=True, meaning="variance of the label noise")
    samples: int = integer(20_000, 1_000, "number of draws", "of prompts")

    def at(self, length: int) -> LinearRegression:
        """The task at a context length."""
        return dataclasses.replace(self, N=length).task()


@claim("lab.one-over-N", LongContexts, Source("icl_lab", "large-N limits of lab.global-min, lab.bayes and lab.ols", "extended"))
def one_over_n(setting: LongContexts) -> list[Check]:
    """N times the excess risk tends to (d + 1) tr(Lam Om) + d s2 for the layer, to d s2 for Bayes and least squares.

    The layer's risk is that of the exact loss at the end of gradient flow from structured starts, at lengths 5000 N and
    10000 N; ridge with the Bayes penalty and least squares are simulated at N and 2N on the same prompts. Two lengths remove
    the first correction. A limit without the layer's (d + 1) tr(Lam Om), or with it for the others, would make it fail.
    """
    N, penalty = max(setting.N, SHORTEST_LIMIT), _bayes_penalty(setting)
    # N R(N) = limit + a/N + ...; lengths N and 2N remove the first correction.
    once, twice = (length * _trained_risk(setting.at(length)) for length in (5000 * N, 10_000 * N))
    limit = theory.bayes.scaled_limit(setting.problem)
    checks = [check.exact("layer", 2 * twice - once, limit, 1e-6)]

    def scaled_errors(task: LinearRegression) -> Float[np.ndarray, "samples 2"]:
        def pair(one):
            prompt = task.sample(one)
            answers = jnp.stack([estimators.ridge(prompt, penalty), estimators.ols(prompt)])
            return task.context_length * (answers[:, 0] - prompt.target) ** 2

        key = setting.stream(f"prompts {task.context_length}")
        return simulate(pair, key, setting.samples)

    first, second = scaled_errors(setting.at(N)), scaled_errors(setting.at(2 * N))
    for i, name in enumerate(("bayes", "least_squares")):
        (low, low_error), (high, high_error) = mean_with_error(first[:, i]), mean_with_error(second[:, i])
        checks.append(check.sampled(name, 2 * high - low, setting.d * setting.s2, math.hypot(2 * high_error, low_error)))
    return checks
