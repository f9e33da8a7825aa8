"""Claims of Zhang, Frei, Bartlett 2023 about prompts whose tasks, queries or inputs have another distribution than in
training.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, integer, number, spectrum, table
from icl_lab.claims.registry import claim
from icl_lab.claims.settings.regression import covariance
from icl_lab.claims.simulation import mean_with_error, simulate
from icl_lab.claims.zhang2023.limit import PAPER
from icl_lab.claims.zhang2023.risk import (
    FIXED_TASK,
    INFINITE,
    INFINITE_TOLERANCE,
    INFINITE_TRAINING,
    MODEL,
    RISK_TOLERANCE,
    TEST_LENGTH,
    TRAINING,
    converged,
    risk_on,
    task_vector,
    trained,
    validate,
)
from icl_lab.core import compiled, prng
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import check_covariance, psd_root
from icl_lab.core.typing import Array
from icl_lab.models.weights import LSAWeights
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.regression.linear import LinearRegression

# Single predictions, linear in the weights' error.
PREDICTION_TOLERANCE = 1e-9
# The square of what a training length of INFINITE_TRAINING leaves, for condition numbers up to a hundred.
VANISHED = 1e-15

_SAMPLES = {"samples": integer(100_000, 1_000, "test prompts")}
_QUERY = {"Lam_q": table(None, meaning="second moment of the query; null: a banded matrix that does not commute with Lam")}


def _preconditioner(matrix: Array, N: int) -> np.ndarray:
    return np.linalg.inv(theory.zhang2023.gamma(matrix, N))


def _query_moment(Lam_q, dim: int) -> np.ndarray:
    if Lam_q is not None:
        return np.asarray(Lam_q)
    beside = np.diag(np.resize([0.4, 0.2], dim - 1), 1) if dim > 1 else np.zeros((1, 1))
    return np.diag(np.resize([1.5, 3.0, 0.3], dim)) + beside + beside.T


def _validate_query(d, Lam_q, **others) -> None:
    validate(d, **others)
    moment = _query_moment(Lam_q, d)
    check_covariance(moment, "Lam_q", allow_singular=True)
    if len(moment) != d:
        raise InvalidValueError(f"`Lam_q` must be a {d} x {d} matrix, d = {d}; got {len(moment)} x {len(moment)}.")


def _simulated(weights: LSAWeights, task: LinearRegression, key, samples: int, query_root=None) -> tuple[float, float]:
    """Risk of the literal forward pass, and its standard error; with `query_root`, on queries of that second moment."""

    def squared_error(one):
        prompt = task.sample(one)
        if query_root is not None:
            # A constant first coordinate: the second moment is the asked one, the covariance is not.
            white = jax.random.normal(prng.stream(one, "query"), (task.dim,)).at[0].set(1.0)
            query = jnp.asarray(query_root) @ white
            prompt = Prompt(inputs=prompt.inputs, labels=prompt.labels, query=query, target=(prompt.latent @ query)[None])
        return jnp.sum((MODEL(weights, prompt) - prompt.target) ** 2)

    return mean_with_error(simulate(squared_error, key, samples))


@claim(
    "zhang2023.shift-task",
    statement="The error on any fixed task vector is an exact quadratic form of it, and one closed form holds for all task "
    "covariances and noises.",
    source=Source(PAPER, "section 4.2, task shift"),
    parameters=TRAINING
    | TEST_LENGTH
    | FIXED_TASK
    | {
        "Om": spectrum("eigenvalues of the test tasks' covariance; null: 3/2 down to 1/2"),
        "s2": number(0.25, 0.0, "label noise of the test prompts"),
    }
    | _SAMPLES,
    validate=validate,
)
def task_shift(d, N, Lam, rotate, seed, M, w, Om, s2, samples) -> list[Check]:
    matrix, vector = covariance(Lam, d, rotate, seed), task_vector(w, d)
    tasks = covariance(Om, d, rotate, seed, "tasks", largest=1.5)
    flow, step = trained(matrix, N), _preconditioner(matrix, N)
    one_task = np.outer(vector, vector)
    risk, signal = risk_on(flow.limit, matrix, M, one_task), float(vector @ matrix @ vector)
    three = risk_on(flow.limit, matrix, M, 9 * one_task)
    noisy = LinearRegression(dim=d, context_length=M, covariance=matrix, task_covariance=one_task, noise_std=np.sqrt(s2))
    mean, error = _simulated(flow.limit, noisy, prng.stream(jax.random.key(seed), "prompts"), samples)
    return [
        converged(flow),
        check.exact("risk_of_w", risk, theory.lsa.risk(step, matrix, one_task, 0.0, M), RISK_TOLERANCE, terms=signal),
        check.exact("risk_of_3w_over_risk_of_w", three / risk, 9.0, RISK_TOLERANCE, terms=9 * signal / risk),
        check.exact(
            "risk_of_random_tasks",
            risk_on(flow.limit, matrix, M, tasks, s2),
            theory.lsa.risk(step, matrix, tasks, s2, M),
            RISK_TOLERANCE,
            terms=float(np.trace(matrix @ tasks)),
        ),
        check.sampled("simulated_noisy_risk_of_w", mean, theory.lsa.risk(step, matrix, one_task, s2, M), error),
    ]


@claim(
    "zhang2023.shift-query",
    statement="Queries independent of the context enter the error by their second moment only, and the error vanishes as both "
    "lengths grow; the answer is 0 exactly for queries Gamma n, n orthogonal to the context.",
    source=Source(PAPER, "section 4.2, query shift", "corrected"),
    parameters=TRAINING | TEST_LENGTH | FIXED_TASK | _QUERY | _SAMPLES,
    validate=_validate_query,
)
def query_shift(d, N, Lam, rotate, seed, M, w, Lam_q, samples) -> list[Check]:
    matrix, vector, moment = covariance(Lam, d, rotate, seed), task_vector(w, d), _query_moment(Lam_q, d)
    key = jax.random.key(seed)
    flow, infinite = trained(matrix, N), trained(matrix, INFINITE_TRAINING)
    step, one_task = _preconditioner(matrix, N), np.outer(vector, vector)
    root = np.asarray(psd_root(moment))
    task = LinearRegression(dim=d, context_length=M, covariance=matrix, task_covariance=one_task)
    mean, error = _simulated(flow.limit, task, prng.stream(key, "prompts"), samples, root)
    # d inputs whose empirical second moment is Lam: the context mean after infinitely many examples.
    design = np.sqrt(d) * np.asarray(psd_root(matrix))

    def after_infinite_context(weights) -> float:
        answers = _answers(weights, design, design @ vector, root.T)
        return float(np.sum((answers - root.T @ vector) ** 2))

    limit = theory.lsa.risk(step, matrix, one_task, 0.0, np.inf, moment)
    largest = float(vector @ moment @ vector)
    checks = [
        converged(flow),
        check.sampled("simulated_risk", mean, theory.lsa.risk(step, matrix, one_task, 0.0, M, moment), error),
        # The closed form is a difference of terms as large as the response.
        check.exact(
            "risk_after_infinite_context", after_infinite_context(flow.limit), limit, PREDICTION_TOLERANCE, terms=largest
        ),
        check.exact("risk_after_infinite_lengths_abs", after_infinite_context(infinite.limit), 0.0, VANISHED * largest),
    ]
    if d == 1:
        return checks  # no query is orthogonal to a context
    context = np.asarray(task.covariates.sample(prng.stream(key, "few inputs"), min(M, d - 1)))
    normal = np.linalg.svd(context)[2][-1]
    labels = context @ vector
    gamma = theory.zhang2023.gamma(matrix, N)
    answers = _answers(flow.limit, context, labels, np.stack([normal, gamma @ normal]))
    mean_response = labels @ context / len(context)
    scale = PREDICTION_TOLERANCE * float(np.linalg.norm(step) * np.linalg.norm(mean_response))
    return [
        *checks,
        check.exact("answer_to_orthogonal_query_abs", answers[0], normal @ step @ mean_response, scale),
        check.exact("answer_to_gamma_times_orthogonal_abs", answers[1], 0.0, scale * float(np.linalg.norm(gamma))),
    ]


def _answers(weights: LSAWeights, inputs: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Answers of the literal forward pass to several queries on one context."""

    def answer(query):
        prompt = Prompt(inputs=jnp.asarray(inputs), labels=jnp.asarray(labels)[:, None], query=query, target=jnp.zeros(1))
        return MODEL(weights, prompt)[0]

    return np.asarray(compiled.jit(jax.vmap(answer))(queries))


