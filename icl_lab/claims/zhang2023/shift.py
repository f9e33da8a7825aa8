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
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import number, spectrum, table
from icl_lab.claims.settings.regression import covariance
from icl_lab.claims.simulation import mean_with_error, simulate, simulated_risk
from icl_lab.claims.zhang2023.measurements import RISK_TOLERANCE, converged, prompts, risk_on, trained
from icl_lab.claims.zhang2023.settings import INFINITE, INFINITE_TOLERANCE, INFINITE_TRAINING, MODEL, PAPER, FixedTaskSetting
from icl_lab.core import compiled, prng
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import check_covariance, psd_root
from icl_lab.core.typing import Array
from icl_lab.models.weights import LSAWeights
from icl_lab.tasks.prompt import Prompt

# Single predictions, linear in the weights' error.
PREDICTION_TOLERANCE = 1e-9
# The square of what a training length of INFINITE_TRAINING leaves, for condition numbers up to a hundred.
VANISHED = 1e-15


def _preconditioner(setting: FixedTaskSetting) -> np.ndarray:
    return np.linalg.inv(theory.zhang2023.gamma(setting.covariance, setting.N))


class TaskShiftSetting(FixedTaskSetting):
    """Tests on one task vector, and on tasks of another covariance with noise."""

    Om: list[float] | None = spectrum("eigenvalues of the task covariance", "of the test; null: 3/2 down to 1/2")
    s2: float = number(0.25, 0.0, "variance of the label noise", "of the test prompts")

    @property
    def test_tasks(self) -> Array:
        """Omega of the test; training has the identity."""
        return covariance(self.Om, self.d, self.rotate, self.seed, "tasks", largest=1.5)


@claim("zhang2023.shift-task", TaskShiftSetting, Source(PAPER, "section 4.2, task shift"))
def task_shift(setting: TaskShiftSetting) -> list[Check]:
    """The error on any fixed task vector is an exact quadratic form of it, and one closed form holds for all task covariances
    and noises.

    The layer is trained by gradient flow on the exact loss with tasks N(0, I), from the theorem's start at half its largest
    scale; its exact risk is taken on the tasks of the test, and its forward pass answers simulated noisy prompts of tasks z w,
    z ~ N(0, 1). An error that does not grow ninefold for 3 w, or a closed form with the tasks of training, would make it fail.
    """
    matrix, M, s2, one_task = setting.covariance, setting.M, setting.s2, setting.one_task
    flow, step = trained(setting.task()), _preconditioner(setting)
    of_w, of_3w = (prompts(matrix, M, factor * one_task) for factor in (1, 9))
    risk, three = (risk_on(flow.limit, task) for task in (of_w, of_3w))
    signal = float(setting.vector @ matrix @ setting.vector)
    noisy, random = (prompts(matrix, M, tasks, s2) for tasks in (one_task, setting.test_tasks))
    mean, error = simulated_risk(lambda prompt: MODEL(flow.limit, prompt), noisy, setting.stream("prompts"), setting.samples)
    return [
        converged(flow),
        check.exact("risk_of_w", risk, theory.lsa.risk(theory.Problem.of(of_w), step), RISK_TOLERANCE, terms=signal),
        check.exact("risk_of_3w_over_risk_of_w", three / risk, 9.0, RISK_TOLERANCE, terms=9 * signal / risk),
        check.exact(
            "risk_of_random_tasks",
            risk_on(flow.limit, random),
            theory.lsa.risk(theory.Problem.of(random), step),
            RISK_TOLERANCE,
            terms=float(np.trace(matrix @ setting.test_tasks)),
        ),
        check.sampled("simulated_noisy_risk_of_w", mean, theory.lsa.risk(theory.Problem.of(noisy), step), error),
    ]


class QueryShiftSetting(FixedTaskSetting):
    """Tests with queries of another second moment than the context's inputs."""

    Lam_q: list[list[float]] | None = table(
        None, meaning="second moment of the query", detail="; null: a banded matrix that does not commute with Lam"
    )

    @property
    def query_moment(self) -> np.ndarray:
        """E[x_q x_q^T]."""
        if self.Lam_q is not None:
            return np.asarray(self.Lam_q)
        beside = np.diag(np.resize([0.4, 0.2], self.d - 1), 1) if self.d > 1 else np.zeros((1, 1))
        return np.diag(np.resize([1.5, 3.0, 0.3], self.d)) + beside + beside.T

    def validate(self) -> None:
        super().validate()
        d, moment = self.d, self.query_moment
        check_covariance(moment, "Lam_q", allow_singular=True)
        if len(moment) != d:
            raise InvalidValueError(f"`Lam_q` must be a {d} x {d} matrix, d = {d}; got {len(moment)} x {len(moment)}.")


def _risk_on_other_queries(weights: LSAWeights, setting: QueryShiftSetting) -> tuple[float, float]:
    """Risk of the literal forward pass on queries of the second moment Lam_q, and its standard error."""
    task = prompts(setting.covariance, setting.M, setting.one_task)
    root = jnp.asarray(np.asarray(psd_root(setting.query_moment)))

    def squared_error(one):
        prompt = task.sample(one)
        # A constant first coordinate: the second moment is the asked one, the covariance is not.
        query = root @ jax.random.normal(prng.stream(one, "query"), (task.dim,)).at[0].set(1.0)
        prompt = Prompt(inputs=prompt.inputs, labels=prompt.labels, query=query, target=(prompt.latent @ query)[None])
        return jnp.sum((MODEL(weights, prompt) - prompt.target) ** 2)

    return mean_with_error(simulate(squared_error, setting.stream("prompts"), setting.samples))


