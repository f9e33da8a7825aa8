"""Claims of the lab about one attention layer on AR(p) series whose coefficients are drawn once per prompt."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from icl_lab import estimators, models, objectives, theory, training
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.lab.autoregressive import EXACT_TOLERANCE, PAPER, InnovationsSetting
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import custom, integer, number, restricted
from icl_lab.claims.simulation import mean_with_error, simulated_risk
from icl_lab.core import compiled, prng
from icl_lab.core.typing import Array
from icl_lab.models import LSAWeights
from icl_lab.objectives import Features, MomentLoss, Moments
from icl_lab.tasks.dynamics.linear import DiagonalUnitary, HaarOrthogonal, LinearDynamics
from icl_lab.tasks.series.autoregressive import RandomAutoregressive, autocovariances

MODEL = models.LinearSelfAttention(embedding="hankel", query_in_sum=False)
# Flows stop at a relative weight error of a tenth of this.
TRAINED_TOLERANCE = 1e-7


class RandomSeries(InnovationsSetting):
    """Series of random coefficients, uniform where the companion matrix's eigenvalues are below a bound."""

    bound: float = restricted(
        number(0.9, positive=True, meaning="bound on the moduli of the companion matrix's eigenvalues"),
        "a number in (0, 1)",
        lambda value: value < 1,
    )
    N: int = integer(20, 1, "context length", ", in windows")

    def task(self, order: int) -> RandomAutoregressive:
        """Prompts of N lag windows of a series of this order."""
        return RandomAutoregressive(order, self.N, noise_std=self.sigma, bound=self.bound)


def trained(loss: MomentLoss, starts: LSAWeights, weight_tolerance: float = 1e-8) -> LSAWeights:
    """Where gradient flow ends lowest."""
    # Implicit, since the Gram of the features is nearly singular.
    ends = training.gradient_flows(loss, starts, solver="kvaerno5", weight_tolerance=weight_tolerance)
    convergence.rest_on(ends, ends.best)
    return ends.limit(ends.best)


def _theta(loss: MomentLoss, weights: LSAWeights) -> np.ndarray:
    return np.asarray(loss.coefficients(weights))[0]


class MomentsSetting(RandomSeries):
    """A series, and linear systems of a dimension of their own."""

    bound = 0.6
    p: int = integer(2, 1, "order of the series")
    d: int = integer(2, 1, "dimension", "of the states of a linear system")
    samples: int = integer(100_000, 1_000, "number of draws", "of prompts of the sampled moments")


@claim("lab.gram", MomentsSetting, Source(PAPER, "the prediction is linear in the features", "extended"))
def feature_moments(setting: MomentsSetting) -> list[Check]:
    """The loss of one layer needs only the moments of its features, whose number does not grow with the context; with random
    coefficients they are sampled in a stream of prompts, or for p <= 2 averaged by quadrature without sampling error.

    Nothing is trained. Features are counted for three tasks, and at one draw of Gaussian weights the risk from streamed moments
    is compared with that from a reference's moments, or above order 2 with squared errors of other prompts. A feature left
    out, or a window counted too few, would make it fail.
    """
    p, N, d, sigma, samples = setting.p, setting.N, setting.d, setting.sigma, setting.samples
    task = setting.task(p)
    system = LinearDynamics(d, N, HaarOrthogonal())
    phases = LinearDynamics(d, N, DiagonalUnitary())
    paired = models.LinearSelfAttention(causal=True, embedding="paired")
    active = objectives.phase_loss(phases, paired, lengths=[N], active=True).features
    counts = {
        "features_of_a_series": (Features.of(task, MODEL), theory.zhou2025.feature_count(p)),
        "features_of_a_system": (Features.of(system, paired), d * (2 * d + 1) * 2 * d),
        "features_of_phases": (Features.of(phases, paired), (2 * d) ** 3),
        "live_features_of_phases": (active, d**3),
    }
    checks = [check.exact(name, features.count, expected, 0.0) for name, (features, expected) in counts.items()]
    key = setting.key
    draws = 0.5 / sigma * np.asarray(jax.random.normal(prng.stream(key, "weights"), (2, p + 1, p + 1)))
    weights = LSAWeights(draws[0], draws[1])
    streamed = objectives.SampledLoss.build(task, MODEL, prng.stream(key, "prompts"), samples, groups=50)
    risk, error = streamed.risk(weights), streamed.standard_error(weights)
    if p <= 2:
        moments = theory.random_autoregressive.random_feature_moments(p, N, setting.bound, sigma**2)
        exact = objectives.series_loss(task, MODEL)
        theta = _theta(exact, weights)
        expected = moments.variance - 2 * moments.cross @ theta + theta @ moments.gram @ theta
        checks += [
            check.exact("risk_by_quadrature", exact.risk(weights), expected, EXACT_TOLERANCE),
            check.sampled("risk_from_streamed_moments", risk, expected, error),
        ]
    else:
        literal, uncertainty = simulated_risk(partial(MODEL, weights), task, prng.stream(key, "literal"), samples)
        checks.append(check.sampled("risk_from_streamed_moments", risk, literal, math.hypot(error, uncertainty)))
    return checks


