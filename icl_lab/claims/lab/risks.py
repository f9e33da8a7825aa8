"""Claims about risks: the layer under any shift, the Bayes predictor, and where the layer wins or loses."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import estimators, models, objectives, theory, training
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, flag, integer, number, spectrum
from icl_lab.claims.registry import claim
from icl_lab.claims.settings.regression import check_spectrum, covariance
from icl_lab.claims.simulation import mean_with_error, normal_batches, simulate
from icl_lab.core import prng
from icl_lab.core.linalg import psd_root
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

SIZES = {
    "d": integer(5, 1, "input dimension"),
    "N": integer(10, 1, "context length"),
    "s2": number(0.25, 0.0, "variance of the label noise"),
}
COVARIANCES = {
    "Lam": spectrum("eigenvalues of the input covariance; null: 2 down to 1/2"),
    "Om": spectrum("eigenvalues of the task covariance; null: 3/2 down to 1/2"),
    "rotate": flag(True, "random eigenvectors of the covariances"),
}
SAMPLING = {
    "samples": integer(100_000, 10_000, "prompts of a Monte Carlo mean"),
    "seed": integer(0, 0, "of weights, bases and prompts"),
}


def validate(d, Lam=None, Om=None, Lam_q=None, **_) -> None:
    check_spectrum(Lam, d, "Lam")
    check_spectrum(Om, d, "Om")
    check_spectrum(Lam_q, d, "Lam_q")


def _step(preconditioner: np.ndarray) -> LSAWeights:
    """The structured weights of yhat = x_q^T B (1/M) sum_i y_i x_i."""
    dim = len(preconditioner)
    return LSAWeights(np.diag(np.append(np.zeros(dim), 1.0)), np.pad(preconditioner.T, ((0, 1), (0, 1))))


@claim(
    "lab.risk-shift",
    statement="The risk of any bilinear predictor under any shift of inputs, tasks, noise, length, query or label "
    "distribution is a "
    "closed form in second moments.",
    source=Source("icl_lab, extending arXiv 2306.09927 section 4.2", "second moments of the mean of y x", "extended"),
    parameters=SIZES
    | {"d": integer(3, 1, "input dimension"), "M": integer(6, 1, "test context length")}
    | COVARIANCES
    | {"Lam_q": spectrum("eigenvalues of the query's second moment; null: 3 down to 1/2")}
    | SAMPLING,
    validate=validate,
)
def risk_under_shift(d, N, s2, M, Lam, Om, rotate, Lam_q, samples, seed) -> list[Check]:
    key = jax.random.key(seed)
    inputs, tasks = covariance(Lam, d, rotate, seed, "inputs"), covariance(Om, d, rotate, seed, "tasks", largest=1.5)
    query = covariance(Lam_q, d, rotate, seed, "query", largest=3.0)
    # Neither trained on the test distribution nor symmetric: the optimum of Lam = I at length N, disturbed.
    disturbance = np.asarray(jax.random.normal(prng.stream(key, "disturbance"), (d, d)))
    step = np.asarray(theory.lsa.optimal_preconditioner(np.eye(d), np.eye(d), 0.0, N) + 0.3 * disturbance / np.sqrt(d))
    weights = _step(step)
    vector = np.asarray(psd_root(tasks) @ jax.random.normal(prng.stream(key, "vector"), (d,)))
    checks = []
    for name, second_moment in (("random_tasks", tasks), ("one_task", np.outer(vector, vector))):
        task = LinearRegression(
            dim=d, context_length=M, covariance=inputs, task_covariance=second_moment, noise_std=np.sqrt(s2)
        )
        expected = theory.lsa.risk(step, inputs, second_moment, s2, M)
        checks.append(check.exact(f"risk_{name}", objectives.population(task, MODEL).risk(weights), expected, EXACT_TOLERANCE))
    task = LinearRegression(dim=d, context_length=M, covariance=inputs, task_covariance=tasks, noise_std=np.sqrt(s2))
    root, roots = jnp.asarray(psd_root(inputs)), jnp.asarray(psd_root(query))

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

    mean, error = mean_with_error(simulate(shifted_query, prng.stream(key, "shifted query"), samples))
    checks.append(check.sampled("risk_shifted_query", mean, theory.lsa.risk(step, inputs, tasks, s2, M, query), error))
    mean, error = mean_with_error(simulate(rectified_labels, prng.stream(key, "rectified"), samples))
    expected = theory.nonlinear.bilinear_risk(step, inputs, *theory.nonlinear.rectified_distribution(inputs, vector, s2), M)
    return [*checks, check.sampled("risk_rectified_labels", mean, expected, error)]


@claim(
    "lab.bayes",
    statement="The Bayes predictor is ridge with penalty s2 Om^{-1}; on isotropic problems its risk, and that of any ridge, "
    "is an integral over Wishart eigenvalues, always below that of the layer.",
    source=Source(
        "icl_lab; Bayes predictor of arXiv 2307.03576 Lemma 1",
        "Lemma 1 of arXiv 2307.03576; de Bruijn's Pfaffian formula",
        "extended",
    ),
    parameters=SIZES
    | {
        "N": integer(8, 1, "context length"),
        "s2": number(0.25, positive=True, meaning="variance of the label noise"),
        "Lam": spectrum("eigenvalues of the input covariance; null: all 1"),
        "Om": spectrum("eigenvalues of the task covariance; null: all 1"),
        "rotate": flag(False, "random eigenvectors of both covariances"),
        "penalty": number(1.0, positive=True, meaning="penalty of the other ridge predictor, for Lam = Om = I"),
    }
    | SAMPLING,
    validate=validate,
)
def bayes(d, N, s2, Lam, Om, rotate, penalty, samples, seed) -> list[Check]:
    key = jax.random.key(seed)
    inputs = np.eye(d) if Lam is None else covariance(Lam, d, rotate, seed, "inputs")
    tasks = np.eye(d) if Om is None else covariance(Om, d, rotate, seed, "tasks")
    task = LinearRegression(dim=d, context_length=N, covariance=inputs, task_covariance=tasks, noise_std=np.sqrt(s2))
    plain = LinearRegression(dim=d, context_length=N, noise_std=np.sqrt(s2))
    inverse = np.linalg.inv(tasks)
    mean, error = _ridge_risk(task, s2 * (inverse + inverse.T) / 2, prng.stream(key, "bayes"), samples)
    expected, uncertainty = theory.bayes.risk(inputs, tasks, s2, N, normal_batches(samples, N, d, seed=seed))
    other, other_error = _ridge_risk(plain, penalty, prng.stream(key, "ridge"), samples)
    layer = objectives.population(task, MODEL).risk(_trained(task).limit)
    return [
        check.sampled("bayes_risk", mean, expected, math.hypot(error, uncertainty)),
        check.sampled("ridge_risk", other, theory.bayes.isotropic_ridge_risk(d, N, s2, penalty), other_error),
        check.exact("layer_risk", layer, theory.lsa.minimum_risk(inputs, tasks, s2, N), RISK_TOLERANCE),
        check.at_least("layer_above_bayes", layer, expected - check.SIGMAS * uncertainty),
    ]


def _ridge_risk(task: LinearRegression, penalty, key, samples: int) -> tuple[float, float]:
    def squared_error(one):
        prompt = task.sample(one)
        return jnp.sum((estimators.ridge(prompt, penalty) - prompt.target) ** 2)

    return mean_with_error(simulate(squared_error, key, samples))


def _trained(task: LinearRegression) -> training.TrainingResult:
    """Gradient flow from the structured start, on the scale of the limit: nothing is asked of the plateau here."""
    scale = float(np.linalg.norm(np.linalg.inv(task.covariance))) ** 0.5
    return convergence.to_limit(objectives.population(task, MODEL), initializers.zhang(task.dim, 0.3 * scale))


@claim(
    "lab.crossover",
    statement="On Lam = Om = I the layer beats least squares exactly at context lengths d + 2 <= N < d + 1 + 2 s2 + s2^2/(d+1) "
    "if trained at N, and at M < d + 1 + s2 if trained on infinite contexts.",
    source=Source("icl_lab", "comparison of d (d + 1 + s2) / (N + d + 1 + s2) and s2 d / (N - d - 1)", "extended"),
    parameters={"d": integer(5, 1, "input dimension"), "s2": number(4.0, 0.0, "variance of the label noise")} | SAMPLING,
)
def crossover(d, s2, samples, seed) -> list[Check]:
    trained, infinite = theory.bayes.longest_winning_context(d, s2), theory.bayes.longest_winning_test(d, s2)
    around = [d + 2, math.floor(infinite), math.floor(infinite) + 1, math.ceil(trained) - 1, math.floor(trained) + 1]
    # A length at which the two are equal decides nothing.
    lengths = sorted({n for n in around if n >= d + 2 and min(abs(n - trained), abs(n - infinite)) > 1e-6})
    wins = np.zeros((len(lengths), 2))
    for i, length in enumerate(lengths):
        objective = objectives.population(LinearRegression(dim=d, context_length=length, noise_std=np.sqrt(s2)), MODEL)
        # The risk is a parabola in the step size of one GD step, the best layer.
        low, start, high = (objective.risk(_step(step * np.eye(d))) for step in (-1.0, 0.0, 1.0))
        best = start - (high - low) ** 2 / (8 * (high + low - 2 * start))
        # Least squares as ridge without penalty: an integral over eigenvalues, not the formula that is compared.
        rival = theory.bayes.isotropic_ridge_risk(d, length, s2, 0.0)
        wins[i] = best < rival, high < rival
    expected = np.array([[n < trained, n < infinite] for n in lengths], dtype=float)
    # One length of the comparison, simulated with both predictors on the same prompts.
    length = max(math.floor(trained), d + SPARE_FOR_PLAIN_SAMPLING)
    task = LinearRegression(dim=d, context_length=length, noise_std=np.sqrt(s2))
    step = _step(np.asarray(theory.lsa.optimal_preconditioner(np.eye(d), np.eye(d), s2, length)))

    def lead(one):
        prompt = task.sample(one)
        layer, rival = MODEL(step, prompt), estimators.ols(prompt)
        return jnp.sum((layer - prompt.target) ** 2 - (rival - prompt.target) ** 2)

    mean, error = mean_with_error(simulate(lead, jax.random.key(seed), samples))
    difference = theory.lsa.minimum_risk(np.eye(d), np.eye(d), s2, length) - theory.bayes.ols_risk(d, length, s2)
    return [
        check.exact("who_wins_at_each_length_abs", wins, expected, 0.0),
        check.sampled("simulated_difference_abs", mean, difference, error),
    ]


@claim(
    "lab.one-over-N",
    statement="N times the excess risk tends to (d + 1) tr(Lam Om) + d s2 for the layer, to d s2 for Bayes and least squares.",
    source=Source("icl_lab", "large-N limits of lab.global-min, lab.bayes and lab.ols", "extended"),
    parameters=SIZES
    | {
        "d": integer(3, 1, "input dimension"),
        "N": integer(200, 1, "the limit is read from simulations at lengths N and 2N, never below 100 and 200"),
        "s2": number(0.25, positive=True, meaning="variance of the label noise"),
    }
    | COVARIANCES
    | {"samples": integer(20_000, 1_000, "prompts of a Monte Carlo mean"), "seed": integer(0, 0, "of bases and prompts")},
    validate=validate,
)
def one_over_n(d, N, s2, Lam, Om, rotate, samples, seed) -> list[Check]:
    key = jax.random.key(seed)
    inputs, tasks = covariance(Lam, d, rotate, seed, "inputs"), covariance(Om, d, rotate, seed, "tasks", largest=1.5)
    inverse = np.linalg.inv(tasks)

    def at(length: int) -> LinearRegression:
        return LinearRegression(dim=d, context_length=length, covariance=inputs, task_covariance=tasks, noise_std=np.sqrt(s2))

    N = max(N, SHORTEST_LIMIT)
    # N R(N) = limit + a/N + ...; lengths N and 2N remove the first correction.
    long = 5000 * N
    once, twice = (
        length * objectives.population(at(length), MODEL).risk(_trained(at(length)).limit) for length in (long, 2 * long)
    )
    checks = [check.exact("layer", 2 * twice - once, theory.bayes.scaled_limit(inputs, tasks, s2), 1e-6)]
    penalty = s2 * (inverse + inverse.T) / 2

    def squared_errors(task):
        def pair(one):
            prompt = task.sample(one)
            answers = jnp.stack([estimators.ridge(prompt, penalty), estimators.ols(prompt)])
            return task.context_length * (answers[:, 0] - prompt.target) ** 2

        return simulate(pair, prng.stream(key, f"prompts {task.context_length}"), samples)

    first, second = squared_errors(at(N)), squared_errors(at(2 * N))
    for i, name in enumerate(("bayes", "least_squares")):
        (low, low_error), (high, high_error) = mean_with_error(first[:, i]), mean_with_error(second[:, i])
        checks.append(check.sampled(name, 2 * high - low, d * s2, math.hypot(2 * high_error, low_error)))
    return checks
