"""Claims about retention: a gradient step on examples that fade, and on a drifting task the best of all weightings."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from jaxtyping import Float

from icl_lab import estimators, mixers, objectives, theory, training
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.li2025.settings import gated_lags, loss_of
from icl_lab.claims.mixers.prompts import EXACT, LAB, Drift, Pairs, in_every_form
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number, restricted
from icl_lab.core.typing import Array
from icl_lab.models import StepWeights
from icl_lab.tasks.prompt import Prompt

RETNET = "Sun et al. 2023 (arXiv 2307.08621)"


class Decayed(Pairs):
    """A fixed decay, and blocks of the chunked form."""

    lam: float = restricted(number(0.9, meaning="decay"), "a number in (0, 1]", lambda value: 0 < value <= 1)
    chunk: int = integer(8, 1, "tokens in a block", "of the chunked form")


@claim(
    "mixers.retention.weighted-gd",
    Decayed,
    Source(LAB, "retention, arXiv 2307.08621, read as a regression of values on keys", "extended"),
    extra_settings=({"lam": 0.3, "N": 7, "d": 9, "m": 1}, {"lam": 1.0}),
)
def retention_is_a_weighted_step(setting: Decayed) -> list[Check]:
    """Retention answers as one gradient step from zero on the half squared errors weighted by lam^(N-i). The decays of RetNet's
    heads are 1 - 2^(-5-h), those of Lightning Attention exp(-2^(-8h/H) (1 - l/(L-1) + 1e-5)).

    The answer at random pairs in every form beside the weighted step; the two schedules as numbers. Weights of another age,
    such as lam^(N+1-i), or a decay of the new pair would make it fail.
    """
    prompt, lam = setting.prompt(), setting.lam
    weights = lam ** np.arange(setting.N - 1, -1, -1.0)
    step = estimators.weighted_gradient_step_weights(prompt, weights)
    heads = np.arange(8)
    retnet = [float(np.exp(mixers.retnet_log_decay(int(head)))) for head in heads]
    lightning = [mixers.lightning_log_decay(int(head), 8, 2, 5) for head in heads]
    return [
        *in_every_form(mixers.named("retention", log_decay=float(np.log(lam)), scale=1.0), prompt, step),
        check.exact("retnet", retnet, 1 - 2.0 ** (-5 - heads), EXACT),
        check.exact("lightning", lightning, -(2.0 ** -(heads + 1.0)) * (1 - 2 / 4 + 1e-5), EXACT),
    ]


@claim(
    "mixers.retention.chunk",
    Decayed,
    Source(RETNET, "chunkwise and parallel forms"),
    extra_settings=({"chunk": 5, "N": 13, "lam": 0.5}, {"chunk": 30, "m": 1}),
)
def chunks_of_retention(setting: Decayed) -> list[Check]:
    """In blocks of C tokens, o_t = lam^t S^T q_t + sum_{i<=t} lam^(t-i) (q_t.k_i) v_i and S <- lam^C S + sum lam^(C-i) k_i
    v_i^T, t and i counted in the block, retention gives ((Q K^T) * D) V with D_ti = lam^(t-i).

    Outputs and last state of the mixer in blocks, beside the masked product of matrices, also where blocks do not divide the
    context. A state that decays by the size of a full block at the end of a short one would make it fail.
    """
    keys, values, lam = setting.prompt().inputs, setting.prompt().labels, setting.lam
    queries, place = setting.normals("queries", setting.N, setting.d), np.arange(setting.N)
    age = place[:, None] - place[None, :]
    outputs = (queries @ keys.T * np.where(age >= 0, lam ** np.maximum(age, 0.0), 0.0)) @ values
    state = (keys * lam ** (setting.N - 1.0 - place)[:, None]).T @ values
    mixer = mixers.named("retention", log_decay=float(np.log(lam)), scale=1.0)
    found = mixer.outputs_and_state(queries, keys, values, form="chunk", chunk=setting.chunk)
    return [check.exact("outputs", found[0], outputs, EXACT), check.exact("state", found[1], state, EXACT)]


class Trained(Drift):
    """A drifting task, on which a head is trained on contexts of another length."""

    a: float = restricted(
        number(0.97, meaning="correlation of successive tasks"), "a number in (0, 1)", lambda value: 0 < value < 1
    )
    n: int = integer(60, 1, "context length of the training")
    steps: int = integer(700, 1, "number of updates", "of Adam, its rate falling to 0 by a cosine")
    batch: int = integer(512, 2, "prompts of an update")

    def adam(self, loss: objectives.Objective, start: Any, rate: float) -> Any:
        """The weights that Adam leaves; on fresh prompts, where the loss is of prompts."""
        optimiser = optax.adam(optax.cosine_decay_schedule(rate, self.steps))
        return training.descend(loss, start, optimiser, self.steps, key=self.stream("fresh")).limit


class HeadWeights(eqx.Module):
    """A retention head: the logit of its decay, and its scale."""

    logit: Float[Array, ""]
    scale: Float[Array, ""]


class Head(eqx.Module):
    """A retention head as a model of its two numbers."""

    def __call__(self, weights: HeadWeights, prompt: Prompt) -> Float[Array, "k"]:
        """The answer to one query."""
        mixer = mixers.named("retention", log_decay=jax.nn.log_sigmoid(weights.logit), scale=weights.scale)
        return mixer.read(prompt.query, prompt.inputs, prompt.labels)


TRAINED_TOLERANCE = 0.03
"""Of two numbers that Adam leaves after some hundred thousand prompts."""
LEAST_COSINE = 0.99999
SOLVED = 1e-8
"""Of the solution of linear equations with a condition number of some hundred."""


@claim(
    "mixers.retention.optimal",
    Trained,
    Source(LAB, "best weighting of arXiv 2504.04308 on a drifting task; filter and limit are the lab's", "extended"),
    extra_settings=(
        {"d": 2, "N": 80, "a": 0.9, "s2": 0.5, "n": 40, "batch": 1024},
        {"d": 6, "N": 120, "a": 0.95, "s2": 0.05, "n": 60},
    ),
)
def retention_is_optimal_under_drift(setting: Trained) -> list[Check]:
    """On a task that drifts with correlation a the best of all weights of the examples are those of a Kalman filter, and for
    long contexts geometric, lam = a (1 - g), eta = a g, g = P / (P + d+1+s2): a retention head, better than any window.

    The minimum of the exact loss over all weights, its values at heads and windows, and Adam from small random weights: over
    the two numbers of a head on prompts, over free weights on the exact loss. A filter with another penalty than d + 1 + s2, or
    a window as good, would make it fail.
    """
    problem, N, a, d = setting.problem, setting.N, setting.a, setting.d
    training_problem = dataclasses.replace(problem, context_length=setting.n)
    loss = loss_of(setting.task().correlated())
    slope, curvature = (at(lambda lags: loss(StepWeights(lags)))(jnp.zeros(N)) for at in (jax.grad, jax.hessian))
    found = np.linalg.solve(np.asarray(curvature), -np.asarray(slope))
    best, minimum = theory.retention.best_weights(problem, a)
    head = theory.retention.best_head(problem, a)
    geometric = np.asarray(gated_lags(np.asarray(np.log(head.decay)), np.asarray(head.scale), N))
    scales, windows = theory.retention.window_risks(problem, a)
    width = int(np.argmin(windows)) + 1
    in_window = np.where(np.arange(N) >= N - width, scales[width - 1], 0.0)
    no_decay = np.full(N, scales[-1])
    finite = theory.retention.head_risk(problem, a, head.decay, head.scale)

    short_task = setting.task().with_context_length(setting.n)
    streamed = objectives.StreamedLoss.build(short_task, Head(), setting.stream("fixed"), batch=setting.batch)
    logit, scale = 0.1 * setting.normals("start of the head", 2)
    trained = setting.adam(streamed, HeadWeights(np.asarray(logit), np.asarray(scale / d)), 0.02)
    start = StepWeights(setting.normals("start of the lags", setting.n) / (100 * d))
    lags = setting.adam(loss_of(short_task.correlated()), start, 0.01).lags

    def trained_risk(numbers):
        return theory.retention.head_risk(training_problem, a, numbers[0], numbers[1])

    bounds = [(1e-3, 1 - 1e-9), (1e-9, 1.0)]
    end = scipy.optimize.minimize(trained_risk, [head.decay, head.scale], bounds=bounds, method="L-BFGS-B", tol=1e-14)
    short, _ = theory.retention.best_weights(training_problem, a)
    return [
        check.exact("weights", found, best, SOLVED),
        check.exact("risk", loss.risk(StepWeights(found)), minimum, SOLVED),
        check.exact("geometric_abs", found, geometric, SOLVED + np.sqrt(N) * head.decay**N),
        check.exact("risk_of_the_head", loss.risk(StepWeights(geometric)), finite, SOLVED),
        check.exact("risk_of_the_limit", finite, head.risk, SOLVED + 2 * d * head.decay**N),
        check.exact("risk_of_the_best_window", loss.risk(StepWeights(in_window)), windows[width - 1], SOLVED),
        check.exact("risk_without_decay", loss.risk(StepWeights(no_decay)), windows[-1], SOLVED),
        check.at_least("no_window_is_as_good", loss.risk(StepWeights(in_window)), loss.risk(StepWeights(found))),
        check.exact("decay_after_adam", jax.nn.sigmoid(trained.logit), end.x[0], TRAINED_TOLERANCE),
        check.exact("scale_after_adam", trained.scale, end.x[1], TRAINED_TOLERANCE),
        check.at_least("cosine_after_adam", lags @ short / (np.linalg.norm(lags) * np.linalg.norm(short)), LEAST_COSINE),
    ]
