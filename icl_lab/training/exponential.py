r"""The structured flow at any spread of rates: each entry of W_KQ solved in closed form over a step, with one scalar unknown.

On the clock ds = u^2 dt the flow of a loss with a `relaxation` (D, A), such as `objectives.StructuredLoss`, reads

    dV/ds = p D - A V,      p = 1/u,      u^2 = kappa + ||V||_F^2

with D the signal, A > 0 the rate of an entry and kappa the conserved imbalance. With p linear over a step, p_0 to p_1, an
entry is exp(-Ah) V_0 + D h [(phi_1 - phi_2) p_0 + phi_2 p_1] at z = A h, an average of positive terms, and p_1 is the root of a
quartic. No rate limits the step, and no difference of large numbers is formed: an implicit method evaluates u D - u^2 A V, and
the rounding of that, times a step, exceeds any tolerance once the rates lie far apart.

A step is compared with two of half its length (order 2) and continues from their extrapolation (order 3).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from icl_lab.core.typing import Array, Weights
from icl_lab.objectives.objective import Loss
from icl_lab.objectives.structured import StructuredWeights

NEWTON_STEPS = 16
LARGEST_GROWTH = 4.0
RELAXED = 50.0
"""Time constants of the slowest entry in one step, after which exp(-z) is below rounding and the flow has ended."""
FLOOR = 1e-6
"""Share of the largest entry below which an entry's error is not measured against itself."""


class Steps(NamedTuple):
    """What `advance` returns: its path (`times` and `path` hold `accepted` points), steps tried, the end, and whether that was
    reached: whether every entry had relaxed."""

    times: Float[Array, "S"]
    path: StructuredWeights
    accepted: Array
    steps: Array
    time: Float[Array, ""]
    state: StructuredWeights
    reached: Bool[Array, ""]


class _Loop(NamedTuple):
    v: Float[Array, "d d"]
    time: Float[Array, ""]
    step: Float[Array, ""]
    accepted: Array
    tried: Array
    relaxed: Bool[Array, ""]
    times: Float[Array, "S"]
    path: Float[Array, "S d d"]


def applies(objective: Loss, state: Weights) -> bool:
    """Whether the method is defined along the whole flow: the loss must have a `relaxation`, u must not vanish, which
    |u| >= ||V||_F at the start ensures, and every entry must relax."""
    if objective.relaxation is None:
        return False
    _, rates = objective.relaxation
    balance = float(state.value) ** 2 - float((state.key_query**2).sum())
    return bool(float(state.value) != 0 and balance >= -1e-9 * float(state.value) ** 2 and (rates > 0).all())


