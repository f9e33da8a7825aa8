"""Claims of von Oswald et al. 2022 (arXiv 2212.07677): several layers."""

from __future__ import annotations

from fractions import Fraction
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab import models, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number
from icl_lab.claims.simulation import mean_with_error, simulate
from icl_lab.claims.vonoswald2022 import layers
from icl_lab.claims.vonoswald2022.settings import PAPER, SimulatedLayer
from icl_lab.core.errors import AssumptionError
from icl_lab.tasks.prompt import Prompt
from icl_lab.theory.descent.descent_steps import Descent, Rule

LOSS_TOLERANCE = 1e-9
SCALAR_TOLERANCE = 1e-6
LARGEST_UNIFORM_DEGREE = 8
"""Of a squared error polynomial whose moments are enumerated within seconds."""

NORMAL = {"distribution": "gaussian", "sigma": 1.0}


def check_enumerable(distribution: str, depth: int, deepest: int) -> None:
    """Raise `AssumptionError` if layers on uniform inputs are more than those whose moments are known."""
    if distribution != "gaussian" and depth > deepest:
        raise AssumptionError(
            f"moments of uniform inputs are enumerated to order {LARGEST_UNIFORM_DEGREE}, K = {deepest}; got K = {depth}."
        )


def _search(rule: Rule, steps: int, tied: bool, corrected: bool, starts: int, seed: int) -> Descent:
    """The best of `descend` from random starts; plain steps in ascending order."""
    generator = np.random.default_rng(seed + 1_000)
    count = 1 if tied else steps
    bends = 0 if not corrected else 1 if tied else steps - 1
    found = []
    for _ in range(starts):
        etas = np.sort(np.exp(generator.uniform(np.log(0.2), np.log(5.0), count)))
        found.append(layers.descend(rule, steps, tied, np.concatenate([etas, generator.uniform(0.0, 0.8, bends)])))
    best = min((one for one in found if np.isfinite(one.loss)), key=lambda one: one.loss)
    return best if corrected else best._replace(step_sizes=np.sort(best.step_sizes))


def _losses(descents: list[Descent], setting: SimulatedLayer) -> Float[np.ndarray, "S stacks"]:
    """Half losses of several stacks of layers on the same prompts, averaged over the query."""
    task, variance = setting.task(), setting.variance
    stacks = [layers.stack(jnp.asarray(one.step_sizes), jnp.asarray(one.curvatures), setting.d, setting.N) for one in descents]

    def half_losses(one):
        prompt = task.sample(one)
        missed = [prompt.latent - layers.query_weights(stack, prompt) for stack in stacks]
        return jnp.stack([variance * jnp.sum(one**2) / 2 for one in missed])

    return simulate(half_losses, setting.key, setting.samples)


class PlainSteps(SimulatedLayer):
    """Steps of gradient descent with the best step sizes."""

    deepest: ClassVar[int] = LARGEST_UNIFORM_DEGREE // 2
    """Layers on uniform inputs whose loss is known exactly."""
    K: int = integer(2, 1, "number of layers", ", one step each")
    starts: int = integer(4, 1, "number of starts", "of the search for separate step sizes")
    samples: int = integer(20_000, 0, "number of draws", "of prompts; 0: no simulation")

    def validate(self) -> None:
        super().validate()
        check_enumerable(self.distribution, self.K, self.deepest)


@claim(
    "vonoswald2022.gd.K",
    PlainSteps,
    Source(PAPER, "the tuned baselines of Section 3, exact; icl_lab", "extended"),
    extra_settings=(
        {"K": 3},
        {**NORMAL, "samples": 0},
        *({**NORMAL, "d": 5, "N": 20, "K": k, "samples": 0} for k in (2, 3, 5)),
    ),
)
def best_steps(setting: PlainSteps) -> list[Check]:
    """K steps of gradient descent have one best shared step size; the best separate ones are N over the Gauss nodes
    of the Gram matrix's mean spectral measure weighted by s, in any order.

    Quasi-Newton searches on the gradient of the constructed layers' own loss, from random step sizes, are compared with the
    closed forms, whose losses are also simulated on random prompts. Step sizes from the nodes
    of the unweighted measure would make it fail.
    """
    K, rule = setting.K, setting.rule(2 * setting.K)
    shared = theory.descent_steps.best_shared_step(rule, K)
    separate = theory.descent_steps.best_steps(setting.distribution, setting.d, setting.N, setting.sigma, K)
    found_shared = _search(rule, K, True, False, 2, setting.seed)
    found = _search(rule, K, False, False, setting.starts, setting.seed)
    checks = [
        check.exact("shared_step", found_shared.step_sizes[0], shared.step_sizes[0], SCALAR_TOLERANCE),
        check.exact("shared_loss", found_shared.loss, shared.loss, LOSS_TOLERANCE),
        check.exact("separate_steps", found.step_sizes, separate.step_sizes, SCALAR_TOLERANCE),
        check.exact("separate_loss", found.loss, separate.loss, LOSS_TOLERANCE),
    ]
    if K > 2 or not setting.samples:  # higher powers of the Gram matrix make a sample mean lie
        return checks
    drawn = _losses([shared, separate], setting)
    return checks + [
        layers.mean_check(f"simulated_{name}_loss", drawn[:, i], expected.loss)
        for i, (name, expected) in enumerate((("shared", shared), ("separate", separate)))
    ]


