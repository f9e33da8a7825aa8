"""`Objective`: what a model is trained on. Exact moments, sampled moments and streamed prompts are all this one callable."""

from __future__ import annotations

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Inexact

from icl_lab.core import compiled, precision
from icl_lab.core.linalg import SINGULAR
from icl_lab.core.typing import Array, Key, Weights
from icl_lab.tasks.prompt import Task

LARGEST_SPREAD = 1e9
"""Ratio of relaxation rates up to which every one of them is found in a Hessian of double precision."""


class Loss(eqx.Module):
    """A half loss of real unknowns as arrays alone: what a flow integrates.

    Whatever the task's numbers are (its length, spectrum, noise, pool), losses of one kind and dimension share their compiled
    programs.
    """

    @abc.abstractmethod
    def __call__(self, weights: Weights, key: Key | None = None) -> Float[Array, ""]:
        """The half loss at `weights`. Only streamed prompts use `key`; without it they use one fixed set of prompts."""

    @property
    def relaxation(self) -> tuple[Float[Array, "*S d d"], Float[Array, "*S d d"]] | None:
        """The matrices (D, A) of a loss 1/2 (c - 2 u <V, D> + u^2 <A, V^2>) of a number u and a matrix V; None for any other.

        Such a loss has a flow that is elementwise in V, so that each entry relaxes by itself, and an arrow matrix as Hessian.
        """
        return None

    @property
    def rate_spread(self) -> float:
        """Ratio of the fastest to the slowest relaxation rate near the optimum, where known; decides explicit or implicit
        integration. 1.0 where unknown."""
        return 1.0

    @property
    def input_rounding(self) -> float | Float[Array, "*S"]:
        """Relative error of the limit that the rounding of the task's own numbers to double precision leaves, where known; (S,)
        for a stack of S losses."""
        return 0.0

    def coefficients(self, weights: Weights) -> Inexact[Array, "..."] | None:
        """What the prediction depends on the weights through, linearly; None where that is not known.

        Weights of equal coefficients make one function, so that the kernel of the derivative holds the symmetries of the loss.
        """
        return None


class Objective(Loss):
    """Half the mean squared error of a model's prediction, L = 1/2 E |yhat - target|^2, as a function of its weights.

    The half makes gradient flow run on the clock of Zhang, Frei, Bartlett (arXiv 2306.09927): dW/dt = -grad L. Regression
    targets are noiseless, so L is half the risk in excess of the query's own noise. `risk` is E |yhat - target|^2, without
    the half.

    Attributes:
      task: the distribution of the prompts.
      model: the architecture.
    """

    task: eqx.AbstractVar[Task]
    model: eqx.AbstractVar[eqx.Module]

    @property
    def bare(self) -> Loss:
        """The same function of the weights without the task, where there is one."""
        return self

    def risk(self, weights: Weights) -> float:
        """E |yhat - target|^2 at `weights`, in float64."""
        with precision.float64():
            return 2.0 * float(_value(self.bare, precision.to_double(weights)))

    def standard_error(self, weights: Weights) -> float:
        """Standard error of `risk(weights)` from sampling the prompts; 0.0 where the loss is exact."""
        return 0.0

    def coordinates(self, weights: Weights) -> tuple[Loss, Weights, Callable[[Weights], Weights]]:
        """The problem in real unknowns, in which gradient flow takes the same path.

        Args:
          weights: where the flow starts, real or complex.

        Returns:
          The loss of the unknowns, their values at `weights`, and the map back to weights. Real weights are their own
          unknowns, complex ones have their real and imaginary parts: dz/dt = -(dL/dRe z + i dL/dIm z), without the conjugate
          that JAX's gradient of a complex argument carries.
        """
        if not any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(weights)):
            return self.bare, weights, unchanged
        pair = jax.tree.map(lambda w: w.real.copy(), weights), jax.tree.map(lambda w: w.imag.copy(), weights)
        return RealifiedLoss(self.bare), pair, join

    @property
    def graded(self) -> bool:
        """Whether curvatures may differ by more than rounding shows in a Hessian of double precision.

        A direction in which the Hessian vanishes is then perhaps no symmetry, but too slow to be seen beside the others. Rates
        go like the third power of the inputs' variances, which a few prompts show.
        """
        return self.rate_spread > LARGEST_SPREAD or second_moment_spread(_example_inputs(self.task)) ** 3 > LARGEST_SPREAD


class RealifiedLoss(Loss):
    """A loss of complex weights as a function of their (real part, imaginary part) trees."""

    complex_loss: Loss

    def __call__(self, weights: Weights, key: Key | None = None) -> Float[Array, ""]:
        return self.complex_loss(join(weights), key)

    @property
    def rate_spread(self) -> float:
        return self.complex_loss.rate_spread

    def coefficients(self, weights: Weights) -> Inexact[Array, "..."] | None:
        return self.complex_loss.coefficients(join(weights))


def join(pair: tuple[Weights, Weights]) -> Weights:
    """The complex tree of a (real part, imaginary part) pair."""
    return jax.tree.map(lambda real, imaginary: jax.lax.complex(jnp.asarray(real), jnp.asarray(imaginary)), *pair)


def unchanged(weights: Weights) -> Weights:
    """The weights themselves."""
    return weights


@compiled.jit
def _value(loss: Loss, weights: Weights) -> Float[Array, ""]:
    return loss(weights)


def second_moment_spread(vectors: Inexact[Array, "*count D"]) -> float:
    """Largest over smallest eigenvalue of the second moment of some vectors, those that are zero but for rounding apart."""
    rows = np.asarray(vectors).reshape(-1, np.shape(vectors)[-1])
    squares = np.linalg.svd(rows, compute_uv=False) ** 2
    return float(squares[0] / np.min(squares[squares > SINGULAR * squares[0]])) if squares[0] > 0 else 1.0


@compiled.jit
def _example_inputs(task: Task) -> Inexact[Array, "8 N d"]:
    return task.sample_batch(jax.random.key(0), 8).inputs
