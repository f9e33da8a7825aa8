"""Claims of von Oswald et al. 2022 (arXiv 2212.07677): layers beyond plain gradient descent on merged tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import models, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, integer, number, vector
from icl_lab.claims.registry import claim
from icl_lab.claims.vonoswald2022.propositions import INPUTS, MODEL, PAPER, ROUNDING, SEED, SIZES, instance
from icl_lab.core import compiled, prng
from icl_lab.core.errors import AssumptionError
from icl_lab.core.typing import Array
from icl_lab.models import LSAWeights, constructions
from icl_lab.tasks.embeddings import interleaved, with_positions
from icl_lab.tasks.prompt import Prompt

KERNEL_ROUNDING = 1e-11
ORDER_TOLERANCE = 0.1


def _converges(eta, width, **_) -> None:
    if not 0 < eta < 2 / width:
        raise AssumptionError(
            f"`eta` must be > 0 and below 2/width = {2 / width:g}, so that the steps converge for any inputs (features are at "
            f"most 1, so that the kernel's eigenvalues are at most N width); got {eta}."
        )


@claim(
    "vonoswald2022.prop2",
    statement="After a token-wise map of the inputs to features m(x), K layers are K steps of kernel regression with kernel "
    "m(x).m(x'): a kernel smoother for one layer, kernel interpolation for infinitely many.",
    source=Source(PAPER, "Proposition 2, with the factor eta/N that its display leaves out", "corrected"),
    parameters=SIZES
    | {
        "width": integer(9, 1, "number of tanh features"),
        "eta": number(0.2, meaning="step size of the mean gradient, below 2/width"),
        "K": integer(50, 2, "layers, besides 1, 2 and infinitely many"),
    }
    | INPUTS
    | {"seed": integer(0, 0, "of inputs, labels and features")},
    validate=_converges,
)
def layers_on_features_are_kernel_regression(d, k, N, width, eta, K, distribution, sigma, seed) -> list[Check]:
    prompt, _ = instance(d, k, N, distribution, sigma, seed)
    rows = np.asarray(jax.random.normal(prng.stream(jax.random.key(seed), "features"), (d + 1, width)))

    def features(x):
        return np.tanh(x @ rows[1:] + rows[:1])

    inputs, query = features(prompt.inputs), features(prompt.query[None])[0]
    mapped = Prompt(inputs, prompt.labels, query, prompt.target)
    layer = constructions.gradient_descent(MODEL, width, N, eta, label_dim=k)
    kernel, query_kernel = inputs @ inputs.T, inputs @ query
    checks = []
    for steps in (1, 2, K):
        model = models.LinearSelfAttention(query_in_sum=False, readout_sign=-1.0, loops=steps)
        expected = theory.descent_variants.kernel_descent(kernel, query_kernel, prompt.labels, eta, steps)
        checks.append(check.exact(f"prediction_{steps}_layers", model(layer, mapped), expected, KERNEL_ROUNDING))
    expected = theory.descent_variants.kernel_descent(kernel, query_kernel, prompt.labels, eta, np.inf)
    values = np.linalg.svd(inputs, compute_uv=False) ** 2
    values = values[values > 1e-12 * values[0]]
    # Interpolation itself amplifies rounding by the condition number of the kernel.
    tolerance = max(KERNEL_ROUNDING, 10 * np.finfo(float).eps * float(values[0] / values[-1]))
    limit = _infinitely_many(layer, mapped, float(np.max(np.abs(1 - eta / N * values))))
    return [*checks, check.exact("prediction_infinitely_many_layers", limit, expected, tolerance)]


def _infinitely_many(layer: LSAWeights, prompt: Prompt, contraction: float) -> Array:
    """The answer of 2^j equal layers, by squaring their map of labels until the slowest direction is below rounding."""
    tokens = np.asarray(MODEL.tokens(prompt))
    dim = prompt.inputs.shape[1]

    def labels_after(labels):
        return MODEL.apply(layer, jnp.concatenate([tokens[:, :dim], labels[:, None], tokens[:, dim + 1 :]], axis=1))[:, dim]

    power = np.asarray(compiled.jit(jax.jacfwd(labels_after))(tokens[:, dim]))
    for _ in range(int(np.ceil(np.log2(40 / -np.log(max(contraction, 1e-9)))))):
        power = power @ power
    return -(power @ tokens[:, dim:])[-1]


COPIED = {
    "d": integer(4, 1, "input dimension, the paper's N_x"),
    "N": integer(5, 1, "context length; there are T = 2N + 1 tokens"),
    "eta": number(0.6, meaning="step size of the mean gradient"),
} | INPUTS
COPIER = models.LinearSelfAttention(query_in_sum=True, normaliser="none")


@claim(
    "vonoswald2022.prop3",
    statement="With one-hot positions a first layer merges separate input and label tokens, each with its successor, and a "
    "second one takes the gradient step; exactly for linear attention, up to e^b / (e^b + T - 1) for softmax scores b.",
    source=Source(PAPER, "Proposition 3, whose softmax version is corrected", "corrected"),
    parameters=COPIED | {"k": SIZES["k"], "b": vector([1.0, 5.0, 10.0, 20.0], "softmax scores of the successor")} | SEED,
    validate=lambda b, **_: _scores_given(b),
)
def separate_tokens_are_merged(d, N, eta, distribution, sigma, k, b, seed) -> list[Check]:
    prompt, _ = instance(d, k, N, distribution, sigma, seed)
    width, count = d + k, 2 * N + 1
    contents = np.asarray(interleaved(prompt))
    tokens = np.asarray(with_positions(contents))
    copy = constructions.copying.copy_successor(width, count)
    after = np.asarray(COPIER.apply(copy, tokens))
    step = constructions.copying.step_on_copies(width, count, d, k, N, eta)
    answer = np.asarray(COPIER.apply((copy, step), tokens))[-1, -k:]
    stepped = theory.vonoswald2022.gradient_step(np.zeros((k, d)), prompt.inputs, prompt.labels, eta)
    return [
        check.exact("merged_contents", after[:, count:], theory.copying.merged_successors(contents), ROUNDING),
        check.exact("positions_erased_abs", after[:-1, :count], np.zeros((count - 1, count)), ROUNDING),
        check.exact("prediction", answer, stepped @ prompt.query, ROUNDING),
        *[
            check.exact(f"softmax_weight_{score:g}", weight, theory.copying.successor_weight(score, count), ROUNDING)
            for score, weight in zip(b, _softmax_copies(contents, b), strict=True)
        ],
    ]


def _scores_given(b) -> None:
    if b is None:
        raise AssumptionError("`b` must list the scores of the successor; got null.")


def _softmax_copies(contents: Array, scores: list[float]) -> list[float]:
    """What softmax copying leaves of the first token's successor: the derivative of the copy by the content."""
    model = models.SoftmaxSelfAttention(query_in_sum=True)
    count, width = contents.shape

    def first_copy(slot, layer):
        tokens = with_positions(jnp.asarray(contents).at[1, 0].set(slot))
        return model.apply(layer, tokens)[0, count + width]

    derivative = compiled.jit(jax.grad(first_copy))
    return [float(derivative(contents[1, 0], constructions.copying.copy_successor(width, count, score))) for score in scores]


