"""Exact losses over a distribution of prompts with finitely many values, or with a cubature rule that is exact for the loss.

A loss of one linear attention layer is a polynomial in the prompt. Where a finite weighted set of prompts has the same mean of
every such polynomial, its average of literal forward passes is the population loss: equally spaced angles for uniform phases,
Gauss-Hermite nodes for Gaussian coordinates.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.core import precision
from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.core.typing import Array, Key, Weights
from icl_lab.objectives.objective import Objective
from icl_lab.tasks.dynamics.linear import GaussianStart, LinearDynamics, RotationBlocks
from icl_lab.tasks.prompt import Prompt, Task

LARGEST_RULE = 200_000
"""Prompts of one length beyond which a literal average is too slow to train on."""


class CubatureLoss(Objective):
    """Half the weighted sum of squared errors over a finite set of prompts, summed over groups of one context length each.

    Attributes:
      model: any architecture, a callable of (weights, prompt).
      prompts: batches of prompts, one for each context length.
      quadrature_weights: (B,) weights of the prompts of each batch; they sum to 1 where the loss is a sum of means over
        positions.
    """

    task: Task
    model: Any
    prompts: tuple[Prompt, ...]
    quadrature_weights: tuple[Float[Array, "B"], ...]

    def __check_init__(self):
        if not self.prompts or len(self.prompts) != len(self.quadrature_weights):
            raise InvalidValueError(
                "`prompts` and `quadrature_weights` need the same number of batches, at least one; "
                f"got {len(self.prompts)} and "
                f"{len(self.quadrature_weights)}."
            )

    def __call__(self, weights: Weights, key: Key | None = None) -> Float[Array, ""]:
        def squared_error(prompt):
            return jnp.sum(jnp.abs(self.model(weights, prompt) - prompt.target) ** 2)

        batches = zip(self.prompts, self.quadrature_weights, strict=True)
        losses = [jnp.asarray(mass) @ jax.vmap(squared_error)(prompts) for prompts, mass in batches]
        return 0.5 * jnp.sum(jnp.stack(losses))


def rotation_cubature(task: LinearDynamics, model: eqx.Module, lengths: tuple[int, ...] | None = None) -> CubatureLoss:
    """The exact half loss of one linear attention layer on noiseless sequences of planar rotations, summed over positions.

    The squared error has degree 6 in x_1, so 4 Gauss-Hermite nodes a coordinate are exact, and frequencies of at most three
    times the length of the sequence in each angle.

    Args:
      task: `RotationBlocks` without a Haar basis, a Gaussian start and no noise.
      model: one linear attention layer.
      lengths: context lengths (position t has t - 1) whose losses are added; by default 1 .. N.

    Raises:
      UnsupportedProblemError: another task, or more than 200 000 prompts of one length.
    """
    transition = task.transition
    supported = isinstance(transition, RotationBlocks) and not transition.haar_basis and isinstance(task.start, GaussianStart)
    if not supported or float(task.noise_std) != 0:
        raise UnsupportedProblemError(
            "the cubature is for noiseless `LinearDynamics` with a Gaussian start and `RotationBlocks` in the standard basis; "
            f"got {task}."
        )
    lengths = tuple(range(1, task.context_length + 1)) if lengths is None else lengths
    dim, count = task.dim, 3 * (max(lengths) + 2) + 1
    size = 4**dim * count ** (dim // 2)
    if size > LARGEST_RULE:
        raise UnsupportedProblemError(
            f"the cubature needs {size} prompts, more than {LARGEST_RULE}; use a smaller d or length."
        )
    nodes, node_masses = np.polynomial.hermite_e.hermegauss(4)
    starts = float(task.start.scale) * np.array(list(itertools.product(nodes, repeat=dim)))
    start_masses = np.prod(np.array(list(itertools.product(node_masses / np.sqrt(2 * math.pi), repeat=dim))), axis=1)
    angles = np.array(list(itertools.product(2 * np.pi * np.arange(count) / count, repeat=dim // 2)))
    # (angles, starts, time, block) as complex numbers, turned by theta at each step.
    planes = starts[:, 0::2] + 1j * starts[:, 1::2]
    turns = np.exp(1j * angles[:, None, None, :] * np.arange(max(lengths) + 2)[None, None, :, None])
    points = turns * planes[None, :, None, :]
    states = np.stack([points.real, points.imag], axis=-1).reshape(size, max(lengths) + 2, dim)
    quadrature_weights = np.tile(start_masses / len(angles), len(angles))
    with precision.float64():
        prompts = tuple(
            precision.to_numpy(jax.vmap(Prompt)(states[:, :n], states[:, 1 : n + 1], states[:, n], states[:, n + 1]))
            for n in lengths
        )
    return CubatureLoss(task, model, prompts, (quadrature_weights,) * len(lengths))
