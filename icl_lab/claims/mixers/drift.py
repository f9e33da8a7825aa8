"""Claims about delta rules with decay on tasks that drift: what a gate is for, and how near they come to the Kalman filter."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab import estimators, mixers, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.mixers.delta import Written
from icl_lab.claims.mixers.prompts import (
    EXACT,
    LAB,
    Drift,
    distance,
    drawn,
    in_every_form,
    mean_and_error,
    wide_steps,
)
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number
from icl_lab.claims.simulation import ratio_with_error, simulate
from icl_lab.core import compiled
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.regression.drifting import DriftingRegression

KIMI = "Kimi Team 2025 (arXiv 2510.26692)"
GATED = "Yang, Kautz, Hatamizadeh 2024 (arXiv 2412.06464)"
BATCH = 2_000
"""Prompts in memory at once."""
FEW = 4
"""Dimensions from which on mesa is better than a step that follows one variance, which is the filter itself in one of them."""
PILOT = 500
"""Prompts on which the gates of mesa are chosen, from a stream of their own."""
KEPT = (0.5, 0.65, 0.8, 0.9, 0.97, 1.0)
"""Decays of mesa that are tried."""
RIDGES = (0.3, 1.0, 3.0, 10.0)
"""Penalties of mesa that are tried, over the variance of the noise."""


@claim(
    "mixers.kda.reduce",
    Written,
    Source(KIMI, "the recurrence, at decays that make it an older one"),
    extra_settings=({"d": 20, "N": 7, "m": 1, "beta": 0.1}, {"d": 1, "beta": 1.0}, {"N": 90, "d": 3}),
)
def kda_contains_the_others(setting: Written) -> list[Check]:
    """KDA is gradient descent whose weights decay by coordinate before each step; with equal channels it is gated DeltaNet,
    with no decay DeltaNet, and without its correction gated linear attention.

    Random pairs, decays and strengths, in every form, each beside the estimator of the older rule; the correction is
    taken away in the diagonal-plus-rank-one form of the same recurrence. A decay after the write would make it fail.
    """
    prompt, steps = setting.prompt(), setting.strengths()
    channels = 0.5 + 0.5 * setting.uniforms("channels", setting.N, setting.d)
    tokens = 0.5 + 0.5 * setting.uniforms("tokens", setting.N, 1)
    kda, dplr = mixers.named("kda", scale=1.0), mixers.named("dplr", scale=1.0)
    equal = np.broadcast_to(tokens, channels.shape)
    written = Prompt(prompt.inputs, steps[:, None] * prompt.labels, prompt.query, prompt.target)
    probes, back = -channels * prompt.inputs, steps[:, None] * prompt.inputs
    nothing = np.zeros_like(back)

    def descent(decay):
        return estimators.online_sgd_path(prompt, steps, decay=decay)

    scalar = mixers.named("gated_deltanet", scale=1.0)
    attention = estimators.discounted_gradient_step_weights(prompt, steps, channels)
    log = np.log(channels)
    return [
        *in_every_form(kda, prompt, descent(channels), "kda: ", write_strength=steps, log_decay=log),
        *in_every_form(kda, prompt, descent(tokens), "equal_channels: ", write_strength=steps, log_decay=np.log(equal)),
        *in_every_form(
            scalar, prompt, descent(tokens), "gated_deltanet: ", write_strength=steps, log_decay=np.log(tokens[:, 0])
        ),
        *in_every_form(kda, prompt, descent(1.0), "no_decay: ", write_strength=steps, log_decay=0.0),
        *in_every_form(dplr, written, descent(channels), "rank_one: ", log_decay=log, probe=probes, feedback=back),
        *in_every_form(dplr, written, attention, "no_correction: ", log_decay=log, probe=probes, feedback=nothing),
    ]


class Line(Drift):
    """A task of one dimension."""

    d: int = integer(1, 1, "dimension", "of the keys")
    N: int = integer(60, 1, "context length")
    samples: int = integer(50, 1, "number of draws", "of prompts")

    def validate(self) -> None:
        super().validate()
        if self.d != 1:
            raise InvalidValueError(f"`d` must be 1, where the filter is a delta rule; got {self.d}.")


@claim(
    "mixers.gated-deltanet.kalman",
    Line,
    Source(GATED, f"{LAB}; the Kalman filter as gates", "extended"),
    extra_settings=({"a": 1.0, "s2": 2.0}, {"a": 0.3, "s2": 1e-3, "N": 9}),
)
def gates_of_the_kalman_filter(setting: Line) -> list[Check]:
    """In one dimension gated DeltaNet of decay a and step p / (p k^2 + s2), p by the Riccati recursion, is the Kalman filter.

    Drawn prompts of a drifting task beside the filter, which keeps mean and covariance. Another variance before the first
    pair, or a step taken before the decay, would make it fail.
    """
    prompts = drawn(setting.task(), setting.stream("prompts"), setting.samples)
    answers, _ = _followed(setting, prompts)
    filtered = compiled.jit(jax.vmap(lambda prompt: estimators.kalman(prompt, setting.a, setting.s2)))(prompts)
    return [check.exact("answers", answers * prompts.query, filtered, EXACT)]


def _followed(setting: Drift, prompts: Prompt) -> tuple[Float[Array, "B d"], Float[Array, "B"]]:
    """The states of gated DeltaNet whose steps follow the variance of the task, for w_{N+1}, and how far they are from it."""
    squares = np.sum(np.asarray(prompts.inputs) ** 2, axis=2)
    steps = theory.kalman.scalar_steps(squares.T, setting.d, setting.s2, setting.a).T
    largest = float(np.max(steps))

    def state(prompt, steps):
        wide, strengths = wide_steps(prompt, steps, largest)
        size = jnp.sqrt(jnp.maximum(1.0, largest))
        follow = mixers.predictor("gated_deltanet", scale=setting.a, write_strength=strengths, log_decay=np.log(setting.a))
        rows = jax.vmap(lambda query: follow(Prompt(wide.inputs, wide.labels, size * query, wide.target))[0])
        answers = rows(jnp.eye(setting.d))
        return answers, jnp.sum((answers - prompt.latent[-1]) ** 2)

    return compiled.jit(jax.vmap(state))(prompts, steps)


@claim(
    "mixers.drift-ladder",
    Drift,
    Source(LAB, "risks of recurrent mixers on a drifting task, from no decay to the Kalman filter", "extended"),
    extra_settings=({"d": 2, "N": 80, "a": 0.9, "s2": 0.3, "samples": 10_000},),
)
def ladder_of_a_drifting_task(setting: Drift) -> list[Check]:
    """On a task that drifts a mixer does the better the more its gates say of the drift: linear attention, its best window,
    its best decay; the delta rule, with a decay, with a step that follows the variance; mesa with forgetting; and the
    Kalman filter last.

    Mean squared distance of each state from the query's task over the same simulated prompts, beside closed forms, and
    beside the posterior variance for the filter; each step of the ladder where closed forms say so, and by paired
    differences for the last ones. A risk out of place, or other than its closed form, would make it fail.
    """
    s2, a = setting.s2, setting.a
    expected, predictors = _closed_forms(setting)
    kept, penalty = _best_mesa(setting)
    ridge = mixers.predictor("mesa", scale=a, penalty=penalty, write_strength=1.0, log_decay=math.log(kept))
    fixed = [*predictors, ridge, lambda prompt: estimators.kalman(prompt, a, s2)]

    def each(prompt):
        return jnp.stack([distance(predictor, prompt, prompt.latent[-1]) for predictor in fixed])

    distances, contexts, compute = [], [], compiled.jit(jax.vmap(each))
    for i in range(-(-setting.samples // BATCH)):
        prompts = drawn(setting.task(), jax.random.fold_in(setting.stream("prompts"), i), BATCH)
        followed = _followed(setting, prompts)[1]
        distances.append(np.insert(np.asarray(compute(prompts)), len(predictors), np.asarray(followed), axis=1))
        contexts.append(setting_keys(setting, i))
    draws = np.concatenate(distances)
    names = [*expected, "gate_of_the_variance", "mesa", "kalman"]
    mean, error = mean_and_error(draws)
    bayes, noise = theory.kalman.risks(contexts, s2, a)
    checks = [check.sampled(name, mean[i], expected[name], error[i]) for i, name in enumerate(expected)]
    checks.append(check.sampled("kalman", mean[-1], bayes, math.hypot(error[-1], noise)))
    gaps = -np.diff(list(expected.values()))
    for i, (worse, better) in enumerate(itertools.pairwise(names)):
        gap, spread = mean_and_error(draws[:, i] - draws[:, i + 1])
        # Closed forms say how far apart; below them only that the next one is better.
        known = float(gaps[i]) if i < len(gaps) else 0.0
        if known >= 0 and (better != "mesa" or setting.d >= FEW):
            error = float(spread)
            checks.append(check.at_least(f"{worse}_above_{better}_abs", gap, known, check.SIGMAS * error, error))
    return checks


def setting_keys(setting: Drift, i: int) -> np.ndarray:
    """Independent keys of as many contexts, on which the posterior variance is averaged."""
    return np.asarray(jax.random.normal(jax.random.fold_in(setting.stream("keys"), i), (BATCH, setting.N, setting.d)))


def _closed_forms(setting: Drift) -> tuple[dict[str, float], list[Callable[[Prompt], Array]]]:
    """Risks by name, worst first, and the mixers that have them."""
    d, N, s2, a = setting.d, setting.N, setting.s2, setting.a
    keys = theory.KeyMoments.gaussian(d)
    scales, risks = theory.retention.window_risks(keys, N, s2, a)
    width = int(np.argmin(risks)) + 1
    head = theory.retention.best_head(keys, s2, a)
    delta = theory.gated_delta.best_gates(keys, N, s2, a, "deltanet", ahead=1)
    gated = theory.gated_delta.best_gates(keys, N, s2, a, "gated_deltanet", ahead=1, readout=a)
    linear = mixers.named("linear", scale=float(scales[width - 1]))
    expected = {
        "no_decay": float(risks[-1]),
        "window": float(risks[width - 1]),
        "retention": theory.retention.head_risk(keys, N, s2, a, head.decay, head.scale),
        "deltanet": delta.risk,
        "gated_deltanet": gated.risk,
    }
    step = {"write_strength": gated.step, "log_decay": math.log(gated.decays[0])}
    return expected, [
        mixers.predictor("linear", scale=float(scales[-1])),
        lambda prompt: linear.read(prompt.query, prompt.inputs[N - width :], prompt.labels[N - width :]),
        mixers.predictor("retention", scale=head.scale, log_decay=math.log(head.decay)),
        mixers.predictor("deltanet", scale=1.0, write_strength=delta.step),
        mixers.predictor("gated_deltanet", scale=a, **step),
    ]


def _best_mesa(setting: Drift) -> tuple[float, float]:
    """The decay and the penalty of lowest risk on a grid, on prompts that serve for nothing else."""
    prompts = drawn(setting.task(), setting.stream("pilot"), PILOT)

    @compiled.jit
    def risk(log_decay, penalty):
        mesa = mixers.predictor("mesa", scale=setting.a, penalty=penalty, write_strength=1.0, log_decay=log_decay)
        return jnp.mean(jax.vmap(lambda prompt: distance(mesa, prompt, prompt.latent[-1]))(prompts))

    grid = [(kept, setting.s2 * ridge) for kept in KEPT for ridge in RIDGES]
    risks = [float(risk(np.asarray(math.log(kept)), np.asarray(penalty))) for kept, penalty in grid]
    return grid[int(np.argmin(risks))]


class Halves(Drift):
    """A task of which one half of the coordinates drifts and the other does not."""

    d: int = integer(8, 2, "dimension", "of the keys")
    N: int = integer(400, 1, "context length")
    s2: float = number(0.05, positive=True, meaning="variance of the label noise")
    a: float = number(0.8, positive=True, meaning="correlation of successive tasks", detail=" in the half that drifts")
    samples: int = integer(10_000, 1_000, "number of draws", "of prompts")

    @property
    def correlations(self) -> np.ndarray:
        """Those of the coordinates; of an odd number one more drifts."""
        return np.where(np.arange(self.d) < (self.d + 1) // 2, self.a, 1.0)

    def task(self) -> DriftingRegression:
        """The distribution of prompts."""
        return DriftingRegression(self.d, self.N, self.correlations, np.sqrt(self.s2))


@claim(
    "mixers.kda.heterogeneous",
    Halves,
    Source(KIMI, f"{LAB}; a recursion of second moments of each channel", "extended"),
    extra_settings=({"d": 3, "N": 100, "s2": 0.5, "a": 0.5},),
)
def channels_that_drift_apart(setting: Halves) -> list[Check]:
    """Where coordinates drift at different rates, a decay for each channel is better than one for all: the moments of task
    and state follow a linear recursion for each channel, and its best gates have the lower risk.

    Mean squared distance of the state from the last pair's task over simulated prompts, at the best constant gates of gated
    DeltaNet and of KDA in the stationary state. A sum over channels left out, or a risk that a decay for each channel
    leaves as it is, would make it fail.
    """
    keys, task = theory.KeyMoments.gaussian(setting.d), setting.task()
    gates = [
        theory.gated_delta.best_gates(keys, math.inf, setting.s2, setting.correlations, kind)
        for kind in ("gated_deltanet", "kda")
    ]
    kda = mixers.named("kda", scale=1.0)

    def statistic(one):
        prompt = task.sample(one)
        queries = jnp.zeros_like(prompt.inputs)
        states = [
            kda.outputs_and_state(
                queries, prompt.inputs, prompt.labels, write_strength=best.step, log_decay=np.log(best.decays)
            )[1]
            for best in gates
        ]
        return jnp.stack([jnp.sum((state[:, 0] - prompt.latent[-2]) ** 2) for state in states])

    draws = simulate(statistic, setting.stream("prompts"), setting.samples)
    mean, error = mean_and_error(draws)
    ratio, noise = ratio_with_error(draws[:, 1], draws[:, 0])
    expected = [
        theory.gated_delta.risk(keys, setting.N, setting.s2, setting.correlations, best.decays, best.step) for best in gates
    ]
    return [
        check.sampled("gated_deltanet", mean[0], expected[0], error[0]),
        check.sampled("kda", mean[1], expected[1], error[1]),
        check.sampled("ratio", ratio, expected[1] / expected[0], noise),
        check.at_most("ratio_below_one", ratio, 1.0, check.SIGMAS * noise, noise),
    ]