@claim("zhang2023.shift-query", QueryShiftSetting, Source(PAPER, "section 4.2, query shift", "corrected"))
def query_shift(setting: QueryShiftSetting) -> list[Check]:
    """Queries independent of the context enter the error by their second moment only, and the error vanishes as both lengths
    grow; the answer is 0 exactly for queries Gamma n, n orthogonal to the context.

    The layer is trained by gradient flow on the exact loss, from the theorem's start at half its largest scale; its forward
    pass answers simulated prompts whose queries are not centred, and single queries on a short context. A risk that takes the
    query to be distributed like the inputs, or an answer 0 to n itself as in the paper, would make it fail.
    """
    d, matrix, vector, moment = setting.d, setting.covariance, setting.vector, setting.query_moment
    flow, infinite = trained(setting.task()), trained(prompts(matrix, INFINITE_TRAINING))
    step, root = _preconditioner(setting), np.asarray(psd_root(moment))
    task = prompts(matrix, setting.M, setting.one_task)
    mean, error = _risk_on_other_queries(flow.limit, setting)
    # d inputs whose empirical second moment is Lam: the context mean after infinitely many examples.
    design = np.sqrt(d) * np.asarray(psd_root(matrix))

    def after_infinite_context(weights) -> float:
        answers = _answers(weights, design, design @ vector, root.T)
        return float(np.sum((answers - root.T @ vector) ** 2))

    after_infinite, after_both = (after_infinite_context(one.limit) for one in (flow, infinite))
    limit = theory.lsa.risk(theory.Problem(matrix, setting.one_task, 0.0, np.inf), step, moment)
    largest = float(vector @ moment @ vector)
    checks = [
        converged(flow),
        check.sampled("simulated_risk", mean, theory.lsa.risk(theory.Problem.of(task), step, moment), error),
        # The closed form is a difference of terms as large as the response.
        check.exact("risk_after_infinite_context", after_infinite, limit, PREDICTION_TOLERANCE, terms=largest),
        check.exact("risk_after_infinite_lengths_abs", after_both, 0.0, VANISHED * largest),
    ]
    if d == 1:
        return checks  # no query is orthogonal to a context
    key = setting.stream("few inputs")
    context = np.asarray(task.covariates.sample(key, min(setting.M, d - 1)))
    normal = np.linalg.svd(context)[2][-1]
    labels = context @ vector
    gamma = theory.zhang2023.gamma(matrix, setting.N)
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


class CovariateShiftSetting(QueryShiftSetting):
    """Tests with scaled inputs, with inputs of another covariance, and with other queries."""

    c: float = number(2.0, positive=True, meaning="scale of the test inputs", detail=": a factor of all of them")
    Lam_test: list[float] | None = spectrum("eigenvalues of the test covariance", "; null: 1/2, 3/2, 3 and so on")

    @property
    def test_covariance(self) -> Array:
        values = np.resize([0.5, 1.5, 3.0], self.d).tolist() if self.Lam_test is None else self.Lam_test
        return covariance(values, self.d, self.rotate, self.seed, "test")


@claim("zhang2023.shift-covariate", CovariateShiftSetting, Source(PAPER, "section 4.2, covariate shift"))
def covariate_shift(setting: CovariateShiftSetting) -> list[Check]:
    """A layer trained at Lam is wrong on inputs of another covariance: inputs times c give an error that tends to
    c^2 (c^2 - 1)^2 w^T Lam w after infinite contexts.

    Layers are trained by gradient flow on the exact loss, at N and at a length that stands for infinity, from the theorem's
    start at half its largest scale; exact risks are taken on the test's inputs, and other queries are simulated. A Gamma of the
    test's covariance, or (c - 1)^2 in place of (c^2 - 1)^2, would make it fail.
    """
    matrix, M, c, one_task = setting.covariance, setting.M, setting.c, setting.one_task
    flow, infinite = trained(setting.task()), trained(prompts(matrix, INFINITE_TRAINING))
    step = _preconditioner(setting)
    mean, error = _risk_on_other_queries(flow.limit, setting)
    scaled, other = (prompts(inputs, M, one_task) for inputs in (c**2 * matrix, setting.test_covariance))
    in_the_limit = risk_on(infinite.limit, prompts(c**2 * matrix, INFINITE, one_task))
    signal = float(setting.vector @ matrix @ setting.vector)
    of_queries = theory.lsa.risk(theory.Problem(matrix, one_task, 0.0, M), step, setting.query_moment)
    return [
        converged(flow),
        converged(infinite, "infinite_flow_converged_abs"),
        *(
            check.exact(name, risk_on(flow.limit, task), theory.lsa.risk(theory.Problem.of(task), step), RISK_TOLERANCE)
            for name, task in (("risk_of_scaled_inputs", scaled), ("risk_of_other_covariance", other))
        ),
        check.sampled("simulated_risk_of_other_queries", mean, of_queries, error),
        # At c = 1 both are zero: the scale is that of the labels.
        check.exact(
            "risk_of_scaled_inputs_after_infinite_contexts_abs",
            in_the_limit,
            theory.transfer.scaled_inputs_error(c, signal),
            INFINITE_TOLERANCE * c**2 * (1 + c**2) ** 2 * signal,
        ),
    ]
