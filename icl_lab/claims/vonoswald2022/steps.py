"""Claims of von Oswald et al. 2022 (arXiv 2212.07677): best step sizes, and risks away from the training distribution."""

from __future__ import annotations

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import objectives, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, choice, integer, number, spectrum
from icl_lab.claims.registry import claim
from icl_lab.claims.settings.regression import check_spectrum
from icl_lab.claims.simulation import mean_with_error, simulate
from icl_lab.claims.vonoswald2022.propositions import PAPER
from icl_lab.claims.vonoswald2022.settings import (
    DISTRIBUTION,
    MODEL,
    covariates,
    input_moments,
    layers,
    loss_on_rule,
    one_step,
    query_weights,
    simulated_loss,
    slope_on_rule,
)
from icl_lab.core import prng
from icl_lab.core.errors import AssumptionError
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.regression.linear import LinearRegression
from icl_lab.theory.descent.descent_steps import Rule

LAB = "icl_lab, after arXiv 2212.07677"
EXACT_TOLERANCE = 1e-10
# Sums of a few products, or a rule of a few nodes.
RULE_TOLERANCE = 1e-12
RATIONAL_TOLERANCE = 1e-9

SIZES = {"d": integer(10, 1, "input dimension"), "N": integer(10, 1, "context length")}
SAMPLING = {
    "samples": integer(20_000, 1_000, "contexts of a Monte Carlo mean"),
    "seed": integer(0, 0, "of the contexts"),
}


def _validate_order(order, **_) -> None:
    if order > 8:
        raise AssumptionError(f"moments of coordinates that are not Gaussian are enumerated up to order 8; got {order}.")


@claim(
    "layers.moments.gauss",
    statement="For standard normal inputs E tr W^k, W = X^T X, follows an exact recursion over integer partitions.",
    source=Source(LAB, "Stein's identity; icl_lab", "extended"),
    parameters=SIZES
    | {"order": integer(8, 3, "largest k; walks are counted up to 8, prompts simulated up to 4")}
    | SAMPLING
    | {"samples": integer(200_000, 1_000, "contexts")},
    extra_settings=({"d": 4, "N": 3},),
)
def gaussian_gram_moments(d, N, order, samples, seed) -> list[Check]:
    moments = theory.gram_moments.gaussian_moments(d, N, order)
    polynomials = [N * d, N * d * (N + d + 1), N * d * (N**2 + d**2 + 3 * N * d + 3 * N + 3 * d + 4)]
    # The same integers by another algorithm.
    walks = theory.gram_moments.iid_moments(d, N, min(order, 8), "gaussian")
    return [
        check.exact("polynomials_in_d_and_N", np.array(moments[1:4], float), np.array(polynomials, float), 0.0),
        check.exact("closed_walks", np.array(moments[: len(walks)], float), np.array(walks, float), 0.0),
        check.holds("closed_walks_give_the_same_integers_abs", moments[: len(walks)] == walks),
        *_simulated_moments("gaussian", d, N, 1.0, np.array(moments, float), samples, seed),
    ]


def _simulated_moments(distribution, d, N, sigma, moments, samples, seed) -> list[Check]:
    # Powers of few numbers have wild tails.
    order = min(len(moments) - 1, 4 if d * N > 5 else 2)
    distribution_of_inputs = covariates(distribution, d, sigma)

    def traces(one):
        inputs = distribution_of_inputs.sample(one, N)
        gram, power, found = inputs.T @ inputs, jnp.eye(d), []
        for _ in range(order):
            power = power @ gram
            found.append(jnp.trace(power))
        return jnp.stack(found)

    drawn = simulate(traces, jax.random.key(seed), samples)
    means, errors = np.mean(drawn, axis=0), np.std(drawn, axis=0, ddof=1) / np.sqrt(samples)
    return [check.sampled(f"simulated_m_{k + 1}", means[k], moments[k + 1], errors[k]) for k in range(order)]


