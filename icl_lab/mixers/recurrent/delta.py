r"""Delta rules: a token writes only what the state does not yet say of its value.

.. math:: S'_t = \operatorname{diag}(e^{g_t})\, S_{t-1}, \qquad
          S_t = S'_t + \beta_t\, k_t\, (v_t - S_t'^\top k_t)^\top, \qquad o_t = s\, S_t^\top q_t

Read as a regression of values on keys, a token is one step of stochastic gradient descent of size beta_t on its own half
squared error (`estimators.online_sgd`); a decay shrinks the weights before each step. The step is a gate, or follows from one:
Longhorn takes the implicit step (`estimators.implicit_online_sgd`), the minimum of the error and of the change of the state,

.. math:: S_t = \operatorname{argmin}_S\; \lVert S - S_{t-1} \rVert^2 + D_t\, \lVert v_t - S^\top k_t \rVert^2
          \quad\Longleftrightarrow\quad \beta_t = \frac{D_t}{1 + D_t\, |k_t|^2} ,

which overshoots at no key, however long. (Published Longhorn layers keep of k k^T the diagonal, and have a D a value channel.)

    mixer            step beta_t            decay g_t                              source
    deltanet         the gate               none                                   Yang et al.        arXiv 2406.06484
    gated_deltanet   the gate               one number a token                     Yang et al.        arXiv 2412.06464
    kda              the gate               one number a token and key channel     Kimi Team          arXiv 2510.26692
    longhorn         D / (1 + D |k|^2)      none                                   Liu et al.         arXiv 2407.14207
"""

from __future__ import annotations

import abc
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.core.typing import Array
from icl_lab.mixers.base import Description, Gate
from icl_lab.mixers.recurrent.linear import CHANNEL_LOG_DECAY, LOG_DECAY
from icl_lab.mixers.recurrent.matrix_state import MatrixStateMixer, Updates, along_keys, matrix_size


class DeltaRule(MatrixStateMixer):
    """What the delta rules have in common: the error at the key is written along the key. A rule says how far."""

    source: ClassVar[str]

    @abc.abstractmethod
    def steps(self, squares: Float[Array, "T"], gates: dict[str, Array]) -> Float[Array, "T"]:
        """The step beta_t of each token, from the squared norms of the keys and full-size gates."""

    def updates(self, keys, values, gates):
        """The error at the key, which a decay has left, is written along the key, times the step."""
        step = self.steps(jnp.sum(jnp.abs(keys) ** 2, axis=1), gates)
        decay = gates.get("log_decay")
        probes = keys if decay is None else keys * along_keys(jnp.exp(decay), keys)
        return Updates(step.astype(keys.dtype)[:, None] * keys.conj(), values, decay, probes)

    def described(self, degree: int | None, *gates: Gate) -> Description:
        """The description of a rule: whatever the steps, the state is a matrix, and linear in the values."""
        return Description(matrix_size, degree, frozenset({"scale_values"}), self.source, gates)


class ExplicitStep(DeltaRule):
    """A delta rule whose step is the gate `write_strength`, or proportional to it.

    Attributes:
      negative_eigenvalues: whether the write strength may go up to 2 instead of 1; along a key of norm 1 the state is then
        multiplied by a number down to -1 (arXiv 2411.12537).
      normalised_step: whether the step is the write strength over |k_t|^2 (Kaczmarz); with strength 1 the state then gives the
        value of the last key exactly. A key that is zero writes nothing.
    """

    decays: ClassVar[tuple[Gate, ...]]
    negative_eigenvalues: bool = eqx.field(static=True, default=False, kw_only=True)
    normalised_step: bool = eqx.field(static=True, default=False, kw_only=True)

    @property
    def description(self) -> Description:
        """Every write holds products of all keys before it, so there is no degree; 1 if the step divides by the keys' norms."""
        highest = 2.0 if self.negative_eigenvalues else 1.0
        share = "it is the share of the error at a key of norm 1 that the write removes"
        return self.described(1 if self.normalised_step else None, Gate("write_strength", 0.0, highest, share), *self.decays)

    def steps(self, squares, gates):
        """The write strength, over |k_t|^2 if the step is normalised."""
        strength = gates["write_strength"]
        if not self.normalised_step:
            return strength
        return jnp.where(squares > 0, strength / jnp.where(squares > 0, squares, 1), 0)


class DeltaNet(ExplicitStep):
    """The delta rule without a decay."""

    name: ClassVar[str] = "deltanet"
    source: ClassVar[str] = "2406.06484"
    decays: ClassVar[tuple[Gate, ...]] = ()


class GatedDeltaNet(ExplicitStep):
    """The delta rule on a state that decays by one number a token, before the error is taken."""

    name: ClassVar[str] = "gated_deltanet"
    source: ClassVar[str] = "2412.06464"
    decays: ClassVar[tuple[Gate, ...]] = (LOG_DECAY,)


class KDA(ExplicitStep):
    """Kimi delta attention: the delta rule on a state whose key channels decay each at its own rate."""

    name: ClassVar[str] = "kda"
    source: ClassVar[str] = "2510.26692"
    decays: ClassVar[tuple[Gate, ...]] = (CHANNEL_LOG_DECAY,)


class Longhorn(DeltaRule):
    """The delta rule with the implicit step, whose gate is the weight D_t of a token's squared error; it has no largest value.

    A small D makes the step D of a gradient; a large one that of Kaczmarz, 1 / |k_t|^2, which fits the token exactly.
    """

    name: ClassVar[str] = "longhorn"
    source: ClassVar[str] = "2407.14207"

    @property
    def description(self) -> Description:
        """The step is no power of the key's norm, so there is no degree."""
        weight = "it weighs a token's squared error against the change of the state"
        return self.described(None, Gate("error_weight", 0.0, np.inf, weight))

    def steps(self, squares, gates):
        """D / (1 + D |k|^2), the minimum of the module's quadratic: D times the error that is left after the write."""
        weight = gates["error_weight"]
        return weight / (1 + weight * squares)
