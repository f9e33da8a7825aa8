"""Claims of Ahn et al. 2023 (arXiv 2306.00297) about one layer, and what any number of layers computes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import analysis, objectives, theory
from icl_lab.claims import check
from icl_lab.claims.ahn2023.settings import MODEL, PAPER, Layers
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.quasi_newton import minimise
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import choice, integer, number, spectrum
from icl_lab.claims.settings.flow_paths import structured
from icl_lab.claims.settings.regression import RegressionSetting, SpectralSetting, covariance
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.claims.simulation import ratio_with_error, simulate
from icl_lab.core import compiled
from icl_lab.core.linalg import inverse_covariance
from icl_lab.core.typing import Array
from icl_lab.models import LSAWeights, initializers
from icl_lab.tasks.prompt import Prompt

FORWARD_TOLERANCE = 1e-12
RISK_TOLERANCE = 1e-10
PRECONDITIONER_TOLERANCE = 1e-6
PUBLISHED_SPECTRUM = (1.0, 0.25, 2.0)


class Steps(Layers):
    """One prompt with noisy labels, and layers with random preconditioners."""

    d = 4
    N = 7
    L = 5
    noise: float = number(0.5, 0.0, "standard deviation of the label noise")
    all_entries = False

    @property
    def noise_variance(self) -> float:
        return self.noise**2


@claim("ahn2023.lemma1", Steps, Source(PAPER, "Lemma 1, corrected", "corrected"))
def layers_are_preconditioned_steps(setting: Steps) -> list[Check]:
    """L layers with P = diag(0, 1) and Q_l = -diag(A_l, 0) take L steps of gradient descent preconditioned by A_l^T
    (the paper: A_l), and the query's label slot is -<x_q, w_l> after each.

    A forward pass through layers with random asymmetric A_l, not trained, on one drawn prompt, beside steps of descent computed
    from its gradients. Steps with A_l in place of A_l^T, inputs that move, or the other sign of the slot would make it fail.
    """
    d, L = setting.d, setting.L
    prompt = setting.task().sample(setting.stream("prompt"))
    matrices = (np.eye(d) + setting.normals("weights", L, d, d) / np.sqrt(d)) / 2
    slots, tokens, answer = _forward(tuple(structured(1.0, -matrix) for matrix in matrices), prompt)
    inputs, labels, query = (np.asarray(x) for x in (prompt.inputs, prompt.labels[:, 0], prompt.query))
    path = theory.ahn2023.descent_weights(matrices, inputs, labels)
    residuals = labels - inputs @ path[-1]
    checks = [
        check.exact("label_slot_of_the_query", slots, -path @ query, FORWARD_TOLERANCE),
        check.exact("label_slots_of_the_context", tokens[:-1, -1], residuals, FORWARD_TOLERANCE),
        check.exact("prediction", answer, path[-1] @ query, FORWARD_TOLERANCE),
        check.exact("inputs_stay", tokens[:-1, :d], inputs, FORWARD_TOLERANCE),
    ]
    if d > 1:
        untransposed = -theory.ahn2023.descent_weights(np.swapaxes(matrices, 1, 2), inputs, labels) @ query
        distance = np.linalg.norm(slots - untransposed) / np.linalg.norm(slots)
        checks.append(check.at_least("distance_to_steps_with_the_untransposed_matrix", distance, 1e-6))
    return checks


@compiled.jit
def _forward(layers: tuple[LSAWeights, ...], prompt: Prompt) -> tuple[Array, Array, Array]:
    """The query's label slot after each layer, all tokens after the last, and the answer."""
    tokens, slots = MODEL.tokens(prompt), []
    for layer in layers:
        tokens = MODEL.apply(layer, tokens)
        slots.append(tokens[-1, -1])
    return jnp.stack(slots), tokens, MODEL(layers, prompt)[0]


class OneLayer(SpectralSetting):
    """One layer on inputs of any covariance, searched over all entries."""

    N = 6
    Lam: list[float] | None = spectrum("eigenvalues of the input covariance", "Sigma; null: 1, 1/4, 2, repeated")
    rotate = True
    scale: float = number(0.1, positive=True, meaning="standard deviation of a weight at the start")
    starts: int = integer(24, 1, "number of starts", "of BFGS, of which the best counts")

    @property
    def covariance(self) -> Array:
        values = list(np.resize(PUBLISHED_SPECTRUM, self.d)) if self.Lam is None else self.Lam
        return covariance(values, self.d, self.rotate, self.seed)


@claim("ahn2023.thm1", OneLayer, Source(PAPER, "Theorem 1"), extra_settings=({"Lam": [1.0, 1.0, 1.0]},))
def best_single_layer(setting: OneLayer) -> list[Check]:
    """Over all weights of one layer the risk is smallest at A* = U diag(1 / ((n+1)/n lam_i + tr(Sigma)/n)) U^T, up to
    scale, with f* = sum_i lam_i (1 - lam_i a_i).

    BFGS on the exact loss over all entries from small Gaussian starts and one small structured start, none at the optimum; the
    lowest end counts. An A* without its trace, or any start that ends below f*, would make it fail.
    """
    eigenvalues, basis = np.linalg.eigh(setting.covariance)
    expected = (basis * theory.ahn2023.shrinkage(eigenvalues, setting.N)[None, :]) @ basis.T
    return _checked_minimum(setting, expected, theory.ahn2023.one_layer_risk(eigenvalues, setting.N))