def _length(value):
    """An integer >= 1, or the word inf."""
    return "inf" if value in ("inf", math.inf) else integer(1, 1).metadata["parameter"].convert(value)


class FirstOrder(RandomSeries):
    """Series of order 1, also seen in full."""

    N: Any = custom(20, "an integer >= 1 or inf", _length, "context length", ", in windows, or inf")
    starts: int = integer(8, 1, "number of starts", ", random")
    samples: int = integer(100_000, 0, "number of draws", "of series; 0: no simulation")


@claim(
    "lab.ar1-random",
    FirstOrder,
    Source(PAPER, "the symmetry x_t -> (-1)^t x_t; moments averaged over rho", "extended"),
    extra_settings=tuple({"N": N, "samples": 0} for N in (5, 10, 50, 100, "inf")),
)
def random_ar1(setting: FirstOrder) -> list[Check]:
    """On AR(1) series with rho ~ U(-R, R) the best layer is one gradient step from zero, with an excess that stays away from
    zero however long the context, whereas in-context least squares and ridge reach the Bayes risk.

    Gradient flow on moments that the objective integrates over rho starts at Gaussian weights of scale 0.5 / sigma, of which
    the lowest end counts; expected is the minimum over one step, from other moments. Least squares and ridge are simulated,
    also in plain numpy. Another feature in use, or moments of one window less, would make it fail.
    """
    bound, N, sigma, samples = setting.bound, setting.N, setting.sigma, setting.samples
    variance = sigma**2
    if N == "inf":
        loss = _infinite_context(bound, sigma)
        step, excess = theory.random_autoregressive.infinite_context_step(bound, variance)
    else:
        loss = objectives.series_loss(setting.task(1), MODEL)
        moments = theory.random_autoregressive.random_feature_moments(1, N, bound, variance)
        (step,), best = theory.random_autoregressive.span_minimum(moments, theory.random_autoregressive.step_basis(1, False))
        excess = best - variance
    key = setting.stream("starts")
    draws = 0.5 / sigma * np.asarray(jax.random.normal(key, (2, setting.starts, 2, 2)))
    weights = trained(loss, LSAWeights(draws[0], draws[1]))
    theta, layer = _theta(loss, weights), loss.risk(weights) - variance
    zero = loss.risk(LSAWeights(np.zeros((2, 2)), np.zeros((2, 2)))) - variance
    # The coefficients of Ghat_00 and Ghat_11, which are equal in an infinite context.
    others = theta[:1] + theta[2:] if N == "inf" else theta[[0, 2]]
    checks = [
        check.exact("eta", theta[1], step, TRAINED_TOLERANCE),
        check.exact("other_coefficients_abs", others, 0 * others, 1e-6 * abs(step)),
        check.exact("excess", layer, excess, TRAINED_TOLERANCE),
        check.exact("excess_of_zero", zero, variance * (math.atanh(bound) / bound - 1), TRAINED_TOLERANCE),
    ]
    return checks if N == "inf" or not samples else checks + _in_context_rivals(setting, layer)


