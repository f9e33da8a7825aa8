r"""The delta rule, plain and with a decay: a token writes only what the state does not yet say of its value.

.. math:: S'_t = \operatorname{diag}(e^{g_t})\, S_{t-1}, \qquad
          S_t = S'_t + \beta_t\, k_t\, (v_t - S_t'^\top k_t)^\top, \qquad o_t = s\, S_t^\top q_t

Read as a regression of values on keys, a token is one step of stochastic gradient descent of size beta_t on its own half
squared error (`estimators.online_sgd`); a decay shrinks the weights before each step.

    mixer            decay g_t                              source
    deltanet         none                                   Yang et al.        arXiv 2406.06484
    gated_deltanet   one number a token                     Yang et al.        arXiv 2412.06464
    kda              one number a token and key channel     Kimi Team          arXiv 2510.26692
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp

from icl_lab.mixers.base import Description, Gate
from icl_lab.mixers.linear import CHANNEL_LOG_DECAY, LOG_DECAY
from icl_lab.mixers.matrix_state import MatrixStateMixer, Updates, matrix_size


class DeltaRule(MatrixStateMixer):
    """What the delta rules have in common: the gate `write_strength`, and how it sets the step.

    Attributes:
      negative_eigenvalues: whether the write strength may go up to 2 instead of 1; along a key of norm 1 the state is then
        multiplied by a number down to -1 (arXiv 2411.12537).
      normalised_step: whether the step is the write strength over |k_t|^2 (Kaczmarz); with strength 1 the state then gives the
        value of the last key exactly. A key that is zero writes nothing.
    """

    source: ClassVar[str]
    decays: ClassVar[tuple[Gate, ...]]
    negative_eigenvalues: bool = eqx.field(static=True, default=False, kw_only=True)
    normalised_step: bool = eqx.field(static=True, default=False, kw_only=True)

    @property
    def description(self) -> Description:
        """Every write holds products of all keys before it, so there is no degree; 1 if the step divides by the keys' norms."""
        highest = 2.0 if self.negative_eigenvalues else 1.0
        share = "it is the share of the error at a key of norm 1 that the write removes"
        gates = (Gate("write_strength", 0.0, highest, share), *self.decays)
        return Description(matrix_size, 1 if self.normalised_step else None, frozenset({"scale_values"}), self.source, gates)

    def updates(self, keys, values, gates):
        """The error at the key is written along the key, times the step."""
        step = gates["write_strength"]
        if self.normalised_step:
            norms = jnp.sum(jnp.abs(keys) ** 2, axis=1)
            step = jnp.where(norms > 0, step / jnp.where(norms > 0, norms, 1), 0)
        return Updates(step.astype(keys.dtype)[:, None] * keys.conj(), values, gates.get("log_decay"), keys)


class DeltaNet(DeltaRule):
    """The delta rule without a decay."""

    name: ClassVar[str] = "deltanet"
    source: ClassVar[str] = "2406.06484"
    decays: ClassVar[tuple[Gate, ...]] = ()


class GatedDeltaNet(DeltaRule):
    """The delta rule on a state that decays by one number a token, before the error is taken."""

    name: ClassVar[str] = "gated_deltanet"
    source: ClassVar[str] = "2412.06464"
    decays: ClassVar[tuple[Gate, ...]] = (LOG_DECAY,)


class KDA(DeltaRule):
    """Kimi delta attention: the delta rule on a state whose key channels decay each at its own rate."""

    name: ClassVar[str] = "kda"
    source: ClassVar[str] = "2510.26692"
    decays: ClassVar[tuple[Gate, ...]] = (CHANNEL_LOG_DECAY,)
