"""Claims of von Oswald et al. 2022 (arXiv 2212.07677): several layers."""

from __future__ import annotations

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from icl_lab import models, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, integer, number
from icl_lab.claims.registry import claim
from icl_lab.claims.simulation import mean_with_error, simulate
from icl_lab.claims.vonoswald2022.propositions import PAPER
from icl_lab.claims.vonoswald2022.settings import (
    DISTRIBUTION,
    covariates,
    draw_inputs,
    input_moments,
    layers,
    query_weights,
    sampled_rule,
    slope_on_rule,
)
from icl_lab.claims.vonoswald2022.steps import SAMPLING
from icl_lab.core.errors import AssumptionError
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.regression.linear import LinearRegression
from icl_lab.theory.descent.descent_steps import Descent, Rule

LOSS_TOLERANCE = 1e-9
SCALAR_TOLERANCE = 1e-6
LARGEST_UNIFORM_DEGREE = 8
"""Of a squared error polynomial whose moments are enumerated within seconds."""

SIZES = {"d": integer(10, 1, "input dimension"), "N": integer(10, 1, "context length")}
OPTIONAL_SAMPLING = SAMPLING | {"samples": integer(20_000, 0, "simulated prompts; 0: no simulation")}
NORMAL = {"distribution": "gaussian", "sigma": 1.0}


def descend(rule: Rule, steps: int, tied: bool, start: np.ndarray) -> Descent:
    """The stationary coefficients of the layers themselves on a rule, by a quasi-Newton search on their autodiff gradient.

    Args:
      rule: nodes and weights.
      steps: K.
      tied: whether all layers are the same.
      start: eta sig2 of each layer (one if tied), then gamma N sig2 of the layers that have a curvature.
    """
    variance, scale = float(rule.variance), rule.context_length * float(rule.variance)
    count = 1 if tied else steps
    bends = len(start) - count

    def unpack(point):
        gammas = np.append(point[count:], np.zeros(count - bends)) / scale
        return np.array(np.broadcast_to(point[:count] / variance, (steps,))), np.array(np.broadcast_to(gammas, (steps,)))

    def objective(point):
        value, (by_eta, by_gamma) = slope_on_rule(*unpack(point), rule)
        by_eta, by_gamma = np.asarray(by_eta) / variance, np.asarray(by_gamma) / scale
        if tied:
            by_eta, by_gamma = by_eta.sum(keepdims=True), by_gamma.sum(keepdims=True)
        return 2 * float(value) / variance, np.concatenate([by_eta, by_gamma[:bends]]) * 2 / variance

    found = scipy.optimize.minimize(objective, start, method="BFGS", jac=True, options={"gtol": 1e-9})
    solved = scipy.optimize.root(lambda point: objective(point)[1], found.x, tol=1e-13)
    etas, gammas = unpack(solved.x)
    return Descent(etas, gammas, objective(solved.x)[0] * variance / 2)


def _search(rule: Rule, steps: int, tied: bool, corrected: bool, starts: int, seed: int) -> Descent:
    """The best of `descend` from random starts; plain steps in ascending order."""
    generator = np.random.default_rng(seed + 1_000)
    count = 1 if tied else steps
    bends = 0 if not corrected else 1 if tied else steps - 1
    found = []
    for _ in range(starts):
        etas = np.sort(np.exp(generator.uniform(np.log(0.2), np.log(5.0), count)))
        found.append(descend(rule, steps, tied, np.concatenate([etas, generator.uniform(0.0, 0.8, bends)])))
    best = min((one for one in found if np.isfinite(one.loss)), key=lambda one: one.loss)
    return best if corrected else best._replace(step_sizes=np.sort(best.step_sizes))


def _losses(descents: list[Descent], distribution: str, d: int, N: int, sigma: float, samples: int, seed: int) -> np.ndarray:
    """Half losses of several stacks of layers on the same prompts, averaged over the query, (samples, stacks)."""
    task = LinearRegression(dim=d, context_length=N, covariates=covariates(distribution, d, sigma))
    variance, _ = input_moments(distribution, sigma)
    stacks = [layers(jnp.asarray(one.step_sizes), jnp.asarray(one.curvatures), d, N) for one in descents]

    def half_losses(one):
        prompt = task.sample(one)
        return jnp.stack([variance * jnp.sum((prompt.latent - query_weights(stack, prompt)) ** 2) / 2 for stack in stacks])

    return simulate(half_losses, jax.random.key(seed), samples)


