"""Claims of von Oswald et al. 2022 (arXiv 2212.07677): transformers learn in context by gradient descent."""

from __future__ import annotations

import jax
import numpy as np

from icl_lab import models, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number
from icl_lab.claims.vonoswald2022.settings import MODEL, PAPER, ROUNDING, LayersSetting, OutputsSetting, StepSetting
from icl_lab.core import compiled, prng
from icl_lab.core.errors import AssumptionError
from icl_lab.core.linalg import haar_orthogonal
from icl_lab.models import SeparateWeights, constructions
from icl_lab.tasks.prompt import Prompt

# A relative difference that rounding cannot explain.
DIFFERENT = 1e-9


@claim("vonoswald2022.prop1", StepSetting, Source(PAPER, "Proposition 1"))
def one_layer_is_one_step(setting: StepSetting) -> list[Check]:
    """There are weights with which one linear self-attention layer moves every label by one explicit step of gradient
    descent from any W_0, and answers the query with the stepped weights.

    The constructed weights, without any training, act on one random prompt from a random W_0, and every slot of every
    token is compared with an explicit step. A step of the summed in place of the mean loss, a wrong sign, or a layer that
    also moves the inputs would make it fail.
    """
    d, N = setting.d, setting.N
    prompt, initial = setting.instance()
    weights = constructions.gradient_descent(MODEL, d, N, setting.eta, initial=initial)
    start = -initial @ prompt.query
    tokens = np.asarray(MODEL.apply(weights, MODEL.tokens(prompt, start)))

    stepped = theory.vonoswald2022.gradient_step(initial, prompt.inputs, prompt.labels, setting.eta)
    inputs = np.vstack([prompt.inputs, prompt.query[None]])
    return [
        check.exact("input_slots", tokens[:, :d], inputs, ROUNDING),
        check.exact("label_slots", tokens[:N, d:], prompt.labels - prompt.inputs @ (stepped - initial).T, ROUNDING),
        check.exact("prediction", MODEL(weights, prompt, start), stepped @ prompt.query, ROUNDING),
    ]


@claim("vonoswald2022.datatransform", StepSetting, Source(PAPER, "the data transformation of section 2"))
def a_step_is_a_change_of_the_data(setting: StepSetting) -> list[Check]:
    """A step of the weights and the opposite change of the labels, y_i - dW x_i, lower the loss alike.

    The constructed layer moves the labels of one random prompt; the squared error of the random W_0 on the moved labels is
    compared with that of the stepped weights on the old ones. A layer that moves labels by another step size or with the
    other sign would make it fail.
    """
    d, N, eta = setting.d, setting.N, setting.eta
    prompt, initial = setting.instance()
    weights = constructions.gradient_descent(MODEL, d, N, eta, initial=initial)
    tokens = np.asarray(MODEL.apply(weights, MODEL.tokens(prompt, -initial @ prompt.query)))
    moved = np.sum((prompt.inputs @ initial.T - tokens[:N, d:]) ** 2)
    stepped = theory.vonoswald2022.gradient_step(initial, prompt.inputs, prompt.labels, eta)
    expected = theory.vonoswald2022.transformed_loss(stepped, prompt.inputs, prompt.labels)
    return [check.exact("loss_on_moved_labels", moved, expected, ROUNDING)]


@claim("vonoswald2022.multistep", LayersSetting, Source(PAPER, "Proposition 1, applied K times"))
def equal_layers_are_steps(setting: LayersSetting) -> list[Check]:
    """K copies of the same layer, all with the original W_0, are K steps of gradient descent: the label slots carry
    the whole state, so that putting the current W_k into the values is wrong.

    K constructed layers, stacked and as a loop, act on one random prompt from a random W_0 and are compared with K explicit
    steps; layers built from the iterates W_k must miss them. Layers that need to know how far descent has come would make
    it fail.
    """
    d, N, eta, K = setting.d, setting.N, setting.eta, setting.K
    prompt, initial = setting.instance()
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


@claim("vonoswald2022.readout", LayersSetting, Source(PAPER, "the sensitivity analysis of the experiments"))
def sensitivity_is_the_weights(setting: LayersSetting) -> list[Check]:
    """The answer of K layers that attend to the context is linear in the query, with W_K as its Jacobian.

    The answer of K constructed layers is differentiated by the query, at the random prompt's query and at another one, and
    compared with K explicit steps from a random W_0. A query that enters its own sum, or an answer with an offset, would
    make it fail.
    """
    eta, K = setting.eta, setting.K
    prompt, initial = setting.instance()
    layers = (constructions.gradient_descent(MODEL, setting.d, setting.N, eta, steps=1, initial=initial),) * K

    def answer(query):
        return MODEL(layers, Prompt(prompt.inputs, prompt.labels, query, prompt.target), -initial @ query)

    jacobian = compiled.jit(jax.jacfwd(answer))
    expected = theory.vonoswald2022.descent_iterates(initial, prompt.inputs, prompt.labels, np.full(K, eta))[-1]
    return [
        check.exact("sensitivity", jacobian(prompt.query), expected, ROUNDING),
        check.exact("sensitivity_elsewhere", jacobian(-3 * prompt.query + 1), expected, ROUNDING),
        check.exact("answer", answer(prompt.query), expected @ prompt.query, ROUNDING),
    ]


class FullAttention(LayersSetting):
    """Layers in which the query attends to itself."""

    K: int = integer(3, 2, "number of layers", ", one step each")

    def validate(self) -> None:
        super().validate()
        if self.eta <= 0:
            raise AssumptionError(f"`eta` must be > 0, or the layer does nothing; got {self.eta}.")


@claim(
    "vonoswald2022.full-attention",
    FullAttention,
    Source(PAPER, "behind leaving the query out of the sum; the formula is the lab's"),
)
def the_query_in_the_sum(setting: FullAttention) -> list[Check]:
    """Attending to the query token too moves label slot j by (eta/N) (x_q.x_j) 2 W_0 x_q in the first layer, and from
    the second layer on it changes the answer even from W_0 = 0.

    The same constructed layers act on one random prompt with and without the query in their sum, from a random W_0 and
    from zero, and their difference is compared with the closed form after one layer and after K. A shift without its factor
    2, or one that vanishes from zero after K layers, would make it fail.
    """
    d, N, eta, K = setting.d, setting.N, setting.eta, setting.K
    prompt, initial = setting.instance()
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


class Gauge(OutputsSetting):
    """Weights of one layer and a change of their factors."""

    s: float = number(-1.7, meaning="factor between the two matrices", detail=", not 0")

    def validate(self) -> None:
        super().validate()
        if self.s == 0:
            raise AssumptionError("`s` must not be 0, since the gauge divides by it.")


@claim("vonoswald2022.gauge", Gauge, Source(PAPER, "behind the interpolation of weights"))
def weights_up_to_gauge(setting: Gauge) -> list[Check]:
    """Only the products W_PV and W_KQ matter, and of those not the scale s, of either sign, in (s W_PV, W_KQ / s).

    A layer of four random matrices is applied to random tokens as it is, in another random basis of its heads' space, and
    with scales moved from one pair of matrices to the other; all are compared with attention by the products. A transposed
    W_K^T W_Q, or a layer that changes with the sign of s, would make it fail.
    """
    s, width, key = setting.s, setting.d + setting.k, setting.key
    prompt, _ = setting.instance()
    tokens = np.asarray(MODEL.tokens(prompt, prompt.labels[0]))
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
