"""What claims about delta rules and ridge regression share: pairs without a law, prompts of a regression, and their answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab import theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.setting import choice, integer, number
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.core import compiled, precision
from icl_lab.core.typing import Array, Key
from icl_lab.mixers import Mixer
from icl_lab.tasks.distributions.covariates import Sphere
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.regression.drifting import DriftingRegression
from icl_lab.tasks.regression.linear import LinearRegression

LAB = "icl_lab"
DELTA = "Yang, Wang, Zhang, Shen, Kim 2024 (arXiv 2406.06484)"

EXACT = 1e-10
"""Of two ways to one number: rounding, which a recurrence of some dozen tokens and a triangular solve add up to no more."""
CHUNK = 8
"""Pairs in a block, so that a context has several."""


class Pairs(Seeded):
    """Keys, values and a query, all entries standard normal: what holds for them holds for any."""

    d: int = integer(6, 1, "dimension", "of the keys")
    m: int = integer(3, 1, "width of a value")
    N: int = integer(24, 1, "context length")

    def prompt(self) -> Prompt:
        """The pairs and the query; there is no answer to compare with."""
        keys, values = self.normals("keys", self.N, self.d), self.normals("values", self.N, self.m)
        return Prompt(inputs=keys, labels=values, query=self.normals("query", self.d), target=np.zeros(self.m))

    def uniforms(self, name: str, *shape: int) -> np.ndarray:
        """Numbers uniform in [0, 1) from the stream of this name."""
        return np.asarray(jax.random.uniform(self.stream(name), shape))


class Gaussian(Seeded):
    """Prompts of one task vector w ~ N(0, I), values w.k plus noise, and as many of them as are drawn."""

    d: int = integer(8, 1, "dimension", "of the keys")
    N: int = integer(24, 1, "context length")
    s2: float = number(0.25, 0.0, "variance of the label noise")
    samples: int = integer(40_000, 1_000, "number of draws", "of prompts")

    def task(self) -> LinearRegression:
        """The distribution of prompts."""
        return LinearRegression(self.d, self.N, noise_std=np.sqrt(self.s2))


class Regression(Gaussian):
    """The same with keys of one of two laws."""

    keys: str = choice("gaussian", ("gaussian", "sphere"), "law of the keys", ": N(0, I), or uniform on the unit sphere")

    @property
    def moments(self) -> theory.KeyMoments:
        """What the closed forms depend on."""
        return theory.KeyMoments.sphere(self.d) if self.keys == "sphere" else theory.KeyMoments.gaussian(self.d)

    def task(self) -> LinearRegression:
        """The distribution of prompts; its queries have the law of the keys."""
        if self.keys == "gaussian":
            return super().task()
        return LinearRegression(self.d, self.N, noise_std=np.sqrt(self.s2), covariates=Sphere(self.d))


class Drift(Seeded):
    """Prompts whose task vector drifts, every entry of it a stationary Ornstein-Uhlenbeck process of variance 1."""

    d: int = integer(4, 1, "dimension", "of the keys")
    N: int = integer(200, 1, "context length")
    s2: float = number(0.1, positive=True, meaning="variance of the label noise")
    a: float = number(0.97, positive=True, meaning="correlation of successive tasks")
    samples: int = integer(20_000, 1_000, "number of draws", "of prompts")

    def task(self) -> DriftingRegression:
        """The distribution of prompts; a persistence above 1 is refused."""
        return DriftingRegression(self.d, self.N, self.a, np.sqrt(self.s2))

    def validate(self) -> None:
        super().validate()
        self.task()


def in_every_form(mixer: Mixer, prompt: Prompt, expected: Float[Array, "*n m d"], name: str = "", **gates: Any) -> list[Check]:
    """Checks that a mixer answers the query of a prompt as a matrix does, after the last pair, or as N of them, after each.

    The forms that answer a sequence are asked the same query at each token; what reads one query is asked after the last pair.
    """
    matrices = np.asarray(expected)
    answers = np.asarray(matrices @ prompt.query)
    sequences, read = precision.to_numpy(_answers(mixer, prompt, gates))
    at = slice(None) if answers.ndim == 2 else -1
    last = answers[-1] if answers.ndim == 2 else answers
    checks = [check.exact(name + form, rows[at], answers, EXACT) for form, rows in sequences.items()]
    return [*checks, check.exact(f"{name}read", read, last, EXACT)]


@compiled.jit
def _answers(mixer: Mixer, prompt: Prompt, gates: dict[str, Any]) -> tuple[dict[str, Array], Array]:
    queries = jnp.broadcast_to(prompt.query, prompt.inputs.shape)
    pairs = prompt.inputs, prompt.labels
    forms = {form: mixer.outputs(queries, *pairs, form=form, chunk=CHUNK, **gates) for form in mixer.description.forms}
    return forms, mixer.read(prompt.query, *pairs, **gates)


@compiled.jit
def read_each(
    mixer: Mixer, queries: Float[Array, "Q d"], keys: Float[Array, "N d"], values: Float[Array, "N m"], **gates: Any
) -> Float[Array, "Q m"]:
    """The answers to several queries, each after all pairs."""
    return jax.vmap(lambda query: mixer.read(query, keys, values, **gates))(queries)


def distance(predictor: Callable[[Prompt], Array], prompt: Prompt, vector: Float[Array, "d"]) -> Float[Array, ""]:
    """|S - w|^2, the risk of a predictor that is linear in the query, given the prompt: its answers to d unit queries."""
    answers = jax.vmap(lambda query: predictor(dataclasses.replace(prompt, query=query))[0])(jnp.eye(vector.shape[0]))
    return jnp.sum((answers - vector) ** 2)


def wide_steps(prompt: Prompt, steps: Float[Array, "N"], largest: float) -> tuple[Prompt, Float[Array, "N"]]:
    """A prompt and write strengths of at most 1 that say the same as the prompt and steps of at most `largest`.

    Keys and query are multiplied by a number and the state divided by it.
    """
    size = np.sqrt(max(1.0, largest))
    return dataclasses.replace(prompt, inputs=size * prompt.inputs, query=size * prompt.query), steps / size**2


def mean_and_error(draws: Float[np.ndarray, "S *P"]) -> tuple[Any, Any]:
    """Means over the first axis, and their standard errors."""
    return np.mean(draws, axis=0), np.std(draws, axis=0, ddof=1) / np.sqrt(len(draws))


def drawn(task: Any, key: Key, count: int) -> Prompt:
    """Some prompts, with a leading axis."""
    return compiled.jit(lambda keys: jax.vmap(task.sample)(keys))(jax.random.split(key, count))