@claim(
    "layers.moments.iid",
    statement="For i.i.d. symmetric coordinates E tr W^k is a sum over the shapes of closed walks on rows and columns; the "
    "first two are N d sig2 and N d sig2^2 (N + d + kap - 2).",
    source=Source(LAB, "the moment method; icl_lab", "extended"),
    parameters=SIZES
    | DISTRIBUTION
    | {"sigma": number(1.0, positive=True, meaning="standard deviation if gaussian, half-width if uniform")}
    | {"order": integer(6, 2, "largest k, at most 8; prompts are simulated up to 4")}
    | SAMPLING
    | {"samples": integer(200_000, 1_000, "contexts")},
    validate=_validate_order,
)
def iid_gram_moments(d, N, distribution, sigma, order, samples, seed) -> list[Check]:
    exact = theory.gram_moments.iid_moments(d, N, order, distribution)
    moments = np.array([float(m) * sigma ** (2 * k) for k, m in enumerate(exact)])
    variance, kurtosis = input_moments(distribution, sigma)
    closed = np.array([N * d * variance, N * d * variance**2 * (N + d + kurtosis - 2)])
    checks = [check.exact("first_two", moments[1:3], closed, EXACT_TOLERANCE)]
    if distribution == "gaussian":
        recursion = np.array(theory.gram_moments.gaussian_moments(d, N, order), dtype=float) * sigma ** (
            2 * np.arange(order + 1)
        )
        checks.append(check.exact("stein_recursion", moments, recursion, EXACT_TOLERANCE))
    # The quadrature rule, whose nodes come from the moments, carries them to the scale of the inputs.
    rule = Rule.exact(distribution, d, N, sigma, order)
    powers = np.array([rule.weights @ rule.nodes**k for k in range(order + 1)])
    checks.append(check.exact("moments_of_the_rule", powers, moments, RATIONAL_TOLERANCE))
    return checks + _simulated_moments(distribution, d, N, sigma, moments, samples, seed)


@claim(
    "layers.moments.rule",
    statement="From m_0 .. m_(2r-1) in rationals the r-node Gauss rule of the mean spectral measure integrates every loss "
    "of degree 2r - 1 or less.",
    source=Source(LAB, "Chebyshev's algorithm; icl_lab", "extended"),
    parameters=SIZES
    | {"d": integer(5, 1, "input dimension"), "N": integer(20, 1, "context length")}
    | DISTRIBUTION
    | {
        "distribution": choice("gaussian", ("gaussian", "uniform"), "of an input coordinate"),
        "sigma": number(1.0, positive=True, meaning="standard deviation if gaussian, half-width if uniform"),
        "r": integer(14, 1, "nodes; at most 4 for uniform inputs"),
    },
)
def rule_is_exact(d, N, distribution, sigma, r) -> list[Check]:
    r = r if distribution == "gaussian" else min(r, 4)
    moments = theory.gram_moments.moments_of(distribution, d, N, 2 * r)
    nodes, weights = theory.gram_moments.gauss_rule(moments[: 2 * r])
    powers = np.array([weights @ nodes**k for k in range(2 * r)])
    # Radau's version, with a node at zero, is exact one degree higher.
    radau = theory.descent_steps.Rule.exact(distribution, d, N, sigma, 2 * r)
    lifted = np.array([radau.weights @ (radau.nodes / sigma**2) ** k for k in range(2 * r + 1)])
    exact = np.array([float(m) for m in moments])
    # The layers themselves on the rule, as many as it integrates, against rational arithmetic.
    depth = max(k for k in range(1, 4) if 3**k - 1 <= 2 * r)
    etas = np.geomspace(0.5, 2.0, depth) / (radau.variance * (1 + d / N))
    gammas = np.full(depth, 0.2) / (N * radau.variance * (1 + d / N))
    measured = float(loss_on_rule(etas, gammas, radau))
    scaled = [Fraction(sigma) ** (2 * k) * m for k, m in enumerate(moments)]
    rational = theory.descent_steps.loss_from_moments(scaled, etas, gammas, N, radau.variance)
    return [
        check.exact("moments", powers / exact[: 2 * r], np.ones(2 * r), RATIONAL_TOLERANCE),
        check.exact("moments_with_a_node_at_zero", lifted / exact, np.ones(2 * r + 1), RATIONAL_TOLERANCE),
        check.exact("loss_of_layers_in_rationals", measured, rational, RATIONAL_TOLERANCE),
    ]


