"""Claims about linear attention whose decays depend on the tokens: Mamba, gated linear attention, HGRN-2."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import estimators, mixers, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.mixers.prompts import EXACT, LAB, Pairs, Regression, in_every_form, mean_and_error
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number, restricted
from icl_lab.claims.simulation import ratio_with_error, simulate

OTHER_SIZES = ({"N": 7, "d": 9, "m": 1, "seed": 4}, {"N": 50, "d": 2})


@claim(
    "mixers.mamba2",
    Pairs,
    Source(LAB, "Mamba-2, arXiv 2405.21060, as linear attention with a decay", "extended"),
    extra_settings=OTHER_SIZES,
)
def mamba2(setting: Pairs) -> list[Check]:
    """Mamba-2, S_t = exp(dt_t A) S_{t-1} + dt_t B_t x_t^T and y_t = S_t^T C_t + D x_t, is linear attention with log decay dt A,
    keys B, values dt x, queries C and scale 1, beside its skip: one gradient step whose size and forgetting are set token by
    token.

    Random steps and a random rate; the library's gated mixer, with the skip, beside a step with those sizes and decays. A decay
    that acts after the write, or a step in the decay alone, would make it fail.
    """
    prompt = setting.prompt()
    steps, rate, skip = 0.1 + setting.uniforms("steps", setting.N), -0.2 - setting.uniforms("rate", 1)[0], 0.7
    weights = estimators.discounted_gradient_step_weights(prompt, steps, np.exp(steps * rate)[:, None])
    scaled = dataclasses.replace(prompt, labels=steps[:, None] * prompt.labels)
    mixer = mixers.named("simple_gla", scale=1.0)
    last = mixer.read(prompt.query, scaled.inputs, scaled.labels, log_decay=steps * rate) + skip * prompt.labels[-1]
    expected = np.asarray(estimators.discounted_gradient_step(prompt, steps, np.exp(steps * rate)[:, None]))
    return [
        *in_every_form(mixer, scaled, weights, log_decay=steps * rate),
        check.exact("with_skip", last, expected + skip * prompt.labels[-1], EXACT),
    ]


@claim(
    "mixers.gla",
    Pairs,
    Source(LAB, "gated linear attention, arXiv 2312.06635, read as a regression of values on keys", "extended"),
    extra_settings=OTHER_SIZES,
)
def gla(setting: Pairs) -> list[Check]:
    """Gated linear attention answers as one gradient step from zero in which every coordinate of a key forgets at its own rate;
    the weight of value i at token t is P_ti = sum_c q_tc k_ic prod_{i<s<=t} alpha_sc.

    Random decays a token and coordinate: answers in every form beside the step, outputs of all tokens beside the weights.
    Decays shared by the coordinates, or off by one token, would make it fail.
    """
    prompt, queries = setting.prompt(), setting.normals("queries", setting.N, setting.d)
    decay = 0.3 + 0.7 * setting.uniforms("decays", setting.N, setting.d)
    mixer = mixers.named("gla", scale=1.0)
    outputs = np.zeros((setting.N, setting.m))
    for t in range(setting.N):
        left = np.cumprod(np.concatenate([decay[1 : t + 1], np.ones((1, setting.d))])[::-1], axis=0)[::-1]
        outputs[t] = np.sum(queries[t] * prompt.inputs[: t + 1] * left, axis=1) @ prompt.labels[: t + 1]
    found = mixer.outputs(queries, prompt.inputs, prompt.labels, log_decay=np.log(decay))
    step = estimators.discounted_gradient_step_weights(prompt, 1.0, decay)
    return [
        *in_every_form(mixer, prompt, step, log_decay=np.log(decay)),
        check.exact("outputs", found, outputs, EXACT),
    ]


class Bounded(Pairs):
    """A smallest share that is kept."""

    low: float = restricted(
        number(0.2, meaning="smallest share that a token leaves"),
        "a number in [0, 1)",
        lambda value: 0 <= value < 1,
    )


@claim(
    "mixers.hgrn2",
    Bounded,
    Source(LAB, "HGRN-2, arXiv 2404.07904, read as a moving average", "extended"),
    extra_settings=({"low": 0.0, "N": 7, "d": 9, "m": 1}, {"low": 0.9, "N": 50}),
)
def hgrn2(setting: Bounded) -> list[Check]:
    """HGRN-2, whose keys are 1 - alpha_t, keeps moving averages: row c of its state is sum_i w_ic v_i with weights that are not
    negative and, with prod_t alpha_tc for what was there before, sum to 1.

    Weights read off the mixer's answers to unit values, and its answers beside a gradient step on those keys with those decays.
    A key that does not go with the decay would make it fail.
    """
    prompt, mixer = setting.prompt(), mixers.named("hgrn2", lower_bound=setting.low, scale=1.0)
    kept = setting.low + (1 - setting.low) / (1 + np.exp(-prompt.inputs))
    tied = dataclasses.replace(prompt, inputs=1 - kept)
    step = np.asarray(estimators.discounted_gradient_step_weights(tied, 1.0, kept))
    unit = np.eye(setting.N)
    weights = jax.vmap(lambda query: mixer.read(query, prompt.inputs, unit))(jnp.eye(setting.d))
    return [
        check.exact("sum", jnp.sum(weights, axis=1) + np.prod(kept, axis=0), np.ones(setting.d), EXACT),
        check.at_least("weights_abs", np.min(weights), 0.0),
        *in_every_form(mixer, prompt, step),
    ]


@claim(
    "mixers.mamba.stick-breaking",
    Pairs,
    Source(LAB, "in the setting of arXiv 2510.00399", "extended"),
    extra_settings=OTHER_SIZES,
)
def stick_breaking(setting: Pairs) -> list[Check]:
    """Mamba-1 with rate 1, zero-order hold and steps softplus(z_i) is linear attention with the weights G_i = sigmoid(z_i)
    prod_{j>i} (1 - sigmoid(z_j)): the piece that each token breaks off a stick, and what later ones leave of it.

    Random z: weights read off the mixer's answer to unit values, and its answers beside the weighted gradient step. A step that
    multiplies the write itself, as in Mamba-2, would make it fail.
    """
    prompt, logits = setting.prompt(), setting.normals("logits", setting.N)
    piece = 1 / (1 + np.exp(-logits))
    rest = np.cumprod(np.append(1.0, 1 - piece[:0:-1]))[::-1]
    mixer, steps = mixers.named("mamba", rate=1.0, scale=1.0), np.log1p(np.exp(logits))
    ones = np.ones((setting.N, 1))
    found = mixer.read(ones[0], ones, np.eye(setting.N), step=steps)
    step = estimators.weighted_gradient_step_weights(prompt, piece * rest)
    return [
        check.exact("weights", found, piece * rest, EXACT),
        check.exact("sum", jnp.sum(found) + np.prod(1 - piece), 1.0, EXACT),
        *in_every_form(mixer, prompt, step, step=steps),
    ]


LONG = 512
"""Context length at which s_2 / s_1^2 is within 1e-6 of its limit."""


class FixedStep(Regression):
    """Gaussian keys, and a context over which the state halves."""

    d: int = integer(5, 1, "dimension", "of the keys")
    N: int = integer(20, 1, "context length")
    s2: float = number(0.0, 0.0, "variance of the label noise")


@claim(
    "mixers.mamba.fixed-step",
    FixedStep,
    Source(LAB, "in the setting of arXiv 2510.00399", "extended"),
    extra_settings=({"d": 3, "N": 8}, {"d": 10, "N": 40}, {"s2": 0.5, "keys": "sphere"}),
)
def fixed_step(setting: FixedStep) -> list[Check]:
    """With the constant step log 2 / N Mamba-1 weighs the examples by (1 - al) al^(i+1), al = 2^(-1/N), i of them being
    younger; its best risk d (d+1) s_2 / (s_1^2 + (d+1) s_2), s_1 and s_2 the sums of weights and of their squares, tends to 1.5
    log 2 times that of linear attention.

    Weights read off the mixer, whose last token is the query with the value zero; best scale and risk of its matrix over drawn
    prompts; the limit by the weights of a long context. Equal weights, or a query that is not written, would make it fail.
    """
    task, N, problem = setting.task(), setting.N, setting.problem
    mixer, step = mixers.named("mamba", rate=1.0, scale=1.0), np.log(2) / N

    def weights_of(length):
        ones, unit = np.ones((length + 1, 1)), np.eye(length + 1)[:, :length]
        return np.asarray(mixer.read(ones[0], ones, unit, step=np.log(2) / length))

    def statistic(key):
        prompt = task.sample(key)
        keys = jnp.concatenate([prompt.inputs, prompt.query[None]])
        values = jnp.concatenate([prompt.labels, jnp.zeros((1, 1))])
        state = jax.vmap(lambda query: mixer.read(query, keys, values, step=step)[0])(jnp.eye(setting.d))
        return jnp.stack([state @ prompt.latent, state @ state])

    products, squares = simulate(statistic, setting.stream("prompts"), setting.samples).T
    expected = theory.retention.fixed_step_risk(problem)
    fitted, _ = ratio_with_error(products, squares)
    # The risk at the fitted scale is d - (E S.w)^2 / E |S|^2, which moves with the scale to second order only.
    risk, error = mean_and_error(setting.d - 2 * fitted * products + fitted**2 * squares)
    # Of long contexts the ratio of the two risks is that of s_2 / s_1^2 to the 1 / N of equal weights.
    long = weights_of(LONG)
    return [
        check.exact("weights", weights_of(N), theory.retention.fixed_step_weights(N), EXACT),
        check.sampled("risk", risk, expected, error),
        check.exact("limit", LONG * np.sum(long**2) / np.sum(long) ** 2, 1.5 * np.log(2), 1e-6),
    ]
