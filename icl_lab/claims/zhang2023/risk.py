"""Claims of Zhang, Frei, Bartlett 2023 about the error of the trained layer on prompts of other lengths and labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import estimators, models, objectives, theory, training
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, choice, flag, integer, number, spectrum, vector
from icl_lab.claims.registry import claim
from icl_lab.claims.settings.regression import check_spectrum, covariance
from icl_lab.claims.simulation import mean_with_error, simulate
from icl_lab.claims.zhang2023.limit import PAPER
from icl_lab.core import prng
from icl_lab.core.errors import AssumptionError, InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.models import initializers
from icl_lab.models.weights import LSAWeights
from icl_lab.tasks import Gaussian, Link, Monomial, ReLU, Sign
from icl_lab.tasks.distributions.covariates import normals
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.regression.linear import LinearRegression

MODEL = models.LinearSelfAttention()
# Away from the training length the risk is not stationary at the limit: its error is linear in that of the weights.
WEIGHT_TOLERANCE = 1e-11
RISK_TOLERANCE = 1e-10
# Lengths that stand for infinity; what they leave is of their inverse.
INFINITE = 10**16
INFINITE_TRAINING = 10**10
INFINITE_TOLERANCE = 1e-8
SLOPE_TOLERANCE = 0.01
# Least squares needs so many examples more than dimensions for squared errors of a tame variance.
SPARE = 6

TRAINING = {
    "d": integer(3, 1, "input dimension"),
    "N": integer(10, 1, "training context length"),
    "Lam": spectrum("eigenvalues of the input covariance of training; null: 2 down to 1/2"),
    "rotate": flag(False, "random eigenvectors of the covariances"),
    "seed": integer(0, 0, "of bases and prompts"),
}
TEST_LENGTH = {"M": integer(6, 1, "test context length")}
FIXED_TASK = {"w": vector(None, "the task vector; null: 1, -1/2, 2 and so on")}
LINKS: dict[str, Link] = {
    "linear": Monomial(1),
    "relu": ReLU(),
    "sign": Sign(),
    "cubic": Monomial(3),
    "square": Monomial(2),
    "constant": Monomial(0),
}


def validate(d, Lam, w=None, Om=None, Lam_test=None, **_) -> None:
    """Raise on a spectrum or a task vector of another dimension, or a vector of zeros."""
    for name, values in (("Lam", Lam), ("Om", Om), ("Lam_test", Lam_test)):
        check_spectrum(values, d, name)
    if w is not None and len(w) != d:
        raise InvalidValueError(f"`w` must hold d = {d} entries; got {len(w)}. Set `d` too, or null for the default vector.")
    if w is not None and not any(w):
        raise InvalidValueError("`w` must not be zero; its labels and their errors would all be zero.")


def task_vector(w, dim: int) -> np.ndarray:
    """w as an array; null repeats 1, -1/2, 2."""
    return np.resize([1.0, -0.5, 2.0], dim) if w is None else np.asarray(w)


def trained(matrix: Array, N: int, noise_variance: float = 0.0) -> training.TrainingResult:
    """Gradient flow from Assumption 3.3 at half the largest scale that it admits."""
    task = LinearRegression(dim=len(matrix), context_length=N, covariance=matrix, noise_std=np.sqrt(noise_variance))
    scale = 0.5 * theory.zhang2023.largest_init_scale(matrix, N)
    objective = objectives.population(task, MODEL)
    return convergence.to_limit(objective, initializers.zhang(len(matrix), scale), weight_tolerance=WEIGHT_TOLERANCE)


def converged(flow: training.TrainingResult, name: str = "flow_converged_abs") -> Check:
    """The check that a flow has reached a minimum."""
    return check.holds(name, flow.verdict == training.Verdict.CONVERGED)


def risk_on(weights: LSAWeights, matrix: Array, length: int, tasks=None, noise_variance: float = 0.0) -> float:
    """Exact risk of the layer on prompts of one length with Gaussian inputs."""
    task = LinearRegression(
        dim=len(matrix),
        context_length=length,
        covariance=matrix,
        task_covariance=tasks,
        noise_std=np.sqrt(noise_variance),
    )
    return objectives.population(task, MODEL).risk(weights)


@claim(
    "zhang2023.thm4.2",
    statement="On prompts of any distribution of labels the trained layer's error is that of the best linear predictor, plus "
    "tr(Cov(xy) Gamma^{-2} Lam)/M, plus a term of order 1/N^2.",
    source=Source(PAPER, "Theorem 4.2"),
    parameters=TRAINING
    | TEST_LENGTH
    | FIXED_TASK
    | {
        "label": choice("all", ("all", *LINKS), "the labels as a function of w.x"),
        "s2": number(0.5, 0.0, "variance of the label noise; every label is also run without noise"),
        "samples": integer(800_000, 1_000, "test prompts"),
    },
    validate=validate,
)
def error_on_any_labels(d, N, Lam, rotate, seed, M, w, label, s2, samples) -> list[Check]:
    matrix, direction = covariance(Lam, d, rotate, seed), task_vector(w, d)
    links = LINKS if label == "all" else {label: LINKS[label]}
    noises = sorted({0.0, s2})
    flow = trained(matrix, N)
    inputs_distribution = Gaussian(matrix)

    def squared_errors(key):
        inputs = inputs_distribution.sample(prng.stream(key, "inputs"), M + 1)
        noise = normals(prng.stream(key, "noise"), 1, M + 1)[0]

        def squared_error(link, variance):
            labels = (jax.vmap(link)(inputs @ direction) + np.sqrt(variance) * noise)[:, None]
            prompt = Prompt(inputs=inputs[:-1], labels=labels[:-1], query=inputs[-1], target=labels[-1])
            return jnp.sum((MODEL(flow.limit, prompt) - prompt.target) ** 2)

        return jnp.stack([squared_error(link, variance) for link in links.values() for variance in noises])

    errors = simulate(squared_errors, prng.stream(jax.random.key(seed), "prompts"), samples)
    checks = [converged(flow)]
    for column, (name, variance) in zip(errors.T, [(name, v) for name in links for v in noises], strict=True):
        distribution = theory.transfer.single_index_distribution(name, direction, matrix, variance)
        expected = theory.transfer.error(matrix, N, M, distribution)
        words = name if variance == 0 else f"{name}_noisy"
        if name == "linear":
            # The risk is against a noiseless query label.
            risk = risk_on(flow.limit, matrix, M, np.outer(direction, direction), variance)
            checks.append(
                check.exact(
                    f"error_{words}_exact",
                    risk + variance,
                    expected,
                    RISK_TOLERANCE,
                    terms=float(direction @ matrix @ direction),
                )
            )
        mean, error = mean_with_error(column)
        checks.append(check.sampled(f"error_{words}", mean, expected, error))
    return checks


@claim(
    "zhang2023.thm4.2-linear",
    statement="On linear tasks w ~ N(0, I) the error after M examples is (tr(Lam) t2 + t3)/M + "
    "(t3 + 2 tr(Lam) t2 + tr(Lam)^2 t1)/N^2, t_k = tr(Gamma^{-2} Lam^k).",
    source=Source(PAPER, "Theorem 4.2, averaged over the task vector", "extended"),
    parameters=TRAINING | TEST_LENGTH,
    validate=validate,
)
def risk_at_other_lengths(d, N, Lam, rotate, seed, M) -> list[Check]:
    matrix = covariance(Lam, d, rotate, seed)
    flow = trained(matrix, N)
    lengths = {"M": M, "1": 1, "N": N, "100": 100}
    return [
        converged(flow),
        *(
            check.exact(
                f"risk_at_{name}",
                risk_on(flow.limit, matrix, m),
                theory.zhang2023.risk(matrix, N, m),
                RISK_TOLERANCE,
                terms=np.trace(matrix),
            )
            for name, m in lengths.items()
        ),
        check.exact(
            "risk_at_infinity",
            risk_on(flow.limit, matrix, INFINITE),
            theory.zhang2023.risk(matrix, N, np.inf),
            INFINITE_TOLERANCE,
            terms=np.trace(matrix),
        ),
    ]


@claim(
    "zhang2023.cor4.3",
    statement="(d + 1) tr(Lam) / eps test examples bring the risk below eps + (1 + 2d + d^2 kappa) tr(Lam) / N^2, of "
    "which the second term stays.",
    source=Source(PAPER, "Corollary 4.3"),
    parameters=TRAINING | {"eps": number(0.004, positive=True, meaning="accuracy")},
    validate=validate,
)
def sample_size(d, N, Lam, rotate, seed, eps) -> list[Check]:
    matrix = covariance(Lam, d, rotate, seed)
    enough = theory.transfer.sample_size(matrix, eps)
    lengths = np.array([1, N, enough, INFINITE])
    checks = []
    for n, words in ((N, ""), (4 * N, "_at_4N")):
        flow = trained(matrix, n)
        eta = theory.transfer.residual_bound(matrix, n)
        risks = [risk_on(flow.limit, matrix, int(m)) for m in lengths]
        expected = [theory.zhang2023.risk(matrix, n, int(m)) for m in lengths]
        floor, terms = theory.zhang2023.risk(matrix, n, np.inf), np.trace(matrix)
        checks += [
            converged(flow, f"flow_converged{words}_abs"),
            check.exact(f"risks{words}", risks, expected, RISK_TOLERANCE),
            check.at_most(f"risks_against_bound{words}", risks, (d + 1) * np.trace(matrix) / lengths + eta, terms=terms),
            check.at_most(f"risk_at_sample_size{words}", risks[2], eps + eta, terms=terms),
            check.exact(f"residual{words}", risks[3], floor, INFINITE_TOLERANCE, terms=terms),
        ]
    return checks


@claim(
    "zhang2023.asymptotics",
    statement="After training on infinite contexts the risk is (d+1) tr(Lam)/M for every Lam; after infinite test contexts it "
    "falls like 1/N^2.",
    source=Source(PAPER, "discussion of Theorem 4.2"),
    parameters=TRAINING
    | TEST_LENGTH
    | {
        "s2": number(0.5, 0.0, "label noise of training, isotropic case"),
        "s2_test": number(0.25, 0.0, "label noise of the test, isotropic case"),
    },
    validate=validate,
)
def rates(d, N, Lam, rotate, seed, M, s2, s2_test) -> list[Check]:
    matrix = covariance(Lam, d, rotate, seed)
    infinite = trained(matrix, INFINITE_TRAINING)
    flows = {n: trained(matrix, n) for n in (10**4, 10**6)}
    clean, noisy = trained(np.eye(d), N), trained(np.eye(d), N, s2)
    biases = [risk_on(flow.limit, matrix, INFINITE) for flow in flows.values()]
    # What is left of the risk after infinite contexts is subtracted, so that the slope in M is that of the variance alone.
    variances = [risk_on(flows[10**4].limit, matrix, m) - biases[0] for m in (10, 1000)]
    isotropic = theory.transfer.isotropic_risk
    return [
        *(converged(flow, f"flow_converged_{i}_abs") for i, flow in enumerate((infinite, *flows.values(), clean, noisy))),
        check.exact(
            "risk_after_infinite_training",
            risk_on(infinite.limit, matrix, M),
            (d + 1) * np.trace(matrix) / M,
            INFINITE_TOLERANCE,
            terms=np.trace(matrix),
        ),
        check.exact(
            "isotropic_bias",
            risk_on(clean.limit, np.eye(d), INFINITE),
            isotropic(d, N, np.inf),
            INFINITE_TOLERANCE,
            terms=d,
        ),
        check.exact(
            "isotropic_noisy_risk",
            risk_on(noisy.limit, np.eye(d), M, noise_variance=s2_test),
            isotropic(d, N, M, s2, s2_test),
            RISK_TOLERANCE,
            terms=d,
        ),
        check.exact("slope_of_bias_in_N_abs", np.log10(biases[1] / biases[0]) / 2, -2.0, SLOPE_TOLERANCE),
        check.exact("slope_of_variance_in_M_abs", np.log10(variances[1] / variances[0]) / 2, -1.0, SLOPE_TOLERANCE),
    ]


def _validate_ols(d, M, **others) -> None:
    validate(d, **others)
    if d > M:
        raise AssumptionError(f"least squares recovers a noiseless task from M >= d = {d} examples; got M = {M}.")


@claim(
    "zhang2023.vs-ols",
    statement="Without noise least squares is exact from M = d on, and the layer keeps a floor; with noise it can win "
    "at short contexts, and loses at long ones.",
    source=Source(PAPER, "comparison after Theorem 4.2", "extended"),
    parameters=TRAINING
    | TEST_LENGTH
    | {
        "s2": number(4.0, positive=True, meaning="label noise of the noisy test"),
        "samples": integer(40_000, 1_000, "test prompts"),
    },
    validate=_validate_ols,
)
def against_least_squares(d, N, Lam, rotate, seed, M, s2, samples) -> list[Check]:
    matrix = covariance(Lam, d, rotate, seed)
    key = jax.random.key(seed)
    flow = trained(matrix, N)

    def errors(length: int, noise_variance: float) -> tuple[np.ndarray, np.ndarray]:
        task = LinearRegression(dim=d, context_length=length, covariance=matrix, noise_std=np.sqrt(noise_variance))

        def pair(one):
            prompt = task.sample(one)
            answers = jnp.stack([MODEL(flow.limit, prompt), estimators.ols(prompt)])
            return jnp.sum((answers - prompt.target[None]) ** 2, axis=1)

        layer, ols = simulate(pair, prng.stream(key, f"{length} {noise_variance}"), samples).T
        return layer, ols

    layer, ols = errors(M, 0.0)
    mean, error = mean_with_error(layer)
    floor = theory.zhang2023.risk(matrix, N, np.inf)
    checks = [
        converged(flow),
        check.exact("noiseless_ols_abs", np.mean(ols), 0.0, RISK_TOLERANCE * np.trace(matrix)),
        check.sampled("noiseless_layer", mean, theory.zhang2023.risk(matrix, N, M), error),
        check.at_least("noiseless_layer_against_floor", risk_on(flow.limit, matrix, M), floor, terms=np.trace(matrix)),
        check.exact("floor", risk_on(flow.limit, matrix, INFINITE), floor, INFINITE_TOLERANCE, terms=np.trace(matrix)),
    ]
    inverse = np.linalg.inv(theory.zhang2023.gamma(matrix, N))
    for words, length in (("short", d + SPARE), ("long", 10 * (d + SPARE))):
        layer, ols = errors(length, s2)
        mean, error = mean_with_error(layer - ols)
        expected = theory.lsa.risk(inverse, matrix, np.eye(d), s2, length) - theory.bayes.ols_risk(d, length, s2)
        checks.append(check.sampled(f"noisy_layer_minus_ols_{words}_abs", mean, expected, error))
    return checks