_NOISE = {
    "noise": number(0.0, 0.0, "standard deviation of the label noise"),
    "om2": number(1.0, positive=True, meaning="variance of a task coordinate"),
}


@claim(
    "vonoswald2022.eta1",
    statement="One gradient step from zero has half loss (sig2 d/2) [om2 (1 - 2 eta sig2 + eta^2 sig2^2 (N + d + kap - 2)/N) + "
    "eta^2 sig2 tau2/N], least at eta* = N/(sig2 (N + d + kap - 2 + tau2/(om2 sig2))).",
    source=Source(PAPER, "the exact value of the line search of Section 3; icl_lab", "extended"),
    parameters=SIZES
    | DISTRIBUTION
    | _NOISE
    | {"delta": number(0.3, positive=True, meaning="relative distance of another step size from the best one")}
    | SAMPLING,
    extra_settings=(
        {"sigma": 1.0},
        {"distribution": "gaussian", "sigma": 1.0},
        {"d": 3, "N": 5, "sigma": 1.0},
        {"N": 25, "sigma": 1.0},
        {"distribution": "gaussian", "sigma": 1.0, "d": 5, "N": 20},
        {"distribution": "gaussian", "sigma": 1.0, "d": 5, "N": 20, "noise": 0.7},
    ),
)
def best_single_step(d, N, distribution, sigma, noise, om2, delta, samples, seed) -> list[Check]:
    variance, kurtosis = input_moments(distribution, sigma)
    setting = (d, N, variance, kurtosis, noise**2, om2)
    eta = theory.vonoswald2022.optimal_step_size(*setting)
    least = theory.vonoswald2022.one_step_loss(eta, *setting)
    other = (1 + delta) * eta
    # The layer itself on a rule; noise adds eta^2 sig2 tau2 E tr W / (2 N^2), and tr W is integrated by the rule too.
    rule = Rule.exact(distribution, d, N, sigma, 2)
    added = variance * noise**2 / 2 * float(rule.weights @ rule.nodes) / N**2

    def on_rule(step: float) -> tuple[float, float]:
        value, (slope, _) = slope_on_rule(np.array([step]), np.zeros(1), rule)
        return om2 * float(value) + added * step**2, om2 * float(slope[0]) + 2 * added * step

    (lowest, flat), (start, first), (off, second) = (on_rule(step) for step in (eta, 0.0, other))
    task = LinearRegression(
        dim=d,
        context_length=N,
        covariates=covariates(distribution, d, sigma),
        task_covariance=om2 * np.eye(d),
        noise_std=noise,
    )
    checks = [
        # The loss is a parabola in eta, so that two slopes give its lowest point.
        check.exact("eta", -first * other / (second - first), eta, EXACT_TOLERANCE),
        check.exact("least_loss", lowest, least, RULE_TOLERANCE),
        check.exact("loss_of_zero", start, variance * d * om2 / 2, RULE_TOLERANCE),
        check.exact("loss_off_the_optimum", off, theory.vonoswald2022.one_step_loss(other, *setting), RULE_TOLERANCE),
        check.exact("slope_at_the_optimum_abs", flat * eta / start, 0.0, RULE_TOLERANCE),
    ]
    mean, error = simulated_loss(one_step(eta, d, N), task, samples, seed)
    return [*checks, check.sampled("simulated_least_loss", mean, least, error)]


