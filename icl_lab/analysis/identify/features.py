"""What fits need of prompts: decomposed once, whatever is fitted to them."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Inexact

from icl_lab import estimators
from icl_lab.core import compiled
from icl_lab.core.typing import Array
from icl_lab.estimators.batch.gradient_descent import mean_gradient
from icl_lab.estimators.examples import examples
from icl_lab.tasks.prompt import Prompt


class Features(eqx.Module):
    """What fits need of M prompts (or of one, without the axis M).

    Attributes:
      values: (M, r), squared singular values of the inputs, r = min(N, d).
      parts: (M, k, r), c of `families`.
      moments: (M, k, d), mean of y_i x_i^*.
      inputs: (M, N, d).
      queries: (M, d).
      labels: (M, N, k).
      scores: exponents of each kernel, (M, N).
    """

    values: Float[Array, "*M r"]
    parts: Inexact[Array, "*M k r"]
    moments: Inexact[Array, "*M k d"]
    inputs: Inexact[Array, "*M N d"]
    queries: Inexact[Array, "*M d"]
    labels: Inexact[Array, "*M N k"]
    scores: dict[str, Float[Array, "*M N"]]


class Answered(eqx.Module):
    """M prompts, a model's answers to them, and what each prompt stands for.

    Attributes:
      data: the prompts, decomposed.
      answers: (M, k).
      weights: (M,), with mean 1.
    """

    data: Features
    answers: Inexact[Array, "M k"]
    weights: Float[Array, "M"]


@compiled.jit
def features(prompts: Prompt) -> Features:
    """The decomposition of a batch of prompts."""

    def one(prompt: Prompt) -> Features:
        inputs, labels, query = examples(prompt)
        left, singular, right = jnp.linalg.svd(inputs, full_matrices=False)
        parts = (labels.T @ left.conj()) * (singular.astype(query.dtype) * (right.conj() @ query))[None, :]
        start = jnp.zeros((labels.shape[1], inputs.shape[1]), inputs.dtype)
        return Features(
            values=singular**2,
            parts=parts,
            moments=-mean_gradient(start, inputs, labels),
            inputs=inputs,
            queries=query,
            labels=labels,
            scores={kernel: estimators.kernel_scores(inputs, query, kernel) for kernel in estimators.EXPONENTS},
        )

    return jax.vmap(one)(prompts)


def eigenvalue(data: Features) -> np.ndarray:
    """Mean eigenvalue of X^* X over the prompts, as an array: a number would be compiled in."""
    return np.asarray(np.mean(np.sum(data.values, axis=1)) / data.queries.shape[1])


def online_unit(data: Features) -> np.ndarray:
    """One over the mean squared norm of an input, the unit of step sizes of one example."""
    length, dim = data.inputs.shape[1:]
    return np.asarray(length / (dim * eigenvalue(data)))