@claim(
    "zhang2023.shift-covariate",
    statement="A layer trained at Lam is wrong on inputs of another covariance: inputs times c give an error that tends to "
    "c^2 (c^2 - 1)^2 w^T Lam w after infinite contexts.",
    source=Source(PAPER, "section 4.2, covariate shift"),
    parameters=TRAINING
    | TEST_LENGTH
    | FIXED_TASK
    | {
        "c": number(2.0, positive=True, meaning="factor of all inputs"),
        "Lam_test": spectrum("eigenvalues of the test covariance; null: 1/2, 3/2, 3 and so on"),
    }
    | _QUERY
    | _SAMPLES,
    validate=_validate_query,
)
def covariate_shift(d, N, Lam, rotate, seed, M, w, c, Lam_test, Lam_q, samples) -> list[Check]:
    matrix, vector, moment = covariance(Lam, d, rotate, seed), task_vector(w, d), _query_moment(Lam_q, d)
    other = covariance(np.resize([0.5, 1.5, 3.0], d).tolist() if Lam_test is None else Lam_test, d, rotate, seed, "test")
    one_task = np.outer(vector, vector)
    flow, infinite = trained(matrix, N), trained(matrix, INFINITE_TRAINING)
    step = _preconditioner(matrix, N)
    task = LinearRegression(dim=d, context_length=M, covariance=matrix, task_covariance=one_task)
    key = prng.stream(jax.random.key(seed), "prompts")
    mean, error = _simulated(flow.limit, task, key, samples, np.asarray(psd_root(moment)))
    in_the_limit = risk_on(infinite.limit, c**2 * matrix, INFINITE, one_task)
    signal = float(vector @ matrix @ vector)
    return [
        converged(flow),
        converged(infinite, "infinite_flow_converged_abs"),
        check.exact(
            "risk_of_scaled_inputs",
            risk_on(flow.limit, c**2 * matrix, M, one_task),
            theory.lsa.risk(step, c**2 * matrix, one_task, 0.0, M),
            RISK_TOLERANCE,
        ),
        check.exact(
            "risk_of_other_covariance",
            risk_on(flow.limit, other, M, one_task),
            theory.lsa.risk(step, other, one_task, 0.0, M),
            RISK_TOLERANCE,
        ),
        check.sampled("simulated_risk_of_other_queries", mean, theory.lsa.risk(step, matrix, one_task, 0.0, M, moment), error),
        # At c = 1 both are zero: the scale is that of the labels.
        check.exact(
            "risk_of_scaled_inputs_after_infinite_contexts_abs",
            in_the_limit,
            theory.transfer.scaled_inputs_error(c, signal),
            INFINITE_TOLERANCE * c**2 * (1 + c**2) ** 2 * signal,
        ),
    ]