class CorrectedSteps(PlainSteps):
    """Steps of GD++ with the best coefficients."""

    deepest = 2
    K: int = integer(2, 2, "number of layers", ", one step each")
    starts: int = integer(16, 1, "number of starts", "of the search on each side for K = 2, four times as many for K = 3")

    def validate(self) -> None:
        super().validate()
        if self.K > 3:
            raise AssumptionError(f"losses of degree 3^K - 1 are minimised up to K = 3; got K = {self.K}.")


@claim(
    "vonoswald2022.gdpp.optimum",
    CorrectedSteps,
    Source(PAPER, "Section 4 and Appendix A.10 (GD++); icl_lab for the values", "extended"),
    extra_settings=(
        *({"N": n, "samples": 0} for n in (25, 50, 100)),
        {**NORMAL, "samples": 0},
        {**NORMAL, "d": 5, "N": 20, "samples": 0},
        {**NORMAL, "d": 5, "N": 20, "K": 3, "samples": 0},
        {**NORMAL, "d": 2, "N": 4, "samples": 0},
    ),
)
def best_corrected_steps(setting: CorrectedSteps) -> list[Check]:
    """Gradient descent with curvature correction has computable best coefficients, tied and for each layer, which
    an independent search over the layers' weights finds again.

    Searches from random coefficients follow the gradient of the constructed layers' own loss on the quadrature rule; theory
    minimises its polynomial from starts of its own. The median loss on random prompts is compared with the polynomials'.
    A local minimum taken for the best one on either side, or a polynomial of another layer, would make it fail.
    """
    K, rule = setting.K, setting.rule(3**setting.K - 1)
    starts = setting.starts * 4 if K == 3 else setting.starts
    checks, optima = [], []
    for tied, name in ((True, "tied"), (False, "per_layer")):
        best = theory.descent_steps.best_corrected(rule, K, tied, starts)
        found = _search(rule, K, tied, True, max(starts // 2, 1), setting.seed)
        optima.append(best)
        active = slice(None) if tied else slice(-1)  # the last curvature has no effect
        checks += [
            check.exact(f"{name}_steps", found.step_sizes, best.step_sizes, SCALAR_TOLERANCE),
            check.exact(f"{name}_curvatures", found.curvatures[active], best.curvatures[active], SCALAR_TOLERANCE),
            check.exact(f"{name}_loss", found.loss, best.loss, LOSS_TOLERANCE),
        ]
    if K > 2 or not setting.samples:  # degree 26: a sample mean misses the tasks that matter
        return checks
    drawn = _losses(optima, setting)
    # Degree 8: the median is compared with that of the polynomials at eigenvalues of other sampled contexts.
    names = ("median_tied", "median_per_layer")
    return checks + [_median_check(name, drawn[:, i], optima[i], setting) for i, name in enumerate(names)]


def _median_check(name: str, drawn: Float[np.ndarray, "S"], descent: Descent, setting: SimulatedLayer) -> Check:
    """That half of the drawn losses lie below the median of the polynomials' losses, with the error of both samples.

    Those are (sig2/2) sum_a rho(s_a)^2 w_a^2 of tasks w at eigenvalues of other sampled contexts.
    """
    samples, rule = setting.samples, setting.other_rule()
    tasks = np.random.default_rng(setting.seed + 2).standard_normal((samples, setting.d))
    with np.errstate(over="ignore"):
        _, errors = theory.descent_variants.gdpp_polynomials(rule.nodes, descent.step_sizes, descent.curvatures, setting.N)
        losses = rule.variance / 2 * np.sum((errors.reshape(samples, setting.d) * tasks) ** 2, axis=1)
    return check.sampled(f"{name}_quantile", np.mean(drawn < np.median(losses)), 0.5, np.sqrt(0.25 / samples + 0.25 / samples))


class RepeatedLayer(SimulatedLayer):
    """One layer, applied again and again."""

    T: int = integer(3, 1, "number of applications", "of the layer, at most 4 for uniform inputs")
    lam: float = number(1.0, positive=True, meaning="damping lambda")
    many: int = integer(50, 1, "number of applications", "at which medians are compared")

    def validate(self) -> None:
        super().validate()
        check_enumerable(self.distribution, self.T, LARGEST_UNIFORM_DEGREE // 2)


@claim(
    "vonoswald2022.rollout",
    RepeatedLayer,
    Source(PAPER, "Section 4, the repeated layer (Figures 1 and 10); icl_lab for the values"),
    extra_settings=({"lam": 0.875}, {"lam": 0.75}),
)
def repeated_layer(setting: RepeatedLayer) -> list[Check]:
    """One trained layer applied T times, damped by lambda, has the error (1 - lambda eta s/N)^T, and diverges on a
    task exactly if lambda eta s_max/N > 2.

    The layer is the constructed best step, where training ends, and not trained itself: its loss after 1 to T applications
    is evaluated on a quadrature rule, and after many simulated on random prompts, whose share beyond the bound is compared
    with that of other contexts. Layers whose error is not this power, once or many times, would make it fail.
    """
    d, N, sigma, T, many = setting.d, setting.N, setting.sigma, setting.T, setting.many
    variance, eta, rule = setting.variance, setting.lam * setting.best_step, setting.rule(2 * T)
    raw = theory.gram_moments.moments_of(setting.distribution, d, N, 2 * T)
    moments = [Fraction(sigma ** (2 * k) * float(m)) for k, m in enumerate(raw)]
    counts = range(1, T + 1)
    measured = [float(layers.slope_on_rule(np.full(t, eta), np.zeros(t), rule)[0]) for t in counts]
    expected = [theory.descent_steps.loss_from_moments(moments, np.full(t, eta), np.zeros(t), N, variance) for t in counts]

    task = setting.task()
    repeated = models.LinearSelfAttention(query_in_sum=False, readout_sign=-1.0, normaliser="none", loops=many)
    (layer,) = layers.stack(jnp.array([eta]), jnp.zeros(1), d, N)

    def outcome(one):
        prompt = task.sample(one)
        found = jax.grad(lambda query: repeated(layer, Prompt(prompt.inputs, prompt.labels, query, prompt.target))[0])(
            prompt.query
        )
        largest = jnp.linalg.eigvalsh(prompt.inputs.T @ prompt.inputs)[-1]
        return jnp.stack([variance / 2 * jnp.sum((prompt.latent - found) ** 2), largest])

    drawn = simulate(outcome, setting.key, setting.samples)
    others = setting.other_rule().nodes.reshape(setting.samples, d).max(axis=1)
    diverging, reference = (float(np.mean(eta / N * s > 2)) for s in (drawn[:, 1], others))
    error = np.sqrt((diverging + reference + 2 / setting.samples) / setting.samples)
    stack = Descent(np.full(many, eta), np.zeros(many), np.nan)
    checks = [
        check.exact("losses", measured, expected, LOSS_TOLERANCE),
        check.sampled("diverging_fraction_abs", diverging, reference, error),
        _median_check(f"median_after_{many}", drawn[:, 0], stack, setting),
    ]
    if setting.distribution == "uniform":
        checks.append(check.at_most("largest_eigenvalue", drawn[:, 1].max(), d * N * sigma**2))
    return checks


class TwoOptima(SimulatedLayer):
    """Two tuned models on the same prompts."""

    samples = 40_000


@claim(
    "vonoswald2022.gdpp.align",
    TwoOptima,
    Source(PAPER, "end points of the alignment panels of Figure 3; icl_lab for the values", "extended"),
)
def alignment_of_two_optima(setting: TwoOptima) -> list[Check]:
    """The tuned tied two-layer model differs from tuned gradient descent with two shared steps, in the cosine and the
    difference of their query weights and in their predictions.

    Both models are constructed at the coefficients that theory finds best, nothing trained, and their gradients by the
    query are compared on random prompts; expected are the polynomials at eigenvalues of other contexts. Layers that compute
    another polynomial of the Gram matrix than theory says would make it fail.
    """
    d, N, task = setting.d, setting.N, setting.task()
    plain = theory.descent_steps.best_shared_step(setting.rule(4), 2)
    corrected = theory.descent_steps.best_corrected(setting.rule(8), 2, True, 16)
    first, second = (layers.stack(jnp.asarray(one.step_sizes), jnp.asarray(one.curvatures), d, N) for one in (plain, corrected))

    def metrics(one):
        prompt = task.sample(one)
        u, v = (layers.query_weights(one, prompt) for one in (first, second))
        cosine = u @ v / (jnp.linalg.norm(u) * jnp.linalg.norm(v))
        return jnp.stack([cosine, jnp.linalg.norm(u - v), jnp.abs((u - v) @ prompt.query)])

    drawn = simulate(metrics, setting.key, setting.samples)
    generator = np.random.default_rng(setting.seed + 1)
    inputs = setting.draw_inputs(setting.samples, N + 1, generator)
    tasks = generator.standard_normal((setting.samples, d))
    others = theory.descent_steps.alignment(plain, corrected, inputs[:, :-1], inputs[:, -1], tasks)
    checks = []
    for i, name in enumerate(("cosine", "model_difference", "prediction_difference")):
        (mean, error), (expected, uncertainty) = mean_with_error(drawn[:, i]), mean_with_error(np.asarray(others[:, i]))
        checks.append(check.sampled(name, mean, expected, np.hypot(error, uncertainty)))
    return checks
