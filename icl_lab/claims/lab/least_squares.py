"""Claims about least squares: ordinary with many examples, of minimum norm with few."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import estimators, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, flag, integer, number, spectrum
from icl_lab.claims.lab.risks import COVARIANCES, EXACT_TOLERANCE, SAMPLING, SIZES, SPARE_FOR_PLAIN_SAMPLING, validate
from icl_lab.claims.registry import claim
from icl_lab.claims.settings.regression import covariance
from icl_lab.claims.simulation import simulate
from icl_lab.core import compiled, prng
from icl_lab.core.errors import AssumptionError
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.regression.linear import LinearRegression

# Share of the largest squared errors from which the index of their tail is estimated, and how well.
TAIL_SHARE = 1 / 500
TAIL_TOLERANCE = 0.2


def _least_squares(task: LinearRegression, key, samples: int) -> tuple[float, float]:
    """Risk of (minimum-norm) least squares, and its standard error, at any N for which it has a mean.

    The part of the noise needs E 1/s of the smallest eigenvalue of S, whose squared error has no variance close to N = d. There
    prompts of two fewer examples (two fewer dimensions if N < d) are drawn instead and weighted by det S, which turns their
    Wishart distribution into the right one and bounds det(S) tr(S^{-1}).
    """
    d, N = task.dim, task.context_length
    noise = float(task.noise_std)
    if noise == 0 or abs(N - d) >= SPARE_FOR_PLAIN_SAMPLING:
        return _weighted_risk(task, key, samples, weighted=False)
    if d <= N:
        return _weighted_risk(task.with_context_length(N - 2), key, samples, weighted=True)
    clean = LinearRegression(dim=d, context_length=N, covariance=task.covariance, task_covariance=task.task_covariance)
    narrower = LinearRegression(
        dim=d - 2,
        context_length=N,
        covariance=np.asarray(task.covariance)[:-2, :-2],
        task_covariance=np.zeros((d - 2, d - 2)),
        noise_std=noise,
    )
    bias, first = _weighted_risk(clean, key, samples, weighted=False)
    variance, second = _weighted_risk(narrower, prng.stream(key, "noise part"), samples, weighted=True)
    return bias + variance, math.hypot(first, second)


def _weighted_risk(task: LinearRegression, key, samples: int, weighted: bool) -> tuple[float, float]:
    """Mean squared error of least squares on prompts weighted by the determinant of their Gram matrix."""

    def pair(one):
        prompt = task.sample(one)
        error = jnp.sum((estimators.ols(prompt) - prompt.target) ** 2)
        rows = prompt.inputs if task.context_length >= task.dim else prompt.inputs.T
        return jnp.stack([error, jnp.linalg.det(rows.T @ rows) if weighted else jnp.ones_like(error)])

    errors, weights = simulate(pair, key, samples).T
    mean = np.mean(weights * errors) / np.mean(weights)
    return float(mean), float(np.std(weights * (errors - mean), ddof=1) / np.mean(weights) / np.sqrt(samples))


def _tail_index(task: LinearRegression, key, samples: int) -> float:
    """Hill's estimate of a in P(squared error > t) ~ t^{-a}, from the largest errors; a mean exists only if a > 1."""

    def squared_error(one):
        prompt = task.sample(one)
        return jnp.sum((estimators.ols(prompt) - prompt.target) ** 2)

    largest = np.sort(simulate(squared_error, key, samples))[-round(samples * TAIL_SHARE) :]
    return float(1 / np.mean(np.log(largest[1:] / largest[0])))


def _least_squares_check(name: str, task: LinearRegression, expected: float, key, samples: int) -> Check:
    """The sampled risk beside a finite one; the tail of its squared errors beside that which makes the mean infinite."""
    if math.isinf(expected):
        index = (abs(task.context_length - task.dim) + 1) / 2
        return check.exact(f"tail_index_{name}_abs", _tail_index(task, key, samples), index, TAIL_TOLERANCE)
    mean, error = _least_squares(task, key, samples)
    if expected == 0:
        return check.exact(f"risk_{name}_abs", mean, 0.0, EXACT_TOLERANCE * float(task.signal_variance))
    return check.sampled(f"risk_{name}", mean, expected, error)


def _validate_ols(d, N, **others) -> None:
    validate(d, **others)
    if d > N:
        raise AssumptionError(f"lab.ols is about N >= d = {d} examples; got N = {N}. Fewer are the subject of lab.minnorm.")


@claim(
    "lab.ols",
    statement="Least squares has excess risk s2 d / (N - d - 1), whatever the covariances and the task; infinite at d and d+1.",
    source=Source("icl_lab; textbook", "mean of an inverse Wishart matrix", "extended"),
    parameters=SIZES | COVARIANCES | SAMPLING,
    validate=_validate_ols,
)
def least_squares(d, N, s2, Lam, Om, rotate, samples, seed) -> list[Check]:
    key = jax.random.key(seed)
    task = LinearRegression(
        dim=d,
        context_length=N,
        covariance=covariance(Lam, d, rotate, seed, "inputs"),
        task_covariance=covariance(Om, d, rotate, seed, "tasks", largest=1.5),
        noise_std=np.sqrt(s2),
    )
    vector = jax.random.normal(prng.stream(key, "vector"), (d,))

    def errors_of_two_tasks(one):
        prompt = task.sample(one)
        change = vector - prompt.latent
        other = Prompt(
            prompt.inputs,
            prompt.labels + prompt.inputs @ change[:, None],
            prompt.query,
            prompt.target + prompt.query @ change[:, None],
        )
        return jnp.concatenate([estimators.ols(asked) - asked.target for asked in (prompt, other)])

    keys = jax.random.split(prng.stream(key, "two tasks"), 50)
    drawn, fixed = np.asarray(compiled.jit(jax.vmap(errors_of_two_tasks))(keys)).T
    return [
        _least_squares_check("random_tasks", task, theory.bayes.ols_risk(d, N, s2), prng.stream(key, "prompts"), samples),
        # On the same inputs and noise the error is the same for every task vector.
        check.exact("errors_of_one_task_abs", fixed, drawn, 1e-6),
    ]


@claim(
    "lab.minnorm",
    statement="For Lam = lam I and N < d the interpolator of least norm has excess risk lam tr(Om) (1 - N/d) + s2 N/(d-N-1).",
    source=Source("icl_lab; textbook", "mean of an inverse Wishart matrix; a Haar subspace of dimension N", "extended"),
    parameters=SIZES
    | {
        "d": integer(8, 1, "input dimension"),
        "N": integer(4, 1, "context length; from d on it is least squares"),
        "s2": number(0.3, 0.0, "variance of the label noise"),
        "lam": number(1.0, positive=True, meaning="variance of an input"),
        "Om": spectrum("eigenvalues of the task covariance; null: all 1"),
        "rotate": flag(False, "random eigenvectors of the task covariance"),
    }
    | SAMPLING,
    validate=validate,
)
def minimum_norm(d, N, s2, lam, Om, rotate, samples, seed) -> list[Check]:
    tasks = np.eye(d) if Om is None else covariance(Om, d, rotate, seed, "tasks")
    task = LinearRegression(dim=d, context_length=N, covariance=lam * np.eye(d), task_covariance=tasks, noise_std=np.sqrt(s2))
    if d > N:
        expected = theory.bayes.minimum_norm_risk(d, N, s2, lam, float(np.trace(tasks)))
    else:
        expected = theory.bayes.ols_risk(d, N, s2)
    return [_least_squares_check("minimum_norm", task, expected, prng.stream(jax.random.key(seed), "prompts"), samples)]