def _checked_minimum(setting: OneLayer, expected: Array, minimum: float) -> list[Check]:
    """The lowest end of BFGS over all weights, beside a preconditioner and a risk."""
    d, scale, starts, task = setting.d, setting.scale, setting.starts, setting.task()
    drawn = initializers.gaussian(setting.stream("starts"), d + 1, scale, starts)
    # Random starts often end in local minima of rank one, one without them does not.
    first = structured(scale, -scale * np.eye(d))
    begin = jax.tree.map(lambda one, rest: np.concatenate([one[None], rest]), first, drawn)
    ends = minimise(objectives.population(task, MODEL), begin)
    found = analysis.effective_preconditioner(ends.lowest, MODEL, setting.N)
    terms = float(task.signal_variance)
    return [
        check.exact("risk", 2 * np.min(ends.losses), minimum, RISK_TOLERANCE, terms=terms),
        check.exact("preconditioner", found, expected, PRECONDITIONER_TOLERANCE),
        check.at_least("no_start_ends_below", 2 * ends.losses, np.full(starts + 1, minimum), RISK_TOLERANCE, terms=terms),
    ]


class AnyTasks(OneLayer):
    """The same for tasks of any covariance."""

    tasks: str = choice("general", ("general", "whitening"), "task covariance Sw", ": from Om, or Sigma^{-1}")
    Om: list[float] | None = spectrum("eigenvalues of the task covariance", "Sw if general; null: 3/2 down to 1/2")

    @property
    def task_covariance(self) -> Array:
        if self.tasks == "whitening":
            return inverse_covariance(self.covariance)
        return covariance(self.Om, self.d, self.rotate, self.seed, "tasks", largest=1.5)


@claim(
    "ahn2023.thm1.general",
    AnyTasks,
    Source(PAPER, "icl_lab, extending Theorem 1", "extended"),
    extra_settings=({"tasks": "whitening"},),
)
def best_single_layer_for_any_tasks(setting: AnyTasks) -> list[Check]:
    """For tasks w ~ N(0, Sw) the optimum is A* = [(1+1/n) Sigma Sw Sigma + tr(Sigma Sw)/n Sigma]^{-1} Sigma Sw; for
    Sw = Sigma^{-1} it is n/(n+d+1) Sigma^{-1}, with f* = d(d+1)/(n+d+1).

    BFGS on the exact loss over all entries from small Gaussian starts and one small structured start, none at the optimum; the
    lowest end counts. The A* of isotropic tasks, or any start that ends below f*, would make it fail.
    """
    d, N = setting.d, setting.N
    if setting.tasks == "whitening":
        expected, minimum = N / (N + d + 1) * setting.task_covariance, theory.mahankali2023.minimum_risk(d, N, 0.0)
    else:
        expected, minimum = theory.lsa.optimal_preconditioner(setting.problem), theory.lsa.minimum_risk(setting.problem)
    return _checked_minimum(setting, expected, minimum)


class ReLULayer(Seeded, RegressionSetting):
    """Prompts for a layer of ReLU attention."""

    N = 8
    samples: int = integer(400_000, 10_000, "number of draws", "of prompts")


def _relu_answer(inner: Array, prompt: Prompt) -> Array:
    """Prediction of the layer with scores max(0, z_i^T Q z_j) in place of z_i^T Q z_j, P = diag(0, 1), Q = diag(inner, 0)."""
    scores = jax.nn.relu(prompt.inputs @ inner @ prompt.query)
    return -jnp.mean(scores * prompt.labels[:, 0])


@claim("ahn2023.thm5", ReLULayer, Source(PAPER, "Theorem 5"), extra_settings=({"d": 5, "N": 20},))
def relu_attention(setting: ReLULayer) -> list[Check]:
    """With ReLU attention on isotropic inputs A = -a I, a* = 2n / (n - 1 + 2(d+2)), is a stationary point of risk
    d (2d+3) / (n + 2d + 3), above that of linear attention.

    Risk, its derivative by all entries of A and the best multiple of the identity, averaged over simulated prompts with the
    layer put at a*, not trained. The step of linear attention, or a derivative that is not zero there, would make it fail.
    """
    d, N, task = setting.d, setting.N, setting.task()
    step = theory.ahn2023.relu_step(d, N)
    minimum = theory.ahn2023.relu_risk(step, d, N)

    def squared_error(inner, prompt):
        return (_relu_answer(inner, prompt) - prompt.target[0]) ** 2

    def statistic(one):
        prompt = task.sample(one)
        error, slope = jax.value_and_grad(squared_error)(-step * jnp.eye(d), prompt)
        unit = _relu_answer(-jnp.eye(d), prompt)
        return jnp.concatenate([jnp.stack([error, unit * prompt.target[0], unit**2]), slope.ravel()])

    drawn = simulate(statistic, setting.stream("prompts"), setting.samples)
    mean, spread = np.mean(drawn, axis=0), np.std(drawn, axis=0, ddof=1) / np.sqrt(setting.samples)
    # The risk is E target^2 - 2 a E[unit target] + a^2 E[unit^2].
    best, best_error = ratio_with_error(drawn[:, 1], drawn[:, 2])
    return [
        check.sampled("best_step", best, step, best_error),
        check.sampled("risk", mean[0], minimum, spread[0]),
        check.exact("risk_closed_form", minimum, d * (2 * d + 3) / (N + 2 * d + 3), FORWARD_TOLERANCE),
        check.sampled("gradient_abs", mean[3:], np.zeros(d * d), spread[3:]),
        check.at_least("risk_above_linear_attention", mean[0] - 4 * spread[0], theory.mahankali2023.minimum_risk(d, N, 0.0)),
    ]
