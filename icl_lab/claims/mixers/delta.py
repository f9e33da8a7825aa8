"""Claims about the delta rule: which descent it is, what it recalls, and what risk it reaches with one step for all pairs."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from icl_lab import estimators, mixers, objectives, theory, training
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.mixers.prompts import (
    DELTA,
    EXACT,
    LAB,
    Pairs,
    Regression,
    drawn,
    in_every_form,
    mean_and_error,
    read_each,
)
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number, restricted
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.claims.simulation import simulate, simulated_risk
from icl_lab.core import compiled, precision
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.models.mixer_layer import in_range, raw_value
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.recall.associative import AssociativeRecall

DELTA_RULE = mixers.named("deltanet", scale=1.0)
KACZMARZ = mixers.named("deltanet", scale=1.0, normalised_step=True)
LINEAR = mixers.named("linear", scale=1.0)
TRAINED = 0.03
"""Of a step that Adam finds on fresh prompts, relative to the best one."""


def strength(default: float, detail: str = "") -> Any:
    """A write strength, in [0, 1]."""
    return restricted(number(default, meaning="write strength", detail=detail), "a number in [0, 1]", lambda x: 0 <= x <= 1)


class Written(Pairs):
    """Pairs with a write strength each, uniform below the largest one."""

    beta: float = strength(0.3, ", the largest of all pairs")

    def strengths(self) -> np.ndarray:
        """Those of the pairs; one in about six is zero, as that of a token that is no pair."""
        drawn = self.uniforms("strengths", self.N)
        return self.beta * np.where(drawn < 1 / 6, 0.0, drawn)


@claim(
    "mixers.deltanet.sgd",
    Written,
    Source(DELTA, "Section 2.2, the delta rule as online gradient descent"),
    extra_settings=({"d": 30, "N": 7, "m": 1, "beta": 0.05}, {"d": 1, "m": 5, "beta": 1.0}, {"N": 1}, {"N": 130, "d": 3}),
)
def delta_rule_is_online_descent(setting: Written) -> list[Check]:
    """The delta rule is one pass of stochastic gradient descent on |v_t - W^T k_t|^2 / 2 with the step beta_t, from zero.

    Random keys and values, a strength for each pair and some of them zero; the answers after every pair, in each form. Another
    order of the pairs, a step taken after the read, or an error at another key would make it fail.
    """
    prompt, steps = setting.prompt(), setting.strengths()
    path = estimators.online_sgd_path(prompt, steps)
    return in_every_form(DELTA_RULE, prompt, path, write_strength=steps)


class Sweeps(Pairs):
    """A prompt that is read several times."""

    d: int = integer(10, 1, "dimension", "of the keys")
    N: int = integer(4, 1, "context length")
    sweeps: int = integer(200, 1, "how often the prompt is read")

    def validate(self) -> None:
        super().validate()
        if self.sweeps * self.N > 100_000:
            raise InvalidValueError(f"`sweeps` times `N` must be at most 100000 pairs; got {self.sweeps * self.N}.")


@claim(
    "mixers.deltanet.gauss-seidel",
    Sweeps,
    Source(DELTA, f"{LAB}; the method of Kaczmarz", "extended"),
    extra_settings=({"d": 6, "N": 24, "sweeps": 3}, {"d": 30, "N": 9, "sweeps": 50, "m": 1}, {"d": 1, "N": 5, "sweeps": 2}),
)
def a_pass_is_a_gauss_seidel_sweep(setting: Sweeps) -> list[Check]:
    """With the step 1 / |k|^2 a pass of the delta rule is a forward Gauss-Seidel sweep from zero on G C = V, S = K^T C,
    where linear attention makes a Jacobi sweep; the last pair is fitted exactly, and passes converge to the interpolant of
    least norm.

    Random pairs, read once and several times, beside sweeps over the Gram matrix and the pseudoinverse. A pass that forgets
    the order, or converges more slowly than the product of its projections says, would make it fail.
    """
    prompt = setting.prompt()
    squares = np.sum(prompt.inputs**2, axis=1)
    one, several, jacobi, interpolant = precision.to_numpy(_swept(prompt, 1 / squares, setting.sweeps))
    keys, values = (np.tile(rows, (setting.sweeps, 1)) for rows in (prompt.inputs, prompt.labels))
    # All columns of the state, which answers every unit query.
    queries = np.concatenate([prompt.query[None], np.eye(setting.d)])
    repeated = np.asarray(read_each(KACZMARZ, queries, keys, values, write_strength=1.0))
    last = read_each(KACZMARZ, prompt.inputs[-1:], prompt.inputs, prompt.labels, write_strength=1.0)[0]
    linear = read_each(LINEAR, prompt.query[None], prompt.inputs, prompt.labels / squares[:, None])[0]
    checks = [
        *in_every_form(KACZMARZ, prompt, one, write_strength=1.0),
        check.exact("jacobi_sweep", linear, jacobi @ prompt.query, EXACT),
        check.exact("last_pair", last, prompt.labels[-1], EXACT),
        check.exact("sweeps", repeated[0], several @ prompt.query, EXACT),
    ]
    if setting.d < setting.N:
        return checks
    left = np.linalg.norm(repeated[1:] - interpolant.T) / np.linalg.norm(interpolant)
    return [*checks, check.at_most("distance_abs", left, _contraction(np.asarray(prompt.inputs)) ** setting.sweeps, EXACT)]


@compiled.jit
def _swept(prompt: Prompt, steps: Float[Array, "N"], sweeps: int) -> tuple[Array, Array, Array, Array]:
    """The matrices of one and of several Gauss-Seidel sweeps, of a Jacobi sweep, and of the interpolant of least norm."""
    return (
        estimators.gauss_seidel_weights(prompt),
        estimators.gauss_seidel_weights(prompt, sweeps),
        estimators.weighted_gradient_step_weights(prompt, steps),
        estimators.ols_weights(prompt),
    )


def _contraction(keys: np.ndarray) -> float:
    """By how much a pass shortens, at least, what is in the span of the keys: the norm of the product of projections."""
    product, span = np.eye(keys.shape[1]), np.linalg.qr(keys.T)[0]
    for key in keys:
        product = product - np.outer(key, key @ product) / (key @ key)
    return float(np.linalg.norm(span.T @ product @ span, 2))


class Recall(Seeded):
    """Orthonormal keys with values."""

    d: int = integer(8, 1, "dimension", "of the keys")
    m: int = integer(3, 1, "width of a value")
    N: int = integer(6, 1, "context length")

    def task(self) -> AssociativeRecall:
        """The distribution of prompts."""
        return AssociativeRecall(self.d, self.N, self.m, orthonormal=True)

    def validate(self) -> None:
        super().validate()
        self.task()


@claim(
    "mixers.deltanet.recall",
    Recall,
    Source(DELTA, f"{LAB}; what a delta rule overwrites", "extended"),
    extra_settings=({"N": 8}, {"d": 40, "N": 25, "m": 1}, {"d": 1, "N": 1}),
)
def delta_rule_recalls_and_overwrites(setting: Recall) -> list[Check]:
    """With orthonormal keys and write strength 1 every value comes back exactly, and a key that is written again returns the
    newer of its values, where linear attention returns the sum of both.

    A prompt of associative recall, asked for each of its keys, and the same keys written twice with other values. A value that
    mixes with another, or an older one that stays, would make it fail.
    """
    prompt = drawn(setting.task(), setting.stream("prompt"), 1)
    prompt = jax.tree.map(lambda leaf: leaf[0], prompt)
    keys, first = np.asarray(prompt.inputs), np.asarray(prompt.labels)
    second = setting.normals("second", *first.shape)

    twice = np.concatenate([keys, keys]), np.concatenate([first, second])
    asked = read_each(DELTA_RULE, prompt.query[None], keys, first, write_strength=1.0)[0]
    return [
        check.exact("answer", asked, prompt.target, EXACT),
        check.exact("stored_values", read_each(DELTA_RULE, keys, keys, first, write_strength=1.0), first, EXACT),
        check.exact("newer_values", read_each(DELTA_RULE, keys, *twice, write_strength=1.0), second, EXACT),
        check.exact("sums_of_linear_attention", read_each(LINEAR, keys, *twice), first + second, EXACT),
    ]


class Stepping(Regression):
    """One step for all pairs."""

    beta: float = strength(0.0909, ", of all pairs")


@claim(
    "mixers.deltanet.risk",
    Stepping,
    Source(DELTA, f"{LAB}; a recursion of second moments", "extended"),
    extra_settings=(
        {"keys": "sphere", "beta": 1.0, "s2": 0.0},
        {"keys": "sphere", "beta": 0.6, "d": 3, "s2": 1.0},
        {"d": 3, "N": 10, "s2": 1.0, "beta": 0.25},
        {"d": 1, "N": 5, "s2": 0.0, "beta": 0.2},
    ),
)
def risk_of_the_delta_rule(setting: Stepping) -> list[Check]:
    """With one step beta the risk after n pairs is d rho^n + beta^2 s2 c d (1 - rho^n) / (1 - rho), rho = 1 - 2 beta c +
    beta^2 m: rho = 1 - 2 beta + beta^2 (d + 2) on Gaussian keys, 1 - (2 beta - beta^2) / d on the unit sphere. Without
    noise it falls exponentially, where that of linear attention falls like 1/n.

    Mean squared distance of the states from the tasks of simulated prompts, after several numbers of pairs, of the delta
    rule and of linear attention at its best scale. A moment of the keys left out, or noise that is not carried on, would
    make it fail.
    """
    task, keys = setting.task(), setting.moments
    lengths = np.array(sorted({1, (setting.N + 5) // 6, (setting.N + 1) // 2, setting.N}))
    scales = np.array([theory.linear_attention.best_scale(keys, int(n), setting.s2) for n in lengths])

    def statistic(one):
        prompt = task.sample(one)

        def states(mixer, **gates):
            def answers(query):
                queries = jnp.broadcast_to(query, prompt.inputs.shape)
                return mixer.outputs(queries, prompt.inputs, prompt.labels, **gates)[lengths - 1, 0]

            return jax.vmap(answers, out_axes=1)(jnp.eye(setting.d))

        delta, linear = states(DELTA_RULE, write_strength=setting.beta), scales[:, None] * states(LINEAR)
        return jnp.sum((jnp.stack([delta, linear]) - prompt.latent[None, None, :]) ** 2, axis=2)

    mean, error = mean_and_error(simulate(statistic, setting.stream("prompts"), setting.samples))
    expected = [theory.delta_rule.risk(keys, int(n), setting.s2, setting.beta) for n in lengths]
    plain = [theory.linear_attention.minimum_risk(keys, int(n), setting.s2) for n in lengths]
    return [
        *(check.sampled(f"risk_n={n}", mean[0, i], expected[i], error[0, i]) for i, n in enumerate(lengths)),
        *(check.sampled(f"linear_n={n}", mean[1, i], plain[i], error[1, i]) for i, n in enumerate(lengths)),
    ]


class OneStep(eqx.Module):
    """The delta rule as a model, trained in one number: the logit of its write strength."""

    def __call__(self, weights: dict, prompt: Prompt):
        gate = DELTA_RULE.description.gates[0]
        return DELTA_RULE.read(prompt.query, prompt.inputs, prompt.labels, write_strength=in_range(weights["logit"], gate))


class Trained(Regression):
    """A step that is trained on fresh prompts."""

    beta: float = restricted(
        number(0.02, meaning="write strength", detail=", where training starts"),
        "a number strictly between 0 and 1",
        lambda x: 0 < x < 1,
    )
    steps: int = integer(600, 1, "number of updates", "of Adam")
    batch: int = integer(1024, 2, "prompts of an update")


@claim(
    "mixers.deltanet.beta-star",
    Trained,
    Source(DELTA, f"{LAB}; training finds the best step", "extended"),
    extra_settings=({"d": 3, "N": 12, "s2": 1.0}, {"keys": "sphere", "d": 4, "N": 10, "beta": 0.1}),
)
def training_finds_the_best_step(setting: Trained) -> list[Check]:
    """One write strength for all pairs, trained, lands on the minimiser of the closed form of the risk.

    Adam on fresh prompts from a step far below the best one, then the risk at the step that it finds. A step that training
    prefers to the minimiser, at 3 per cent of it, would make it fail.
    """
    task, gate = setting.task(), DELTA_RULE.description.gates[0]
    best, minimum = theory.delta_rule.best_step(setting.moments, setting.N, setting.s2)
    loss = objectives.StreamedLoss.build(task, OneStep(), setting.stream("fixed"), setting.batch)
    start = {"logit": np.array(raw_value(setting.beta, gate))}
    adam = optax.adam(optax.cosine_decay_schedule(0.03, setting.steps))
    end = training.descend(loss, start, adam, setting.steps, key=setting.stream("fresh"))
    found = float(in_range(jnp.asarray(end.limit["logit"]), gate))
    trained = mixers.predictor("deltanet", scale=1.0, write_strength=found)
    # A query on the sphere is as long as one coordinate of a Gaussian one.
    size = setting.d if setting.keys == "sphere" else 1
    risk, error = simulated_risk(trained, task, setting.stream("test"), setting.samples)
    return [
        check.exact("step", found, best, TRAINED),
        check.sampled("risk", size * risk, minimum, size * error),
    ]