@claim(
    "vonoswald2022.eta1.aniso",
    statement="For normal inputs of covariance Sigma and w ~ N(0, I) the best scalar step is tr Sigma^2 / ((1 + 1/N) tr Sigma^3"
    "+ tr Sigma tr Sigma^2 / N), with half loss (tr Sigma - eta* tr Sigma^2)/2.",
    source=Source(PAPER, "fourth moments of the normal distribution; icl_lab", "extended"),
    parameters={
        "d": integer(5, 1, "input dimension"),
        "N": integer(20, 1, "context length"),
        "Lam": spectrum("eigenvalues of Sigma; null: (1, 1, 1/4, 1/16, 1), repeated or cut to d"),
    }
    | SAMPLING
    | {"samples": integer(40_000, 1_000, "contexts")},
    validate=lambda d, Lam, **_: check_spectrum(Lam, d, "Lam"),
)
def best_step_for_any_covariance(d, N, Lam, samples, seed) -> list[Check]:
    spectrum = np.resize([1.0, 1.0, 0.25, 0.0625, 1.0], d) if Lam is None else np.asarray(Lam)
    eta, least = theory.descent_steps.anisotropic_step(np.diag(spectrum), N)
    task = LinearRegression(dim=d, context_length=N, covariance=spectrum)
    # The exact population loss of the layer, a parabola in eta.
    objective = objectives.population(task, MODEL)
    start, once, twice = (objective.risk(one_step(step, d, N)) / 2 for step in (0.0, 1.0, 2.0))
    bend, slope = (twice - 2 * once + start) / 2, (4 * once - 3 * start - twice) / 2
    mean, error = simulated_loss(one_step(eta, d, N), task, samples, seed)
    return [
        check.exact("eta", -slope / (2 * bend), eta, EXACT_TOLERANCE),
        check.exact("least_loss", objective.risk(one_step(eta, d, N)) / 2, least, EXACT_TOLERANCE),
        check.sampled("simulated_least_loss", mean, least, error),
    ]


_FIXED = {
    "alpha": number(2.0, positive=True, meaning="factor"),
    "eta": number(200 / 33, meaning="step size, of unscaled inputs"),
}


@claim(
    "vonoswald2022.ood.input",
    statement="With eta fixed, inputs that are alpha times as large have the loss of one step at variance alpha^2 sig2.",
    source=Source(PAPER, "Section 3, inputs of other scales; icl_lab for the values", "extended"),
    parameters=SIZES | DISTRIBUTION | _FIXED | SAMPLING,
    extra_settings=tuple({"alpha": alpha} for alpha in (0.5, 0.8, 1.0, 1.25, 1.5)),
)
def larger_inputs(d, N, distribution, sigma, alpha, eta, samples, seed) -> list[Check]:
    variance, kurtosis = input_moments(distribution, alpha * sigma)
    expected = theory.vonoswald2022.one_step_loss(eta, d, N, variance, kurtosis)
    task = LinearRegression(dim=d, context_length=N, covariates=covariates(distribution, d, alpha * sigma))
    on_rule = loss_on_rule(np.array([eta]), np.zeros(1), Rule.exact(distribution, d, N, alpha * sigma, 2))
    mean, error = simulated_loss(one_step(eta, d, N), task, samples, seed)
    return [
        check.exact("loss", float(on_rule), expected, RULE_TOLERANCE),
        check.sampled("simulated_loss", mean, expected, error),
    ]


@claim(
    "vonoswald2022.ood.task",
    statement="Teachers alpha times as large have exactly alpha^2 times the loss of any model linear in the labels.",
    source=Source(PAPER, "Section 3, tasks of other scales", "extended"),
    parameters=SIZES | DISTRIBUTION | {"alpha": _FIXED["alpha"]} | SAMPLING,
)
def larger_teachers(d, N, distribution, sigma, alpha, samples, seed) -> list[Check]:
    variance, kurtosis = input_moments(distribution, sigma)
    eta = theory.vonoswald2022.optimal_step_size(d, N, variance, kurtosis)
    expected = alpha**2 * theory.vonoswald2022.one_step_loss(eta, d, N, variance, kurtosis)
    weights = one_step(eta, d, N)
    task = LinearRegression(
        dim=d, context_length=N, covariates=covariates(distribution, d, sigma), task_covariance=alpha**2 * np.eye(d)
    )
    mean, error = simulated_loss(weights, task, samples, seed)
    # Two layers with a curvature correction, on the same prompts with scaled and unscaled labels.
    deep = layers(np.full(2, eta), np.full(2, 0.1 / (N * variance)), d, N)

    def squared_errors(one):
        prompt = task.sample(one)
        small = Prompt(prompt.inputs, prompt.labels / alpha, prompt.query, prompt.target / alpha)
        return jnp.stack([(MODEL(model, p) - p.target)[0] ** 2 for model in (weights, deep) for p in (prompt, small)])

    squares = np.mean(simulate(squared_errors, jax.random.key(seed), 1_000), axis=0)
    return [
        check.sampled("loss", mean, expected, error),
        check.exact("ratio_one_layer", squares[0] / squares[1], alpha**2, EXACT_TOLERANCE),
        check.exact("ratio_two_layers", squares[2] / squares[3], alpha**2, EXACT_TOLERANCE),
    ]


