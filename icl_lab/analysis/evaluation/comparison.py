"""What a trained model is compared with: the closed form that applies to its task, and the estimators of the tables."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab import estimators, tasks, theory
from icl_lab.analysis import Predictor
from icl_lab.core import compiled
from icl_lab.core.errors import UnsupportedProblemError
from icl_lab.core.typing import Array, Key
from icl_lab.estimators.batch.ridge import Penalty
from icl_lab.models import Learner, LinearSelfAttention
from icl_lab.tasks.prompt import Task
from icl_lab.tasks.regression.linear import is_plain
from icl_lab.theory import Optimum

CHUNK = 500
MEANS = ("gradient_descent", "preconditioned_gradient_descent")
"""Estimators that divide by the number of examples; the others take sums over them."""
LARGEST_MIXED = 32
"""Dimensions up to which the best step of several covariances is found in closed form, by d^2 equations."""
DEFAULT_PENALTY = 1.0
"""Ridge penalty where the task has no Bayes penalty (no noise, or no Gaussian task vector)."""


def closed_form(task: Task, model: Learner) -> Optimum | None:
    """The theorem that says what one linear layer becomes on this task, or None where the lab knows none.

    The first that applies of Mahankali et al. (plain sum, inverse covariance), Zhang et al. (noiseless, task covariance
    I) and the lab's own extension to any covariances.
    """
    if not isinstance(task, tasks.LinearRegression) or not isinstance(model, LinearSelfAttention):
        return None
    if not model.is_single_pass or model.causal or model.embedding != "merged":
        return None
    theorems = [theory.zhang2023.optimum, theory.lsa.optimum]
    if model.normaliser == "none":
        theorems = [theory.mahankali2023.optimum, *theorems]
    for theorem in theorems:
        try:
            return theorem(task)
        except UnsupportedProblemError:
            continue
    return None


def problems(task: Task) -> list[tuple[theory.Problem, float]]:
    """The closed-form problems that a prompt of a task may pose, with their probabilities; none where that is not known.

    One for linear regression on inputs that are independent of each other, one for each covariance of a mixture of Gaussians.
    """
    if not is_plain(task):
        return []
    support = task.covariates.support_covariances()
    if support is not None and task.dim <= LARGEST_MIXED:
        noise, length = float(task.noise_std) ** 2, task.context_length
        return [
            (theory.Problem(np.asarray(covariance), np.asarray(task.task_covariance), noise, length), float(probability))
            for covariance, probability in zip(*support, strict=True)
        ]
    try:
        return [(theory.Problem.of(task), 1.0)]
    except UnsupportedProblemError:
        return []


def step_risk(cases: Sequence[tuple[theory.Problem, float]], preconditioner: Float[np.ndarray, "d d"]) -> float:
    """The exact risk of a preconditioned gradient step, averaged over the `problems` of a task."""
    return float(sum(probability * theory.lsa.risk(problem, preconditioner) for problem, probability in cases))


def best_linear_steps(task: Task, key: Key, prompts: int) -> tuple[float, Float[np.ndarray, "d d"]]:
    r"""The step size and the preconditioner with which one gradient step from zero does best on a task.

    For linear regression in closed form where `problems` has one, else by least squares of the target on the answers of a
    step, over fresh prompts.

    Returns:
      eta, for :math:`\hat y = \eta G^* x_q`, and P (d, d), for :math:`\hat y = G^* P^\top x_q`, G = (1/N) sum_i x_i y_i^*.
    """
    if cases := problems(task):
        ahead, still, back = (step_risk(cases, size * np.eye(task.dim)) for size in (1.0, 0.0, -1.0))
        # The minimum of the parabola through them.
        step = 0.5 * (back - ahead) / (ahead + back - 2 * still)
        if len(cases) == 1:
            return step, np.asarray(theory.lsa.optimal_preconditioner(cases[0][0]))
        posed, probabilities = zip(*cases, strict=True)
        return step, np.asarray(theory.random_covariance.optimal_preconditioner(posed, np.asarray(probabilities)))
    square, cross = (np.asarray(x) for x in _normal_equations(task, jax.random.split(key, (-(-prompts // CHUNK), CHUNK))))
    dim = task.dim
    identity = np.eye(dim).ravel()
    step = np.real(identity @ cross) / np.real(identity @ square @ identity)
    preconditioner = np.linalg.lstsq(square, cross, rcond=None)[0].reshape(dim, dim)
    return float(step), np.asarray(preconditioner)


def predictors(task: Task, step_size: float, preconditioner: Array, penalty: Penalty | None) -> dict[str, Predictor]:
    """The estimators that a trained model is compared with, by the names they have in tables and files.

    Args:
      task: distribution of the prompts.
      step_size: eta of the gradient step.
      preconditioner: (d, d), of the preconditioned gradient step.
      penalty: of ridge regression; None for `bayes_penalty`.
    """
    chosen = {
        "gradient_descent": estimators.named("gradient_descent", step_size=np.asarray(step_size)),
        "preconditioned_gradient_descent": estimators.named("preconditioned_gradient_descent", preconditioner=preconditioner),
        "ols": estimators.named("ols"),
        # As an array, so that another number needs no other program.
        "ridge": estimators.named("ridge", penalty=np.asarray(bayes_penalty(task) if penalty is None else penalty)),
        "zero": estimators.named("zero"),
    }
    if is_sequence(task):
        chosen["last_value"] = estimators.named("last_value")
    return chosen


def penalty_matrix(task: Task, penalty: float | None) -> Float[np.ndarray, "d d"]:
    """The penalty of ridge regression as a matrix, whatever it is: a number lambda as lambda I, None as `bayes_penalty`."""
    chosen = np.asarray(bayes_penalty(task) if penalty is None else penalty)
    return chosen * np.eye(task.dim) if chosen.ndim == 0 else chosen


def is_sequence(task: Task) -> bool:
    """Whether the examples of a prompt are consecutive values of one series, so that the query follows the last one."""
    sequences = (
        tasks.Autoregressive | tasks.RandomAutoregressive | tasks.GaussianSeries | tasks.LinearDynamics | tasks.MarkovChain
    )
    return isinstance(task, sequences)


def bayes_penalty(task: Task) -> float | Float[np.ndarray, "d d"]:
    """The Bayes penalty s2 Omega^{-1} of noisy linear regression; `DEFAULT_PENALTY` for any other task."""
    if not isinstance(task, tasks.LinearRegression) or not float(np.asarray(task.noise_std)) > 0:
        return DEFAULT_PENALTY
    task_covariance = np.asarray(task.task_covariance)
    if np.linalg.cond(task_covariance) > 1e12:
        return DEFAULT_PENALTY
    inverse = np.linalg.inv(task_covariance)
    return float(np.asarray(task.noise_std)) ** 2 * 0.5 * (inverse + inverse.T)


@compiled.jit
def _normal_equations(task: Task, keys: Key) -> tuple[Array, Array]:
    """E[phi^* phi^T] and E[phi^* target] for the features phi of P in G^* P^T x_q, averaged over prompts and outputs."""

    def one(key):
        prompt = task.sample(key)
        answer = prompt.labels.T @ prompt.inputs.conj() / prompt.inputs.shape[0]
        phi = jnp.einsum("oi,j->oji", answer, prompt.query).reshape(answer.shape[0], -1)
        return phi.conj().T @ phi, phi.conj().T @ prompt.target

    sums = jax.lax.map(lambda keys: jax.tree.map(lambda x: jnp.sum(x, axis=0), jax.vmap(one)(keys)), keys)
    return jax.tree.map(lambda x: jnp.sum(x, axis=0) / (keys.shape[0] * keys.shape[1]), sums)
