"""Claims about the proof of Mahankali, Hashimoto, Ma 2023 (arXiv 2307.03576): each step of it."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import analysis, estimators, models, objectives, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.mahankali2023 import settings
from icl_lab.claims.mahankali2023.settings import MODEL, PAPER, Pair, RandomLayers, bayes_predictor
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number
from icl_lab.claims.settings.flow_paths import structured
from icl_lab.claims.simulation import mean_with_error, normal_batches, simulate
from icl_lab.core import compiled
from icl_lab.models import LSAWeights, initializers
from icl_lab.tasks.prompt import Prompt

# The layer as a literal sum over at most some thousand terms.
FORWARD_TOLERANCE = 1e-12
EXACT_TOLERANCE = 1e-11
POINTS = 4
"""Random layers at which an identity is checked."""


class Forward(settings.Isotropic):
    """One prompt, a layer with random weights and one of a GD step."""

    eta: float = number(0.1, meaning="step size", detail="on the sum over examples")
    width: int = integer(6, 1, "rows of W_V, W_K and W_Q")


@claim("mahankali2023.setting", Forward, Source(PAPER, "Section 3, the model and its reparametrisation"))
def the_layer_as_a_predictor(setting: Forward) -> list[Check]:
    """The layer is a linear predictor (K1^T S p1 + c p2 k2 + B b).x_q, a plain sum over the context, and one GD step
    from zero on the summed loss predicts eta b.x_q.

    Answers to one drawn prompt, of a layer with standard normal factors and of the layer of one step; nothing is trained. A
    predictor without its term c p2 k2, or a sum divided by n, would make it fail.
    """
    d, N, eta, width = setting.d, setting.N, setting.eta, setting.width
    prompt = setting.task().sample(setting.stream("prompt"))
    separate = initializers.separate_gaussian(setting.stream("weights"), d + 1, 1.0, rank=min(width, d + 1), value_rank=width)
    step = structured(1.0, eta * np.eye(d))
    inputs, labels, query = (np.asarray(x) for x in (prompt.inputs, prompt.labels[:, 0], prompt.query))
    averaging = models.LinearSelfAttention(query_in_sum=False)
    # h^T W_V and W_K^T W_Q, with h the label row of W_P.
    values = separate.w_v.T @ separate.w_p[-1]
    even, odd = theory.mahankali2023.effective_predictor(values, (separate.w_k.T @ separate.w_q)[:, :d], inputs, labels)
    one_step = eta * (inputs.T @ labels) @ query
    return [
        check.exact("prediction", MODEL(separate, prompt)[0], (even + odd) @ query, FORWARD_TOLERANCE),
        check.exact("one_gd_step", MODEL(step, prompt)[0], one_step, FORWARD_TOLERANCE),
        # The estimator takes a step on the mean over the examples.
        check.exact("gd_estimator", estimators.gradient_descent(prompt, N * eta)[0], one_step, FORWARD_TOLERANCE),
        check.exact("averaging_layer", N * averaging(step, prompt)[0], one_step, FORWARD_TOLERANCE),
    ]


class PairLayers(RandomLayers, Pair):
    """Random layers on inputs and tasks of any two covariances."""


class SimulatedLayers(PairLayers):
    """The same, and prompts."""

    samples: int = integer(200_000, 1_000, "number of draws", "of prompts")


@claim("mahankali2023.lem1", SimulatedLayers, Source(PAPER, "Lemma 1"))
def loss_is_bayes_plus_distance(setting: SimulatedLayers) -> list[Check]:
    """For every layer the loss is the Bayes error plus the mean squared distance to the ridge predictor.

    At two layers with random weights, not trained, the squared error less the squared distance to ridge is averaged over
    simulated prompts and compared with the mean posterior trace of the theory. A wrong Bayes error, or a ridge penalty other
    than s2 Om^{-1}, would make it fail.
    """
    task = setting.task()
    layers = [setting.layer(f"layer {i}") for i in range(2)]
    ridge = bayes_predictor(task)
    metric = jnp.asarray(task.covariance)

    def paired(one):
        prompt = task.sample(one)
        best = _weights_of(ridge, prompt)
        squares = []
        for layer in layers:
            fitted = _weights_of(partial(MODEL, layer), prompt)
            # The mean over queries of what the two squared errors differ by.
            squares.append(
                (fitted - prompt.latent) @ metric @ (fitted - prompt.latent) - (fitted - best) @ metric @ (fitted - best)
            )
        return jnp.stack(squares)

    drawn = simulate(paired, setting.stream("prompts"), setting.samples)
    contexts = normal_batches(setting.samples, setting.N, setting.d, seed=setting.seed)
    expected, uncertainty = theory.bayes.risk(setting.problem, contexts)
    checks = []
    for i in range(2):
        mean, error = mean_with_error(drawn[:, i])
        name = f"bayes_error_from_layer_{i + 1}"
        if expected == 0:  # without noise ridge interpolates from N = d on
            checks.append(check.exact(f"{name}_abs", mean, 0.0, EXACT_TOLERANCE))
        else:
            checks.append(check.sampled(name, mean, expected, math.hypot(error, uncertainty)))
    return checks


def _weights_of(predictor, prompt: Prompt):
    """The vector of a predictor that is linear in the query: its answers to the unit queries, (d,)."""

    def answer(query):
        return predictor(Prompt(prompt.inputs, prompt.labels, query, prompt.target))[0]

    return jax.vmap(answer)(jnp.eye(prompt.inputs.shape[1]))


class Moments(Pair):
    """Inputs and tasks of any two covariances, and prompts."""

    samples: int = integer(200_000, 1_000, "number of draws", "of prompts")


@claim("mahankali2023.moments", Moments, Source(PAPER, "proof of Theorem 1"))
def moments_of_the_context(setting: Moments) -> list[Check]:
    """E[b b^T] = n (n + d + 1 + s2) I and E[b w_ridge^T] = E[b w^T] = n I; for general covariances
    n (n+1) Lam Om Lam + n tau Lam and n Lam Om.

    Once exactly, from derivatives of the exact loss at the layers of no step and of the step Lam^{-1}, and once from simulated
    prompts; nothing is trained. A moment with n^2 for n (n+1), or a ridge predictor with another mean, would make it fail.
    """
    d, task = setting.d, setting.task()
    second, cross = theory.mahankali2023.context_moment(setting.problem), theory.mahankali2023.bayes_moment(setting.problem)
    gradient = compiled.jit(jax.grad(objectives.population(task, MODEL)))

    def slope(inner):
        """dL/dK1 at p2 = 1, K1 = inner: E[b b^T] K1 Lam - E[b w^T] Lam."""
        return np.asarray(gradient(structured(1.0, inner)).w_kq)[:d, :d]

    inverse = np.linalg.inv(setting.covariance)
    at_zero = slope(np.zeros((d, d)))
    ridge = bayes_predictor(task)

    def products(one):
        prompt = task.sample(one)
        b = prompt.inputs.T @ prompt.labels[:, 0]
        fitted = _weights_of(ridge, prompt)
        return b[None, :, None] * jnp.stack([b, fitted])[:, None, :]

    drawn = simulate(products, setting.stream("prompts"), setting.samples)
    mean, error = np.mean(drawn, axis=0), np.std(drawn, axis=0, ddof=1) / np.sqrt(setting.samples)
    return [
        check.exact("b_b", slope(inverse) - at_zero, second, EXACT_TOLERANCE),
        check.exact("b_w", -at_zero @ inverse, cross, EXACT_TOLERANCE),
        check.sampled("simulated_b_b", mean[0], second, error[0]),
        check.sampled("simulated_b_ridge", mean[1], cross, error[1]),
    ]


class WhiteningLayers(RandomLayers, settings.Whitening):
    """Random layers on inputs N(0, Sigma) with tasks N(0, Sigma^{-1})."""


@claim("mahankali2023.lem2", WhiteningLayers, Source(PAPER, "Lemma 2"))
def loss_is_a_constant_plus_distance(setting: WhiteningLayers) -> list[Check]:
    """For every layer the excess loss is d (d+1+s2)/(n+d+1+s2) plus the mean squared distance to one GD step.

    The exact risk at four layers with random weights, not trained, beside the closed form of the distance, which is itself a
    difference of exact risks of two heads. A step size without its 1, or a constant that varies with the layer, would make it
    fail.
    """
    objective = objectives.population(setting.task(), MODEL)
    layers = [setting.layer(f"layer {i}") for i in range(POINTS)]
    distances = np.array([theory.mahankali2023.distance_to_step(setting.problem, w.w_pv, w.w_kq) for w in layers])
    risks = np.array([objective.risk(layer) for layer in layers])
    constant = theory.mahankali2023.minimum_risk(setting.d, setting.N, setting.s2)
    return [
        check.exact("excess_risks", risks, constant + distances, EXACT_TOLERANCE),
        # Differences of numbers of the size of the largest risk.
        check.exact("constants_abs", risks - distances, np.full(POINTS, constant), EXACT_TOLERANCE * float(risks.max())),
    ]


@claim("mahankali2023.parity", PairLayers, Source(PAPER, "proof of Theorem 1; icl_lab", "extended"))
def odd_and_even_do_not_interact(setting: PairLayers) -> list[Check]:
    """Under (w, noise) -> -(w, noise) the odd part B b and the even part K1^T S p1 + c p2 k2 of the layer do not
    interact: the excess loss is E|B b - w|^2, a convex quadratic in B, plus E|even part|^2 >= 0.

    One layer with random weights, not trained, is split into two-headed layers of its odd and its even half; their answers to a
    drawn prompt and its negated labels, and their exact risks, are compared with closed forms. An even part put into the odd
    half, or a cross term between the two risks, would make it fail.
    """
    d, task, problem = setting.d, setting.task(), setting.problem
    objective = objectives.population(task, MODEL)
    layer = setting.layer("layer")
    # The layer on negated labels is the same layer with the label coordinate of p and K negated.
    signs = np.append(np.ones(d), -1.0)
    mirrored = LSAWeights(layer.w_pv * signs[None, :], layer.w_kq * signs[:, None])
    halves = {
        name: LSAWeights(np.stack([layer.w_pv, sign * mirrored.w_pv]) / 2, np.stack([layer.w_kq, mirrored.w_kq]))
        for name, sign in (("odd", -1.0), ("even", 1.0))
    }
    odd, both = objective.risk(halves["odd"]), objective.risk(layer)
    even = objective.risk(halves["even"]) - np.trace(problem.covariance @ problem.task_covariance)
    expected_odd = theory.lsa.risk(problem, analysis.effective_preconditioner(layer, MODEL, setting.N))
    total = theory.exact_loss.risk(problem, layer.w_pv, layer.w_kq, query_in_sum=False, rho=1.0)
    prompt = task.sample(setting.stream("prompt"))
    negated = Prompt(prompt.inputs, -prompt.labels, prompt.query, prompt.target)
    answers = MODEL(layer, prompt)[0], MODEL(layer, negated)[0]
    parts = theory.mahankali2023.effective_predictor(
        *settings.active_rows(layer), np.asarray(prompt.inputs), np.asarray(prompt.labels)[:, 0]
    )
    query = np.asarray(prompt.query)
    return [
        check.exact("even_answer", (answers[0] + answers[1]) / 2, parts[0] @ query, EXACT_TOLERANCE),
        check.exact("odd_answer", (answers[0] - answers[1]) / 2, parts[1] @ query, EXACT_TOLERANCE),
        check.exact("odd_risk", odd, expected_odd, EXACT_TOLERANCE),
        check.exact("even_risk_abs", even, total - expected_odd, EXACT_TOLERANCE * total),
        check.exact("risk_is_the_sum", odd + even, both, EXACT_TOLERANCE),
        check.at_least("even_square_abs", even, 0.0, EXACT_TOLERANCE * total),
    ]
