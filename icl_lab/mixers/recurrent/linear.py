r"""Linear attention, plain and with a decay: the state is a sum of outer products of keys and values.

.. math:: S_t = \operatorname{diag}(e^{g_t})\, S_{t-1} + k_t v_t^\top, \qquad o_t = s\, S_t^\top q_t

Read as a regression of values on keys, the answer to a query is one gradient step of size s from zero, on the sum of half
squared errors; a decay weights the error of a pair by what is left of it.

    mixer        decay g_t                                  source
    linear       none                                       Katharopoulos et al.   arXiv 2006.16236
    retention    one number, fixed                          Sun et al.             arXiv 2307.08621
    simple_gla   one number a token (Mamba-2 as well)       Dao and Gu             arXiv 2405.21060
    gla          one number a token and key channel         Yang et al.            arXiv 2312.06635
    hgrn2        follows from the key                       Qin et al.             arXiv 2404.07904
    rwkv6        one number a token and key channel         Peng et al.            arXiv 2404.05892

`rwkv6` alone reads before it writes. The fixed decays that published models give to their heads: `retnet_log_decay`,
`lightning_log_decay`.
"""

from __future__ import annotations

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import is_traced
from icl_lab.core.typing import Array
from icl_lab.mixers.base import Description, Gate
from icl_lab.mixers.forms import state_before
from icl_lab.mixers.parameters import ChannelParameter, check_parameter, per_channel
from icl_lab.mixers.recurrent.matrix_state import MatrixStateMixer, Updates, empty, matrix_size

LOG_DECAY = Gate("log_decay", -math.inf, 0.0, "it is the logarithm of the share of the state that is kept")
CHANNEL_LOG_DECAY = Gate("log_decay", -math.inf, 0.0, LOG_DECAY.meaning, per_channel=True)


def retnet_log_decay(head: int | Inexact[Array, ""]) -> Float[Array, ""]:
    """Log decay of head h = 0, 1, .. of a RetNet: of 1 - 2^{-5 - h} (arXiv 2307.08621)."""
    return jnp.log1p(-(2.0 ** (-5.0 - head)))


def lightning_log_decay(head: int, heads: int, layer: int, layers: int) -> float:
    """Log decay of one head of TransNormerLLM (arXiv 2307.14995) and of Lightning Attention (arXiv 2401.04658), as released.

    It is -2^{-8 (h + 1) / H} (1 - l / (L - 1) + 1e-5): the first head forgets fastest, and the last layer hardly at all.

    Args:
      head: h, 0 to H - 1.
      heads: H >= 1.
      layer: l, 0 to L - 1.
      layers: L >= 1; the only layer of one is a first one.

    Raises:
      InvalidValueError: a head or layer that there is not.
    """
    for name, value, count in (("head", head, heads), ("layer", layer, layers)):
        if not 0 <= value < count:
            raise InvalidValueError(f"`{name}` must be in 0 .. {count - 1}, because there are {count}; got {value}.")
    return -(2.0 ** (-8 * (head + 1) / heads)) * (1 - layer / max(layers - 1, 1) + 1e-5)


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


class HGRN2(MatrixStateMixer):
    """Linear attention whose key channels write what they forget: alpha_t = e^{g_t} is kept, and k_t = 1 - alpha_t written.

    There is one array for the two. The keys that the mixer is given are logits: alpha_t is their sigmoid, raised to at least
    `lower_bound`, so that in a layer the projection to the keys is that to the forget gate. A row of the state is a weighted
    mean of the values, with what weight is left on the row before the first token.

    Attributes:
      lower_bound: smallest share that a channel keeps, in [0, 1); published models raise it from layer to layer.
    """

    name: ClassVar[str] = "hgrn2"
    lower_bound: float | int | Float[Array, ""] = 0.0

    def __check_init__(self):
        if not is_traced(self.lower_bound) and not 0 <= self.lower_bound < 1:
            raise InvalidValueError(
                f"`lower_bound` must be in [0, 1), because a channel that keeps everything writes nothing; "
                f"got {self.lower_bound!r}."
            )

    @property
    def description(self) -> Description:
        """No degree, as the keys are logits; there is no gate besides them."""
        return Description(matrix_size, None, frozenset({"scale_values"}), "2404.07904")

    def updates(self, keys, values, gates):
        """The share that is not kept is written; of complex keys the real part decides."""
        logits = jnp.real(keys)
        least = jnp.asarray(self.lower_bound, logits.dtype)
        written = (1 - least) * jax.nn.sigmoid(-logits)
        kept = jnp.logaddexp(jnp.log(least), jnp.log1p(-least) + jax.nn.log_sigmoid(logits))
        return Updates(written.astype(keys.dtype), values, kept)


class RWKV6(MatrixStateMixer):
    r"""RWKV-6: token t reads what was there before it, and its own value with a bonus; then the state decays and it is written.

    .. math:: o_t = s\, (S_{t-1} + \operatorname{diag}(u)\, k_t v_t^\top)^\top q_t, \qquad
              S_t = \operatorname{diag}(e^{g_t})\, S_{t-1} + k_t v_t^\top

    Attributes:
      bonus: u, one number or one a key channel, (K,).
    """

    name: ClassVar[str] = "rwkv6"
    bonus: ChannelParameter = 1.0

    def __check_init__(self):
        check_parameter(self.bonus, "bonus", "it multiplies the newest pair", positive=False)

    @property
    def description(self) -> Description:
        """Degree 3; the decay is a gate, one number a token and key channel."""
        return Description(matrix_size, 3, frozenset({"scale_values"}), "2404.05892", (CHANNEL_LOG_DECAY,))

    def updates(self, keys, values, gates):
        """Every pair is written as it is, after the decay of each channel."""
        return Updates(keys.conj(), values, gates["log_decay"])

    def mix(self, queries, keys, values, gates, form, chunk, initial):
        """A query reads after the token before its own, so each is asked one token earlier and the first at the start."""
        start = state_before(initial, empty(keys, values), "state S_0, (K, V)")
        earlier, state = super().mix(jnp.roll(queries, -1, axis=0), keys, values, gates, form, chunk, start)
        before = jnp.concatenate([queries[:1] @ start, earlier[:-1]])
        own = jnp.sum(queries * self._with_bonus(keys.conj()), axis=1, keepdims=True)
        return before + own * values, state

    def answer(self, query, keys, values, gates, initial):
        """The last token does not decay what it reads, and its pair has the bonus."""
        writes = keys.at[-1].set(self._with_bonus(keys[-1]))
        return super().answer(query, writes, values, {"log_decay": gates["log_decay"].at[-1].set(0)}, initial)

    def _with_bonus(self, keys: Inexact[Array, "*T K"]) -> Inexact[Array, "*T K"]:
        bonus = per_channel(self.bonus, "bonus", keys.shape[-1], jnp.finfo(keys.dtype).dtype)
        return keys * jnp.broadcast_to(bonus.astype(keys.dtype), keys.shape)
