"""Claims of von Oswald et al. 2022 (arXiv 2212.07677): best step sizes, and risks away from the training distribution."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab import objectives, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number, spectrum
from icl_lab.claims.simulation import simulate
from icl_lab.claims.vonoswald2022 import layers
from icl_lab.claims.vonoswald2022.settings import PAPER, UNNORMALISED, SimulatedLayer, SimulatedSetting
from icl_lab.core import prng
from icl_lab.core.errors import AssumptionError
from icl_lab.core.typing import Array
from icl_lab.tasks.prompt import Prompt

EXACT_TOLERANCE = 1e-10
# Sums of a few products, or a rule of a few nodes.
RULE_TOLERANCE = 1e-12


class NoisyStep(SimulatedLayer):
    """One step on noisy labels of tasks of any size."""

    noise: float = number(0.0, 0.0, "standard deviation of the label noise")
    om2: float = number(1.0, positive=True, meaning="variance of a task coordinate")
    delta: float = number(0.3, positive=True, meaning="relative distance", detail="of another step size from the best one")

    @property
    def noise_variance(self) -> float:
        return self.noise**2

    @property
    def task_covariance(self) -> Float[Array, "d d"]:
        return self.om2 * np.eye(self.d)

    @property
    def step_problem(self) -> tuple:
        return *super().step_problem, self.noise_variance, self.om2


@claim(
    "vonoswald2022.eta1",
    NoisyStep,
    Source(PAPER, "the exact value of the line search of Section 3; icl_lab", "extended"),
    extra_settings=(
        {"sigma": 1.0},
        {"distribution": "gaussian", "sigma": 1.0},
        {"d": 3, "N": 5, "sigma": 1.0},
        {"N": 25, "sigma": 1.0},
        {"distribution": "gaussian", "sigma": 1.0, "d": 5, "N": 20},
        {"distribution": "gaussian", "sigma": 1.0, "d": 5, "N": 20, "noise": 0.7},
    ),
)
def best_single_step(setting: NoisyStep) -> list[Check]:
    """One gradient step from zero has half loss (sig2 d/2) [om2 (1 - 2 eta sig2 + eta^2 sig2^2 (N + d + kap - 2)/N) +
    eta^2 sig2 tau2/N], least at eta* = N/(sig2 (N + d + kap - 2 + tau2/(om2 sig2))).

    The constructed layer, nothing trained, is evaluated and differentiated by eta on a quadrature rule of the Gram matrix's
    spectrum, and simulated on random prompts at the best step. A step size without the kurtosis or without the noise would
    make it fail.
    """
    d, N, om2 = setting.d, setting.N, setting.om2
    eta, least = setting.best_step, setting.least_loss
    other = (1 + setting.delta) * eta
    # The layer itself on a rule; noise adds eta^2 sig2 tau2 E tr W / (2 N^2), and tr W is integrated by the rule too.
    rule = setting.rule(2)
    added = setting.variance * setting.noise_variance / 2 * float(rule.weights @ rule.nodes) / N**2

    def on_rule(step: float) -> tuple[float, float]:
        value, (slope, _) = layers.slope_on_rule(np.array([step]), np.zeros(1), rule)
        return om2 * float(value) + added * step**2, om2 * float(slope[0]) + 2 * added * step

    (lowest, flat), (start, first), (off, second) = (on_rule(step) for step in (eta, 0.0, other))
    return [
        # The loss is a parabola in eta, so that two slopes give its lowest point.
        check.exact("eta", -first * other / (second - first), eta, EXACT_TOLERANCE),
        check.exact("least_loss", lowest, least, RULE_TOLERANCE),
        check.exact("loss_of_zero", start, setting.variance * d * om2 / 2, RULE_TOLERANCE),
        check.exact("loss_off_the_optimum", off, setting.step_loss(other), RULE_TOLERANCE),
        check.exact("slope_at_the_optimum_abs", flat * eta / start, 0.0, RULE_TOLERANCE),
        layers.simulated_loss("simulated_least_loss", layers.one_step(eta, d, N), setting, least),
    ]


class AnyCovariance(SimulatedSetting):
    """Normal inputs of any spectrum."""

    d = 5
    N = 20
    Lam: list[float] | None = spectrum(
        "eigenvalues of the input covariance", "; null: (1, 1, 1/4, 1/16, 1), repeated or cut to d"
    )
    samples = 40_000

    @property
    def covariance(self) -> Float[Array, "d d"]:
        return np.diag(np.resize([1.0, 1.0, 0.25, 0.0625, 1.0], self.d) if self.Lam is None else self.Lam)


@claim(
    "vonoswald2022.eta1.aniso",
    AnyCovariance,
    Source(PAPER, "fourth moments of the normal distribution; icl_lab", "extended"),
)
def best_step_for_any_covariance(setting: AnyCovariance) -> list[Check]:
    """For normal inputs of covariance Sigma and w ~ N(0, I) the best scalar step is tr Sigma^2 / ((1 + 1/N) tr Sigma^3
    + tr Sigma tr Sigma^2 / N), with half loss (tr Sigma - eta* tr Sigma^2)/2.

    The exact population loss of the constructed layer, nothing trained, is a parabola in eta, whose lowest point three
    values give; the loss there is also simulated on random prompts. Traces of other powers, or a step that only fits
    isotropic inputs, would make it fail.
    """
    d, N = setting.d, setting.N
    eta, least = theory.descent_steps.anisotropic_step(setting.covariance, N)
    # The exact population loss of the layer, a parabola in eta.
    objective = objectives.population(setting.task(), UNNORMALISED)
    start, once, twice = (objective.risk(layers.one_step(step, d, N)) / 2 for step in (0.0, 1.0, 2.0))
    bend, slope = (twice - 2 * once + start) / 2, (4 * once - 3 * start - twice) / 2
    best = layers.one_step(eta, d, N)
    return [
        check.exact("eta", -slope / (2 * bend), eta, EXACT_TOLERANCE),
        check.exact("least_loss", objective.risk(best) / 2, least, EXACT_TOLERANCE),
        layers.simulated_loss("simulated_least_loss", best, setting, least),
    ]


class LargerInputs(SimulatedLayer):
    """A step size that fits other inputs."""

    alpha: float = number(2.0, positive=True, meaning="factor of the test distribution", detail=", of its inputs")
    eta: float = number(200 / 33, meaning="step size", detail=", of unscaled inputs")


@claim(
    "vonoswald2022.ood.input",
    LargerInputs,
    Source(PAPER, "Section 3, inputs of other scales; icl_lab for the values", "extended"),
    extra_settings=tuple({"alpha": alpha} for alpha in (0.5, 0.8, 1.0, 1.25, 1.5)),
)
def larger_inputs(setting: LargerInputs) -> list[Check]:
    """With eta fixed, inputs that are alpha times as large have the loss of one step at variance alpha^2 sig2.

    The constructed layer, nothing trained, is evaluated on a quadrature rule of the larger inputs' Gram matrix and simulated
    on their prompts. A loss that grows with alpha^2 only, as if the step size followed the inputs, would make it fail.
    """
    eta, larger = setting.eta, dataclasses.replace(setting, sigma=setting.alpha * setting.sigma)
    expected = larger.step_loss(eta)
    on_rule = layers.loss_on_rule(np.array([eta]), np.zeros(1), larger.rule(2))
    return [
        check.exact("loss", float(on_rule), expected, RULE_TOLERANCE),
        layers.simulated_loss("simulated_loss", layers.one_step(eta, setting.d, setting.N), larger, expected),
    ]


class LargerTeachers(SimulatedLayer):
    """Task vectors of another size."""

    alpha: float = number(2.0, positive=True, meaning="factor of the test distribution", detail=", of its task vectors")

    @property
    def task_covariance(self) -> Float[Array, "d d"]:
        return self.alpha**2 * np.eye(self.d)


@claim("vonoswald2022.ood.task", LargerTeachers, Source(PAPER, "Section 3, tasks of other scales", "extended"))
def larger_teachers(setting: LargerTeachers) -> list[Check]:
    """Teachers alpha times as large have exactly alpha^2 times the loss of any model linear in the labels.

    Constructed layers, one plain and two with curvature correction, nothing trained, answer the same random prompts with
    labels of both sizes; the loss of the plain one is also simulated. An answer that is not linear in the labels, or a step
    size that depends on their size, would make it fail.
    """
    d, N, alpha, eta = setting.d, setting.N, setting.alpha, setting.best_step
    weights, task = layers.one_step(eta, d, N), setting.task()
    # Two layers with a curvature correction, on the same prompts with scaled and unscaled labels.
    deep = layers.stack(np.full(2, eta), np.full(2, 0.1 / (N * setting.variance)), d, N)

    def squared_errors(one):
        prompt = task.sample(one)
        small = Prompt(prompt.inputs, prompt.labels / alpha, prompt.query, prompt.target / alpha)
        answers = [(UNNORMALISED(model, p) - p.target)[0] ** 2 for model in (weights, deep) for p in (prompt, small)]
        return jnp.stack(answers)

    squares = np.mean(simulate(squared_errors, setting.key, 1_000), axis=0)
    return [
        layers.simulated_loss("loss", weights, setting, alpha**2 * setting.least_loss),
        check.exact("ratio_one_layer", squares[0] / squares[1], alpha**2, EXACT_TOLERANCE),
        check.exact("ratio_two_layers", squares[2] / squares[3], alpha**2, EXACT_TOLERANCE),
    ]


class NormalisedInputs(SimulatedSetting):
    """Contexts of one size, whatever was drawn."""

    alpha: float = number(2.0, positive=True, meaning="factor of the test distribution", detail=", of inputs of norm 1 in all")
    eta: float = number(200 / 33, meaning="step size", detail=", of unscaled inputs")
    samples = 40_000

    def validate(self) -> None:
        super().validate()
        if self.N * self.d <= 4:
            raise AssumptionError(f"the loss has a variance only for N d > 4; got N d = {self.N * self.d}.")


@claim(
    "vonoswald2022.ood.normal",
    NormalisedInputs,
    Source(PAPER, "the other distributions of the published code; icl_lab for the values", "extended"),
    extra_settings=tuple({"alpha": alpha} for alpha in (0.5, 1.0, 5.0)),
)
def normalised_inputs(setting: NormalisedInputs) -> list[Check]:
    """Normal inputs and query, divided by the context's Frobenius norm and multiplied by alpha, have the loss
    alpha^2/(2 (Nd - 2)) [d - 2 h alpha^2 + h^2 alpha^4 (N + d + 1)/(Nd + 2)], h = eta/N.

    The constructed layer, nothing trained, answers random prompts whose inputs are rescaled one by one, and its half loss
    is averaged over the query given the rest. A closed form that divides by the mean norm in place of each context's own
    would make it fail.
    """
    d, N, alpha, task = setting.d, setting.N, setting.alpha, setting.task()
    weights = layers.one_step(setting.eta, d, N)

    def half_loss(one):
        prompt = task.sample(one)
        factor = alpha / jnp.linalg.norm(prompt.inputs)
        scaled = Prompt(factor * prompt.inputs, factor * prompt.labels, factor * prompt.query, prompt.target)
        return factor**2 * jnp.sum((prompt.latent - layers.query_weights(weights, scaled)) ** 2) / 2

    losses = simulate(half_loss, setting.key, setting.samples)
    return [layers.mean_check("loss", losses, theory.descent_steps.normalised_inputs_loss(setting.eta, d, N, alpha))]


class ReplacedLabels(SimulatedLayer):
    """Contexts in which some labels tell nothing."""

    eta: float = number(200 / 33, meaning="step size", detail=", of unscaled inputs")
    m: int = integer(4, 0, "number of labels replaced")

    def validate(self) -> None:
        super().validate()
        if self.m > self.N:
            raise AssumptionError(f"at most all N = {self.N} labels can be replaced; got m = {self.m}.")


@claim(
    "vonoswald2022.noise",
    ReplacedLabels,
    Source(PAPER, "appendix on noisy labels; icl_lab for the values", "extended"),
    extra_settings=tuple({"m": m} for m in (0, 2, 6, 8)),
)
def replaced_labels(setting: ReplacedLabels) -> list[Check]:
    """With m of the N labels replaced by independent N(0, 1) one step has the half loss (sig2 d/2)
    [1 - 2 eta sig2 (N - m)/N + (eta/N)^2 (sig2^2 (N - m)(N - m + d + kap - 2) + m sig2)].

    The constructed layer, nothing trained, answers random prompts whose first m labels are drawn anew, and its half loss is
    averaged over the query given the rest. Replaced labels that still count as signal, or that add no noise, would make it
    fail.
    """
    m, task = setting.m, setting.task()
    d, N, variance, kurtosis = setting.step_problem
    weights = layers.one_step(setting.eta, d, N)

    def half_loss(one):
        prompt = task.sample(one)
        wrong = jax.random.normal(prng.stream(one, "replaced"), (m, 1))
        spoilt = Prompt(prompt.inputs, jnp.concatenate([wrong, prompt.labels[m:]]), prompt.query, prompt.target)
        return variance * jnp.sum((prompt.latent - layers.query_weights(weights, spoilt)) ** 2) / 2

    losses = simulate(half_loss, setting.key, setting.samples)
    expected = theory.descent_steps.replaced_labels_loss(setting.eta, d, N, variance, kurtosis, m)
    return [layers.mean_check("loss", losses, expected)]
