"""Claims of von Oswald et al. 2022 (arXiv 2212.07677): several layers, fitted to finite samples of tasks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from icl_lab import models, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, integer
from icl_lab.claims.registry import claim
from icl_lab.claims.simulation import mean_with_error, simulate
from icl_lab.claims.vonoswald2022.depth import LOSS_TOLERANCE, SCALAR_TOLERANCE, SIZES, descend
from icl_lab.claims.vonoswald2022.propositions import PAPER
from icl_lab.claims.vonoswald2022.settings import (
    DISTRIBUTION,
    MODEL,
    covariates,
    input_moments,
    layers,
    sampled_rule,
    slope_on_rule,
)
from icl_lab.core import compiled
from icl_lab.tasks.regression.linear import LinearRegression
from icl_lab.theory.descent.descent_steps import Rule


def drawn_rule(distribution: str, d: int, N: int, sigma: float, samples: int, seed: int) -> Rule:
    """The rule of the Gram matrices' eigenvalues in sampled contexts."""
    distribution_of_inputs = covariates(distribution, d, sigma)

    def spectrum(one):
        inputs = distribution_of_inputs.sample(one, N)
        return jnp.linalg.eigvalsh(inputs.T @ inputs)

    nodes = np.maximum(simulate(spectrum, jax.random.key(seed), samples).ravel(), 0.0)
    return Rule(nodes, np.full(nodes.size, 1 / samples), N, input_moments(distribution, sigma)[0])


@claim(
    "vonoswald2022.gdpp.tails",
    statement="The best three-layer coefficients of a finite sample of tasks have a smaller loss on the sample than the "
    "population optimum, and a population loss that is many times as large.",
    source=Source(PAPER, "the trained weights of Ahn et al. (arXiv 2306.00297); icl_lab for the explanation", "extended"),
    parameters={
        "d": integer(5, 1, "input dimension"),
        "N": integer(20, 1, "context length"),
        "tasks": integer(20_000, 1_000, "tasks of the sample"),
        "starts": integer(60, 1, "searches for the population optimum"),
        "seed": integer(0, 0, "of the sample"),
    },
)
def finite_samples_lie(d, N, tasks, starts, seed) -> list[Check]:
    exact = Rule.exact("gaussian", d, N, 1.0, 26)
    best = theory.descent_steps.best_corrected(exact, 3, False, starts)

    sample = drawn_rule("gaussian", d, N, 1.0, tasks, seed)
    found = descend(sample, 3, False, np.concatenate([best.step_sizes, best.curvatures[:-1] * N]))
    population = theory.descent_steps.loss(exact, found.step_sizes, found.curvatures)
    # The layers on the rule itself give the same population loss.
    literal = float(slope_on_rule(found.step_sizes, found.curvatures, exact)[0])
    checks = [
        check.exact("population_loss", literal, population, LOSS_TOLERANCE),
        check.at_most("loss_on_the_sample", found.loss, best.loss),
        check.at_least("population_loss_over_the_optimum", population / best.loss, 1.0),
    ]
    if (d, N, tasks) == (5, 20, 20_000):
        published = np.array([0.38, 2.40, 9.59, 0.90, 0.57])
        fitted = np.concatenate([found.step_sizes, found.curvatures[:-1] * N / found.step_sizes[:-1]])
        checks += [
            check.at_least("population_loss_is_twenty_times_the_optimum", population / best.loss, 20.0),
            check.exact("published_weights", fitted, published, 0.02),
        ]
    return checks


