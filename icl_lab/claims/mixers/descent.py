"""Claims about delta rules that descend in another way: in mini-batches, by implicit steps, with momentum."""

from __future__ import annotations

import jax
import numpy as np

from icl_lab import estimators, mixers, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.mixers.delta import Written, strength
from icl_lab.claims.mixers.prompts import (
    EXACT,
    LAB,
    Pairs,
    Regression,
    distance,
    in_every_form,
    mean_and_error,
    read_each,
)
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number, restricted
from icl_lab.claims.simulation import simulate

LONGHORN = mixers.named("longhorn", scale=1.0)


class Batches(Written):
    """Pairs of which several take their errors at one state."""

    b: int = integer(5, 1, "pairs of a mini-batch")


@claim(
    "mixers.ttt",
    Batches,
    Source(
        "Sun et al. 2024 (arXiv 2407.04620)", "the linear inner model: mini-batches between linear attention and the delta rule"
    ),
    extra_settings=({"b": 8}, {"d": 30, "N": 9, "m": 1, "b": 2}, {"N": 3, "b": 7}),
)
def mini_batches_of_descent(setting: Batches) -> list[Check]:
    """Test-time training of a linear model in mini-batches of b pairs is gradient descent whose errors are taken where a batch
    begins: the delta rule for b = 1, linear attention with keys times the step for b = N.

    Random pairs with a step each, in every form; the last batch may be short. A batch that begins elsewhere, or errors
    that follow the state inside it, would make it fail.
    """
    prompt, steps, b, N = setting.prompt(), setting.strengths(), setting.b, setting.N
    expected = {
        f"b={b}: ": (b, estimators.minibatch_sgd_weights(prompt, steps, b)),
        "delta_rule: ": (1, estimators.online_sgd_path(prompt, steps)),
        "linear_attention: ": (N, estimators.weighted_gradient_step_weights(prompt, steps)),
    }
    checks = []
    for name, (batch, matrices) in expected.items():
        checks += in_every_form(mixers.named("ttt", scale=1.0, batch=batch), prompt, matrices, name, write_strength=steps)
    return checks


class Implicit(Pairs):
    """Pairs with a weight of the squared error each."""

    D: float = number(3.0, 0.0, "weight of the squared error", ", the largest of all pairs")
    s2: float = number(0.1, positive=True, meaning="variance of the label noise", detail=" of the task that drifts")
    a: float = restricted(
        number(0.9, meaning="correlation of successive tasks", detail=", of the task that drifts"),
        "a number in (0, 1]",
        lambda x: 0 < x <= 1,
    )


@claim(
    "mixers.longhorn",
    Implicit,
    Source("Liu et al. 2024 (arXiv 2407.14207)", "the implicit step of online learning"),
    extra_settings=({"d": 30, "N": 7, "m": 1, "D": 0.01}, {"d": 1, "D": 1e6, "a": 1.0}, {"N": 60, "d": 2, "a": 0.7, "s2": 2.0}),
)
def longhorn_steps_implicitly(setting: Implicit) -> list[Check]:
    """The minimum of |S - S_0|^2 + D |v - S^T k|^2 is a delta rule of step D / (1 + D |k|^2); with D = p / s2, p the variance
    that the Kalman filter has of a task of one dimension, it is that filter.

    Random pairs with a weight each beside minima by linear equations and beside descent with that step; and prompts of
    one dimension, in which a drift is a growth of the values. A step that is not that of the minimum would make it fail.
    """
    prompt, weights = setting.prompt(), setting.D * setting.uniforms("weights", setting.N)
    squares = np.sum(prompt.inputs**2, axis=1)
    steps = np.array([theory.delta_rule.implicit_step(*pair) for pair in zip(weights.tolist(), squares.tolist(), strict=True)])
    # In units of a^t the task of one dimension moves by additions alone, and the state needs no decay.
    line = Pairs(d=1, m=1, N=setting.N, seed=setting.seed).prompt()
    along = line.inputs[:, 0] ** 2
    gains = theory.kalman.scalar_steps(along, 1, setting.s2, setting.a)
    grown = line.labels / setting.a ** np.arange(1.0, setting.N + 1)[:, None]
    filtered = read_each(LONGHORN, line.query[None], line.inputs, grown, error_weight=gains / (1 - gains * along))
    return [
        *in_every_form(LONGHORN, prompt, estimators.implicit_online_sgd_path(prompt, weights), error_weight=weights),
        *in_every_form(LONGHORN, prompt, estimators.online_sgd_path(prompt, steps), "explicit: ", error_weight=weights),
        check.exact(
            "kalman_filter",
            setting.a ** (setting.N + 1) * filtered[0],
            estimators.kalman(line, setting.a, setting.s2),
            EXACT,
        ),
    ]