def _validate_plain(distribution, K, **_) -> None:
    if distribution != "gaussian" and 2 * K > LARGEST_UNIFORM_DEGREE:
        raise AssumptionError(
            f"moments of uniform inputs are enumerated to order {LARGEST_UNIFORM_DEGREE}, K = 4; got K = {K}."
        )


def _validate_corrected(distribution, K, **_) -> None:
    if distribution != "gaussian" and K > 2:
        raise AssumptionError(
            f"moments of uniform inputs are enumerated to order {LARGEST_UNIFORM_DEGREE}, K = 2; got K = {K}."
        )
    if K > 3:
        raise AssumptionError(f"losses of degree 3^K - 1 are minimised up to K = 3; got K = {K}.")


@claim(
    "vonoswald2022.gd.K",
    statement="K steps of gradient descent have one best shared step size; the best separate ones are N over the Gauss nodes "
    "of the Gram matrix's mean spectral measure weighted by s, in any order.",
    source=Source(PAPER, "the tuned baselines of Section 3, exact; icl_lab", "extended"),
    parameters=SIZES
    | {"K": integer(2, 1, "steps")}
    | DISTRIBUTION
    | {"starts": integer(4, 1, "searches for separate step sizes")}
    | OPTIONAL_SAMPLING,
    extra_settings=(
        {"K": 3},
        {**NORMAL, "samples": 0},
        *({**NORMAL, "d": 5, "N": 20, "K": k, "samples": 0} for k in (2, 3, 5)),
    ),
    validate=_validate_plain,
)
def best_steps(d, N, K, distribution, sigma, starts, samples, seed) -> list[Check]:
    rule = Rule.exact(distribution, d, N, sigma, 2 * K)
    shared = theory.descent_steps.best_shared_step(rule, K)
    separate = theory.descent_steps.best_steps(distribution, d, N, sigma, K)
    found_shared = _search(rule, K, True, False, 2, seed)
    found = _search(rule, K, False, False, starts, seed)
    checks = [
        check.exact("shared_step", found_shared.step_sizes[0], shared.step_sizes[0], SCALAR_TOLERANCE),
        check.exact("shared_loss", found_shared.loss, shared.loss, LOSS_TOLERANCE),
        check.exact("separate_steps", found.step_sizes, separate.step_sizes, SCALAR_TOLERANCE),
        check.exact("separate_loss", found.loss, separate.loss, LOSS_TOLERANCE),
    ]
    if K > 2 or not samples:  # higher powers of the Gram matrix make a sample mean lie
        return checks
    drawn = _losses([shared, separate], distribution, d, N, sigma, samples, seed)
    for i, (name, expected) in enumerate((("shared", shared), ("separate", separate))):
        mean, error = mean_with_error(drawn[:, i])
        checks.append(check.sampled(f"simulated_{name}_loss", mean, expected.loss, error))
    return checks