@claim(
    "vonoswald2022.gdpp.sufficient",
    statement="Scores between labels, the one further coefficient that symmetry allows, lower the loss of two corrected "
    "layers by less than 0.3 %.",
    source=Source(PAPER, "Section 4, trained two-layer transformers are GD++"),
    parameters=SIZES
    | DISTRIBUTION
    | {
        "samples": integer(10_000, 1_000, "prompts to fit on, and as many to compare on"),
        "seed": integer(0, 0, "of the prompts"),
    },
)
def label_scores_do_not_help(d, N, distribution, sigma, samples, seed) -> list[Check]:
    rule = Rule.exact(distribution, d, N, sigma, 8)
    task = LinearRegression(dim=d, context_length=N, covariates=covariates(distribution, d, sigma))
    variance, _ = input_moments(distribution, sigma)
    best = theory.descent_steps.best_corrected(rule, 2, True, 16)
    units = np.array([1 / variance, 1 / (N * variance), 1 / (d * N * variance)])
    corner = jnp.zeros((d + 1, d + 1)).at[-1, -1].set(1.0)

    @compiled.jit
    def losses(point, prompts):
        """Half loss of the tied layers with W_KQ = diag(I, q) on every prompt."""
        eta, gamma, score = point * units
        (layer,) = layers(eta[None], gamma[None], d, N)
        scored = models.LSAWeights(layer.w_pv, layer.w_kq + score * corner)
        return jax.vmap(lambda prompt: (MODEL((scored, scored), prompt)[0] - prompt.target[0]) ** 2 / 2)(prompts)

    keys = jax.random.split(jax.random.key(seed))
    fitting, fresh = (compiled.jit(lambda key: task.sample_batch(key, samples))(key) for key in keys)
    slope = compiled.jit(jax.value_and_grad(lambda point, prompts: jnp.mean(losses(point, prompts))))
    without = np.array([best.step_sizes[0], best.curvatures[0], 0.0]) / units

    def objective(point):
        value, gradient = slope(jnp.asarray(point), fitting)
        return float(value) / best.loss, np.asarray(gradient) / best.loss

    found = scipy.optimize.minimize(objective, without, method="BFGS", jac=True, options={"gtol": 1e-6, "maxiter": 30})
    plain, scored = (np.asarray(losses(jnp.asarray(point), fresh)) for point in (without, found.x))
    gain, error = mean_with_error(plain - scored)
    loss, uncertainty = mean_with_error(plain)
    return [
        check.sampled("loss_without_label_scores", loss, best.loss, uncertainty),
        check.at_least("gain_on_the_fitted_prompts_abs", 1.0 - float(found.fun) / objective(without)[0], 0.0, 1e-12),
        # What the noise of the comparison cannot exclude is allowed for.
        check.at_most(
            "gain_on_fresh_prompts", gain / best.loss - 2 * error / best.loss, 0.003, standard_error=error / best.loss
        ),
    ]


@claim(
    "vonoswald2022.deep5",
    statement="Five layers with one shared pair of coefficients, GD++, have a smaller loss than five tuned equal gradient "
    "steps.",
    source=Source(PAPER, "Section 4 and Figure 3, five layers; icl_lab for the values"),
    parameters=SIZES
    | DISTRIBUTION
    | {
        "K": integer(5, 2, "layers"),
        "samples": integer(4_000, 1_000, "contexts"),
        "starts": integer(3, 1, "searches"),
        "seed": integer(0, 0, "of the contexts"),
    },
)
def five_layers(d, N, distribution, sigma, K, samples, starts, seed) -> list[Check]:
    variance, _ = input_moments(distribution, sigma)
    drawn = drawn_rule(distribution, d, N, sigma, samples, seed)
    # The polynomials are fitted on the same contexts, since no moment of that degree is known.
    plain = theory.descent_steps.best_shared_step(drawn, K)
    corrected = theory.descent_steps.best_corrected(drawn, K, True, starts)
    scale = np.array([variance, N * variance])
    # From nearby, but not from there.
    found_plain = descend(drawn, K, True, 0.9 * scale[:1] * plain.step_sizes[:1])
    found = descend(drawn, K, True, 0.95 * scale * np.array([corrected.step_sizes[0], corrected.curvatures[0]]))
    fresh = sampled_rule(distribution, d, N, sigma, samples, seed + 1)
    held_out, shared_held_out = (
        np.median(theory.descent_variants.gdpp_polynomials(fresh.nodes, one.step_sizes, one.curvatures, N)[1] ** 2)
        for one in (found, found_plain)
    )
    return [
        check.exact("shared_step", found_plain.step_sizes[0], plain.step_sizes[0], SCALAR_TOLERANCE),
        check.exact("shared_loss", found_plain.loss, plain.loss, LOSS_TOLERANCE),
        check.exact("tied_step", found.step_sizes[0], corrected.step_sizes[0], SCALAR_TOLERANCE),
        check.exact("tied_curvature", found.curvatures[0], corrected.curvatures[0], SCALAR_TOLERANCE),
        check.exact("tied_loss", found.loss, corrected.loss, LOSS_TOLERANCE),
        check.at_most("tied_loss_below_shared", found.loss, found_plain.loss),
        check.at_most("median_square_on_fresh_contexts", held_out, shared_held_out),
    ]
