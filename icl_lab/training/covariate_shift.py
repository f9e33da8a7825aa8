"""A softmax decoder trained under one covariate distribution and tested under others, as in arXiv 2306.09927, Section 5.

Training distributions: inputs N(0, I) ("fixed"), or N(0, diag(lambda)) with exponential lambda_i of mean 1 drawn for each
prompt ("random"). Test distributions: the identity, and the random distribution with lambda scaled by c. Task vectors are
N(0, I), labels have no noise; errors are divided by d, so that the zero predictor has error c.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.prng import stream
from icl_lab.models.decoder import Decoder
from icl_lab.tasks.distributions.random_covariance import ExponentialDiagonal
from icl_lab.tasks.regression.linear import LinearRegression
from icl_lab.training.prefixes import Curriculum, prefix_risk, train_decoder

DISTRIBUTIONS = ("fixed", "random")


@dataclasses.dataclass(frozen=True)
class Training:
    """Size and schedule of a decoder's training; the defaults fit two cores and a few minutes at d = 3.

    Attributes:
      width, layers, heads: of the decoder.
      steps, batch, learning_rate: of Adam.
      curriculum: growth of dimension and length.
    """

    width: int = 64
    layers: int = 3
    heads: int = 4
    steps: int = 3_000
    batch: int = 64
    learning_rate: float = 1e-3
    curriculum: Curriculum = dataclasses.field(default_factory=Curriculum)


def distribution(name: str, dim: int, scale: float = 1.0) -> ExponentialDiagonal | None:
    """The covariate distribution called `name`; None stands for N(0, I).

    Raises:
      InvalidValueError: an unknown name.
    """
    if name not in DISTRIBUTIONS:
        raise InvalidValueError(f"a covariate distribution is one of {', '.join(DISTRIBUTIONS)}; got {name!r}.")
    return None if name == "fixed" else ExponentialDiagonal(dim, scale)


def train_under(
    name: str, dim: int, context_length: int, longest: int, training: Training, seed: int, progress: bool = False
) -> Decoder:
    """A decoder trained on prompts of `context_length` examples under the distribution `name`.

    Args:
      name: "fixed" or "random".
      dim: d.
      context_length: N of training.
      longest: most examples that it will be tested on; positions beyond N stay untrained.
      training: size and schedule.
      seed: of initial weights and prompts.
      progress: show a progress bar.
    """
    task = LinearRegression(dim=dim, context_length=context_length, covariates=distribution(name, dim))
    examples = max(longest, context_length) + 1
    decoder = Decoder(dim, examples, width=training.width, layers=training.layers, heads=training.heads, rngs=nnx.Rngs(seed))
    train_decoder(
        decoder,
        task,
        steps=training.steps,
        batch=training.batch,
        learning_rate=training.learning_rate,
        curriculum=training.curriculum,
        key=stream(jax.random.key(seed), f"prompts {name}"),
        progress=progress,
    )
    return decoder


def shifted_risk(
    decoder: Decoder, name: str, scale: float, longest: int, seed: int, prompts: int
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Error per coordinate after 0 .. `longest` examples under a test distribution, and its standard error.

    Args:
      decoder: a trained decoder.
      name: "fixed" (the identity; `scale` must be 1) or "random".
      scale: c, mean of the random eigenvalues.
      longest: M, at most `decoder.examples` - 1.
      seed: of the prompts, the same for every decoder.
      prompts: how many.
    """
    task = LinearRegression(dim=decoder.dim, context_length=longest, covariates=distribution(name, decoder.dim, scale))
    mean, error = prefix_risk(decoder, task, stream(jax.random.key(seed), "test prompts"), prompts)
    return mean / decoder.dim, error / decoder.dim
