r"""A state that a matrix multiplies at every token, diagonal plus of rank one: the core of RWKV-7.

.. math:: S_t = \operatorname{diag}(e^{g_t})\, S_{t-1} + b_t\, (a_t^\top S_{t-1}) + k_t v_t^\top, \qquad o_t = s\, S_t^\top q_t

What the state says at the probe a_t, before it decays, comes back along b_t, whatever is written. With a = -e^g k and
b = beta k it is what a delta rule does to a state whose value is zero: KDA, but for its write. RWKV-7 (arXiv 2503.14456) takes
a = -kappa and b = eta kappa, kappa of norm 1 and eta a number a channel in (0, 1), and keys that are neither.
"""

from __future__ import annotations

import math
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Inexact

from icl_lab.core.typing import Array
from icl_lab.mixers.base import Description, Gate
from icl_lab.mixers.recurrent.linear import CHANNEL_LOG_DECAY
from icl_lab.mixers.recurrent.matrix_state import MatrixStateMixer, Updates, matrix_size

PROBE = Gate("probe", -math.inf, math.inf, "it is where the state is read before it decays", per_channel=True)
FEEDBACK = Gate("feedback", -math.inf, math.inf, "along it the state at the probe is added", per_channel=True)


class DPLR(MatrixStateMixer):
    """Diagonal plus low rank: the decay, and what comes back from the probe a_t along the feedback b_t, are gates."""

    name: ClassVar[str] = "dplr"

    @property
    def description(self) -> Description:
        """Degree 3: whatever multiplies the state, it is linear in the pairs."""
        gates = (CHANNEL_LOG_DECAY, PROBE, FEEDBACK)
        return Description(matrix_size, 3, frozenset({"scale_values"}), "2503.14456", gates)

    def updates(self, keys, values, gates):
        """Two steps a token: the decay with the feedback, then the write; (2 N, K)."""
        decay, feedback = gates["log_decay"], gates["feedback"].astype(keys.dtype)
        return Updates(
            in_turn(feedback, keys.conj()),
            in_turn(jnp.zeros_like(values), values),
            in_turn(decay, jnp.zeros_like(decay)),
            in_turn(-gates["probe"].astype(keys.dtype), jnp.zeros_like(keys)),
        )

    def mix(self, queries, keys, values, gates, form, chunk, initial):
        """A query reads after the second step of its token."""
        outputs, state = super().mix(jnp.repeat(queries, 2, axis=0), keys, values, gates, form, 2 * chunk, initial)
        return outputs[1::2], state


def in_turn(first: Inexact[Array, "N D"], second: Inexact[Array, "N D"]) -> Inexact[Array, "2*N D"]:
    """Rows of the two by turns."""
    return jnp.stack([first, second], axis=1).reshape(-1, first.shape[1])
