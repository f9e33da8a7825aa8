r"""Mamba's selective state space, whose tokens say how much time passes: linear attention that forgets what it makes room for.

.. math:: \dot S = -a\, S + b_t\, x_t^\top \;\text{ for a time } \Delta_t:\qquad
          S_t = e^{-a \Delta_t} S_{t-1} + \frac{1 - e^{-a \Delta_t}}{a}\, b_t x_t^\top, \qquad o_t = s\, S_t^\top c_t

is exact for inputs that are constant during the step (the zero-order hold). Keys are the b_t of the literature, values its x_t,
queries its c_t, each with its scale. At a = 1 and with a step softplus(z_t), decay and write are 1 - sigmoid(z_t) and
sigmoid(z_t), so that the weight of pair i is the piece that it breaks off a stick of length 1 and that later ones leave of it
(arXiv 2510.00399):

.. math:: o = s \sum_i G_i\, (c \cdot b_i)\, x_i, \qquad
          G_i = \operatorname{sigmoid}(z_i) \prod_{j > i} (1 - \operatorname{sigmoid}(z_j)), \qquad
          \sum_i G_i + \prod_j (1 - \operatorname{sigmoid}(z_j)) = 1 .

Mamba-1 has a step for each channel of the values: that is one head of value width 1 a channel. Mamba-2 takes Delta_t b_t as
write (`linear.SimpleGLA`), the limit of short steps.
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp

from icl_lab.mixers.base import Description, Gate
from icl_lab.mixers.parameters import ChannelParameter, check_parameter, per_channel
from icl_lab.mixers.recurrent.matrix_state import MatrixStateMixer, Updates, matrix_size


class Mamba(MatrixStateMixer):
    """Mamba-1 with the zero-order hold, for value channels that share their steps.

    Attributes:
      rate: a > 0, how fast the state decays; one number or one a key channel, (K,).
    """

    name: ClassVar[str] = "mamba"
    rate: ChannelParameter = eqx.field(default=1.0, kw_only=True)

    def __check_init__(self):
        check_parameter(self.rate, "rate", "the state decays by exp(-rate step)")

    @property
    def description(self) -> Description:
        """Degree 3; the step is a gate, one number a token."""
        step = Gate("step", 0.0, float("inf"), "it is the time that passes at a token")
        return Description(matrix_size, 3, frozenset({"scale_values"}), "2312.00752", (step,))

    def updates(self, keys, values, gates):
        """Every pair is written as far as the token's decay makes room for it, over the rate."""
        step = gates["step"]
        if jnp.ndim(self.rate) == 0:
            # One decay for all channels: a matrix of decays between tokens is enough.
            rate = jnp.asarray(self.rate, step.dtype)
            decay = -rate * step
            room = (-jnp.expm1(decay) / rate)[:, None]
        else:
            rate = per_channel(self.rate, "rate", keys.shape[1], step.dtype)
            decay = -step[:, None] * rate[None]
            room = -jnp.expm1(decay) / rate[None]
        return Updates(room.astype(keys.dtype) * keys.conj(), values, decay)
