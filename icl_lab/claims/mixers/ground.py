"""Claims about all mixers: their forms, what it costs to write the query, their degree, and their symmetries."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab import estimators, mixers, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.mixers.prompts import EXACT, LAB, Pairs, Regression, mean_and_error
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number, restricted
from icl_lab.claims.simulation import simulate
from icl_lab.core import compiled
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.mixers import Gate, Mixer
from icl_lab.tasks.prompt import Prompt


def share(default: float, meaning: str) -> Any:
    """A number in (0, 1]."""
    return restricted(number(default, meaning=meaning), "a number in (0, 1]", lambda value: 0 < value <= 1)


class Sequence(Pairs):
    """A sequence of tokens for any mixer, and gates of its kind."""

    chunk: int = integer(8, 1, "tokens in a block", "of the chunked form")

    def tokens(self, mixer: Mixer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Queries, keys of length near 1, and values as wide as the mixer takes them."""
        width = self.d if mixer.description.channelwise else self.m
        keys = self.normals("keys", self.N, self.d) / np.sqrt(self.d)
        return self.normals("queries", self.N, self.d), keys, self.normals("values", self.N, width)

    def gates(self, mixer: Mixer) -> dict[str, np.ndarray]:
        """Gates that change from token to token, spread over their ranges, of an infinite one a part."""
        return {gate.name: self._gate(gate) for gate in mixer.description.gates}

    def _gate(self, gate: Gate) -> np.ndarray:
        low = -1.0 if math.isinf(gate.lowest) else gate.lowest
        high = low + 1.0 if math.isinf(gate.highest) else gate.highest
        shape = (self.N, self.d) if gate.per_channel else (self.N,)
        return low + (high - low) * self.uniforms(gate.name, *shape)


@claim(
    "mixers.forms",
    Sequence,
    Source(LAB, "the forms of the field, of every mixer that has more than one", "extended"),
    extra_settings=({"N": 11, "d": 2, "m": 1, "chunk": 3, "seed": 5},),
)
def forms_agree(setting: Sequence) -> list[Check]:
    """Every mixer gives the same outputs and last state token by token, in blocks, and all at once.

    Random tokens and gates, each form beside the recurrence, also where the blocks do not divide the context. A decay that acts
    on the wrong side of a block's boundary, or a correction that sees another block's keys, would make it fail.
    """
    checks = []
    for name in mixers.MIXERS:
        mixer = mixers.named(name)
        recurrent, *others = _forms(mixer, setting.tokens(mixer), setting.gates(mixer), setting.chunk)
        expected = np.concatenate([recurrent] * len(others))
        checks.append(check.exact(name, np.concatenate(others), expected, EXACT))
    return checks


@compiled.jit
def _forms(mixer: Mixer, tokens, gates, chunk: int) -> list[Float[Array, "n"]]:
    results = [mixer.outputs_and_state(*tokens, form=form, chunk=chunk, **gates) for form in mixer.description.forms]
    return [jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(result)]) for result in results]


class Written(Pairs):
    """A strength with which every token, the query's too, is written."""

    beta: float = share(0.7, "write strength")


