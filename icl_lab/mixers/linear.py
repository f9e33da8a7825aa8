r"""Linear attention, plain and with a decay: the state is a sum of outer products of keys and values.

.. math:: S_t = \operatorname{diag}(e^{g_t})\, S_{t-1} + k_t v_t^\top, \qquad o_t = s\, S_t^\top q_t

Read as a regression of values on keys, the answer to a query is one gradient step of size s from zero, on the sum of half
squared errors; a decay weights the error of a pair by what is left of it.

    mixer        decay g_t                                  source
    linear       none                                       Katharopoulos et al.   arXiv 2006.16236
    retention    one number, fixed                          Sun et al.             arXiv 2307.08621
    simple_gla   one number a token (Mamba-2 as well)       Dao and Gu             arXiv 2405.21060
    gla          one number a token and key channel         Yang et al.            arXiv 2312.06635
"""

from __future__ import annotations

import math
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import is_traced
from icl_lab.core.typing import Array
from icl_lab.mixers.base import Description, Gate
from icl_lab.mixers.matrix_state import MatrixStateMixer, Updates, matrix_size

LOG_DECAY = Gate("log_decay", -math.inf, 0.0, "it is the logarithm of the share of the state that is kept")
CHANNEL_LOG_DECAY = Gate("log_decay", -math.inf, 0.0, LOG_DECAY.meaning, per_channel=True)


class LinearAttention(MatrixStateMixer):
    """Linear attention without normalisation: o_t = s sum_{i <= t} (k_i . q_t) v_i."""

    name: ClassVar[str] = "linear"

    @property
    def description(self) -> Description:
        """Degree 3: one query, one key, one value in every term."""
        return Description(matrix_size, 3, frozenset({"permute_pairs", "scale_values"}), "2006.16236")

    def updates(self, keys, values, gates):
        """Every pair is written as it is."""
        return Updates(keys.conj(), values)


class Retention(MatrixStateMixer):
    """Retention: linear attention whose state shrinks by the same factor at every token.

    Attributes:
      log_decay: logarithm of that factor, <= 0; by default that of the first head of a RetNet, 1 - 2^{-5}.
    """

    name: ClassVar[str] = "retention"
    log_decay: float | Float[Array, ""] = math.log1p(-(2.0**-5))

    def __check_init__(self):
        if not is_traced(self.log_decay) and not (np.isfinite(self.log_decay) and self.log_decay <= 0):
            raise InvalidValueError(
                f"`log_decay` must be finite and <= 0, because {LOG_DECAY.meaning}; got {self.log_decay!r}."
            )

    @property
    def description(self) -> Description:
        """Degree 3, as for linear attention; with the decay the order of the tokens counts."""
        return Description(matrix_size, 3, frozenset({"scale_values"}), "2307.08621")

    def updates(self, keys, values, gates):
        """Every pair is written as it is, after the fixed decay."""
        decay = jnp.asarray(self.log_decay, jnp.finfo(keys.dtype).dtype)
        return Updates(keys.conj(), values, jnp.full(keys.shape[:1], decay))


class SimpleGLA(MatrixStateMixer):
    """Linear attention with one decay a token, which may depend on the token: simple GLA, and the core of Mamba-2.

    Mamba-2 with step dt_t and rate A < 0 has log_decay = dt_t A, values dt_t x_t and scale 1.
    """

    name: ClassVar[str] = "simple_gla"

    @property
    def description(self) -> Description:
        """Degree 3; the decay is a gate, one number a token."""
        return Description(matrix_size, 3, frozenset({"scale_values"}), "2405.21060", (LOG_DECAY,))

    def updates(self, keys, values, gates):
        """Every pair is written as it is, after the token's decay."""
        return Updates(keys.conj(), values, gates["log_decay"])


class GLA(MatrixStateMixer):
    """Gated linear attention: every key channel forgets at its own rate, which may depend on the token."""

    name: ClassVar[str] = "gla"

    @property
    def description(self) -> Description:
        """Degree 3; the decay is a gate, one number a token and key channel."""
        return Description(matrix_size, 3, frozenset({"scale_values"}), "2312.06635", (CHANNEL_LOG_DECAY,))

    def updates(self, keys, values, gates):
        """Every pair is written as it is, after the decay of each channel."""
        return Updates(keys.conj(), values, gates["log_decay"])
