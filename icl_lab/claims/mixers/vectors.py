"""Claims about mixers whose state is a vector: what they can say of a regression, and with how many channels."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab import estimators, mixers, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.mixers.prompts import EXACT, LAB, Gaussian, Pairs, mean_and_error
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number, restricted
from icl_lab.claims.simulation import simulate
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.tasks.prompt import Prompt


class Slow(Pairs):
    """Channels that write little of each token."""

    m: int = restricted(integer(1, 1, "width of a value"), "1", lambda value: value == 1)
    eps: float = number(1e-5, positive=True, meaning="mean share that a token writes")
    kappa: float = number(0.1, positive=True, meaning="slope of the keys of the channels")

    def validate(self) -> None:
        super().validate()
        if not 1e-7 <= self.eps * self.N <= 0.01:
            raise InvalidValueError(f"`eps` times `N` must be in [1e-7, 0.01], where one order of it shows; got {self.eps!r}.")
        if self.kappa * np.max(np.abs(self.prompt().inputs)) >= 1:
            raise InvalidValueError(f"`kappa` must keep 1 + kappa x above 0 for the keys of the prompt; got {self.kappa!r}.")


@claim(
    "mixers.hgrn.construct",
    Slow,
    Source(LAB, "a construction for HGRN, arXiv 2311.04823", "extended"),
    extra_settings=({"d": 2, "N": 50, "kappa": 0.05}, {"d": 9, "N": 5, "eps": 1e-4, "seed": 2}),
)
def hgrn_regresses(setting: Slow) -> list[Check]:
    """With 2 d channels that hold the same scalar values and write the shares eps (1 + kappa x_c) and eps (1 - kappa x_c), the
    difference of the two groups over 2 eps kappa, times the query, is linear attention up to a term of order eps N.

    Answers of the mixer at eps and at eps/2 beside one gradient step: the error is small, and halves. Channels of one sign
    alone, or an error of another order, would make it fail.
    """
    prompt = setting.prompt()
    step = np.asarray(estimators.weighted_gradient_step(prompt, np.ones(setting.N)))[0]
    errors = [abs(_hgrn_answer(prompt, eps, setting.kappa) - step) for eps in (setting.eps, setting.eps / 2)]
    terms = np.sum(np.abs(prompt.labels)) * np.sum(np.abs(prompt.query)) * (1 + np.max(np.abs(prompt.inputs)))
    return [
        check.at_most("error_abs", errors[0], setting.eps * setting.N * terms),
        check.exact("order", np.log2(errors[0] / errors[1]), 1.0, 0.02),
    ]


def _hgrn_answer(prompt: Prompt, eps: float, kappa: float) -> float:
    written = eps * np.concatenate([1 + kappa * prompt.inputs, 1 - kappa * prompt.inputs], axis=1)
    values = np.broadcast_to(prompt.labels, written.shape)
    query = np.concatenate([prompt.query, -prompt.query]) / (2 * eps * kappa)
    return float(jnp.sum(mixers.named("hgrn").read(query, np.log(written) - np.log1p(-written), values)))


class Channels(Gaussian):
    """RWKV-4 with channels that differ little in their keys and gates."""

    kappa: float = number(0.05, positive=True, meaning="slope of the keys of the channels")
    rho: float = number(0.05, positive=True, meaning="slope of the gates of the channels")


@claim(
    "mixers.rwkv4.query-free",
    Channels,
    Source(LAB, "RWKV-4, arXiv 2305.13048, without its gate", "extended"),
    extra_settings=({"d": 3, "N": 7, "s2": 1.0, "kappa": 1.0}, {"s2": 0.0, "N": 60}),
)
def rwkv4_without_its_gate(setting: Channels) -> list[Check]:
    """What the gate of RWKV-4 multiplies is a mean of the values that does not depend on the query, so that without the gate it
    says nothing of the answer: at its best it answers 0, at risk d.

    Answers to two queries, each over its gate; over drawn prompts, the products of the means of 2 d channels and the answer. A
    mean that is not convex, or that knows of the query, would make it fail.
    """
    task, mixer = setting.task(), mixers.named("rwkv4")

    def means(prompt: Prompt, query: Float[Array, "d"]) -> Float[Array, "C"]:
        keys = setting.kappa * jnp.concatenate([prompt.inputs, -prompt.inputs], axis=1)
        both, values = jnp.concatenate([query, -query]), jnp.broadcast_to(prompt.labels, keys.shape)
        return mixer.read(both, keys, values, log_decay=-0.1) * (1 + jnp.exp(-both))

    prompt = task.sample(setting.stream("one"))
    first, second = (np.asarray(means(prompt, query)) for query in (prompt.query, -3 * prompt.query))

    def statistic(key):
        one = task.sample(key)
        return means(one, one.query) * one.target

    mean, error = mean_and_error(simulate(statistic, setting.stream("prompts"), setting.samples))
    labels = np.asarray(prompt.labels)
    return [
        check.exact("two_queries", second, first, EXACT),
        check.at_most("at_most_the_largest_abs", np.max(first), np.max(labels), EXACT),
        check.at_least("at_least_the_smallest_abs", np.min(first), np.min(labels), EXACT),
        check.sampled("correlation_abs", mean, np.zeros(2 * setting.d), error),
    ]


@claim(
    "mixers.rwkv4.regress",
    Channels,
    Source(LAB, "a construction for RWKV-4, arXiv 2305.13048", "extended"),
    extra_settings=({"d": 3, "N": 40, "s2": 1.0}, {"d": 5, "N": 12, "s2": 0.0, "kappa": 0.02, "rho": 0.02}),
)
def rwkv4_regresses(setting: Channels) -> list[Check]:
    """Four groups of d channels of RWKV-4, with keys kappa x_c and -kappa x_c and gates r q_c and -r q_c, are one gradient step
    on centred examples, whose best risk is that of linear attention with one example less; one group alone hardly beats 0.

    Risk over drawn prompts at the scale of the closed form, for small kappa and r; of one group at the scale that is best for
    the draws. A regression on examples that are not centred, or a group that is enough, would make it fail.
    """
    task, mixer, d, N = setting.task(), mixers.named("rwkv4"), setting.d, setting.N
    moments = theory.KeyMoments.gaussian(d)
    scale = theory.linear_attention.best_scale(moments, N - 1, setting.s2) * N / (setting.kappa * setting.rho)
    signs = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])

    def statistic(key):
        prompt = task.sample(key)
        groups = [
            jnp.sum(
                mixer.read(
                    gate * setting.rho * prompt.query,
                    side * setting.kappa * prompt.inputs,
                    jnp.broadcast_to(prompt.labels, prompt.inputs.shape),
                    log_decay=0.0,
                )
            )
            for side, gate in signs
        ]
        answer = scale * jnp.prod(jnp.asarray(signs), axis=1) @ jnp.stack(groups)
        alone, target = groups[0], prompt.target[0]
        return jnp.stack([(answer - target) ** 2, alone * target, alone**2, target**2])

    draws = simulate(statistic, setting.stream("prompts"), setting.samples)
    mean, error = mean_and_error(draws)
    expected = theory.linear_attention.minimum_risk(moments, N - 1, setting.s2)
    return [
        check.sampled("risk", mean[0], expected, error[0]),
        check.at_least("one_group_alone", mean[3] - mean[1] ** 2 / mean[2], 0.9 * mean[3]),
    ]