def advance(
    signal: Float[Array, "d d"],
    rates: Float[Array, "d d"],
    state: StructuredWeights,
    start: Float[Array, ""],
    step: Float[Array, ""],
    rtol: Float[Array, ""],
    max_steps: int,
    keep_path: bool,
) -> Steps:
    """The flow from time `start` on, until every entry has relaxed or `max_steps` steps were tried; traceable.

    Args:
      signal, rates: the `relaxation` of the loss.
      state: where the flow starts; see `applies`.
      start: flow time there, on the clock of dW/dt = -grad L.
      step: length of the first step, on the same clock.
      rtol: relative error of an entry that a step may make.
      max_steps: steps to try.
      keep_path: whether to return the points in between.
    """
    sign = jnp.sign(state.value)
    signal, rates = sign * jnp.asarray(signal), jnp.asarray(rates)
    kappa = state.value**2 - jnp.sum(state.key_query**2)
    slowest = jnp.min(rates)

    def inverse_value(v):
        return 1.0 / jnp.sqrt(jnp.maximum(kappa + jnp.sum(v**2), 1e-300))

    def stepped(v, h):
        p = inverse_value(v)
        z = rates * h
        first, second = _phi(z)
        known = jnp.exp(-z) * v + signal * (h * (first - second) * p)
        slope = signal * (h * second)
        return known + slope * _root(kappa, known, slope, p)

    def body(loop: _Loop) -> _Loop:
        h = loop.step
        whole = stepped(loop.v, h)
        middle = stepped(loop.v, 0.5 * h)
        twice = stepped(middle, 0.5 * h)
        size = jnp.abs(twice)
        error = jnp.max(jnp.abs(twice - whole) / (size + FLOOR * jnp.max(size))) / 3
        finite = jnp.isfinite(error)
        taken = finite & (error <= rtol)
        v = twice + (twice - whole) / 3
        # Simpson's rule for dt = p^2 ds.
        quadrature = inverse_value(loop.v) ** 2 + 4 * inverse_value(middle) ** 2 + inverse_value(v) ** 2
        time = loop.time + h * quadrature / 6
        factor = jnp.where(finite, 0.9 * (rtol / jnp.maximum(error, 1e-300)) ** (1 / 3), 0.1)
        index = jnp.where(taken, loop.accepted, max_steps)  # beyond the end: dropped
        return _Loop(
            v=jnp.where(taken, v, loop.v),
            time=jnp.where(taken, time, loop.time),
            step=h * jnp.clip(factor, 0.1, LARGEST_GROWTH),
            accepted=jnp.where(taken, loop.accepted + 1, loop.accepted),
            tried=loop.tried + 1,
            relaxed=taken & (h * slowest > RELAXED),
            times=jnp.asarray(loop.times).at[index].set(time, mode="drop") if keep_path else loop.times,
            path=jnp.asarray(loop.path).at[index].set(v, mode="drop") if keep_path else loop.path,
        )

    v = jnp.asarray(state.key_query)
    room = max_steps if keep_path else 0
    zero = jnp.zeros((), int)
    loop = _Loop(
        v=v,
        time=jnp.asarray(start),
        step=step / inverse_value(v) ** 2,
        accepted=zero,
        tried=zero,
        relaxed=jnp.zeros((), bool),
        times=jnp.full((room,), jnp.inf, v.dtype),
        path=jnp.zeros((room, *v.shape), v.dtype),
    )
    loop = jax.lax.while_loop(lambda loop: (loop.tried < max_steps) & ~loop.relaxed, body, loop)

    def weights(v):
        return StructuredWeights(value=sign / inverse_value(v), key_query=v)

    return Steps(loop.times, jax.vmap(weights)(loop.path), loop.accepted, loop.tried, loop.time, weights(loop.v), loop.relaxed)


def _phi(z: Float[Array, "d d"]) -> tuple[Float[Array, "d d"], Float[Array, "d d"]]:
    """phi_1 = (1 - exp(-z)) / z and phi_2 = (1 - phi_1) / z for z >= 0."""
    small = z < 0.03
    safe = jnp.where(small, 1.0, z)
    first = jnp.where(small, 1 - z / 2 * (1 - z / 3 * (1 - z / 4 * (1 - z / 5 * (1 - z / 6)))), -jnp.expm1(-safe) / safe)
    series = 0.5 - z / 6 * (1 - z / 4 * (1 - z / 5 * (1 - z / 6 * (1 - z / 7))))
    return first, jnp.where(small, series, (1 - first) / safe)


def _root(kappa, known, slope, guess):
    """The p > 0 with p^2 (kappa + ||known + p slope||^2) = 1, by Newton steps in log p."""
    constant, linear, square = kappa + jnp.sum(known**2), 2 * jnp.sum(known * slope), jnp.sum(slope**2)

    def newton(_, p):
        inside = jnp.maximum(constant + p * (linear + p * square), 1e-300)
        growth = 2 + p * (linear + 2 * p * square) / inside
        return p * jnp.exp(-jnp.clip(jnp.log(p * p * inside) / jnp.maximum(growth, 0.5), -2.0, 2.0))

    return jax.lax.fori_loop(0, NEWTON_STEPS, newton, guess)