class Moving(Regression):
    """A step, and the share of the last one that is taken again."""

    d: int = integer(4, 1, "dimension", "of the keys")
    N: int = integer(30, 1, "context length")
    s2: float = number(0.2, 0.0, "variance of the label noise")
    mu: float = restricted(
        number(0.5, meaning="momentum", detail=", the share of the last step that is taken again"),
        "a number in (0, 1)",
        lambda x: 0 < x < 1,
    )
    beta: float = strength(0.06, ", of all pairs")


@claim(
    "mixers.titans",
    Moving,
    Source("Behrouz, Zhong, Mirrokni 2024 (arXiv 2501.00663)", f"{LAB}; a linear memory without forgetting", "extended"),
    extra_settings=(
        {"mu": 0.9, "beta": 0.02},
        {"d": 8, "N": 64, "s2": 0.25, "mu": 0.425, "beta": 0.033},
        {"keys": "sphere", "d": 3, "beta": 0.5, "s2": 0.0, "N": 12},
    ),
)
def risk_with_momentum(setting: Moving) -> list[Check]:
    """A linear memory with momentum is stochastic gradient descent with momentum; its risk follows a recursion in three
    numbers, E |e|^2, E e.M and E |M|^2, and at the best momentum it is never above that of the best delta rule.

    A drawn prompt in every form beside the algorithm, and mean squared distances of the states from the tasks of simulated
    prompts beside the recursion, at the setting's momentum, at the best one, and at the best step without any. A cross term
    of error and step left out would make it fail.
    """
    task, keys = setting.task(), setting.moments
    best = theory.momentum.best(keys, setting.N, setting.s2)
    step, plain = theory.delta_rule.best_step(keys, setting.N, setting.s2)
    given = {"momentum": setting.mu, "step": setting.beta}
    predictors = [
        *(
            mixers.predictor("momentum_delta", scale=1.0, write_strength=one["step"], log_momentum=np.log(one["momentum"]))
            for one in (given, best._asdict())
        ),
        mixers.predictor("deltanet", scale=1.0, write_strength=step),
    ]

    def statistic(one):
        prompt = task.sample(one)
        return jax.numpy.stack([distance(predictor, prompt, prompt.latent) for predictor in predictors])

    draws = simulate(statistic, setting.stream("prompts"), setting.samples)
    mean, error = mean_and_error(draws)
    difference, noise = mean_and_error(draws[:, 1] - draws[:, 2])
    pairs = Pairs(d=setting.d, m=3, N=setting.N, seed=setting.seed).prompt()
    path = estimators.momentum_sgd_path(pairs, setting.beta, setting.mu)
    moving = mixers.named("momentum_delta", scale=1.0)
    return [
        *in_every_form(moving, pairs, path, write_strength=setting.beta, log_momentum=np.log(setting.mu)),
        check.sampled("risk", mean[0], theory.momentum.risk(keys, setting.N, setting.s2, setting.mu, setting.beta), error[0]),
        check.sampled("risk_at_the_best", mean[1], best.risk, error[1]),
        check.sampled("risk_of_the_best_delta_rule", mean[2], plain, error[2]),
        check.at_most("gain_abs", difference - check.SIGMAS * noise, 0.0, standard_error=float(noise)),
    ]
