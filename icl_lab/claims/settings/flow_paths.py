"""What the claims about time courses share: structured weights, losses in other coordinates, and paths with event times.

`training.gradient_flow` gives weights at asked times; where a claim is about *when* something happens, an `Integrator` follows
the gradient of the same objective with scipy, which locates events.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from icl_lab import models, objectives
from icl_lab.core import compiled
from icl_lab.core.typing import Array, Key, Weights
from icl_lab.models.weights import LSAWeights
from icl_lab.objectives.objective import Objective
from icl_lab.tasks.prompt import Task
from icl_lab.tasks.regression.linear import LinearRegression


def exact(task: LinearRegression) -> Objective:
    """The exact half loss of one linear self-attention layer."""
    return objectives.population(task, models.LinearSelfAttention())


def structured(u: float, inner: Float[Array, "d d"]) -> LSAWeights:
    """The weights W_PV = u e e^T and W_KQ = blockdiag(U, 0), in numpy."""
    dim = len(inner)
    w_pv, w_kq = np.zeros((dim + 1, dim + 1)), np.zeros((dim + 1, dim + 1))
    w_pv[-1, -1], w_kq[:dim, :dim] = u, inner
    return LSAWeights(w_pv=w_pv, w_kq=w_kq)


class Reparametrised(Objective):
    """An objective as a function of other coordinates, whose Euclidean metric its gradient flow then follows.

    Attributes:
      base: the objective of the layer's weights.
      embed: coordinates -> weights; traceable.
    """

    task: Task
    model: eqx.Module
    base: Objective
    embed: Callable[[Weights], Weights] = eqx.field(static=True)

    def __init__(self, base: Objective, embed: Callable[[Weights], Weights]):
        self.task, self.model, self.base, self.embed = base.task, base.model, base, embed

    def __call__(self, weights: Weights, key: Key | None = None) -> Float[Array, ""]:
        return self.base(self.embed(weights), key)

    def risk(self, weights: Weights) -> float:
        return self.base.risk(self.embed(weights))

    def standard_error(self, weights: Weights) -> float:
        return self.base.standard_error(self.embed(weights))


@dataclasses.dataclass(frozen=True, eq=False)
class Path:
    """A densely known gradient flow.

    Attributes:
      at: time -> weights in numpy.
      steps: (S,) the solver's own times, dense where the weights move.
      crossings: for each event the times (k,) at which it crossed zero.
      states: for each event the weights at those times.
    """

    at: Callable[[float], Weights]
    steps: Float[np.ndarray, "S"]
    crossings: list[Float[np.ndarray, "k"]]
    states: list[list[Weights]]


class Integrator:
    """Gradient flow of one objective, and its derivatives, from a gradient that is compiled once for all starts."""

    def __init__(self, objective: Objective, like: Weights):
        """
        Args:
          objective: the half loss.
          like: weights of the shapes of every start.
        """
        leaves, self.structure = jax.tree.flatten(like)
        self.shapes = [np.shape(leaf) for leaf in leaves]
        _, unravel = ravel_pytree(jax.tree.map(jnp.asarray, like))
        self._value_and_gradient = compiled.jit(jax.value_and_grad(lambda state: objective(unravel(state))))

    def value_and_gradient(self, state: Float[np.ndarray, "n"]) -> tuple[float, Float[np.ndarray, "n"]]:
        """The half loss and its gradient at weights that are one vector."""
        loss, gradient = self._value_and_gradient(state)
        return float(loss), np.asarray(gradient)

    def gradient(self, state: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        """The gradient at weights that are one vector."""
        return np.asarray(self._value_and_gradient(state)[1])

    def hessian(self, state: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n n"]:
        """The Hessian, from differences of the gradient over unit steps.

        They are exact up to rounding, since the losses here are quadratic in every single entry of the weights.
        """
        units = np.eye(len(state))
        rows = np.array([(self.gradient(state + unit) - self.gradient(state - unit)) / 2 for unit in units])
        return (rows + rows.T) / 2

    def flat(self, weights: Weights) -> Float[np.ndarray, "n"]:
        """Weights as one vector."""
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(weights)])

    def weights(self, state: Float[np.ndarray, "n"]) -> Weights:
        """The inverse of `flat`."""
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])[:-1]
        leaves = [part.reshape(shape) for part, shape in zip(np.split(state, ends), self.shapes, strict=True)]
        return jax.tree.unflatten(self.structure, leaves)

    def __call__(
        self,
        start: Weights,
        end: float,
        events: Sequence[Callable[[Weights], float]] = (),
        method: str = "DOP853",
        rtol: float = 1e-12,
        stop: bool = False,
    ) -> Path:
        """The flow up to time `end`, with the times at which functions of the weights cross zero.

        Args:
          start: weights at time 0.
          end: last time.
          events: continuous functions of the weights.
          method: of `scipy.integrate.solve_ivp`.
          rtol: relative tolerance; the absolute one is a hundredth of it times the norm of the start, which may be small.
          stop: whether to end at the first crossing of the last event.
        """
        state = self.flat(start)
        watched = [_event(self, event) for event in events]
        if stop:
            watched[-1].terminal = True  # pyright: ignore[reportFunctionMemberAccess]
        solution = scipy.integrate.solve_ivp(
            lambda t, y: -self.gradient(y),
            (0.0, end),
            state,
            method=method,
            dense_output=True,
            events=watched,
            rtol=rtol,
            atol=1e-2 * rtol * float(np.linalg.norm(state)),
        )
        return Path(
            at=lambda time: self.weights(solution.sol(time)),
            steps=solution.t,
            crossings=[np.asarray(times) for times in solution.t_events or []],
            states=[[self.weights(y) for y in states] for states in solution.y_events or []],
        )


def _event(integrate: Integrator, of: Callable[[Weights], float]) -> Callable[[float, np.ndarray], float]:
    """A function of the weights as scipy wants it."""
    return lambda t, state: of(integrate.weights(state))
