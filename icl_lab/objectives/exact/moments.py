r"""The loss of one linear attention layer as a quadratic form in cubic features of the prompt.

One layer's prediction is linear in the features, :math:`\hat y_o = \sum_f \theta_{of}\,\phi_f` with
:math:`\phi_{ab,c} = G_{ab}\,e_c` (G the attention Gram, e the query token) and coefficients
:math:`\theta_{o,ab,c} = W^{PV}_{oa}W^{KQ}_{bc}` (both orders added for a < b when G is symmetric). So
v = E|y|^2, c = E[phi y*], M = E[phi phi*] are sufficient for every training run on the task. Where they are known in closed
form the loss is exact; `objectives.sampled` estimates them from prompts. Losses of several positions or distributions add,
and so do their moments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeGuard

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Float, Inexact, Int

from icl_lab.core import compiled
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import SINGULAR
from icl_lab.core.typing import Array, Key, Weights
from icl_lab.models.linear_attention import LinearSelfAttention
from icl_lab.objectives.objective import LARGEST_SPREAD, Loss, Objective, second_moment_spread
from icl_lab.objectives.structured import Entries, StructuredLoss, in_subspace
from icl_lab.tasks.blocks import drawn_apart, prompts_in_blocks
from icl_lab.tasks.prompt import Task
from icl_lab.tasks.regression.linear import LinearRegression, is_plain


def _example_tokens(task: Task, model: LinearSelfAttention) -> Inexact[Array, "8 T D"]:
    if drawn_apart(task):
        # By the programs that draw all other prompts.
        return jax.vmap(model.tokens)(next(prompts_in_blocks(task, jax.random.key(0), iter([8]))))
    return _drawn_tokens(task, model)


@compiled.jit
def _drawn_tokens(task: Task, model: LinearSelfAttention) -> Inexact[Array, "8 T D"]:
    return jax.vmap(model.tokens)(task.sample_batch(jax.random.key(0), 8))


def reads_regression(task: Task, model: LinearSelfAttention) -> TypeGuard[LinearRegression]:
    """Whether the tokens are the merged ones of `LinearRegression`.

    Then every entry is active, and a prompt with all labels and its target reversed is as likely.
    """
    return is_plain(task) and model.embedding == "merged"


class Features(eqx.Module):
    """Which entries of the Gram and of the query token make up the features; entries that are structurally zero are left out.

    Attributes:
      rows, columns: (A,) indices a, b of the Gram entries (a <= b for real tokens, all pairs for complex ones).
      queries: (Q,) indices c of the query token.
      outputs: (k,) label slots of the query token.
      symmetric: whether the Gram is symmetric, so that each entry with a < b stands for two.
    """

    rows: tuple[int, ...] = eqx.field(static=True)
    columns: tuple[int, ...] = eqx.field(static=True)
    queries: tuple[int, ...] = eqx.field(static=True)
    outputs: tuple[int, ...] = eqx.field(static=True)
    symmetric: bool = eqx.field(static=True)

    @staticmethod
    def of(task: Task, model: LinearSelfAttention) -> Features:
        """The active features: all of merged tokens of regression, else found from the tokens of a few prompts, where one
        exactly zero in all is inactive."""
        if reads_regression(task, model):
            return Features.of_regression(task.dim)
        tokens = np.asarray(_example_tokens(task, model))
        keys = tokens if model.query_in_sum else tokens[:, :-1]
        active = np.flatnonzero(np.any(keys != 0, axis=(0, 1)))
        first, second = np.meshgrid(active, active, indexing="ij")
        keep = np.ones_like(first, bool) if np.iscomplexobj(tokens) else first <= second
        return Features(
            rows=tuple(first[keep].tolist()),
            columns=tuple(second[keep].tolist()),
            queries=tuple(np.flatnonzero(np.any(tokens[:, -1] != 0, axis=0)).tolist()),
            outputs=tuple(range(tokens.shape[-1])[model.label_slots(tokens.shape[-1], task.label_dim)]),
            symmetric=not np.iscomplexobj(tokens),
        )

    @staticmethod
    def of_regression(dim: int) -> Features:
        """Those of merged tokens (x, y) and a query token (x_q, 0) in d dimensions."""
        rows, columns = np.triu_indices(dim + 1)
        return Features(tuple(rows.tolist()), tuple(columns.tolist()), tuple(range(dim)), (dim,), symmetric=True)

    @property
    def count(self) -> int:
        """Number of features F."""
        return len(self.rows) * len(self.queries)

    def values(self, keys: Inexact[Array, "T D B"], query: Inexact[Array, "D B"]) -> Inexact[Array, "F B"]:
        """phi of a batch of prompts from the attended tokens and the query tokens (divided by the normaliser).

        The batch is the last axis, over which every operation is one vector instruction; a batch of small matrix products
        takes twice as long.
        """
        return self.products(self.pairs(keys), query)

    def pairs(self, keys: Inexact[Array, "T D B"]) -> Inexact[Array, "A B"]:
        """The entries of the Gram, without its normaliser; those of parts of a prompt add."""
        # One sum for each pair: written as blocks of pairs, the compiler keeps the products in memory.
        return jnp.stack(
            [jnp.sum(keys[:, a] * jnp.conj(keys[:, b]), axis=0) for a, b in zip(self.rows, self.columns, strict=True)]
        )

    def products(self, pairs: Inexact[Array, "A B"], query: Inexact[Array, "D B"]) -> Inexact[Array, "F B"]:
        """phi from the entries of the Gram and the query tokens."""
        return (pairs[:, None, :] * query[np.asarray(self.queries)][None, :, :]).reshape(self.count, -1)

    def coefficients(self, weights: Weights) -> Inexact[Array, "k F"]:
        """theta of merged or separate weights, heads added."""
        heads = weights.merged().with_head_axis()
        left = heads.w_pv[:, np.asarray(self.outputs), :]
        right = heads.w_kq[:, :, np.asarray(self.queries)]
        rows, columns = np.asarray(self.rows), np.asarray(self.columns)

        def pair(a, b):
            return jnp.einsum("hof,hfq->ofq", left[:, :, a], right[:, b, :])

        theta = pair(rows, columns)
        if self.symmetric:
            strict = jnp.asarray(rows < columns, theta.dtype)
            theta = theta + strict[None, :, None] * pair(columns, rows)
        return theta.reshape(len(self.outputs), -1)


class Moments(eqx.Module):
    """What the loss knows of the task.

    Attributes:
      gram: (F, F) E[phi phi^*].
      cross: (F, k) E[phi y^*].
      variance: E|y|^2.
    """

    gram: Inexact[Array, "*g F F"]
    cross: Inexact[Array, "*g F k"]
    variance: Float[Array, "*g"]

    def risk(self, theta: Inexact[Array, "k F"]) -> Float[Array, ""]:
        """sum_o E|y_o - theta_o phi|^2."""
        linear = jnp.sum(theta * self.cross.T.astype(theta.dtype))
        return self.variance - 2 * jnp.real(linear) + _square(self.gram.astype(theta.dtype), theta)


@jax.custom_jvp
def _square(gram: Inexact[Array, "F F"], theta: Inexact[Array, "k F"]) -> Float[Array, ""]:
    """sum_o theta_o^* G theta_o of a Hermitian G, whose gradient takes one product with G and not two."""
    return jnp.real(jnp.sum(jnp.conj(theta) * (theta @ gram)))


@functools.partial(_square.defjvp, symbolic_zeros=True)
def _square_tangent(primals, tangents):
    (gram, theta), (gram_tangent, theta_tangent) = primals, tangents
    image = theta @ gram
    tangent = jnp.zeros((), jnp.real(image).dtype)
    if not isinstance(theta_tangent, SymbolicZero):
        tangent = tangent + 2 * jnp.real(jnp.sum(jnp.conj(image) * theta_tangent))
    if not isinstance(gram_tangent, SymbolicZero):
        tangent = tangent + _square(gram_tangent, theta)
    return jnp.real(jnp.sum(jnp.conj(theta) * image)), tangent


class MomentPolynomial(Loss):
    """Half loss of one linear attention layer as a polynomial, of its moments alone.

    Attributes:
      features: which features the moments are of.
      moments: their moments.
      readout_sign: see `models.LinearSelfAttention`.
    """

    features: Features
    moments: Moments
    readout_sign: float = eqx.field(static=True)

    def __call__(self, weights: Weights, key: Key | None = None) -> Float[Array, ""]:
        return 0.5 * jax.tree.map(jnp.asarray, self.moments).risk(self.coefficients(weights))

    def coefficients(self, weights: Weights) -> Inexact[Array, "k F"]:
        """theta of the weights of one layer, the sign of the readout included.

        Raises:
          InvalidValueError: weights of more than one layer.
        """
        if isinstance(weights, tuple):
            if len(weights) != 1:
                raise InvalidValueError(f"feature moments describe one layer; got weights of {len(weights)} layers.")
            (weights,) = weights
        return self.readout_sign * self.features.coefficients(weights)

    @property
    def rate_spread(self) -> float:
        # Relaxation rates scale like products of token variances; the tokens' spread to the third power bounds them.
        diagonal = np.abs(np.diagonal(self.moments.gram))
        # A feature that never occurs (products of two inputs of which one is zero) has no rate.
        return (
            float(np.max(diagonal) / np.min(diagonal, initial=np.max(diagonal), where=diagonal > 0)) if diagonal.any() else 1.0
        )


class MomentLoss(Objective):
    """Half loss of one linear attention layer from its moments, exact where they are."""

    task: Task
    model: LinearSelfAttention
    features: Features
    moments: Moments

    @property
    def bare(self) -> MomentPolynomial:
        return MomentPolynomial(self.features, self.moments, self.model.readout_sign)

    def __call__(self, weights: Weights, key: Key | None = None) -> Float[Array, ""]:
        return self.bare(weights)

    def coefficients(self, weights: Weights) -> Inexact[Array, "..."]:
        """theta of the weights of one layer, the sign of the readout included.

        Raises:
          InvalidValueError: weights of more than one layer.
        """
        return self.bare.coefficients(weights)

    def coordinates(self, weights: Weights) -> tuple[Loss, Weights, Callable[[Weights], Weights]]:
        """On the subspace p1 = k2 = 0, where the moments leave it invariant, those of a `StructuredLoss`."""
        odd = self._label_features()
        if odd is None or not in_subspace(weights):
            return super().coordinates(weights)
        values, basis = np.linalg.eigh(self.moments.gram[np.ix_(odd, odd)])
        if not values[0] > SINGULAR * values[-1]:
            return super().coordinates(weights)
        axes = Entries(frozen=weights, basis=basis)
        shape = weights.w_kq[:-1, :-1].shape
        loss = StructuredLoss(
            offset=np.asarray(self.moments.variance),
            signal=self.model.readout_sign * (basis.T @ self.moments.cross[odd, 0]).reshape(shape),
            curvature=values.reshape(shape),
            rounding=np.asarray(np.finfo(np.float64).eps * values[-1] / values[0]),
        )
        return loss, axes.start, axes

    def _label_features(self) -> Int[np.ndarray, "dd"] | None:
        """The features with one label, x_a y x_c, if moments between them and the others vanish; else None.

        Of merged tokens in d dimensions, in the order of the entries (a, c) of the top-left block of W_KQ.
        """
        features = self.features
        slots = set(features.queries)
        if features.outputs != (len(slots),) or slots != set(range(len(slots))) or not features.symmetric:
            return None
        is_label = np.asarray(features.columns) == len(slots)
        mixed = is_label & (np.asarray(features.rows) < len(slots))
        odd = np.flatnonzero(np.repeat(mixed, len(slots)))
        if len(odd) != len(slots) ** 2:
            return None
        even = np.setdiff1d(np.arange(features.count), odd)
        if np.any(self.moments.gram[np.ix_(odd, even)]) or np.any(self.moments.cross[even]):
            return None
        return odd

    @property
    def graded(self) -> bool:
        task = self.task
        if reads_regression(task, self.model):
            variances = np.append(np.linalg.eigvalsh(task.covariance), task.label_variance)
            spread = float(np.max(variances) / np.min(variances[variances > SINGULAR * np.max(variances)]))
        else:
            # By the tokens that `Features.of` has drawn already.
            spread = second_moment_spread(_example_tokens(task, self.model))
        return self.rate_spread > LARGEST_SPREAD or spread**3 > LARGEST_SPREAD

    def unconstrained_feature_risk(self) -> float:
        """The smallest risk of free coefficients theta, a lower bound for one layer with any number of heads.

        A layer's coefficients are products of its weights; free of that, the risk is a convex quadratic, which linear algebra
        minimises. With sampled moments the coefficients are fitted to the sample, and the bound is low by a fraction of about
        F / prompts of itself, F the number of features.
        """
        cross = np.asarray(self.moments.cross)
        best = np.linalg.lstsq(np.asarray(self.moments.gram), cross)[0]
        return float(self.moments.variance - np.real(np.vdot(cross, best)))

    @property
    def rate_spread(self) -> float:
        return self.bare.rate_spread
