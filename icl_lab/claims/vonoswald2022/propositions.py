"""Claims of von Oswald et al. 2022 (arXiv 2212.07677): transformers learn in context by gradient descent."""

from __future__ import annotations

import jax
import numpy as np

from icl_lab import models, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Parameter, Source, choice, integer, number
from icl_lab.claims.registry import claim
from icl_lab.core import compiled, prng
from icl_lab.core.errors import AssumptionError
from icl_lab.core.linalg import haar_orthogonal
from icl_lab.core.typing import Array
from icl_lab.models import SeparateWeights, constructions
from icl_lab.tasks.distributions.covariates import CovariateDistribution, Gaussian, Uniform
from icl_lab.tasks.prompt import Prompt, check_prompt_fits

PAPER = "von Oswald et al. 2022, arXiv 2212.07677"
# Two orders of summation of the same few hundred products.
ROUNDING = 1e-12
# A relative difference that rounding cannot explain.
DIFFERENT = 1e-9

SIZES = {
    "d": integer(4, 1, "input dimension, the paper's N_x"),
    "k": integer(3, 1, "outputs, the paper's N_y"),
    "N": integer(7, 1, "context length"),
}
INPUTS = {
    "distribution": choice("gaussian", ("gaussian", "uniform"), "of the input coordinates"),
    "sigma": number(1.0, positive=True, meaning="standard deviation of a Gaussian coordinate, half-width of a uniform one"),
}
STEP = SIZES | {"eta": number(0.6, meaning="step size of the mean gradient")} | INPUTS
SEED = {"seed": integer(0, 0, "of inputs, labels and W_0")}
MODEL = models.LinearSelfAttention(query_in_sum=False, readout_sign=-1.0)


def layers_parameter(default: int, minimum: int = 1) -> dict[str, Parameter]:
    """K, the number of layers."""
    return {"K": integer(default, minimum, "layers, one step each")}


def input_distribution(distribution: str, dim: int, sigma: float) -> CovariateDistribution:
    """Independent Gaussian coordinates of standard deviation sigma, or uniform ones on (-sigma, sigma)."""
    return Gaussian(np.full(dim, sigma**2)) if distribution == "gaussian" else Uniform(dim, half_width=sigma)


def instance(d, k, N, distribution, sigma, seed) -> tuple[Prompt, Array]:
    """A prompt and W_0: labels of no linear map, and a start that is not zero, so that no term of a step is missing."""
    check_prompt_fits(N, d)
    key = jax.random.key(seed)
    inputs = np.asarray(input_distribution(distribution, d, sigma).sample(prng.stream(key, "inputs"), N + 1))
    labels = np.asarray(jax.random.normal(prng.stream(key, "labels"), (N, k)))
    initial = np.asarray(jax.random.normal(prng.stream(key, "initial"), (k, d)))
    return Prompt(inputs=inputs[:-1], labels=labels, query=inputs[-1], target=np.zeros(k)), initial


@claim(
    "vonoswald2022.prop1",
    statement="There are weights with which one linear self-attention layer moves every label by one explicit step of gradient "
    "descent from any W_0, and answers the query with the stepped weights.",
    source=Source(PAPER, "Proposition 1"),
    parameters=STEP | SEED,
)
def one_layer_is_one_step(d, k, N, eta, distribution, sigma, seed) -> list[Check]:
    prompt, initial = instance(d, k, N, distribution, sigma, seed)
    weights = constructions.gradient_descent(MODEL, d, N, eta, initial=initial)
    start = -initial @ prompt.query
    tokens = np.asarray(MODEL.apply(weights, MODEL.tokens(prompt, start)))

    stepped = theory.vonoswald2022.gradient_step(initial, prompt.inputs, prompt.labels, eta)
    inputs = np.vstack([prompt.inputs, prompt.query[None]])
    return [
        check.exact("input_slots", tokens[:, :d], inputs, ROUNDING),
        check.exact("label_slots", tokens[:N, d:], prompt.labels - prompt.inputs @ (stepped - initial).T, ROUNDING),
        check.exact("prediction", MODEL(weights, prompt, start), stepped @ prompt.query, ROUNDING),
    ]