@claim(
    "vonoswald2022.prop3.contamination",
    statement="If labels share the last input coordinate, merged label tokens (y_j | x_{j+1}) add (eta/N) x_q[d] sum_j y_j "
    "x_{j+1}[d] to the step; nothing if labels have a coordinate of their own, or those tokens are zeroed.",
    source=Source(PAPER, "Proposition 3, a correction of the lab", "extended"),
    parameters=COPIED | SEED,
)
def merged_label_tokens_contaminate(d, N, eta, distribution, sigma, seed) -> list[Check]:
    prompt, _ = instance(d, 1, N, distribution, sigma, seed)
    count = 2 * N + 1
    own = np.asarray(interleaved(prompt))
    shared = own[:, :d].copy()
    shared[1::2, -1] = prompt.labels[:, 0]

    def answer(contents, zeroed):
        width = contents.shape[1]
        merged = np.array(COPIER.apply(constructions.copying.copy_successor(width, count), with_positions(contents)))
        if zeroed:
            merged[1::2] = 0.0
        return float(COPIER.apply(constructions.copying.step_on_copies(width, count, d, 1, N, eta), merged)[-1, -1])

    stepped = theory.vonoswald2022.gradient_step(np.zeros((1, d)), prompt.inputs, prompt.labels, eta)
    clean = float((stepped @ prompt.query)[0])
    extra = theory.copying.contamination(prompt.inputs, prompt.labels[:, 0], prompt.query, eta)
    size = abs(clean) + abs(extra)
    return [
        check.exact("added_by_shared_coordinate_abs", answer(shared, False) - answer(shared, True), extra, ROUNDING * size),
        check.exact("prediction_shared", answer(shared, False), clean + extra, ROUNDING * size / abs(clean + extra)),
        check.exact("prediction_own_coordinate", answer(own, False), clean, ROUNDING),
        check.exact("prediction_zeroed", answer(shared, True), clean, ROUNDING),
    ]


