"""Claims of Mahankali, Hashimoto, Ma 2023 (arXiv 2307.03576): the best layer is one step of gradient descent."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import estimators, models, objectives, theory, training
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, flag, integer, number, spectrum
from icl_lab.claims.registry import claim
from icl_lab.claims.settings.regression import check_spectrum, covariance
from icl_lab.claims.simulation import simulate
from icl_lab.core import prng
from icl_lab.core.linalg import psd_root
from icl_lab.models import initializers
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.regression.linear import LinearRegression

PAPER = "Mahankali, Hashimoto, Ma 2023, arXiv 2307.03576"
# The paper's layer: a plain sum over the context tokens.
MODEL = models.LinearSelfAttention(query_in_sum=False, normaliser="none")

# The flow stops at an estimated relative weight error of a tenth of what is asked; the risk is quadratic around it.
WEIGHT_TOLERANCE = 1e-9
LIMIT_TOLERANCE = 1e-8
RISK_TOLERANCE = 1e-10
# Solver and its tolerance. Summing instead of averaging spreads the relaxation rates by about N^2 more, and an explicit solver
# at its stability limit keeps errors of its own tolerance in the fastest; the implicit one has no such floor but compiles
# three times as long.
EXPLICIT, IMPLICIT = ("tsit5", 1e-12), ("kvaerno5", 1e-8)
LARGEST_EXPLICIT_SPREAD = 100.0

_COMMON = {
    "d": integer(3, 1, "input dimension"),
    "N": integer(5, 1, "context length, the paper's n"),
    "s2": number(0.5, 0.0, "variance of the label noise"),
    "sigma": number(0.1, positive=True, meaning="scale of the random starts, times N^{-1/3}"),
    "starts": integer(6, 1, "random starts, of which the best counts"),
    "samples": integer(200_000, 1_000, "prompts for the ratio of expectations"),
    "seed": integer(0, 0, "of starts and prompts"),
}


@claim(
    "mahankali2023.thm1",
    statement="With isotropic inputs the best of several trained layers is one GD step of size "
    "eta = E(b.w_ridge) / E(b.b) = 1/(n+d+1+s2).",
    source=Source(PAPER, "Theorem 1"),
    parameters=_COMMON,
)
def one_step_of_gradient_descent(d, N, s2, sigma, starts, samples, seed) -> list[Check]:
    return _best_layer_is_one_step(np.eye(d), N, s2, sigma, starts, samples, seed)


def _validate(d, Lam, **_) -> None:
    check_spectrum(Lam, d, "Lam")


@claim(
    "mahankali2023.thm2",
    statement="With inputs N(0, Sigma) and tasks N(0, Sigma^{-1}) it is one step preconditioned by Sigma^{-1}, with the eta of "
    "the isotropic case.",
    source=Source(PAPER, "Theorem 2"),
    parameters=_COMMON
    | {
        "Lam": spectrum("eigenvalues of Sigma; null: 2 down to 1/2"),
        "rotate": flag(True, "random eigenvectors of Sigma"),
    },
    validate=_validate,
)
def one_step_of_preconditioned_gradient_descent(d, N, s2, sigma, starts, samples, seed, Lam, rotate) -> list[Check]:
    return _best_layer_is_one_step(covariance(Lam, d, rotate, seed), N, s2, sigma, starts, samples, seed)


def _best_layer_is_one_step(matrix, N, s2, sigma, starts, samples, seed) -> list[Check]:
    d = len(matrix)
    inverse = np.linalg.inv(matrix)
    task = LinearRegression(
        dim=d, context_length=N, covariance=matrix, task_covariance=(inverse + inverse.T) / 2, noise_std=np.sqrt(s2)
    )
    optimum = theory.mahankali2023.optimum(task)
    eta = theory.mahankali2023.step_size(d, N, s2)
    key = jax.random.key(seed)
    objective = objectives.population(task, MODEL)
    flows = _flows(objective, prng.stream(key, "starts"), d, sigma * N ** (-1 / 3), starts)
    convergence.rest_on(flows, flows.best)
    limit = flows.limit(flows.best)
    p1, p2 = limit.w_pv[-1, :d], limit.w_pv[-1, d]
    k1, k2 = limit.w_kq[:d, :d], limit.w_kq[d, :d]
    ratio, error = _ratio_of_expectations(task, prng.stream(key, "prompts"), samples)
    share, share_error = flows.share(optimum.risk / 2)
    checks = [
        # The other starts end in spurious minima or need more steps; how many varies with the problem.
        check.at_least("share_of_starts_at_the_global_minimum", share, 1 / starts, standard_error=share_error),
        check.holds("best_flow_converged_abs", flows.verdicts[flows.best] is training.Verdict.CONVERGED),
        check.exact("step", p2 * k1.T + np.outer(k2, p1), optimum.preconditioner / N, LIMIT_TOLERANCE),
        check.exact("risk", objective.risk(limit), optimum.risk, RISK_TOLERANCE, terms=float(task.signal_variance)),
        check.sampled("eta", ratio, eta, error),
    ]
    if d > 1:
        # One dimension has a second family of minimisers, which puts the same function into p1 and k2.
        size = np.linalg.norm(limit.w_pv[-1]) + np.linalg.norm(limit.w_kq[:, :d])
        even = np.concatenate([p1, k2]) / size
        checks.append(check.exact("unused_blocks_abs", even, np.zeros(2 * d), 10 * LIMIT_TOLERANCE))
    return checks


def _flows(objective, key, dim: int, scale: float, starts: int) -> training.Ensemble:
    """Flows from random starts of all entries, which can end in local minima that are not global."""
    solver, rtol = EXPLICIT if objective.rate_spread <= LARGEST_EXPLICIT_SPREAD else IMPLICIT
    starting = jax.vmap(lambda one: initializers.gaussian(one, dim + 1, scale))(jax.random.split(key, starts))
    return training.gradient_flows(objective, starting, weight_tolerance=WEIGHT_TOLERANCE, solver=solver, rtol=rtol)


def _ratio_of_expectations(task: LinearRegression, key, samples: int) -> tuple[float, float]:
    """E[b.w_ridge] / E[b.Sigma^{-1} b] from sampled prompts, and its standard error (delta method).

    Written in whitened inputs, in which the Bayes penalty is s2 I and minimum-norm least squares its limit at s2 = 0.
    """
    root = jnp.asarray(psd_root(task.task_covariance))
    noise_variance = float(task.noise_std) ** 2

    def pair(one):
        prompt = task.sample(one)
        inputs = prompt.inputs @ root
        b = inputs.T @ prompt.labels[:, 0]
        asked = Prompt(inputs, prompt.labels, b, prompt.target)
        fitted = estimators.ridge(asked, noise_variance) if noise_variance > 0 else estimators.ols(asked)
        return jnp.stack([fitted[0], b @ b])

    numerator, denominator = simulate(pair, key, samples).T
    ratio = np.mean(numerator) / np.mean(denominator)
    residual = numerator - ratio * denominator
    return float(ratio), float(np.std(residual, ddof=1) / np.sqrt(samples) / np.mean(denominator))