@claim(
    "vonoswald2022.datatransform",
    statement="A step of the weights and the opposite change of the labels, y_i - dW x_i, lower the loss alike.",
    source=Source(PAPER, "the data transformation of section 2"),
    parameters=STEP | SEED,
)
def a_step_is_a_change_of_the_data(d, k, N, eta, distribution, sigma, seed) -> list[Check]:
    prompt, initial = instance(d, k, N, distribution, sigma, seed)
    weights = constructions.gradient_descent(MODEL, d, N, eta, initial=initial)
    tokens = np.asarray(MODEL.apply(weights, MODEL.tokens(prompt, -initial @ prompt.query)))
    moved = np.sum((prompt.inputs @ initial.T - tokens[:N, d:]) ** 2)
    stepped = theory.vonoswald2022.gradient_step(initial, prompt.inputs, prompt.labels, eta)
    expected = theory.vonoswald2022.transformed_loss(stepped, prompt.inputs, prompt.labels)
    return [check.exact("loss_on_moved_labels", moved, expected, ROUNDING)]


@claim(
    "vonoswald2022.multistep",
    statement="K copies of the same layer, all with the original W_0, are K steps of gradient descent: the label slots carry "
    "the whole state, so that putting the current W_k into the values is wrong.",
    source=Source(PAPER, "Proposition 1, applied K times"),
    parameters=STEP | layers_parameter(5) | SEED,
)
def equal_layers_are_steps(d, k, N, eta, distribution, sigma, K, seed) -> list[Check]:
    prompt, initial = instance(d, k, N, distribution, sigma, seed)
    iterates = theory.vonoswald2022.descent_iterates(initial, prompt.inputs, prompt.labels, np.full(K, eta))
    answer = iterates[-1] @ prompt.query
    start = -initial @ prompt.query

    layer = constructions.gradient_descent(MODEL, d, N, eta, steps=1, initial=initial)
    tokens = np.asarray(MODEL.apply((layer,) * K, MODEL.tokens(prompt, start)))
    looped = models.LinearSelfAttention(query_in_sum=False, readout_sign=-1.0, loops=K)
    checks = [
        check.exact("input_slots", tokens[:N, :d], prompt.inputs, ROUNDING),
        check.exact("label_slots", tokens[:N, d:], prompt.labels - prompt.inputs @ (iterates[-1] - initial).T, ROUNDING),
        check.exact("prediction", MODEL((layer,) * K, prompt, start), answer, ROUNDING),
        check.exact("prediction_of_the_loop", looped(layer, prompt, start), answer, ROUNDING),
    ]
    if K > 1 and eta != 0:
        current = tuple(constructions.gradient_descent(MODEL, d, N, eta, steps=1, initial=w) for w in iterates[:-1])
        deviation = np.linalg.norm(MODEL(current, prompt, start) - answer) / np.linalg.norm(answer)
        checks.append(check.at_least("error_with_current_weights_abs", deviation, DIFFERENT))
    return checks


@claim(
    "vonoswald2022.readout",
    statement="The answer of K layers that attend to the context is linear in the query, with W_K as its Jacobian.",
    source=Source(PAPER, "the sensitivity analysis of the experiments"),
    parameters=STEP | layers_parameter(5) | SEED,
)
def sensitivity_is_the_weights(d, k, N, eta, distribution, sigma, K, seed) -> list[Check]:
    prompt, initial = instance(d, k, N, distribution, sigma, seed)
    layers = (constructions.gradient_descent(MODEL, d, N, eta, steps=1, initial=initial),) * K

    def answer(query):
        return MODEL(layers, Prompt(prompt.inputs, prompt.labels, query, prompt.target), -initial @ query)

    jacobian = compiled.jit(jax.jacfwd(answer))
    expected = theory.vonoswald2022.descent_iterates(initial, prompt.inputs, prompt.labels, np.full(K, eta))[-1]
    return [
        check.exact("sensitivity", jacobian(prompt.query), expected, ROUNDING),
        check.exact("sensitivity_elsewhere", jacobian(-3 * prompt.query + 1), expected, ROUNDING),
        check.exact("answer", answer(prompt.query), expected @ prompt.query, ROUNDING),
    ]


