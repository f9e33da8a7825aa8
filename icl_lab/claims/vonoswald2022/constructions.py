"""Claims of von Oswald et al. 2022 (arXiv 2212.07677): layers beyond plain gradient descent on merged tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import models, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number, vector
from icl_lab.claims.vonoswald2022.settings import MODEL, PAPER, ROUNDING, OutputsSetting, PromptSetting, StepSetting
from icl_lab.core import compiled
from icl_lab.core.errors import AssumptionError
from icl_lab.core.typing import Array
from icl_lab.models import LSAWeights, constructions
from icl_lab.tasks.embeddings import interleaved, with_positions
from icl_lab.tasks.prompt import Prompt

KERNEL_ROUNDING = 1e-11
ORDER_TOLERANCE = 0.1


class Features(OutputsSetting):
    """Inputs that a random layer of tanh units maps to features."""

    width: int = integer(9, 1, "number of features", ", each a tanh")
    eta: float = number(0.2, meaning="step size", detail="of the mean gradient, below 2/width")
    K: int = integer(50, 2, "number of layers", ", besides 1, 2 and infinitely many")

    def validate(self) -> None:
        super().validate()
        if not 0 < self.eta < 2 / self.width:
            raise AssumptionError(
                f"`eta` must be > 0 and below 2/width = {2 / self.width:g}, so that the steps converge for any inputs "
                f"(features are at most 1, so that the kernel's eigenvalues are at most N width); got {self.eta}."
            )


@claim(
    "vonoswald2022.prop2",
    Features,
    Source(PAPER, "Proposition 2, with the factor eta/N that its display leaves out", "corrected"),
)
def layers_on_features_are_kernel_regression(setting: Features) -> list[Check]:
    """After a token-wise map of the inputs to features m(x), K layers are K steps of kernel regression with kernel
    m(x).m(x'): a kernel smoother for one layer, kernel interpolation for infinitely many.

    Constructed layers, nothing trained, act on the random features of one random prompt from W_0 = 0, and infinitely many
    by repeated squaring of their linear map of the labels; explicit kernel descent is expected. A smoother without its
    factor eta/N, as in the paper's display, would make it fail.
    """
    d, k, N, width, eta = setting.d, setting.k, setting.N, setting.width, setting.eta
    prompt, _ = setting.instance()
    rows = np.asarray(jax.random.normal(setting.stream("features"), (d + 1, width)))

    def features(x):
        return np.tanh(x @ rows[1:] + rows[:1])

    inputs, query = features(prompt.inputs), features(prompt.query[None])[0]
    mapped = Prompt(inputs, prompt.labels, query, prompt.target)
    layer = constructions.gradient_descent(MODEL, width, N, eta, label_dim=k)
    kernel, query_kernel = inputs @ inputs.T, inputs @ query
    checks = []
    for steps in (1, 2, setting.K):
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


class Copied(PromptSetting):
    """Inputs and labels as separate tokens, T = 2N + 1 with the query."""

    N = 5
    eta: float = number(0.6, meaning="step size", detail="of the mean gradient")


class Copies(Copied, OutputsSetting):
    """Several outputs, and softmax scores that decide how well a token is copied."""

    b: list[float] = vector([1.0, 5.0, 10.0, 20.0], "softmax scores", "of the successor")

    def validate(self) -> None:
        super().validate()
        if self.b is None:
            raise AssumptionError("`b` must list the scores of the successor; got null.")


COPIER = models.LinearSelfAttention(query_in_sum=True, normaliser="none")


@claim("vonoswald2022.prop3", Copies, Source(PAPER, "Proposition 3, whose softmax version is corrected", "corrected"))
def separate_tokens_are_merged(setting: Copies) -> list[Check]:
    """With one-hot positions a first layer merges separate input and label tokens, each with its successor, and a
    second one takes the gradient step; exactly for linear attention, up to e^b / (e^b + T - 1) for softmax scores b.

    Two constructed layers, nothing trained, act on one random prompt of separate tokens from W_0 = 0; the share that
    softmax copies is the derivative of a copy by what is copied. Copies of the predecessor, positions that are not erased,
    or a softmax that copies all of a token would make it fail.
    """
    d, k, N, eta = setting.d, setting.k, setting.N, setting.eta
    prompt, _ = setting.instance()
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
            for score, weight in zip(setting.b, _softmax_copies(contents, setting.b), strict=True)
        ],
    ]


def _softmax_copies(contents: Array, scores: list[float]) -> list[float]:
    """What softmax copying leaves of the first token's successor: the derivative of the copy by the content."""
    model = models.SoftmaxSelfAttention(query_in_sum=True)
    count, width = contents.shape

    def first_copy(slot, layer):
        tokens = with_positions(jnp.asarray(contents).at[1, 0].set(slot))
        return model.apply(layer, tokens)[0, count + width]

    derivative = compiled.jit(jax.grad(first_copy))
    return [float(derivative(contents[1, 0], constructions.copying.copy_successor(width, count, score))) for score in scores]


@claim("vonoswald2022.prop3.contamination", Copied, Source(PAPER, "Proposition 3, a correction of the lab", "extended"))
def merged_label_tokens_contaminate(setting: Copied) -> list[Check]:
    """If labels share the last input coordinate, merged label tokens (y_j | x_{j+1}) add (eta/N) x_q[d] sum_j y_j
    x_{j+1}[d] to the step; nothing if labels have a coordinate of their own, or those tokens are zeroed.

    The two constructed layers act on one random prompt in both layouts, and once with the merged label tokens set to zero
    between the layers; the differences are compared with the closed form. A sum that leaves out the query as the last
    label's successor, or any contamination where none is claimed, would make it fail.
    """
    d, N, eta = setting.d, setting.N, setting.eta
    prompt, _ = setting.instance()
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


class Temperatures(StepSetting):
    """Softmax heads whose scores go to zero."""

    N: int = integer(7, 3, "context length")
    eta: float = number(0.6, positive=True, meaning="step size", detail="of the mean gradient")
    temperatures: list[float] = vector([1e-1, 1e-2, 1e-3], "factors e of the scores", ", in units of 1 / largest centred score")

    def validate(self) -> None:
        super().validate()
        values = self.temperatures
        if values is None or len(values) < 2 or min(values) <= 0 or np.any(np.diff(values) >= 0):
            raise AssumptionError(f"`temperatures` must be two or more decreasing numbers > 0; got {values}.")


@claim(
    "vonoswald2022.softmax.expand",
    Temperatures,
    Source(PAPER, "section on softmax attention, with the normaliser that it drops", "corrected"),
)
def two_softmax_heads_are_a_centred_step(setting: Temperatures) -> list[Check]:
    """One softmax head with scores e s is 1/N + e (s_i - mean s)/N up to O(e^2), and two heads of opposite scores and
    values up to O(e^3): their limit is one gradient step with centred context inputs, not plain gradient descent.

    The heads' attention to one random prompt is evaluated at falling e, its remainder compared with the next term of the
    expansion and its order read off; the limit is the derivative at e = 0, nothing trained. A second order without the
    scores' variance, or a limit with inputs that are not centred, would make it fail.
    """
    d, k, N, eta, temperatures = setting.d, setting.k, setting.N, setting.eta, setting.temperatures
    prompt, _ = setting.instance()
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