@claim(
    "vonoswald2022.gdpp.optimum",
    statement="Gradient descent with curvature correction has computable best coefficients, tied and for each layer, which "
    "an independent search over the layers' weights finds again.",
    source=Source(PAPER, "Section 4 and Appendix A.10 (GD++); icl_lab for the values", "extended"),
    parameters=SIZES
    | {"K": integer(2, 2, "layers")}
    | DISTRIBUTION
    | {"starts": integer(16, 1, "searches on each side for K = 2, four times as many for K = 3")}
    | OPTIONAL_SAMPLING,
    extra_settings=(
        *({"N": n, "samples": 0} for n in (25, 50, 100)),
        {**NORMAL, "samples": 0},
        {**NORMAL, "d": 5, "N": 20, "samples": 0},
        {**NORMAL, "d": 5, "N": 20, "K": 3, "samples": 0},
        {**NORMAL, "d": 2, "N": 4, "samples": 0},
    ),
    validate=_validate_corrected,
)
def best_corrected_steps(d, N, K, distribution, sigma, starts, samples, seed) -> list[Check]:
    rule = Rule.exact(distribution, d, N, sigma, 3**K - 1)
    starts = starts * 4 if K == 3 else starts
    checks, optima = [], []
    for tied, name in ((True, "tied"), (False, "per_layer")):
        best = theory.descent_steps.best_corrected(rule, K, tied, starts)
        found = _search(rule, K, tied, True, max(starts // 2, 1), seed)
        optima.append(best)
        active = slice(None) if tied else slice(-1)  # the last curvature has no effect
        checks += [
            check.exact(f"{name}_steps", found.step_sizes, best.step_sizes, SCALAR_TOLERANCE),
            check.exact(f"{name}_curvatures", found.curvatures[active], best.curvatures[active], SCALAR_TOLERANCE),
            check.exact(f"{name}_loss", found.loss, best.loss, LOSS_TOLERANCE),
        ]
    if K > 2 or not samples:  # degree 26: a sample mean misses the tasks that matter
        return checks
    drawn = _losses(optima, distribution, d, N, sigma, samples, seed)
    for i, name in enumerate(("tied", "per_layer")):
        # Degree 8: the median is compared with that of the polynomials at eigenvalues of other sampled contexts.
        checks.append(_median_check(f"median_{name}", drawn[:, i], optima[i], distribution, d, N, sigma, samples, seed))
    return checks


def _polynomial_losses(
    descent: Descent, distribution: str, d: int, N: int, sigma: float, samples: int, seed: int
) -> np.ndarray:
    """Half losses (sig2/2) sum_a rho(s_a)^2 w_a^2 of tasks w at eigenvalues of sampled contexts, (samples,)."""
    rule = sampled_rule(distribution, d, N, sigma, samples, seed + 1)
    tasks = np.random.default_rng(seed + 2).standard_normal((samples, d))
    with np.errstate(over="ignore"):
        _, errors = theory.descent_variants.gdpp_polynomials(rule.nodes, descent.step_sizes, descent.curvatures, N)
        errors = errors.reshape(samples, d)
        return rule.variance / 2 * np.sum((errors * tasks) ** 2, axis=1)


def _median_check(name, drawn, descent, distribution, d, N, sigma, samples, seed) -> Check:
    """That half of the drawn losses lie below the median of the polynomials' losses, with the error of both samples."""
    median = np.median(_polynomial_losses(descent, distribution, d, N, sigma, samples, seed))
    return check.sampled(f"{name}_quantile", np.mean(drawn < median), 0.5, np.sqrt(0.25 / samples + 0.25 / samples))


@claim(
    "vonoswald2022.rollout",
    statement="One trained layer applied T times, damped by lambda, has the error (1 - lambda eta s/N)^T, and diverges on a "
    "task exactly if lambda eta s_max/N > 2.",
    source=Source(PAPER, "Section 4, the repeated layer (Figures 1 and 10); icl_lab for the values"),
    parameters=SIZES
    | DISTRIBUTION
    | {
        "T": integer(3, 1, "times, at most 4 for uniform inputs"),
        "lam": number(1.0, positive=True, meaning="lambda, damping"),
        "many": integer(50, 1, "times at which medians are compared"),
    }
    | SAMPLING,
    extra_settings=({"lam": 0.875}, {"lam": 0.75}),
    validate=lambda distribution, T, **_: _validate_plain(distribution, T),
)
def repeated_layer(d, N, distribution, sigma, T, lam, many, samples, seed) -> list[Check]:
    variance, kurtosis = input_moments(distribution, sigma)
    eta = lam * theory.vonoswald2022.optimal_step_size(d, N, variance, kurtosis)
    rule = Rule.exact(distribution, d, N, sigma, 2 * T)
    moments = [sigma ** (2 * k) * float(m) for k, m in enumerate(theory.gram_moments.moments_of(distribution, d, N, 2 * T))]
    fractions = [Fraction(m) for m in moments]
    counts = range(1, T + 1)
    measured = [float(slope_on_rule(np.full(t, eta), np.zeros(t), rule)[0]) for t in counts]
    expected = [theory.descent_steps.loss_from_moments(fractions, np.full(t, eta), np.zeros(t), N, variance) for t in counts]

    task = LinearRegression(dim=d, context_length=N, covariates=covariates(distribution, d, sigma))
    repeated = models.LinearSelfAttention(query_in_sum=False, readout_sign=-1.0, normaliser="none", loops=many)
    (layer,) = layers(jnp.array([eta]), jnp.zeros(1), d, N)

    def outcome(one):
        prompt = task.sample(one)
        found = jax.grad(lambda query: repeated(layer, Prompt(prompt.inputs, prompt.labels, query, prompt.target))[0])(
            prompt.query
        )
        largest = jnp.linalg.eigvalsh(prompt.inputs.T @ prompt.inputs)[-1]
        return jnp.stack([variance / 2 * jnp.sum((prompt.latent - found) ** 2), largest])

    drawn = simulate(outcome, jax.random.key(seed), samples)
    others = sampled_rule(distribution, d, N, sigma, samples, seed + 1).nodes.reshape(samples, d).max(axis=1)
    diverging, reference = (float(np.mean(eta / N * s > 2)) for s in (drawn[:, 1], others))
    error = np.sqrt((diverging + reference + 2 / samples) / samples)
    stack = Descent(np.full(many, eta), np.zeros(many), np.nan)
    checks = [
        check.exact("losses", measured, expected, LOSS_TOLERANCE),
        check.sampled("diverging_fraction_abs", diverging, reference, error),
        _median_check(f"median_after_{many}", drawn[:, 0], stack, distribution, d, N, sigma, samples, seed),
    ]
    if distribution == "uniform":
        checks.append(check.at_most("largest_eigenvalue", drawn[:, 1].max(), d * N * sigma**2))
    return checks


@claim(
    "vonoswald2022.gdpp.align",
    statement="The tuned tied two-layer model differs from tuned gradient descent with two shared steps, in the cosine and the "
    "difference of their query weights and in their predictions.",
    source=Source(PAPER, "end points of the alignment panels of Figure 3; icl_lab for the values", "extended"),
    parameters=SIZES | DISTRIBUTION | SAMPLING | {"samples": integer(40_000, 1_000, "prompts")},
)
def alignment_of_two_optima(d, N, distribution, sigma, samples, seed) -> list[Check]:
    plain = theory.descent_steps.best_shared_step(Rule.exact(distribution, d, N, sigma, 4), 2)
    corrected = theory.descent_steps.best_corrected(Rule.exact(distribution, d, N, sigma, 8), 2, True, 16)
    task = LinearRegression(dim=d, context_length=N, covariates=covariates(distribution, d, sigma))
    first, second = (layers(jnp.asarray(one.step_sizes), jnp.asarray(one.curvatures), d, N) for one in (plain, corrected))

    def metrics(one):
        prompt = task.sample(one)
        u, v = query_weights(first, prompt), query_weights(second, prompt)
        cosine = u @ v / (jnp.linalg.norm(u) * jnp.linalg.norm(v))
        return jnp.stack([cosine, jnp.linalg.norm(u - v), jnp.abs((u - v) @ prompt.query)])

    drawn = simulate(metrics, jax.random.key(seed), samples)
    generator = np.random.default_rng(seed + 1)
    inputs = draw_inputs(distribution, sigma, (samples, N + 1, d), generator)
    tasks = generator.standard_normal((samples, d))
    others = theory.descent_steps.alignment(plain, corrected, inputs[:, :-1], inputs[:, -1], tasks)
    checks = []
    for i, name in enumerate(("cosine", "model_difference", "prediction_difference")):
        (mean, error), (expected, uncertainty) = mean_with_error(drawn[:, i]), mean_with_error(np.asarray(others[:, i]))
        checks.append(check.sampled(name, mean, expected, np.hypot(error, uncertainty)))
    return checks