@claim(
    "vonoswald2022.softmax.expand",
    statement="One softmax head with scores e s is 1/N + e (s_i - mean s)/N up to O(e^2), and two heads of opposite scores and "
    "values up to O(e^3): their limit is one gradient step with centred context inputs, not plain gradient descent.",
    source=Source(PAPER, "section on softmax attention, with the normaliser that it drops", "corrected"),
    parameters=SIZES
    | {"N": integer(7, 3, "context length")}
    | {"eta": number(0.6, positive=True, meaning="step size of the mean gradient")}
    | INPUTS
    | {"temperatures": vector([1e-1, 1e-2, 1e-3], "e, in units of 1 / largest centred score")}
    | SEED,
    validate=lambda temperatures, **_: _decreasing(temperatures),
)
def two_softmax_heads_are_a_centred_step(d, k, N, eta, distribution, sigma, temperatures, seed) -> list[Check]:
    prompt, _ = instance(d, k, N, distribution, sigma, seed)
    scores = prompt.inputs @ prompt.query
    unit = 1 / float(np.max(np.abs(scores - np.mean(scores))))
    # With one-hot labels the answer is the attention itself, all of it.
    probe = Prompt(prompt.inputs, np.eye(N), prompt.query, np.zeros(N))
    orders = theory.vonoswald2022.softmax_expansion(unit * scores)
    expected = {1: (orders[0], orders[1], orders[2]), 2: (0 * orders[0], 2 * orders[1], 2 * orders[3])}
    checks = []
    for heads, (constant, linear, rest) in expected.items():
        attention = compiled.jit(lambda e, heads=heads: _softmax_answer(probe, e * unit, heads, 1.0))
        ratios = [(np.asarray(attention(np.asarray(e))) - constant - e * linear) / e ** (heads + 1) for e in temperatures]
        for e, ratio in zip(temperatures, ratios, strict=True):
            # The next term is about e (one head) or e^2 (two heads) as large; the answers, of norm 1/sqrt(N), are rounded.
            rounding = 10 * np.finfo(float).eps * np.linalg.norm(orders[0]) / np.linalg.norm(rest)
            tolerance = float(2 * e**heads + rounding / e ** (heads + 1))
            checks.append(check.exact(f"remainder_{heads}_heads_e_{e:g}", ratio, rest, tolerance))
        growth = np.log(np.linalg.norm(ratios[0]) / np.linalg.norm(ratios[-1])) / np.log(temperatures[0] / temperatures[-1])
        checks.append(check.exact(f"order_{heads}_heads", heads + 1 + growth, heads + 1, ORDER_TOLERANCE))

    # The slope at e = 0 of two heads is their limit, eta/2 times it the step.
    step = compiled.jit(jax.jacfwd(lambda e: _softmax_answer(prompt, e, 2, eta / 2)))(np.zeros(()))
    centred = theory.descent_variants.centred_step(prompt.inputs, prompt.labels, prompt.query, eta)
    plain = MODEL(constructions.gradient_descent(MODEL, d, N, eta, label_dim=k), prompt)
    stepped = theory.vonoswald2022.gradient_step(np.zeros((k, d)), prompt.inputs, prompt.labels, eta) @ prompt.query
    return [
        *checks,
        check.exact("limit_is_centred_step", step, centred, ROUNDING),
        check.exact("limit_minus_plain_step_abs", step - plain, centred - stepped, ROUNDING * float(np.linalg.norm(plain))),
    ]


def _softmax_answer(prompt: Prompt, e: Array | float, heads: int, scale: float) -> Array:
    """The answer of one head with scores e x_i.x_q and values scale y_i, or of two with both signs of both."""
    dim, label_dim = prompt.inputs.shape[1], prompt.labels.shape[1]
    signs = jnp.array([1.0, -1.0])[:heads, None, None]
    w_kq = signs * e * jnp.diag(jnp.repeat(jnp.array([1.0, 0.0]), np.array([dim, label_dim])))[None]
    w_pv = signs * scale * jnp.diag(jnp.repeat(jnp.array([0.0, 1.0]), np.array([dim, label_dim])))[None]
    model = models.SoftmaxSelfAttention(query_in_sum=False)
    return model(LSAWeights(w_pv=w_pv, w_kq=w_kq), prompt)


def _decreasing(temperatures) -> None:
    if temperatures is None or len(temperatures) < 2 or min(temperatures) <= 0 or np.any(np.diff(temperatures) >= 0):
        raise AssumptionError(f"`temperatures` must be two or more decreasing numbers > 0; got {temperatures}.")