@claim(
    "mixers.query-token",
    Written,
    Source(LAB, "what the token of the query does to the answer", "extended"),
    extra_settings=({"beta": 0.2, "d": 3, "N": 9}, {"beta": 1.0, "m": 1}),
)
def writing_the_query(setting: Written) -> list[Check]:
    """A query that is written with the value zero before it is read leaves linear attention alone; the delta rule then answers
    1 - beta times what it should, at a query of length 1, and softmax attention has one pair more to average, of value zero.

    The last output of a sequence whose last token is the query, beside what estimators answer to the prompt; with write
    strength 0 the delta rule is right. A mixer that reads before it writes would make it fail.
    """
    prompt = setting.prompt()
    prompt = dataclasses.replace(prompt, query=prompt.query / np.linalg.norm(prompt.query))
    keys = np.concatenate([prompt.inputs, prompt.query[None]])
    values = np.concatenate([prompt.labels, np.zeros((1, setting.m))])
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    on_unit_keys = dataclasses.replace(prompt, inputs=unit[:-1])
    strengths = np.full(setting.N + 1, setting.beta)
    masked = np.append(strengths[:-1], 0.0)
    linear, delta, softmax = (mixers.named(name, scale=1.0) for name in ("linear", "deltanet", "softmax"))
    right = np.asarray(estimators.online_sgd(on_unit_keys, setting.beta))
    with_query = dataclasses.replace(prompt, inputs=keys, labels=values)
    step = setting.N * np.ones(())
    return [
        check.exact("linear", linear.outputs(keys, keys, values)[-1], estimators.gradient_descent(prompt, step), EXACT),
        check.exact(
            "delta_rule_abs", delta.outputs(unit, unit, values, write_strength=strengths)[-1], (1 - setting.beta) * right, EXACT
        ),
        check.exact("delta_rule_masked", delta.outputs(unit, unit, values, write_strength=masked)[-1], right, EXACT),
        check.exact(
            "softmax",
            softmax.outputs(keys, keys, values)[-1],
            estimators.kernel_smoother(with_query, 1.0, "exponential"),
            EXACT,
        ),
    ]


MOST_MONOMIALS = 400
PROMPTS_EACH = 200
"""Prompts a monomial of the fit, and as many that try it."""
FIT_NOISE = 0.02
"""What fitted noise explains, or spoils, of fresh prompts: about one in `PROMPTS_EACH`, more with heavy tails."""


class Polynomials(Regression):
    """Prompts so small that all monomials of their entries can be fitted."""

    d: int = integer(2, 1, "dimension", "of the keys")
    N: int = integer(2, 1, "context length")
    s2: float = number(0.0, 0.0, "variance of the label noise")
    keys = "gaussian"
    samples: int = integer(30_000, 1_000, "number of draws", "of prompts, of which every degree may take more")

    def validate(self) -> None:
        super().validate()
        count = math.comb(self.entries + 3, 3)
        if count > MOST_MONOMIALS:
            raise InvalidValueError(
                f"`N` = {self.N} and `d` = {self.d} make {count} monomials of degree 3 at most; {MOST_MONOMIALS} can be fitted."
            )

    @property
    def entries(self) -> int:
        """Numbers in a prompt: keys, values and the query."""
        return self.N * (self.d + 1) + self.d


@claim(
    "mixers.degree",
    Polynomials,
    Source(LAB, "parity in the task, the query and the keys", "extended"),
    extra_settings=({"d": 1, "N": 3, "s2": 0.5}, {"d": 3, "N": 1}, {"keys": "sphere", "s2": 0.1}),
)
def degree_three_is_needed(setting: Polynomials) -> list[Check]:
    """No polynomial of degree 2 in the entries of a prompt says anything about the answer of a regression: every monomial is
    uncorrelated with it. Degree 3 is enough for the share that linear attention explains.

    All monomials, fitted by least squares to drawn prompts and tried on fresh ones; their correlations with the answer, and at
    degree 3 with what linear attention leaves of it. On the fresh prompts a fit of degree 1 or 2 that explained something, or
    one of degree 3 that did not, would make it fail.
    """
    task, samples = setting.task(), max(setting.samples, PROMPTS_EACH * math.comb(setting.entries + 3, 3))

    def entries(key):
        prompt = task.sample(key)
        return jnp.concatenate([prompt.inputs.ravel(), prompt.labels.ravel(), prompt.query, prompt.target])

    fit, trial = (simulate(entries, setting.stream(name), samples) for name in ("fit", "trial"))
    columns = {degree: [_monomials(drawn[:, :-1], degree) for drawn in (fit, trial)] for degree in (1, 2, 3)}
    answers, checks, explained = trial[:, -1], [], 0.0
    for degree, (fitted, tried) in columns.items():
        weights = np.linalg.lstsq(fitted, fit[:, -1], rcond=None)[0]
        explained = 1 - np.mean((answers - tried @ weights) ** 2) / np.mean(answers**2)
        if degree < 3:
            checks.append(_uncorrelated(f"correlation_of_degree_{degree}_abs", tried, answers))
            checks.append(check.exact(f"explained_by_degree_{degree}_abs", explained, 0.0, FIT_NOISE))
    inputs, labels, query = np.split(trial[:, :-1], [setting.N * setting.d, setting.N * (setting.d + 1)], axis=1)
    products = np.einsum("snd,sn,sd->s", inputs.reshape(len(trial), setting.N, setting.d), labels, query)
    left = answers - theory.linear_attention.best_scale(setting.moments, setting.N, setting.s2) * products
    share = theory.linear_attention.minimum_risk(setting.moments, setting.N, setting.s2) / setting.d
    variance = setting.d * setting.moments.second
    mean, error = mean_and_error(left**2)
    return [
        *checks,
        check.sampled("left_by_degree_3", mean, share * variance, error),
        _uncorrelated("correlation_of_what_is_left_abs", columns[3][1], left),
        check.at_least("explained_by_degree_3", explained, 0.9 * (1 - share)),
    ]


