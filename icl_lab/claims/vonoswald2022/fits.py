"""Claims of von Oswald et al. 2022 (arXiv 2212.07677): several layers, fitted to finite samples of tasks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from icl_lab import models, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer
from icl_lab.claims.settings.regression import RegressionSetting
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.claims.simulation import mean_with_error, simulate
from icl_lab.claims.vonoswald2022 import layers
from icl_lab.claims.vonoswald2022.depth import LOSS_TOLERANCE, SCALAR_TOLERANCE
from icl_lab.claims.vonoswald2022.settings import PAPER, UNNORMALISED, LayerSetting, SimulatedLayer
from icl_lab.core import compiled
from icl_lab.theory.descent.descent_steps import Rule


def drawn_rule(setting: LayerSetting, samples: int, seed: int) -> Rule:
    """The rule of the Gram matrices' eigenvalues in sampled contexts."""
    covariates = setting.covariates

    def spectrum(one):
        inputs = covariates.sample(one, setting.N)
        return jnp.linalg.eigvalsh(inputs.T @ inputs)

    nodes = np.maximum(simulate(spectrum, jax.random.key(seed), samples).ravel(), 0.0)
    return Rule(nodes, np.full(nodes.size, 1 / samples), setting.N, setting.variance)


class FiniteSample(Seeded, RegressionSetting):
    """Standard normal inputs, and coefficients that are fitted to a sample of tasks."""

    d = 5
    N = 20
    tasks: int = integer(20_000, 1_000, "number of tasks", "of the sample")
    starts: int = integer(60, 1, "number of starts", "of the search for the population optimum")


@claim(
    "vonoswald2022.gdpp.tails",
    FiniteSample,
    Source(PAPER, "the trained weights of Ahn et al. (arXiv 2306.00297); icl_lab for the explanation", "extended"),
)
def finite_samples_lie(setting: FiniteSample) -> list[Check]:
    """The best three-layer coefficients of a finite sample of tasks have a smaller loss on the sample than the
    population optimum, and a population loss that is many times as large.

    A quasi-Newton search on the constructed layers' own gradient minimises the loss on a sample from the population optimum
    on; the result's population loss is evaluated on an exact quadrature rule. A sample whose best coefficients are nearly
    the population's, as a sample mean without tails would have, would make it fail.
    """
    d, N = setting.d, setting.N
    normal = LayerSetting(d=d, N=N, distribution="gaussian", sigma=1.0)
    exact = normal.rule(26)
    best = theory.descent_steps.best_corrected(exact, 3, False, setting.starts)

    sample = drawn_rule(normal, setting.tasks, setting.seed)
    found = layers.descend(sample, 3, False, np.concatenate([best.step_sizes, best.curvatures[:-1] * N]))
    population = theory.descent_steps.loss(exact, found.step_sizes, found.curvatures)
    # The layers on the rule itself give the same population loss.
    literal = float(layers.slope_on_rule(found.step_sizes, found.curvatures, exact)[0])
    checks = [
        check.exact("population_loss", literal, population, LOSS_TOLERANCE),
        check.at_most("loss_on_the_sample", found.loss, best.loss),
        check.at_least("population_loss_over_the_optimum", population / best.loss, 1.0),
    ]
    if (d, N, setting.tasks) == (5, 20, 20_000):
        published = np.array([0.38, 2.40, 9.59, 0.90, 0.57])
        fitted = np.concatenate([found.step_sizes, found.curvatures[:-1] * N / found.step_sizes[:-1]])
        checks += [
            check.at_least("population_loss_is_twenty_times_the_optimum", population / best.loss, 20.0),
            check.exact("published_weights", fitted, published, 0.02),
        ]
    return checks


class LabelScores(SimulatedLayer):
    """Prompts to fit on, and as many to compare on."""

    samples: int = integer(10_000, 1_000, "number of draws", "of prompts to fit on, and as many to compare on")


@claim("vonoswald2022.gdpp.sufficient", LabelScores, Source(PAPER, "Section 4, trained two-layer transformers are GD++"))
def label_scores_do_not_help(setting: LabelScores) -> list[Check]:
    """Scores between labels, the one further coefficient that symmetry allows, lower the loss of two corrected
    layers by less than 0.3 %.

    Two tied layers with such scores are fitted by BFGS to random prompts, from the optimum without them on, and compared
    with that optimum on fresh prompts, whose noise is allowed for. A coefficient that lowers the loss by more, or a loss
    without scores that is not theory's, would make it fail.
    """
    d, N, task, best = setting.d, setting.N, setting.task(), theory.descent_steps.best_corrected(setting.rule(8), 2, True, 16)
    variance = setting.variance
    units = np.array([1 / variance, 1 / (N * variance), 1 / (d * N * variance)])
    corner = jnp.zeros((d + 1, d + 1)).at[-1, -1].set(1.0)

    @compiled.jit
    def losses(point, prompts):
        """Half loss of the tied layers with W_KQ = diag(I, q) on every prompt."""
        eta, gamma, score = point * units
        (layer,) = layers.stack(eta[None], gamma[None], d, N)
        scored = models.LSAWeights(layer.w_pv, layer.w_kq + score * corner)
        return jax.vmap(lambda prompt: (UNNORMALISED((scored, scored), prompt)[0] - prompt.target[0]) ** 2 / 2)(prompts)

    keys = jax.random.split(setting.key)
    fitting, fresh = (compiled.jit(lambda key: task.sample_batch(key, setting.samples))(key) for key in keys)
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


class DeepLayers(SimulatedLayer):
    """Layers that are too many for exact moments."""

    K: int = integer(5, 2, "number of layers", ", one step each")
    samples = 4_000
    starts: int = integer(3, 1, "number of starts", "of the search for the reference")


@claim("vonoswald2022.deep5", DeepLayers, Source(PAPER, "Section 4 and Figure 3, five layers; icl_lab for the values"))
def five_layers(setting: DeepLayers) -> list[Check]:
    """Five layers with one shared pair of coefficients, GD++, have a smaller loss than five tuned equal gradient
    steps.

    A quasi-Newton search on the constructed layers' own gradient, from near the optimum of theory's polynomials on the same
    random contexts, must come back to it; both are then compared on fresh contexts. Layers of another polynomial, or tuned
    equal steps that do as well, would make it fail.
    """
    K, variance = setting.K, setting.variance
    drawn = drawn_rule(setting, setting.samples, setting.seed)
    # The polynomials are fitted on the same contexts, since no moment of that degree is known.
    plain = theory.descent_steps.best_shared_step(drawn, K)
    corrected = theory.descent_steps.best_corrected(drawn, K, True, setting.starts)
    scale = np.array([variance, setting.N * variance])
    # From nearby, but not from there.
    found_plain = layers.descend(drawn, K, True, 0.9 * scale[:1] * plain.step_sizes[:1])
    found = layers.descend(drawn, K, True, 0.95 * scale * np.array([corrected.step_sizes[0], corrected.curvatures[0]]))
    fresh = setting.other_rule()
    held_out, shared_held_out = (
        np.median(theory.descent_variants.gdpp_polynomials(fresh.nodes, one.step_sizes, one.curvatures, setting.N)[1] ** 2)
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
