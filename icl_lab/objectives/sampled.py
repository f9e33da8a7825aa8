r"""The population loss of one linear attention layer on any task, from sampled feature moments.

One layer's prediction is linear in cubic features of the prompt, :math:`\hat y_o = \sum_f \theta_{of}\,\phi_f` with
:math:`\phi_{ab,c} = G_{ab}\,e_c` (G the attention Gram, e the query token) and coefficients
:math:`\theta_{o,ab,c} = W^{PV}_{oa}W^{KQ}_{bc}` (both orders added for a < b when G is symmetric). So
v = E|y|^2, c = E[phi y*], M = E[phi phi*] are sufficient for every training run on the task. They are streamed: prompts are
drawn in chunks inside one compiled loop, and memory is that of the moments plus one chunk whatever the number of prompts.
Prompts fall into equal groups whose spread gives the standard error.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Inexact
from rich.console import Console
from rich.progress import track

from icl_lab import precision
from icl_lab.errors import InvalidValueError, MemoryBudgetError, NonFiniteError, UnsupportedProblemError
from icl_lab.models.linear_attention import LinearSelfAttention
from icl_lab.objectives.objective import Objective
from icl_lab.tasks.prompt import Task, check_count
from icl_lab.typing import Array, Key, Weights

MEMORY_LIMIT = 4 * 2**30
"""Bytes that the moments may take before `MemoryBudgetError`; pass `memory_limit` to change it for one call."""
CHUNK_ELEMENTS = 2**16
"""Feature values per chunk: half a MB, so that a chunk stays in cache between its drawing and its product."""


@eqx.filter_jit
def _example_tokens(task: Task, model: LinearSelfAttention) -> Inexact[Array, "8 T D"]:
    return jax.vmap(model.tokens)(task.sample_batch(jax.random.key(0), 8))


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
        """The live features, found from the tokens of a few prompts: a slot that is exactly zero in all of them is dead."""
        tokens = np.asarray(_example_tokens(task, model))
        keys = tokens if model.query_in_sum else tokens[:, :-1]
        live = np.flatnonzero(np.any(keys != 0, axis=(0, 1)))
        first, second = np.meshgrid(live, live, indexing="ij")
        keep = np.ones_like(first, bool) if np.iscomplexobj(tokens) else first <= second
        return Features(
            rows=tuple(first[keep].tolist()),
            columns=tuple(second[keep].tolist()),
            queries=tuple(np.flatnonzero(np.any(tokens[:, -1] != 0, axis=0)).tolist()),
            outputs=tuple(range(tokens.shape[-1])[model.label_slots(tokens.shape[-1], task.label_dim)]),
            symmetric=not np.iscomplexobj(tokens),
        )

    @property
    def count(self) -> int:
        """Number of features F."""
        return len(self.rows) * len(self.queries)

    def values(self, keys: Inexact[Array, "T D B"], query: Inexact[Array, "D B"]) -> Inexact[Array, "F B"]:
        """phi of a batch of prompts from the attended tokens and the query tokens (divided by the normaliser).

        The batch is the last axis, over which every operation is one vector instruction; a batch of small matrix products
        takes twice as long.
        """
        # One sum for each pair: written as blocks of pairs, the compiler keeps the products in memory.
        pairs = jnp.stack(
            [jnp.sum(keys[:, a] * jnp.conj(keys[:, b]), axis=0) for a, b in zip(self.rows, self.columns, strict=True)]
        )
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


class SampledLoss(Objective):
    """Half loss of one linear attention layer from sampled moments; deterministic once built, with a standard error.

    Attributes:
      gram: (g, F, F) E[phi phi^*] of each group of prompts.
      cross: (g, F, k) E[phi y^*].
      variance: (g,) E|y|^2.
      mean_gram, mean_cross, mean_variance: their means over the groups, which every evaluation of the loss needs.
      prompts: number of prompts in all groups.
    """

    task: Task
    model: LinearSelfAttention
    features: Features
    gram: Inexact[Array, "g F F"]
    cross: Inexact[Array, "g F k"]
    variance: Float[Array, "g"]
    mean_gram: Inexact[Array, "F F"]
    mean_cross: Inexact[Array, "F k"]
    mean_variance: Float[Array, ""]
    prompts: int = eqx.field(static=True)

    @staticmethod
    def build(
        task: Task,
        model: eqx.Module,
        key: Key,
        prompts: int = 100_000,
        groups: int = 10,
        memory_limit: int = MEMORY_LIMIT,
        progress: bool = False,
    ) -> SampledLoss:
        """The loss from `prompts` sampled prompts.

        Args:
          task: any task.
          model: one linear attention layer (one loop; `causal` makes no difference to the last position's query).
          key: random key.
          prompts: rounded up to whole chunks in each group.
          groups: at least 2; their spread gives the standard error.
          memory_limit: bytes the moments may take.
          progress: show a progress bar on a terminal.

        Raises:
          UnsupportedProblemError: not a single linear layer.
          MemoryBudgetError: before allocating, with the bytes needed and allowed.
          NonFiniteError: a sampled prompt held a NaN or an infinity.
        """
        if not isinstance(model, LinearSelfAttention) or model.loops != 1:
            raise UnsupportedProblemError(
                f"feature moments exist for one linear attention layer; got {model}. Use `StreamedLoss` for other models."
            )
        check_count(prompts, "prompts", 2, "A standard error needs at least two prompts.")
        check_count(groups, "groups", 2, "The spread of the groups is the standard error.")
        with precision.float64():
            features = Features.of(task, model)
            complex_factor = 1 if features.symmetric else 2
            needed = 8 * complex_factor * (groups + 2) * features.count**2
            if needed > memory_limit:
                raise MemoryBudgetError(
                    f"the moments of {features.count} features in {groups} groups need {needed / 2**30:.3g} GiB, and "
                    f"{memory_limit / 2**30:.3g} GiB are allowed. Use fewer groups, a smaller d (features grow as d^3), "
                    "`objectives.StreamedLoss`, or raise `memory_limit`."
                )
            per_group = -(-prompts // groups)
            chunk = max(1, min(per_group, CHUNK_ELEMENTS // features.count))
            chunks = -(-per_group // chunk)

            def moments_of(index):
                with precision.float64():  # the scope is a thread's own
                    group_key = jax.random.fold_in(key, index)
                    return precision.to_numpy(_moments(task, model, features, group_key, chunks, chunk))

            # Two groups at a time: while one draws, the other multiplies.
            with ThreadPoolExecutor(2) as pool:
                running = pool.map(moments_of, range(groups))
                console = Console(stderr=True)
                moments = list(track(running, "sampled moments", groups, console=console, disable=not progress))
            gram, cross, variance = map(np.stack, zip(*moments, strict=True))
            loss = SampledLoss(
                task=task,
                model=model,
                features=features,
                gram=gram,
                cross=cross,
                variance=variance,
                mean_gram=np.mean(gram, axis=0),
                mean_cross=np.mean(cross, axis=0),
                mean_variance=np.asarray(np.mean(variance)),
                prompts=groups * chunks * chunk,
            )
        if not (np.all(np.isfinite(loss.variance)) and np.all(np.isfinite(loss.cross)) and np.all(np.isfinite(loss.gram))):
            raise NonFiniteError(
                f"the sampled prompts of {type(task).__name__} hold NaN or infinite values; every entry must be finite. "
                "Check the covariance, the noise, or the stability of the recursion."
            )
        return loss

    def __call__(self, weights: Weights, key: Key | None = None) -> Float[Array, ""]:
        weights = _single_layer(weights)
        theta = self.model.readout_sign * self.features.coefficients(weights)
        dtype = theta.dtype
        gram, cross, variance = map(jnp.asarray, (self.mean_gram, self.mean_cross, self.mean_variance))
        return 0.5 * _quadratic(theta, gram.astype(dtype), cross.astype(dtype), variance)

    def risk(self, weights: Weights) -> float:
        return float(np.mean(self._group_risks(weights)))

    def standard_error(self, weights: Weights) -> float:
        risks = self._group_risks(weights)
        return float(np.std(risks, ddof=1) / np.sqrt(len(risks)))

    def _group_risks(self, weights: Weights) -> Float[np.ndarray, "g"]:
        with precision.float64():
            weights = jax.tree.map(jnp.asarray, _single_layer(weights))
            theta = self.model.readout_sign * self.features.coefficients(weights)
            return np.asarray(jax.vmap(_quadratic, in_axes=(None, 0, 0, 0))(theta, self.gram, self.cross, self.variance))

    @property
    def rate_spread(self) -> float:
        # Relaxation rates scale like products of token variances; the tokens' spread to the third power bounds them.
        diagonal = np.sort(np.abs(np.diagonal(self.mean_gram)))
        return float(diagonal[-1] / max(diagonal[0], 1e-300))


def _single_layer(weights: Weights):
    if isinstance(weights, tuple):
        if len(weights) != 1:
            raise InvalidValueError(f"feature moments describe one layer; got weights of {len(weights)} layers.")
        return weights[0]
    return weights


def _quadratic(theta, gram, cross, variance):
    """sum_o E|y_o - theta_o phi|^2."""
    linear = jnp.sum(theta * cross.T)
    square = jnp.sum(jnp.conj(theta) * (theta @ gram))
    return variance - 2 * jnp.real(linear) + jnp.real(square)


@eqx.filter_jit
def _moments(task, model, features: Features, key, chunks: int, chunk: int):
    """Moments (E[phi phi^*], E[phi y^*], E|y|^2) of one group of prompts, streamed over its chunks."""

    def batch(index):
        prompts = task.sample_batch(jax.random.fold_in(key, index), chunk)
        tokens = jax.vmap(model.tokens, out_axes=-1)(prompts)
        keys = tokens if model.query_in_sum else tokens[:-1]
        phi, target = features.values(keys, tokens[-1] / model.rho(tokens.shape[0])), prompts.target
        return phi @ jnp.conj(phi).T, phi @ jnp.conj(target).astype(phi.dtype), jnp.sum(jnp.abs(target) ** 2)

    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(batch, jnp.asarray(0)))
    sums, _ = jax.lax.scan(lambda s, index: (jax.tree.map(jnp.add, s, batch(index)), None), zeros, jnp.arange(chunks))
    return jax.tree.map(lambda s: s / (chunks * chunk), sums)