def _validate_norm(d, N, **_) -> None:
    if N * d <= 4:
        raise AssumptionError(f"the loss has a variance only for N d > 4; got N d = {N * d}.")


@claim(
    "vonoswald2022.ood.normal",
    statement="Normal inputs and query, divided by the context's Frobenius norm and multiplied by alpha, have the loss "
    "alpha^2/(2 (Nd - 2)) [d - 2 h alpha^2 + h^2 alpha^4 (N + d + 1)/(Nd + 2)], h = eta/N.",
    source=Source(PAPER, "the other distributions of the published code; icl_lab for the values", "extended"),
    parameters=SIZES | _FIXED | SAMPLING | {"samples": integer(40_000, 1_000, "contexts")},
    extra_settings=tuple({"alpha": alpha} for alpha in (0.5, 1.0, 5.0)),
    validate=_validate_norm,
)
def normalised_inputs(d, N, alpha, eta, samples, seed) -> list[Check]:
    expected = theory.descent_steps.normalised_inputs_loss(eta, d, N, alpha)
    task = LinearRegression(dim=d, context_length=N)
    weights = one_step(eta, d, N)

    def half_loss(one):
        prompt = task.sample(one)
        factor = alpha / jnp.linalg.norm(prompt.inputs)
        scaled = Prompt(factor * prompt.inputs, factor * prompt.labels, factor * prompt.query, prompt.target)
        return factor**2 * jnp.sum((prompt.latent - query_weights(weights, scaled)) ** 2) / 2

    return [check.sampled("loss", *_in_order(simulate(half_loss, jax.random.key(seed), samples), expected))]


def _in_order(values: np.ndarray, expected: float) -> tuple[float, float, float]:
    """The mean of values, what is expected, and its standard error, as `check.sampled` takes them."""
    mean, error = mean_with_error(values)
    return mean, expected, error


def _validate_replaced(N, m, **_) -> None:
    if m > N:
        raise AssumptionError(f"at most all N = {N} labels can be replaced; got m = {m}.")


@claim(
    "vonoswald2022.noise",
    statement="With m of the N labels replaced by independent N(0, 1) one step has the half loss (sig2 d/2) "
    "[1 - 2 eta sig2 (N - m)/N + (eta/N)^2 (sig2^2 (N - m)(N - m + d + kap - 2) + m sig2)].",
    source=Source(PAPER, "appendix on noisy labels; icl_lab for the values", "extended"),
    parameters=SIZES | DISTRIBUTION | {"eta": _FIXED["eta"], "m": integer(4, 0, "labels replaced")} | SAMPLING,
    extra_settings=tuple({"m": m} for m in (0, 2, 6, 8)),
    validate=_validate_replaced,
)
def replaced_labels(d, N, distribution, sigma, eta, m, samples, seed) -> list[Check]:
    variance, kurtosis = input_moments(distribution, sigma)
    expected = theory.descent_steps.replaced_labels_loss(eta, d, N, variance, kurtosis, m)
    task = LinearRegression(dim=d, context_length=N, covariates=covariates(distribution, d, sigma))
    weights = one_step(eta, d, N)

    def half_loss(one):
        prompt = task.sample(one)
        wrong = jax.random.normal(prng.stream(one, "replaced"), (m, 1))
        spoilt = Prompt(prompt.inputs, jnp.concatenate([wrong, prompt.labels[m:]]), prompt.query, prompt.target)
        return variance * jnp.sum((prompt.latent - query_weights(weights, spoilt)) ** 2) / 2

    return [check.sampled("loss", *_in_order(simulate(half_loss, jax.random.key(seed), samples), expected))]
