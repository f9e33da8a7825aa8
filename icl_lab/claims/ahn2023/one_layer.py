"""Claims of Ahn et al. 2023 (arXiv 2306.00297) about one layer, and what any number of layers computes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import analysis, models, objectives, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, choice, flag, integer, number, spectrum
from icl_lab.claims.quasi_newton import minimise
from icl_lab.claims.registry import claim
from icl_lab.claims.settings.regression import check_spectrum, covariance
from icl_lab.claims.simulation import mean_with_error, simulate
from icl_lab.core import compiled, prng
from icl_lab.core.typing import Array
from icl_lab.models import LSAWeights, initializers
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.regression.linear import LinearRegression

PAPER = "Ahn, Cheng, Daneshmand, Sra 2023 (arXiv 2306.00297)"
# The paper's layer: a mean over the context, and the answer is minus the query's label slot.
MODEL = models.LinearSelfAttention(query_in_sum=False, readout_sign=-1.0)

FORWARD_TOLERANCE = 1e-12
RISK_TOLERANCE = 1e-10
PRECONDITIONER_TOLERANCE = 1e-6
PUBLISHED_SPECTRUM = (1.0, 0.25, 2.0)

_ONE_LAYER = {
    "d": integer(3, 1, "input dimension"),
    "N": integer(6, 1, "context length"),
    "Lam": spectrum("eigenvalues of the input covariance Sigma; null: 1, 1/4, 2, repeated"),
    "rotate": flag(True, "random eigenvectors of the covariances"),
}
_SEARCH = {
    "scale": number(0.1, positive=True, meaning="standard deviation of the random starts"),
    "starts": integer(24, 1, "random starts of BFGS, of which the best counts"),
    "seed": integer(0, 0, "of starts and bases"),
}


@compiled.jit
def _forward(layers: tuple[LSAWeights, ...], prompt: Prompt) -> tuple[Array, Array, Array]:
    """The query's label slot after each layer, all tokens after the last, and the answer."""
    tokens, slots = MODEL.tokens(prompt), []
    for layer in layers:
        tokens = MODEL.apply(layer, tokens)
        slots.append(tokens[-1, -1])
    return jnp.stack(slots), tokens, MODEL(layers, prompt)[0]


def _validate(d, Lam=None, Om=None, **_) -> None:
    check_spectrum(Lam, d, "Lam")
    check_spectrum(Om, d, "Om")


@claim(
    "ahn2023.lemma1",
    statement="L layers with P = diag(0, 1) and Q_l = -diag(A_l, 0) take L steps of gradient descent preconditioned by A_l^T "
    "(the paper: A_l), and the query's label slot is -<x_q, w_l> after each.",
    source=Source(PAPER, "Lemma 1, corrected", "corrected"),
    parameters={
        "d": integer(4, 1, "input dimension"),
        "N": integer(7, 1, "context length"),
        "L": integer(5, 1, "layers"),
        "noise": number(0.5, 0.0, "standard deviation of the label noise"),
        "seed": integer(0, 0, "of the preconditioners and the prompt"),
    },
)
def layers_are_preconditioned_steps(d, N, L, noise, seed) -> list[Check]:
    key = jax.random.key(seed)
    prompt = LinearRegression(dim=d, context_length=N, noise_std=noise).sample(prng.stream(key, "prompt"))
    draws = np.asarray(jax.random.normal(prng.stream(key, "weights"), (L, d, d)))
    matrices = (np.eye(d) + draws / np.sqrt(d)) / 2
    last = np.diag(np.append(np.zeros(d), 1.0))
    layers = tuple(LSAWeights(last, np.pad(-matrix, ((0, 1), (0, 1)))) for matrix in matrices)
    slots, tokens, answer = _forward(layers, prompt)
    inputs, labels, query = (np.asarray(x) for x in (prompt.inputs, prompt.labels[:, 0], prompt.query))
    path = theory.ahn2023.descent_weights(matrices, inputs, labels)
    residuals = labels - inputs @ path[-1]
    checks = [
        check.exact("label_slot_of_the_query", slots, -path @ query, FORWARD_TOLERANCE),
        check.exact("label_slots_of_the_context", tokens[:-1, -1], residuals, FORWARD_TOLERANCE),
        check.exact("prediction", answer, path[-1] @ query, FORWARD_TOLERANCE),
        check.exact("inputs_stay", tokens[:-1, :d], inputs, FORWARD_TOLERANCE),
    ]
    if d > 1:
        untransposed = -theory.ahn2023.descent_weights(np.swapaxes(matrices, 1, 2), inputs, labels) @ query
        distance = np.linalg.norm(slots - untransposed) / np.linalg.norm(slots)
        checks.append(check.at_least("distance_to_steps_with_the_untransposed_matrix", distance, 1e-6))
    return checks


