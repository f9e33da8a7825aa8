"""Claims about linear attention: the gradient step that it is, its risk, and what a learned start or prefix makes of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab import estimators, mixers, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.mixers.prompts import EXACT, LAB, Pairs, Regression, distance, in_every_form, mean_and_error
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number
from icl_lab.claims.simulation import ratio_with_error, simulate
from icl_lab.core.typing import Array
from icl_lab.tasks.prompt import Prompt


class Stepped(Pairs):
    """A step size."""

    eta: float = number(0.05, positive=True, meaning="step size", detail=", which multiplies a sum of gradients")


@claim(
    "mixers.linear.gd1",
    Stepped,
    Source("von Oswald et al. 2022 (arXiv 2212.07677)", "Proposition 1, for the mixer by itself"),
    extra_settings=({"N": 5, "d": 9, "m": 1, "eta": 3.0},),
)
def linear_attention_is_a_step(setting: Stepped) -> list[Check]:
    """Linear attention of scale eta answers as one step of gradient descent of size eta from zero on the sum of half squared
    errors.

    The answer to one query at random pairs, in every form, beside the library's gradient descent. A step on the mean, or from
    another start, would make it fail.
    """
    prompt = setting.prompt()
    step = estimators.gradient_descent_weights(prompt, setting.N * setting.eta)
    return in_every_form(mixers.named("linear", scale=setting.eta), prompt, step)


@claim(
    "mixers.linear.risk",
    Regression,
    Source("Mahankali, Hashimoto, Ma 2023, arXiv 2307.03576", "Theorem 1; keys of length 1 are the lab's", "extended"),
    extra_settings=({"keys": "sphere", "s2": 0.0}, {"d": 3, "N": 7, "s2": 1.0}, {"keys": "sphere", "d": 4, "N": 50}),
)
def risk_of_linear_attention(setting: Regression) -> list[Check]:
    """On linear regression the best scale of linear attention is 1 / (N+d+1+s2), and its risk d (d+1+s2) / (N+d+1+s2); for keys
    on the unit sphere 1 / ((N-1)/d + 1 + s2) and d (1 - scale N/d).

    Best scale and risk of the mixer's matrix over drawn prompts, for queries N(0, I). A scale without its noise term, or the
    risk of keys of another law, would make it fail.
    """
    task = setting.task()
    scale = theory.linear_attention.best_scale(setting.problem)
    plain, best = (mixers.predictor("linear", scale=one) for one in (1.0, scale))

    def statistic(key):
        prompt = task.sample(key)
        state = matrix_of(plain, prompt)[:, 0]
        return jnp.stack([state @ prompt.latent, state @ state, distance(best, prompt, prompt.latent)])

    products, squares, risks = simulate(statistic, setting.stream("prompts"), setting.samples).T
    fitted, error = ratio_with_error(products, squares)
    risk, risk_error = mean_and_error(risks)
    return [
        check.sampled("scale", fitted, scale, error),
        check.sampled("risk", risk, theory.linear_attention.minimum_risk(setting.problem), risk_error),
    ]


class Mean(Regression):
    """Tasks w ~ N(w0 (1, .., 1), I)."""

    d: int = integer(5, 1, "dimension", "of the keys")
    N: int = integer(10, 1, "context length")
    s2: float = number(0.0, 0.0, "variance of the label noise")
    w0: float = number(1.2, meaning="mean of an entry of the task")

    def with_mean(self, prompt: Prompt) -> Prompt:
        """A prompt of a task of mean zero, with the mean added to its task."""
        mean = self.w0 * jnp.ones(self.d)
        return dataclasses.replace(
            prompt,
            labels=prompt.labels + (prompt.inputs @ mean)[:, None],
            target=prompt.target + prompt.query @ mean,
            latent=prompt.latent + mean,
        )


@claim(
    "mixers.initial-state",
    Mean,
    Source(LAB, "arXiv 2402.14951 has that one layer cannot step from a learned mean; the risks are the lab's", "extended"),
    extra_settings=({"d": 3, "N": 20, "w0": -0.5, "s2": 0.4}, {"keys": "sphere", "d": 4, "s2": 0.1}),
)
def a_learned_start_is_no_start_of_descent(setting: Mean) -> list[Check]:
    """Linear attention with a learned state S_0 is no gradient step from S_0, of which it lacks eta K^T K S_0. On tasks of mean
    w0 its best start is (1 - eta N c) w0, c the second moment of a key's entry: better than none, worse than a step from w0.

    The difference at random S_0, exactly; over drawn prompts the three risks, and the slopes of the mixer's risk in scale and
    start, which vanish at the optimum. A start of w0 itself, or a mixer that corrects its state, would make it fail.
    """
    d, N, problem = setting.d, setting.N, setting.problem
    task, square = setting.task(), d * setting.w0**2
    best = theory.linear_attention.tuned_start(problem, square)
    no_start = theory.linear_attention.best_scale(problem, square)
    descent = theory.linear_attention.best_scale(problem)
    mean = setting.w0 * np.ones((d, 1))

    def statistic(key):
        prompt = setting.with_mean(task.sample(key))
        tuned = matrix_of(started(best.scale, best.share * mean), prompt)[:, 0]
        plain = matrix_of(mixers.predictor("linear", scale=no_start), prompt)[:, 0]
        # A step from the mean: what the mixer says of the pairs without it, on top of it.
        left = dataclasses.replace(prompt, labels=prompt.labels - prompt.inputs @ mean)
        stepped = matrix_of(mixers.predictor("linear", scale=descent), left)[:, 0] + mean[:, 0]
        errors = [jnp.sum((state - prompt.latent) ** 2) for state in (tuned, plain, stepped)]
        written = tuned - best.share * mean[:, 0]
        slopes = [(tuned - prompt.latent) @ direction for direction in (written, mean[:, 0])]
        return jnp.stack([*errors, *slopes])

    means, found = mean_and_error(simulate(statistic, setting.stream("prompts"), setting.samples))
    prompt = setting.with_mean(task.sample(setting.stream("one")))
    start = setting.normals("start", d, 1)
    step = estimators.gradient_descent_weights(prompt, N * best.scale, initial=start.T).T
    lacking = best.scale * prompt.inputs.T @ prompt.inputs @ start
    return [
        check.exact("difference", matrix_of(started(best.scale, start), prompt) - step, lacking, EXACT),
        check.sampled("risk_of_the_best_start", means[0], best.risk, found[0]),
        check.sampled("risk_without_start", means[1], theory.linear_attention.minimum_risk(problem, square), found[1]),
        check.sampled("risk_of_descent_from_the_mean", means[2], theory.linear_attention.minimum_risk(problem), found[2]),
        check.sampled("slopes_abs", means[3:], np.zeros(2), found[3:]),
        check.at_least("a_start_helps", means[1], means[0]),
        check.at_least("descent_is_better", means[0], means[2]),
    ]


class Prefix(Pairs):
    """A prompt of pairs that are learned, before the one that is given."""

    r: int = integer(3, 1, "pairs in the prefix")
    m: int = integer(5, 1, "width of a value")


@claim(
    "mixers.prefix",
    Prefix,
    Source(LAB, "soft prompts, read as pairs", "extended"),
    extra_settings=({"r": 12, "d": 4, "N": 6}, {"r": 1, "m": 1}),
)
def prefix(setting: Prefix) -> list[Check]:
    """A prefix of r pairs is for linear attention an initial state sum_p k_p v_p^T of rank at most r, and for softmax attention
    r more observations in the average.

    The mixers' answers after the prefix and the prompt, beside the estimators'; the rank of the state after the prefix alone. A
    prefix that is forgotten, or counted with the context's length, would make it fail.
    """
    prompt, before = setting.prompt(), (setting.normals("prefix keys", setting.r, setting.d),)
    before = (*before, setting.normals("prefix values", setting.r, setting.m))
    joined = dataclasses.replace(
        prompt,
        inputs=np.concatenate([before[0], prompt.inputs]),
        labels=np.concatenate([before[1], prompt.labels]),
    )
    linear, softmax = (mixers.named(name, scale=1.0) for name in ("linear", "softmax"))
    states = [mixer.outputs_and_state(before[0], *before)[1] for mixer in (linear, softmax)]
    pairs = prompt.query, prompt.inputs, prompt.labels
    singular = np.linalg.svd(np.asarray(states[0]), compute_uv=False)
    rest = np.append(singular[setting.r :], 0.0)
    summed = estimators.gradient_descent(joined, 1.0 * (setting.N + setting.r))
    with_state = np.asarray(prompt.query) @ (before[0].T @ before[1]) + np.asarray(
        mixers.predictor("linear", scale=1.0)(prompt)
    )
    return [
        check.exact("state", states[0], before[0].T @ before[1], EXACT),
        check.at_most("rank_abs", np.max(rest), 0.0, EXACT * singular[0]),
        check.exact("linear", linear.read(*pairs, initial=states[0]), summed, EXACT),
        check.exact("as_a_state", linear.read(*pairs, initial=states[0]), with_state, EXACT),
        check.exact(
            "softmax",
            softmax.read(*pairs, initial=states[1]),
            estimators.kernel_smoother(joined, 1.0, "exponential"),
            EXACT,
        ),
    ]


def started(scale: float, start: Float[Any, "d 1"]) -> Any:
    """Linear attention on values, of this scale, from this state: as the mixer scales its state too, the start is divided."""
    return mixers.predictor("linear", scale=scale, initial=start / scale)


def matrix_of(predictor: Any, prompt: Prompt) -> Float[Array, "d m"]:
    """What a predictor that is linear in the query answers to unit queries, one a row."""
    return jax.vmap(lambda query: predictor(dataclasses.replace(prompt, query=query)))(jnp.eye(prompt.inputs.shape[1]))