def _uncorrelated(name: str, columns: Float[np.ndarray, "S M"], answers: Float[np.ndarray, "S"]) -> Check:
    mean, error = mean_and_error(columns * answers[:, None])
    return check.sampled(name, mean, np.zeros(columns.shape[1]), error)


def _monomials(entries: Float[np.ndarray, "S E"], degree: int) -> Float[np.ndarray, "S M"]:
    """All products of at most `degree` entries, the empty one first."""
    count = entries.shape[1]
    chosen = [c for size in range(degree + 1) for c in itertools.combinations_with_replacement(range(count), size)]
    return np.stack([np.prod(entries[:, c], axis=1) for c in chosen], axis=1)


DEGREES = {"linear": 3, "retention": 3, "simple_gla": 3, "gla": 3, "rwkv6": 3, "mamba": 3}
"""One query, one key and one value in each term."""


class Scaled(Sequence):
    """Tokens that are all multiplied by one number."""

    c: float = number(2.0, positive=True, meaning="factor of all tokens")

    def validate(self) -> None:
        super().validate()
        if abs(math.log(self.c)) < 0.01:
            raise InvalidValueError(f"`c` must not be near 1, since the degree is read off what it changes; got {self.c!r}.")


@claim(
    "mixers.homogeneity",
    Scaled,
    Source(LAB, "degrees, counted in the terms of the output", "extended"),
    extra_settings=({"c": 0.3, "d": 2, "N": 5}, {"c": 7.0, "m": 1}),
)
def output_scales_by_its_degree(setting: Scaled) -> list[Check]:
    """Tokens times c multiply the output of linear attention, with and without decays, by c^3, that of a short convolution by
    c, and that of a token times a convolution by c^2.

    Exponents of the norm of all outputs at random tokens. A normalisation, a bias or a nonlinearity would make it fail.
    """
    checks = []
    for name, degree in DEGREES.items():
        mixer = mixers.named(name)
        tokens, gates = setting.tokens(mixer), setting.gates(mixer)
        before, after = (_outputs(mixer, [factor * x for x in tokens], gates) for factor in (1.0, setting.c))
        checks.append(check.exact(name, _exponent(before, after, setting.c), degree, EXACT))
    tokens, kernel = setting.normals("tokens", setting.N, setting.d), setting.normals("kernel", 4, setting.d)
    for name, degree, gated in (("convolution", 1, False), ("token_times_convolution", 2, True)):
        before, after = (_convolved(factor * tokens, kernel, gated) for factor in (1.0, setting.c))
        checks.append(check.exact(name, _exponent(before, after, setting.c), degree, EXACT))
    return checks


