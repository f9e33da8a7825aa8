"""Claims of Mahankali, Hashimoto, Ma 2023 (arXiv 2307.03576): the best layer is one step of gradient descent."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import estimators, objectives, theory, training
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.mahankali2023.settings import MODEL, PAPER, RandomStarts, Whitening
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, spectrum
from icl_lab.claims.settings.regression import covariance
from icl_lab.claims.simulation import ratio_with_error, simulate
from icl_lab.core.linalg import psd_root
from icl_lab.core.typing import Array, Key
from icl_lab.models import initializers
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.regression.linear import LinearRegression

# The flow stops at an estimated relative weight error of a tenth of what is asked; the risk is quadratic around it.
WEIGHT_TOLERANCE = 1e-9
LIMIT_TOLERANCE = 1e-8
RISK_TOLERANCE = 1e-10
# Solver and its tolerance. Summing instead of averaging spreads the relaxation rates by about N^2 more, and an explicit solver
# at its stability limit keeps errors of its own tolerance in the fastest; the implicit one has no such floor but compiles
# three times as long.
EXPLICIT, IMPLICIT = ("tsit5", 1e-12), ("kvaerno5", 1e-8)
LARGEST_EXPLICIT_SPREAD = 100.0


class OneStep(RandomStarts):
    """Random starts on isotropic inputs, and prompts for the step size."""

    samples: int = integer(200_000, 1_000, "number of draws", "of prompts for the ratio of expectations")


class PreconditionedStep(OneStep, Whitening):
    """The same on inputs N(0, Sigma), with tasks N(0, Sigma^{-1})."""

    Lam: list[float] | None = spectrum("eigenvalues of the input covariance", "; null: 2 down to 1/2")
    rotate = True

    @property
    def covariance(self) -> Array:
        return covariance(self.Lam, self.d, self.rotate, self.seed)


@claim("mahankali2023.thm1", OneStep, Source(PAPER, "Theorem 1"))
def one_step_of_gradient_descent(setting: OneStep) -> list[Check]:
    """With isotropic inputs the best of several trained layers is one GD step of size
    eta = E(b.w_ridge) / E(b.b) = 1/(n+d+1+s2).

    Gradient flow on the exact loss from Gaussian starts of all entries; the best end gives step and risk, and simulated prompts
    give the ratio of expectations. A step of size 1/(n+d+s2), or weights left in the blocks p1 and k2, would make it fail.
    """
    return _best_layer_is_one_step(setting)


@claim("mahankali2023.thm2", PreconditionedStep, Source(PAPER, "Theorem 2"))
def one_step_of_preconditioned_gradient_descent(setting: PreconditionedStep) -> list[Check]:
    """With inputs N(0, Sigma) and tasks N(0, Sigma^{-1}) it is one step preconditioned by Sigma^{-1}, with the eta of
    the isotropic case.

    Gradient flow on the exact loss from Gaussian starts of all entries; the best end gives step and risk, and simulated prompts
    give eta. A step without its preconditioner, or an eta that depends on Sigma, would make it fail.
    """
    return _best_layer_is_one_step(setting)


def _best_layer_is_one_step(setting: OneStep) -> list[Check]:
    d, N, task = setting.d, setting.N, setting.task()
    optimum = theory.mahankali2023.optimum(task)
    objective = objectives.population(task, MODEL)
    # Starts of all entries can end in local minima that are not global.
    keys = jax.random.split(setting.stream("starts"), setting.starts)
    solver, rtol = EXPLICIT if objective.rate_spread <= LARGEST_EXPLICIT_SPREAD else IMPLICIT
    flows = training.gradient_flows(
        objective,
        jax.vmap(lambda key: initializers.gaussian(key, d + 1, setting.start_scale))(keys),
        weight_tolerance=WEIGHT_TOLERANCE,
        solver=solver,
        rtol=rtol,
    )
    convergence.rest_on(flows, flows.best)
    limit = flows.limit(flows.best)
    p1, p2 = limit.w_pv[-1, :d], limit.w_pv[-1, d]
    k1, k2 = limit.w_kq[:d, :d], limit.w_kq[d, :d]
    ratio, error = _ratio_of_expectations(task, setting.stream("prompts"), setting.samples)
    share, share_error = flows.share(optimum.risk / 2)
    checks = [
        # The other starts end in spurious minima or need more steps; how many varies with the problem.
        check.at_least("share_of_starts_at_the_global_minimum", share, 1 / setting.starts, standard_error=share_error),
        check.holds("best_flow_converged_abs", flows.verdicts[flows.best] is training.Verdict.CONVERGED),
        check.exact("step", p2 * k1.T + np.outer(k2, p1), optimum.preconditioner / N, LIMIT_TOLERANCE),
        check.exact("risk", objective.risk(limit), optimum.risk, RISK_TOLERANCE, terms=float(task.signal_variance)),
        check.sampled("eta", ratio, theory.mahankali2023.step_size(d, N, setting.s2), error),
    ]
    if d > 1:
        # One dimension has a second family of minimisers, which puts the same function into p1 and k2.
        size = np.linalg.norm(limit.w_pv[-1]) + np.linalg.norm(limit.w_kq[:, :d])
        even = np.concatenate([p1, k2]) / size
        checks.append(check.exact("unused_blocks_abs", even, np.zeros(2 * d), 10 * LIMIT_TOLERANCE))
    return checks


def _ratio_of_expectations(task: LinearRegression, key: Key, samples: int) -> tuple[float, float]:
    """E[b.w_ridge] / E[b.Sigma^{-1} b] from sampled prompts, and its standard error.

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

    return ratio_with_error(*simulate(pair, key, samples).T)
