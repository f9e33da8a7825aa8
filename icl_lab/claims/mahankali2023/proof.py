"""Claims about the proof of Mahankali, Hashimoto, Ma 2023 (arXiv 2307.03576): each step of it."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import analysis, estimators, models, objectives, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, flag, integer, number, spectrum
from icl_lab.claims.mahankali2023.linear import MODEL, PAPER
from icl_lab.claims.registry import claim
from icl_lab.claims.settings.regression import check_spectrum, covariance
from icl_lab.claims.simulation import mean_with_error, normal_batches, simulate
from icl_lab.core import compiled, prng
from icl_lab.models import LSAWeights, initializers
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.regression.linear import LinearRegression

# The layer as a literal sum over at most some thousand terms.
FORWARD_TOLERANCE = 1e-12
EXACT_TOLERANCE = 1e-11
POINTS = 4
"""Random layers at which an identity is checked."""

COMMON = {
    "d": integer(3, 1, "input dimension"),
    "N": integer(5, 1, "context length, the paper's n"),
    "s2": number(0.5, 0.0, "variance of the label noise"),
}
_SIGMA = {
    "Lam": spectrum("eigenvalues of Sigma, tasks have covariance Sigma^{-1}; null: all 1"),
    "rotate": flag(False, "random eigenvectors of Sigma"),
}
PAIR = {
    "Lam": spectrum("eigenvalues of the input covariance; null: all 1"),
    "Om": spectrum("eigenvalues of the task covariance; null: those of the inverse input covariance"),
    "rotate": flag(False, "random eigenvectors of both covariances"),
}
_SCALE = {"scale": number(0.5, positive=True, meaning="standard deviation of a weight, times N^{-1/3}")}


def validate(d, Lam=None, Om=None, **_) -> None:
    check_spectrum(Lam, d, "Lam")
    check_spectrum(Om, d, "Om")


def task_of(d, N, s2, Lam, Om, rotate, seed) -> LinearRegression:
    """Inputs of covariance Lam, the identity if null, and tasks of covariance Om, Lam^{-1} if null."""
    matrix = np.eye(d) if Lam is None else covariance(Lam, d, rotate, seed, "inputs")
    inverse = np.linalg.inv(matrix)
    tasks = (inverse + inverse.T) / 2 if Om is None else covariance(Om, d, rotate, seed, "tasks")
    return LinearRegression(dim=d, context_length=N, covariance=matrix, task_covariance=tasks, noise_std=np.sqrt(s2))


def _random_layer(key, task: LinearRegression, scale: float) -> LSAWeights:
    return initializers.gaussian(key, task.dim + 1, scale * task.context_length ** (-1 / 3))


def active_rows(weights: LSAWeights) -> tuple[np.ndarray, np.ndarray]:
    """(p1, p2) and K1 over k2."""
    return np.asarray(weights.w_pv)[-1], np.asarray(weights.w_kq)[:, :-1]


@claim(
    "mahankali2023.setting",
    statement="The layer is a linear predictor (K1^T S p1 + c p2 k2 + B b).x_q, a plain sum over the context, and one GD step "
    "from zero on the summed loss predicts eta b.x_q.",
    source=Source(PAPER, "Section 3, the model and its reparametrisation"),
    parameters=COMMON
    | {
        "eta": number(0.1, meaning="step size on the sum over examples"),
        "width": integer(6, 1, "rows of W_V, W_K and W_Q"),
        "seed": integer(0, 0, "of weights and prompts"),
    },
)
def the_layer_as_a_predictor(d, N, s2, eta, width, seed) -> list[Check]:
    key = jax.random.key(seed)
    prompt = LinearRegression(dim=d, context_length=N, noise_std=np.sqrt(s2)).sample(prng.stream(key, "prompt"))
    separate = initializers.separate_gaussian(prng.stream(key, "weights"), d + 1, 1.0, rank=min(width, d + 1), value_rank=width)
    step = LSAWeights(np.diag(np.append(np.zeros(d), 1.0)), np.diag(np.append(np.full(d, eta), 0.0)))
    inputs, labels = np.asarray(prompt.inputs), np.asarray(prompt.labels)[:, 0]
    query = np.asarray(prompt.query)
    averaging = models.LinearSelfAttention(query_in_sum=False)
    # h^T W_V and W_K^T W_Q, with h the label row of W_P.
    values = separate.w_v.T @ separate.w_p[-1]
    even, odd = theory.mahankali2023.effective_predictor(values, (separate.w_k.T @ separate.w_q)[:, :d], inputs, labels)
    one_step = eta * (inputs.T @ labels) @ query
    return [
        check.exact("prediction", MODEL(separate, prompt)[0], (even + odd) @ query, FORWARD_TOLERANCE),
        check.exact("one_gd_step", MODEL(step, prompt)[0], one_step, FORWARD_TOLERANCE),
        # The estimator takes a step on the mean over the examples.
        check.exact("gd_estimator", estimators.gradient_descent(prompt, N * eta)[0], one_step, FORWARD_TOLERANCE),
        check.exact("averaging_layer", N * averaging(step, prompt)[0], one_step, FORWARD_TOLERANCE),
    ]


@claim(
    "mahankali2023.lem1",
    statement="For every layer the loss is the Bayes error plus the mean squared distance to the ridge predictor.",
    source=Source(PAPER, "Lemma 1"),
    parameters=COMMON
    | PAIR
    | _SCALE
    | {"samples": integer(200_000, 1_000, "prompts"), "seed": integer(0, 0, "of weights, bases and prompts")},
    validate=validate,
)
def loss_is_bayes_plus_distance(d, N, s2, Lam, Om, rotate, scale, samples, seed) -> list[Check]:
    key = jax.random.key(seed)
    task = task_of(d, N, s2, Lam, Om, rotate, seed)
    layers = [_random_layer(prng.stream(key, f"layer {i}"), task, scale) for i in range(2)]
    ridge = bayes_predictor(task)

    metric = jnp.asarray(task.covariance)

    def paired(one):
        prompt = task.sample(one)
        best = _weights_of(ridge, prompt)
        squares = []
        for layer in layers:
            fitted = _weights_of(partial(MODEL, layer), prompt)
            # The mean over queries of what the two squared errors differ by.
            squares.append(
                (fitted - prompt.latent) @ metric @ (fitted - prompt.latent) - (fitted - best) @ metric @ (fitted - best)
            )
        return jnp.stack(squares)

    drawn = simulate(paired, prng.stream(key, "prompts"), samples)
    contexts = normal_batches(samples, N, d, seed=seed)
    expected, uncertainty = theory.bayes.risk(task.covariance, task.task_covariance, s2, N, contexts)
    checks = []
    for i in range(2):
        mean, error = mean_with_error(drawn[:, i])
        name = f"bayes_error_from_layer_{i + 1}"
        if expected == 0:  # without noise ridge interpolates from N = d on
            checks.append(check.exact(f"{name}_abs", mean, 0.0, EXACT_TOLERANCE))
        else:
            checks.append(check.sampled(name, mean, expected, math.hypot(error, uncertainty)))
    return checks


def bayes_predictor(task: LinearRegression):
    """The Bayes predictor, a function of a prompt: penalty s2 Om^{-1}, and its limit without noise.

    The limit is least squares of minimum norm in the inputs in which tasks are isotropic.
    """
    noise_variance = float(task.noise_std) ** 2
    inverse = np.linalg.inv(task.task_covariance)
    if noise_variance > 0:
        penalty = noise_variance * (inverse + inverse.T) / 2
        return lambda prompt: estimators.ridge(prompt, penalty)
    factor = jnp.asarray(np.linalg.cholesky(task.task_covariance))
    return lambda prompt: estimators.ols(Prompt(prompt.inputs @ factor, prompt.labels, factor.T @ prompt.query, prompt.target))


def _weights_of(predictor, prompt: Prompt):
    """The vector of a predictor that is linear in the query: its answers to the unit queries, (d,)."""

    def answer(query):
        return predictor(Prompt(prompt.inputs, prompt.labels, query, prompt.target))[0]

    return jax.vmap(answer)(jnp.eye(prompt.inputs.shape[1]))


@claim(
    "mahankali2023.moments",
    statement="E[b b^T] = n (n + d + 1 + s2) I and E[b w_ridge^T] = E[b w^T] = n I; for general covariances "
    "n (n+1) Lam Om Lam + n tau Lam and n Lam Om.",
    source=Source(PAPER, "proof of Theorem 1"),
    parameters=COMMON
    | PAIR
    | {
        "samples": integer(200_000, 1_000, "prompts"),
        "seed": integer(0, 0, "of bases and prompts"),
    },
    validate=validate,
)
def moments_of_the_context(d, N, s2, Lam, Om, rotate, samples, seed) -> list[Check]:
    task = task_of(d, N, s2, Lam, Om, rotate, seed)
    inputs = np.asarray(task.covariance)
    second = theory.mahankali2023.context_moment(inputs, np.asarray(task.task_covariance), s2, N)
    cross = theory.mahankali2023.bayes_moment(inputs, np.asarray(task.task_covariance), N)
    gradient = compiled.jit(jax.grad(objectives.population(task, MODEL)))

    def slope(inner):
        """dL/dK1 at p2 = 1, K1 = inner: E[b b^T] K1 Lam - E[b w^T] Lam."""
        w_kq = np.pad(inner, ((0, 1), (0, 1)))
        return np.asarray(gradient(LSAWeights(np.diag(np.append(np.zeros(d), 1.0)), w_kq)).w_kq)[:d, :d]

    inverse = np.linalg.inv(inputs)
    at_zero = slope(np.zeros((d, d)))
    ridge = bayes_predictor(task)

    def products(one):
        prompt = task.sample(one)
        b = prompt.inputs.T @ prompt.labels[:, 0]
        fitted = _weights_of(ridge, prompt)
        return b[None, :, None] * jnp.stack([b, fitted])[:, None, :]

    drawn = simulate(products, prng.stream(jax.random.key(seed), "prompts"), samples)
    mean, error = np.mean(drawn, axis=0), np.std(drawn, axis=0, ddof=1) / np.sqrt(samples)
    return [
        check.exact("b_b", slope(inverse) - at_zero, second, EXACT_TOLERANCE),
        check.exact("b_w", -at_zero @ inverse, cross, EXACT_TOLERANCE),
        check.sampled("simulated_b_b", mean[0], second, error[0]),
        check.sampled("simulated_b_ridge", mean[1], cross, error[1]),
    ]


@claim(
    "mahankali2023.lem2",
    statement="For every layer the excess loss is d (d+1+s2)/(n+d+1+s2) plus the mean squared distance to one GD step.",
    source=Source(PAPER, "Lemma 2"),
    parameters=COMMON | _SIGMA | _SCALE | {"seed": integer(0, 0, "of weights and basis")},
    validate=validate,
)
def loss_is_a_constant_plus_distance(d, N, s2, Lam, rotate, scale, seed) -> list[Check]:
    key = jax.random.key(seed)
    task = task_of(d, N, s2, Lam, None, rotate, seed)
    objective = objectives.population(task, MODEL)
    layers = [_random_layer(prng.stream(key, f"layer {i}"), task, scale) for i in range(POINTS)]
    distances = np.array(
        [theory.mahankali2023.distance_to_step(w.w_pv, w.w_kq, np.asarray(task.covariance), s2, N) for w in layers]
    )
    risks = np.array([objective.risk(layer) for layer in layers])
    constant = theory.mahankali2023.minimum_risk(d, N, s2)
    return [
        check.exact("excess_risks", risks, constant + distances, EXACT_TOLERANCE),
        # Differences of numbers of the size of the largest risk.
        check.exact("constants_abs", risks - distances, np.full(POINTS, constant), EXACT_TOLERANCE * float(risks.max())),
    ]


@claim(
    "mahankali2023.parity",
    statement="Under (w, noise) -> -(w, noise) the odd part B b and the even part K1^T S p1 + c p2 k2 of the layer do not "
    "interact: the excess loss is E|B b - w|^2, a convex quadratic in B, plus E|even part|^2 >= 0.",
    source=Source(PAPER, "proof of Theorem 1; icl_lab", "extended"),
    parameters=COMMON | PAIR | _SCALE | {"seed": integer(0, 0, "of weights, bases and prompt")},
    validate=validate,
)
def odd_and_even_do_not_interact(d, N, s2, Lam, Om, rotate, scale, seed) -> list[Check]:
    key = jax.random.key(seed)
    task = task_of(d, N, s2, Lam, Om, rotate, seed)
    inputs, tasks = np.asarray(task.covariance), np.asarray(task.task_covariance)
    objective = objectives.population(task, MODEL)
    layer = _random_layer(prng.stream(key, "layer"), task, scale)
    # The layer on negated labels is the same layer with the label coordinate of p and K negated.
    signs = np.append(np.ones(d), -1.0)
    mirrored = LSAWeights(layer.w_pv * signs[None, :], layer.w_kq * signs[:, None])
    halves = {
        name: LSAWeights(np.stack([layer.w_pv, sign * mirrored.w_pv]) / 2, np.stack([layer.w_kq, mirrored.w_kq]))
        for name, sign in (("odd", -1.0), ("even", 1.0))
    }
    odd, both = objective.risk(halves["odd"]), objective.risk(layer)
    even = objective.risk(halves["even"]) - np.trace(inputs @ tasks)
    expected_odd = theory.lsa.risk(analysis.effective_preconditioner(layer, MODEL, N), inputs, tasks, s2, N)
    total = theory.exact_loss.risk(layer.w_pv, layer.w_kq, inputs, tasks, s2, N, query_in_sum=False, rho=1.0)
    prompt = task.sample(prng.stream(key, "prompt"))
    negated = Prompt(prompt.inputs, -prompt.labels, prompt.query, prompt.target)
    answers = MODEL(layer, prompt)[0], MODEL(layer, negated)[0]
    parts = theory.mahankali2023.effective_predictor(
        *active_rows(layer), np.asarray(prompt.inputs), np.asarray(prompt.labels)[:, 0]
    )
    query = np.asarray(prompt.query)
    return [
        check.exact("even_answer", (answers[0] + answers[1]) / 2, parts[0] @ query, EXACT_TOLERANCE),
        check.exact("odd_answer", (answers[0] - answers[1]) / 2, parts[1] @ query, EXACT_TOLERANCE),
        check.exact("odd_risk", odd, expected_odd, EXACT_TOLERANCE),
        check.exact("even_risk_abs", even, total - expected_odd, EXACT_TOLERANCE * total),
        check.exact("risk_is_the_sum", odd + even, both, EXACT_TOLERANCE),
        check.at_least("even_square_abs", even, 0.0, EXACT_TOLERANCE * total),
    ]