@compiled.jit
def _outputs(mixer: Mixer, tokens: list[Array], gates: Mapping[str, Array]) -> Float[Array, "N m"]:
    return mixer.outputs(*tokens, **gates)


def _convolved(tokens: Float[np.ndarray, "N d"], kernel: Float[np.ndarray, "w d"], gated: bool) -> Float[np.ndarray, "N d"]:
    """A causal convolution of each channel, times the token if gated."""
    convolved = np.stack([np.convolve(x, k)[: len(x)] for x, k in zip(tokens.T, kernel.T, strict=True)], axis=1)
    return tokens * convolved if gated else convolved


def _exponent(before: Array, after: Array, factor: float) -> float:
    return float(np.log(np.linalg.norm(after) / np.linalg.norm(before)) / np.log(factor))


SIGNATURES = {
    "linear": {"permute_pairs", "scale_values"},
    "linear_mean": {"permute_pairs", "duplicate_prompt", "scale_values"},
    "retention": {"scale_values"},
    "gla": {"scale_values"},
    "deltanet": {"scale_values"},
    "deltanet_unit_keys": {"scale_values", "scale_keys"},
    "gated_deltanet": {"scale_values"},
    "mesa": {"permute_pairs", "scale_values"},
    "ridge": {"permute_pairs", "scale_values"},
    "least_squares": {"permute_pairs", "duplicate_prompt", "scale_values", "linear_map"},
    "softmax": {"permute_pairs", "duplicate_prompt", "shift_values", "scale_values", "shift_keys"},
}
"""Which changes of a prompt each predictor follows, by hand."""


class Determined(Pairs):
    """At least as many pairs as dimensions, and a second dimension, so that nothing holds by chance."""

    d: int = integer(6, 2, "dimension", "of the keys")

    def validate(self) -> None:
        super().validate()
        if self.d >= self.N:
            raise InvalidValueError(
                f"`N` must be above `d`, for least squares to have one solution; got {self.N} and {self.d}."
            )


@claim(
    "mixers.signature",
    Determined,
    Source(LAB, "symmetries, read off the formulas", "extended"),
    extra_settings=({"d": 2, "N": 7, "m": 1, "seed": 3},),
)
def symmetries(setting: Determined) -> list[Check]:
    """Each mixer is invariant under the changes of a prompt that its formula lets pass, and under no other: linear attention
    under permutations, with a decay not, softmax attention under a shift of all keys, and so on.

    Nine changes of one random prompt, tried on mixers and on two estimators; a 1 for each that the answer follows. A decay, a
    normaliser or a correction that is missing, or one too many, would make it fail.
    """
    prompt, count = setting.prompt(), setting.N

    def unit(one: Prompt) -> Prompt:
        return dataclasses.replace(one, inputs=one.inputs / jnp.linalg.norm(one.inputs, axis=1, keepdims=True))

    delta = mixers.predictor("deltanet", write_strength=0.4)
    predictors = {
        "linear": mixers.predictor("linear"),
        "linear_mean": lambda one: mixers.predictor("linear")(one) / one.inputs.shape[0],
        "retention": mixers.predictor("retention"),
        "gla": mixers.predictor("gla", log_decay=-np.linspace(0.1, 0.5, setting.d)),
        "deltanet": delta,
        "deltanet_unit_keys": lambda one: delta(unit(one)),
        "gated_deltanet": mixers.predictor("gated_deltanet", write_strength=0.4, log_decay=-0.1),
        "mesa": mixers.predictor("mesa", write_strength=1.0, log_decay=0.0),
        "ridge": estimators.named("ridge", penalty=1.0 / count),
        "least_squares": estimators.ols,
        "softmax": mixers.predictor("softmax"),
    }
    checks = []
    for name, predictor in predictors.items():
        found = mixers.signature(predictor, prompt, setting.stream("changes"))
        measured, expected = ([float(one in names) for one in mixers.SYMMETRIES] for names in (found, SIGNATURES[name]))
        checks.append(check.exact(name, measured, expected, 0.0))
    return checks