def _positive_step(eta, **_) -> None:
    if eta <= 0:
        raise AssumptionError(f"`eta` must be > 0, or the layer does nothing; got {eta}.")


@claim(
    "vonoswald2022.full-attention",
    statement="Attending to the query token too moves label slot j by (eta/N) (x_q.x_j) 2 W_0 x_q in the first layer, and from "
    "the second layer on it changes the answer even from W_0 = 0.",
    source=Source(PAPER, "behind leaving the query out of the sum; the formula is the lab's"),
    parameters=STEP | layers_parameter(3, 2) | SEED,
    validate=_positive_step,
)
def the_query_in_the_sum(d, k, N, eta, distribution, sigma, K, seed) -> list[Check]:
    prompt, initial = instance(d, k, N, distribution, sigma, seed)
    full = models.LinearSelfAttention(query_in_sum=True, readout_sign=-1.0)
    zero = np.zeros_like(initial)
    inputs = np.vstack([prompt.inputs, prompt.query[None]])
    checks = []
    for name, W0 in (("", initial), ("_from_zero", zero)):
        layer = constructions.gradient_descent(MODEL, d, N, eta, steps=1, initial=W0)
        tokens = MODEL.tokens(prompt, -W0 @ prompt.query)
        shift = theory.vonoswald2022.attended_query_shift(W0, inputs, prompt.query, eta, N)
        slots = theory.vonoswald2022.attended_query_slots(W0, prompt.inputs, prompt.labels, prompt.query, eta, K)
        plain = theory.vonoswald2022.descent_iterates(W0, prompt.inputs, prompt.labels, np.full(K, eta))[-1] @ prompt.query
        one = np.asarray(full.apply(layer, tokens) - MODEL.apply(layer, tokens))[:, d:]
        many = np.asarray(full.apply((layer,) * K, tokens) - MODEL.apply((layer,) * K, tokens))[-1, d:]
        size = float(np.linalg.norm(slots))
        checks += [
            check.exact(f"shift_after_one{name}_abs", one, shift, ROUNDING * size),
            check.exact(f"shift_of_answer_after_K{name}_abs", -many, -slots[-1] - plain, ROUNDING * size),
            check.at_least(f"size_of_shift_after_K{name}_abs", np.linalg.norm(many), DIFFERENT * size),
        ]
    return checks


@claim(
    "vonoswald2022.gauge",
    statement="Only the products W_PV and W_KQ matter, and of those not the scale s, of either sign, in (s W_PV, W_KQ / s).",
    source=Source(PAPER, "behind the interpolation of weights"),
    parameters=SIZES
    | INPUTS
    | {"s": number(-1.7, meaning="the factor, not 0")}
    | {"seed": integer(0, 0, "of tokens, weights and the change of basis")},
    validate=lambda s, **_: _not_zero(s),
)
def weights_up_to_gauge(d, k, N, distribution, sigma, s, seed) -> list[Check]:
    prompt, _ = instance(d, k, N, distribution, sigma, seed)
    tokens = np.asarray(MODEL.tokens(prompt, prompt.labels[0]))
    key, width = jax.random.key(seed), d + k
    w_p, w_v, w_k, w_q = np.asarray(jax.random.normal(prng.stream(key, "weights"), (4, width, width)))
    basis = np.asarray(haar_orthogonal(prng.stream(key, "basis"), width))
    model = models.LinearSelfAttention(query_in_sum=False, normaliser="none")
    expected = theory.vonoswald2022.attention_layer(tokens, w_p @ w_v, w_k.T @ w_q)
    weights = {
        "separate": SeparateWeights(w_p, w_v, w_k, w_q),
        "other_basis": SeparateWeights(w_p @ basis, basis.T @ w_v, basis @ w_k, basis @ w_q),
        "scaled": SeparateWeights(s * w_p, w_v, w_k / s, w_q),
        "scaled_by_minus_s": SeparateWeights(w_p, -s * w_v, w_k, -w_q / s),
    }
    return [check.exact(name, model.apply(one, tokens), expected, ROUNDING) for name, one in weights.items()]


def _not_zero(s: float) -> None:
    if s == 0:
        raise AssumptionError("`s` must not be 0, since the gauge divides by it.")
