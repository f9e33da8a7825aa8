"""What claims about mixers share: random pairs of keys and values, regression prompts, and what a mixer says of one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab import theory
from icl_lab.claims.setting import choice, integer, number, restricted
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.core.typing import Array
from icl_lab.mixers import Mixer
from icl_lab.tasks.distributions.covariates import Gaussian, Sphere
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.regression.linear import LinearRegression

LAB = "icl_lab"
"""Who words a statement here: that of a paper, if one has it, was not at hand."""
TOLERANCE = 1e-10
"""Of two algorithms that are the same but for rounding."""
KEYS = ("gaussian", "sphere")


class Pairs(Seeded):
    """Keys, values and queries that are independent standard normal: nothing about them is special."""

    N: int = integer(24, 1, "context length")
    d: int = integer(6, 1, "dimension", "of keys and queries")
    m: int = integer(3, 1, "width of a value")

    def prompt(self, name: str = "prompt") -> Prompt:
        """A prompt of N pairs whose labels are not those of any regression."""
        inputs, labels = self.normals(f"{name} keys", self.N, self.d), self.normals(f"{name} values", self.N, self.m)
        return Prompt(inputs, labels, self.normals(f"{name} query", self.d), np.zeros(self.m))

    def queries(self) -> Float[np.ndarray, "N d"]:
        """A query for each pair."""
        return self.normals("queries", self.N, self.d)


class Sampled(Seeded):
    """Regression prompts that are drawn: tasks w ~ N(0, I), values w.k plus noise, queries N(0, I)."""

    N: int = integer(24, 1, "context length")
    d: int = integer(8, 1, "dimension", "of keys and queries")
    s2: float = number(0.25, 0.0, "variance of the label noise")
    samples: int = integer(40_000, 1_000, "number of draws", "of prompts")

    def task(self) -> LinearRegression:
        """The distribution of prompts, with Gaussian keys."""
        return LinearRegression(dim=self.d, context_length=self.N, noise_std=np.sqrt(self.s2))

    @property
    def moments(self) -> theory.KeyMoments:
        """What the closed forms depend on."""
        return theory.KeyMoments.gaussian(self.d)


class SampledKeys(Sampled):
    """Prompts whose keys are Gaussian, or uniform on the unit sphere."""

    keys: str = choice("gaussian", KEYS, "law of the keys")

    def task(self) -> LinearRegression:
        """The distribution of prompts. On the sphere queries have length 1, so that risks are read off the state."""
        covariates = Sphere(self.d, 1.0) if self.keys == "sphere" else Gaussian(np.eye(self.d))
        return LinearRegression(dim=self.d, context_length=self.N, covariates=covariates, noise_std=np.sqrt(self.s2))

    @property
    def moments(self) -> theory.KeyMoments:
        """What the closed forms depend on."""
        return getattr(theory.KeyMoments, self.keys)(self.d)


def share(default: float, meaning: str, detail: str = "") -> Any:
    """A number in (0, 1)."""
    return restricted(number(default, meaning=meaning, detail=detail), "a number in (0, 1)", lambda value: 0 < value < 1)


def state_of(mixer: Mixer, prompt: Prompt, initial: Any = None, **gates: Any) -> Float[Array, "d m"]:
    """The matrix with which a mixer answers: row c is the answer to the query e_c."""

    def answer(query):
        return mixer.read(query, prompt.inputs, prompt.labels, initial=initial, **gates)

    return jax.vmap(answer)(jnp.eye(prompt.inputs.shape[1]))