def _checked_minimum(task: LinearRegression, expected, minimum: float, scale: float, starts: int, seed: int) -> list[Check]:
    """The lowest end of BFGS over all weights, beside a preconditioner and a risk."""
    d, N = task.dim, task.context_length
    objective = objectives.population(task, MODEL)
    drawn = initializers.gaussian(prng.stream(jax.random.key(seed), "starts"), d + 1, scale, starts)
    # Random starts often end in local minima of rank one, one without them does not.
    structured = LSAWeights(np.diag(np.append(np.zeros(d), scale)), -np.diag(np.append(np.full(d, scale), 0.0)))
    ends = minimise(objective, jax.tree.map(lambda first, rest: np.concatenate([first[None], rest]), structured, drawn))
    found = analysis.effective_preconditioner(ends.lowest, MODEL, N)
    terms = float(task.signal_variance)
    return [
        check.exact("risk", 2 * np.min(ends.losses), minimum, RISK_TOLERANCE, terms=terms),
        check.exact("preconditioner", found, expected, PRECONDITIONER_TOLERANCE),
        check.at_least("no_start_ends_below", 2 * ends.losses, np.full(starts + 1, minimum), RISK_TOLERANCE, terms=terms),
    ]


@claim(
    "ahn2023.thm1",
    statement="Over all weights of one layer the risk is smallest at A* = U diag(1 / ((n+1)/n lam_i + tr(Sigma)/n)) U^T, up to "
    "scale, with f* = sum_i lam_i (1 - lam_i a_i).",
    source=Source(PAPER, "Theorem 1"),
    parameters=_ONE_LAYER | _SEARCH,
    validate=_validate,
    extra_settings=({"Lam": [1.0, 1.0, 1.0]},),
)
def best_single_layer(d, N, Lam, rotate, scale, starts, seed) -> list[Check]:
    matrix = _input_covariance(Lam, d, rotate, seed)
    eigenvalues, basis = np.linalg.eigh(matrix)
    expected = (basis * theory.ahn2023.shrinkage(eigenvalues, N)[None, :]) @ basis.T
    minimum = theory.ahn2023.one_layer_risk(eigenvalues, N)
    task = LinearRegression(dim=d, context_length=N, covariance=matrix)
    return _checked_minimum(task, expected, minimum, scale, starts, seed)


def _input_covariance(Lam, d: int, rotate: bool, seed: int) -> Array:
    return covariance(list(np.resize(PUBLISHED_SPECTRUM, d)) if Lam is None else Lam, d, rotate, seed)


