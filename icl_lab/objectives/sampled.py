"""The population loss of one linear attention layer on any task, from sampled feature moments.

The moments of `objectives.moments` are streamed: prompts are drawn in chunks inside one compiled loop, and memory is that of
the moments plus one chunk whatever the number of prompts. Prompts fall into equal groups whose spread gives the standard
error. The prompts of a chunk are laid over all devices.

Prompts of Gaussian regression are drawn at a length of a few sizes and cut by a mask, so that context lengths share a program;
those of any other law of the inputs are drawn apart, so that laws do. A prompt of the package's own regression counts
together with its twin of opposite labels, which is as likely: moments of an odd number of labels are zero.

Weights that were trained on sampled moments are fitted to that sample. `SampledLoss.held_out` is their risk on other prompts.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.core import compiled, precision
from icl_lab.core import progress as progress_of
from icl_lab.core.errors import MemoryBudgetError, NonFiniteError, UnsupportedProblemError
from icl_lab.core.prng import stream
from icl_lab.core.typing import Array, Key, Weights
from icl_lab.models.linear_attention import LinearSelfAttention
from icl_lab.objectives.exact.moments import Features, MomentLoss, MomentPolynomial, Moments, reads_regression
from icl_lab.objectives.held_out import HeldOut
from icl_lab.objectives.prompt_features import (
    PROMPTS_OF_PIECES,
    at_padded_length,
    chunk_features,
    drawn_in_pieces,
    reads_grams,
    sources,
)
from icl_lab.tasks.distributions.check import check_once
from icl_lab.tasks.prompt import Task, check_count
from icl_lab.tasks.regression.linear import LinearRegression, is_plain
from icl_lab.tasks.sharing import sharing

MEMORY_LIMIT = 4 * 2**30
"""Bytes that the moments may take before `MemoryBudgetError`; pass `memory_limit` to change it for one call."""
CHUNK_ELEMENTS = 2**16
"""Feature values per chunk: half a MB, so that a chunk stays in cache between its drawing and its product."""
SMALLEST_CHUNK = 128
"""Prompts of a chunk if they are short: fewer are less work than adding their moments to those of all before."""
TOKEN_ELEMENTS = 2**20
"""Token entries per chunk, 8 MB: long prompts are drawn one at a time, and those are what memory grows with."""
HELD_OUT_CHUNK = 512
"""Prompts whose errors are in memory at once, at most."""


class SampledLoss(MomentLoss):
    """Half loss of one linear attention layer from sampled moments; deterministic once built, with a standard error.

    Attributes:
      moments: their means over the groups.
      groups: the moments of each group of prompts, with a leading axis.
      seed_key: raw key data that the prompts were drawn from.
      prompts: number of prompts in all groups.
    """

    groups: Moments
    seed_key: Array
    prompts: int = eqx.field(static=True)

    @staticmethod
    def build(
        task: Task,
        model: eqx.Module,
        key: Key,
        prompts: int = 20_000,
        groups: int = 10,
        memory_limit: int = MEMORY_LIMIT,
        progress: bool = False,
        *,
        features: Features | None = None,
        every_position: bool = False,
    ) -> SampledLoss:
        """The loss from `prompts` sampled prompts.

        Args:
          task: any task.
          model: one linear attention layer (one loop; `causal` makes no difference to the last position's query).
          key: random key.
          prompts: rounded up to whole chunks in each group.
          groups: at least 2; their spread gives the standard error.
          memory_limit: bytes the moments may take.
          progress: show on stderr how many groups are drawn, once it takes more than a few seconds.
          features: those the weights use; by default every feature that is not identically zero.
          every_position: for "paired" tokens, the sum of the losses of the context lengths 1 .. N of each sequence, whose Grams
            are running sums.

        Raises:
          UnsupportedProblemError: not a single linear layer, or every position of other tokens.
          MemoryBudgetError: before allocating, with the bytes needed and allowed.
          NonFiniteError: a sampled prompt held a NaN or an infinity.
        """
        if not isinstance(model, LinearSelfAttention) or not model.is_single_pass:
            raise UnsupportedProblemError(
                f"feature moments exist for one linear attention layer; got {model}. Use `StreamedLoss` for other models."
            )
        if every_position and model.embedding != "paired":
            raise UnsupportedProblemError(
                f'every position of a sequence has its next state as target on "paired" tokens; got {model.embedding!r}.'
            )
        check_count(prompts, "prompts", 2, "A standard error needs at least two prompts.")
        check_count(groups, "groups", 2, "The spread of the groups is the standard error.")
        with precision.float64():
            task = sharing(task)
            if isinstance(task, LinearRegression):
                check_once(task.covariates, task.context_length + 1)
            if features is None:
                features = Features.of_regression(task.dim) if reads_grams(task, model) else Features.of(task, model)
            complex_factor = 1 if features.symmetric else 2
            needed = 8 * complex_factor * (groups + 2) * features.count**2
            if needed > memory_limit:
                raise MemoryBudgetError(
                    f"the moments of {features.count} features in {groups} groups need {needed / 2**30:.3g} GiB, and "
                    f"{memory_limit / 2**30:.3g} GiB are allowed. Use fewer groups, a smaller d (features grow as d^3), "
                    "`objectives.StreamedLoss`, or raise `memory_limit`."
                )
            per_group = -(-prompts // groups)
            positions = task.context_length if every_position else 1
            drawn, length = at_padded_length(task, model)
            tokens = eqx.filter_eval_shape(lambda task, key: model.tokens(task.sample(key)), drawn, key)
            in_cache = max(CHUNK_ELEMENTS // (features.count * positions), SMALLEST_CHUNK // positions)
            chunk = min(per_group, in_cache, TOKEN_ELEMENTS // tokens.size)
            if drawn_in_pieces(task, model, features):
                drawn, length = task, None
                chunk = min(per_group, PROMPTS_OF_PIECES)
            chunk = max(chunk, 1)
            chunks = -(-per_group // chunk)

            def moments_of(index):
                with precision.float64():  # the scope is a thread's own
                    group_key = jax.random.fold_in(key, index)
                    parts = (
                        precision.to_numpy(_moments(source, model, features, count, chunk, length, every_position))
                        for source, count in sources(task, model, drawn, group_key, chunks, chunk)
                    )
                    sums = functools.reduce(lambda x, y: jax.tree.map(lambda a, b: np.asarray(a + b), x, y), parts)
                    return jax.tree.map(lambda total: np.asarray(total / (chunks * chunk)), sums)

            # Two groups at a time: while one draws, the other multiplies. Sums over several devices must not interleave.
            workers = 2 if jax.device_count() == 1 else 1
            with progress_of.display("drawing moments", progress), ThreadPoolExecutor(workers) as pool:
                # The first by itself: two threads would both compile.
                first = moments_of(0)
                rest = pool.map(moments_of, range(1, groups))
                moments = [first, *progress_of.each("drawing moments", rest, groups - 1)]
            rho = 1.0 if every_position else float(model.normaliser_at(task.context_length + 1))
            mixed = _parity_mixed(features) if reads_regression(task, model) else None
            each = jax.tree.map(lambda *group: np.stack(group), *(_finished(one, rho, mixed) for one in moments))
            loss = SampledLoss(
                task=task,
                model=model,
                features=features,
                moments=jax.tree.map(lambda m: np.asarray(np.mean(m, axis=0)), each),
                groups=each,
                seed_key=np.asarray(jax.random.key_data(key)),
                prompts=groups * chunks * chunk,
            )
        if not all(np.all(np.isfinite(m)) for m in jax.tree.leaves(loss.moments)):
            raise NonFiniteError(
                f"the sampled prompts of {type(task).__name__} hold NaN or infinite values; every entry must be finite. "
                "Check the covariance, the noise, or the stability of the recursion."
            )
        return loss

    @property
    def reason(self) -> str:
        """Why the loss is sampled, as a clause."""
        task = self.task
        if not is_plain(task):
            return f"no exact loss is known for {type(task).__name__} and this model"
        law = type(task.covariates).__name__
        if task.covariates.shared_covariance:
            return f"the inputs of a prompt of {law} may share a random covariance, and its values are not a finite set"
        if self.model.query_in_sum and not task.covariates.independent:
            return f"with the query in the sum, the coordinates of {law} would have to be independent"
        moments = "fourth or sixth moments" if self.model.query_in_sum else "fourth moments"
        return f"the {moments} of {law} are infinite or not known"

    def standard_error(self, weights: Weights) -> float:
        with precision.float64():
            risks = np.asarray(_risks(self.bare, self.groups, jax.tree.map(jnp.asarray, weights)))
        return float(np.std(risks, ddof=1) / np.sqrt(len(risks)))

    def held_out(self, weights: Weights, prompts: int = 20_000) -> HeldOut:
        """The risk of weights on fresh prompts.

        Args:
          weights: of one layer.
          prompts: how many to draw, rounded up to whole chunks.
        """
        with precision.float64():
            key = stream(jax.random.wrap_key_data(jnp.asarray(self.seed_key)), "held out")
            drawn, length = at_padded_length(self.task, self.model)
            size = (drawn.context_length + 1) * (drawn.dim + drawn.label_dim)
            chunk = int(np.clip(TOKEN_ELEMENTS // size, 1, HELD_OUT_CHUNK))
            chunks = -(-prompts // chunk)
            theta = self.coefficients(jax.tree.map(jnp.asarray, weights))
            rho = np.asarray(float(self.model.normaliser_at(self.task.context_length + 1)))
            parts = [
                precision.to_numpy(_errors(source, self.model, self.features, theta / rho, count, chunk, length))
                for source, count in sources(self.task, self.model, drawn, key, chunks, chunk)
            ]
            sums, squares, maxima = zip(*parts, strict=True)
            first, second, largest = (float(x) for x in (sum(sums), sum(squares), max(maxima)))
            in_sample, own_error = self.risk(weights), self.standard_error(weights)
        count = chunks * chunk
        risk = first / count
        deviations = max(second - count * risk**2, 0.0)
        error = float(np.sqrt(deviations / (count - 1) / count))
        return HeldOut(
            risk=risk,
            standard_error=error,
            gap=risk - in_sample,
            gap_error=float(np.hypot(error, own_error)),
            largest_share=(largest - risk) ** 2 / deviations if deviations > 0 else 0.0,
            prompts=count,
        )


def _parity_mixed(features: Features) -> np.ndarray:
    """(F, F + 1) True where one of two features, or a feature and the target, has an odd number of labels and the other not."""
    (label,) = features.outputs
    odd = (np.asarray(features.rows) == label) != (np.asarray(features.columns) == label)
    parities = np.repeat(odd, len(features.queries))
    return parities[:, None] != np.append(parities, True)[None, :]


def _finished(moments: Moments, rho: float, mixed: np.ndarray | None) -> Moments:
    """Moments with the normaliser, and without those that vanish over a prompt and its twin."""
    gram, cross = moments.gram / rho**2, moments.cross / rho
    if mixed is not None:
        gram[mixed[:, :-1]] = 0.0
        cross[mixed[:, -1]] = 0.0
    return Moments(gram=gram, cross=cross, variance=moments.variance)


@compiled.jit
def _risks(loss: MomentPolynomial, groups: Moments, weights: Weights) -> Float[Array, "g"]:
    theta = loss.coefficients(weights)
    return jax.lax.map(lambda moments: moments.risk(theta), groups)


@compiled.jit
def _moments(
    source, model, features: Features, chunks: Array, chunk: int, length: Array | None, every_position: bool
) -> Moments:
    """Sums of the moments over the first `chunks` chunks of a source, without the normaliser."""

    def batch(index):
        phi, target = chunk_features(source, index, chunk, model, features, length, every_position)
        cross = phi @ jnp.conj(target).astype(phi.dtype)
        return Moments(gram=phi @ jnp.conj(phi).T, cross=cross, variance=jnp.sum(jnp.abs(target) ** 2))

    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(batch, jnp.asarray(0)))
    return jax.lax.fori_loop(0, chunks, lambda index, s: jax.tree.map(jnp.add, s, batch(index)), zeros)


@compiled.jit
def _errors(source, model, features: Features, theta, chunks: Array, chunk: int, length: Array | None):
    """Sums over prompts of a source of the squared error and of its square, and the largest squared error."""

    def add(index, sums):
        phi, target = chunk_features(source, index, chunk, model, features, length, False)
        errors = jnp.sum(jnp.abs((theta @ phi).T - target) ** 2, axis=1)
        return sums[0] + jnp.sum(errors), sums[1] + jnp.sum(errors**2), jnp.maximum(sums[2], jnp.max(errors))

    return jax.lax.fori_loop(0, chunks, add, (jnp.zeros(()), jnp.zeros(()), jnp.zeros(())))
