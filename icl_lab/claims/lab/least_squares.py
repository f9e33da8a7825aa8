"""Claims about least squares: ordinary with many examples, of minimum norm with few."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab import estimators, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.lab.risks import EXACT_TOLERANCE, SPARE_FOR_PLAIN_SAMPLING
from icl_lab.claims.lab.settings import RiskSetting
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import flag, integer, number, spectrum
from icl_lab.claims.settings.regression import NoisySetting, covariance
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.claims.simulation import simulate, squared_errors
from icl_lab.core import compiled, prng
from icl_lab.core.errors import AssumptionError
from icl_lab.core.typing import Array
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
    d, N, inputs, tasks, noise = task.dim, task.context_length, task.covariance, task.task_covariance, float(task.noise_std)
    if noise == 0 or abs(N - d) >= SPARE_FOR_PLAIN_SAMPLING:
        return _weighted_risk(task, key, samples, weighted=False)
    if d <= N:
        return _weighted_risk(task.with_context_length(N - 2), key, samples, weighted=True)
    narrower = LinearRegression(d - 2, N, np.asarray(inputs)[:-2, :-2], np.zeros((d - 2, d - 2)), noise)
    bias, first = _weighted_risk(LinearRegression(d, N, inputs, tasks), key, samples, weighted=False)
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
    largest = np.sort(squared_errors(estimators.ols, task, key, samples))[-round(samples * TAIL_SHARE) :]
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


class EnoughExamples(RiskSetting):
    """At least as many examples as dimensions."""

    def validate(self) -> None:
        super().validate()
        if self.d > self.N:
            raise AssumptionError(
                f"least squares is about N >= d = {self.d} examples; got N = {self.N}. Fewer are the subject of lab.minnorm."
            )


@claim("lab.ols", EnoughExamples, Source("icl_lab; textbook", "mean of an inverse Wishart matrix", "extended"))
def least_squares(setting: EnoughExamples) -> list[Check]:
    """Least squares has excess risk s2 d / (N - d - 1), whatever the covariances and the task; infinite at d and d+1.

    Nothing is trained. Least squares is run on simulated prompts, near N = d on shorter ones weighted by a determinant, since
    squared errors have no variance there; where the mean is infinite the exponent of their tail is estimated. On the same
    inputs and noise two tasks must give one error. A degree of freedom too many would make it fail.
    """
    d, N, s2, task, key = setting.d, setting.N, setting.s2, setting.task(), setting.key
    vector = jax.random.normal(prng.stream(key, "vector"), (d,))

    def errors_of_two_tasks(one):
        prompt = task.sample(one)
        change = (vector - prompt.latent)[:, None]
        labels, target = prompt.labels + prompt.inputs @ change, prompt.target + prompt.query @ change
        other = Prompt(prompt.inputs, labels, prompt.query, target)
        return jnp.concatenate([estimators.ols(asked) - asked.target for asked in (prompt, other)])

    keys = jax.random.split(prng.stream(key, "two tasks"), 50)
    drawn, fixed = np.asarray(compiled.jit(jax.vmap(errors_of_two_tasks))(keys)).T
    risk = theory.bayes.ols_risk(d, N, s2)
    return [
        _least_squares_check("random_tasks", task, risk, prng.stream(key, "prompts"), setting.samples),
        # On the same inputs and noise the error is the same for every task vector.
        check.exact("errors_of_one_task_abs", fixed, drawn, 1e-6),
    ]


class FewExamples(Seeded, NoisySetting):
    """Isotropic inputs, and fewer examples than dimensions."""

    d = 8
    N: int = integer(4, 1, "context length", "; from d on it is least squares")
    s2 = 0.3
    lam: float = number(1.0, positive=True, meaning="variance of an input")
    Om: list[float] | None = spectrum("eigenvalues of the task covariance", "; null: all 1")
    rotate: bool = flag(False, "random eigenvectors", "of the task covariance")
    samples: int = integer(100_000, 10_000, "number of draws", "of prompts")

    @property
    def covariance(self) -> Float[Array, "d d"]:
        return self.lam * np.eye(self.d)

    @property
    def task_covariance(self) -> Float[Array, "d d"]:
        return covariance(self.Om or [1.0] * self.d, self.d, self.rotate, self.seed, "tasks")


@claim(
    "lab.minnorm",
    FewExamples,
    Source("icl_lab; textbook", "mean of an inverse Wishart matrix; a Haar subspace of dimension N", "extended"),
)
def minimum_norm(setting: FewExamples) -> list[Check]:
    """For Lam = lam I and N < d the interpolator of least norm has excess risk lam tr(Om) (1 - N/d) + s2 N/(d-N-1).

    Nothing is trained. Minimum-norm least squares is run on simulated prompts; close to N = d the part of the noise is
    simulated in two dimensions fewer with weights, and where the mean is infinite the exponent of the tail of squared errors
    is estimated. A bias of another share than 1 - N/d would make it fail.
    """
    d, N, s2 = setting.d, setting.N, setting.s2
    if d > N:
        expected = theory.bayes.minimum_norm_risk(d, N, s2, setting.lam, float(np.trace(setting.task_covariance)))
    else:
        expected = theory.bayes.ols_risk(d, N, s2)
    key = setting.stream("prompts")
    return [_least_squares_check("minimum_norm", setting.task(), expected, key, setting.samples)]