def _infinite_context(bound: float, sigma: float) -> MomentLoss:
    """The loss of a layer that reads the exact covariances: phi_{jk} = gamma_|j-k| x_n."""
    nodes, weights = np.polynomial.legendre.leggauss(max(60, math.ceil(20 / math.acosh(1 / bound))))
    gram, cross, variance = np.zeros((3, 3)), np.zeros((3, 1)), 0.0
    for node, weight in zip(bound * nodes, weights / 2, strict=True):
        gamma = autocovariances([node], sigma, 2)
        known = gamma[[0, 1, 0]]
        gram += weight * gamma[0] * np.outer(known, known)
        cross += weight * gamma[1] * known[:, None]
        variance += weight * gamma[0]
    return MomentLoss(
        RandomAutoregressive(1, 1), MODEL, objectives.hankel_features(1), Moments(gram, cross, np.asarray(variance))
    )


def simulated_ridge_excess(
    bound: float, length: int, noise_variance: float, penalties: Float[Array, "q"], samples: int, seed: int
) -> tuple[Float[Array, "q"], Float[Array, "q"]]:
    r"""Excess of in-context ridge sum x y / (sum x^2 + lambda) on AR(1) series with rho ~ U(-R, R), by simulation in numpy.

    Args:
      bound: R.
      length: N.
      noise_variance: sigma^2.
      penalties: lambda, 0 for least squares.
      samples: series.
      seed: of the generator.

    Returns:
      Means and their standard errors, (q,) each.
    """
    generator, errors = np.random.default_rng(seed), []
    for start in range(0, samples, 50_000):
        count = min(50_000, samples - start)
        rho = generator.uniform(-bound, bound, count)
        value = generator.standard_normal(count) * np.sqrt(noise_variance / (1 - rho**2))
        square, product = np.zeros(count), np.zeros(count)
        for _ in range(length):
            following = rho * value + np.sqrt(noise_variance) * generator.standard_normal(count)
            square, product, value = square + value**2, product + value * following, following
        fitted = product[:, None] / (square[:, None] + np.asarray(penalties)[None, :])
        errors.append(((fitted - rho[:, None]) * value[:, None]) ** 2)
    drawn = np.concatenate(errors)
    return np.mean(drawn, axis=0), np.std(drawn, axis=0, ddof=1) / np.sqrt(samples)


PENALTIES = (1.0, 3.0, 6.0)


def _in_context_rivals(setting: FirstOrder, layer: float) -> list[Check]:
    """Simulated excess of least squares and ridge (penalties in units of sigma^2), beside that of plain sums in numpy."""
    bound, N, samples, seed, variance = setting.bound, setting.N, setting.samples, setting.seed, setting.sigma**2
    task = setting.task(1)
    prompts = compiled.jit(lambda key: task.sample_batch(key, samples))(prng.stream(jax.random.key(seed), "prompts"))
    best = np.asarray(prompts.latent * prompts.query)[:, 0]
    rivals = {"least_squares": estimators.ols} | {
        f"ridge_{lam:g}": estimators.named("ridge", penalty=lam * variance) for lam in PENALTIES
    }
    penalties = variance * np.array([0.0, *PENALTIES])
    expected, errors = simulated_ridge_excess(bound, N, variance, penalties, 4 * samples, seed)
    checks = []
    for i, (name, estimator) in enumerate(rivals.items()):
        if i == 0 and N < 5:
            continue  # squared errors of infinite variance
        # One at a time: two batches of factorisations in one program can wait for each other's threads.
        answers = np.asarray(compiled.jit(jax.vmap(estimator))(prompts))[:, 0]
        mean, error = mean_with_error((answers - best) ** 2)
        checks.append(check.sampled(f"excess_of_{name}", mean, expected[i], math.hypot(error, errors[i])))
        if N >= 5 and bound >= 0.8:
            checks.append(check.at_most(f"{name}_below_layer", mean - check.SIGMAS * error, layer, standard_error=error))
    return checks