@claim(
    "ahn2023.thm1.general",
    statement="For tasks w ~ N(0, Sw) the optimum is A* = [(1+1/n) Sigma Sw Sigma + tr(Sigma Sw)/n Sigma]^{-1} Sigma Sw; for "
    "Sw = Sigma^{-1} it is n/(n+d+1) Sigma^{-1}, with f* = d(d+1)/(n+d+1).",
    source=Source(PAPER, "icl_lab, extending Theorem 1", "extended"),
    parameters=_ONE_LAYER
    | {
        "tasks": choice("general", ("general", "whitening"), "Sw: from Om, or Sigma^{-1}"),
        "Om": spectrum("eigenvalues of Sw for general tasks; null: 3/2 down to 1/2"),
    }
    | _SEARCH,
    validate=_validate,
    extra_settings=({"tasks": "whitening"},),
)
def best_single_layer_for_any_tasks(d, N, Lam, rotate, tasks, Om, scale, starts, seed) -> list[Check]:
    matrix = _input_covariance(Lam, d, rotate, seed)
    inverse = np.linalg.inv(matrix)
    if tasks == "whitening":
        second = (inverse + inverse.T) / 2
        expected, minimum = N / (N + d + 1) * second, theory.mahankali2023.minimum_risk(d, N, 0.0)
    else:
        second = covariance(Om, d, rotate, seed, "tasks", largest=1.5)
        expected = theory.lsa.optimal_preconditioner(matrix, second, 0.0, N)
        minimum = theory.lsa.minimum_risk(matrix, second, 0.0, N)
    task = LinearRegression(dim=d, context_length=N, covariance=matrix, task_covariance=second)
    return _checked_minimum(task, expected, minimum, scale, starts, seed)


def _relu_answer(inner: Array, prompt: Prompt) -> Array:
    """Prediction of the layer with scores max(0, z_i^T Q z_j) in place of z_i^T Q z_j, P = diag(0, 1), Q = diag(inner, 0)."""
    scores = jax.nn.relu(prompt.inputs @ inner @ prompt.query)
    return -jnp.mean(scores * prompt.labels[:, 0])


@claim(
    "ahn2023.thm5",
    statement="With ReLU attention on isotropic inputs A = -a I, a* = 2n / (n - 1 + 2(d+2)), is a stationary point of risk "
    "d (2d+3) / (n + 2d + 3), above that of linear attention.",
    source=Source(PAPER, "Theorem 5"),
    parameters={
        "d": integer(3, 1, "input dimension"),
        "N": integer(8, 1, "context length"),
        "samples": integer(400_000, 10_000, "prompts"),
        "seed": integer(0, 0, "of the prompts"),
    },
    extra_settings=({"d": 5, "N": 20},),
)
def relu_attention(d, N, samples, seed) -> list[Check]:
    task = LinearRegression(dim=d, context_length=N)
    step = theory.ahn2023.relu_step(d, N)
    minimum = theory.ahn2023.relu_risk(step, d, N)

    def squared_error(inner, prompt):
        return (_relu_answer(inner, prompt) - prompt.target[0]) ** 2

    def statistic(one):
        prompt = task.sample(one)
        error, slope = jax.value_and_grad(squared_error)(-step * jnp.eye(d), prompt)
        unit = _relu_answer(-jnp.eye(d), prompt)
        return jnp.concatenate([jnp.stack([error, unit * prompt.target[0], unit**2]), slope.ravel()])

    drawn = simulate(statistic, prng.stream(jax.random.key(seed), "prompts"), samples)
    mean, spread = np.mean(drawn, axis=0), np.std(drawn, axis=0, ddof=1) / np.sqrt(samples)
    # The risk is E target^2 - 2 a mean[1] + a^2 mean[2]; the error of the ratio is that of its linearisation.
    best = mean[1] / mean[2]
    best_error = mean_with_error((drawn[:, 1] - best * drawn[:, 2]) / mean[2])[1]
    return [
        check.sampled("best_step", best, step, best_error),
        check.sampled("risk", mean[0], minimum, spread[0]),
        check.exact("risk_closed_form", minimum, d * (2 * d + 3) / (N + 2 * d + 3), FORWARD_TOLERANCE),
        check.sampled("gradient_abs", mean[3:], np.zeros(d * d), spread[3:]),
        check.at_least("risk_above_linear_attention", mean[0] - 4 * spread[0], theory.mahankali2023.minimum_risk(d, N, 0.0)),
    ]
