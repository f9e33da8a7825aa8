"""Claims of Zhou et al. 2025 (arXiv 2510.09776): softmax heads."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import models, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number, vector
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.claims.settings.series import SeriesSetting
from icl_lab.claims.simulation import mean_with_error, normal_batches, simulate
from icl_lab.core import compiled, prng
from icl_lab.core.errors import InvalidValueError
from icl_lab.models import LSAWeights, constructions

SOFTMAX = models.SoftmaxSelfAttention(embedding="hankel", query_in_sum=False)
EXTENSION = "icl_lab, extending arXiv 2510.09776"
# Relative size of the O(1/N) correction to the variance of a softmax head, times N.
SOFTMAX_CORRECTION = 20


class LongContext(Seeded, SeriesSetting):
    """A context so long that a softmax over it is nearly a mean, and a query."""

    q: list[float] | None = vector(None, "query", ", p + 1 entries; null: 0.3, -0.2, 0.5 in turn, over sigma^2")
    N: int = integer(20_000, 1_000, "context length", ", in windows")
    samples: int = integer(40, 10, "number of draws", "of series")

    def validate(self) -> None:
        super().validate()
        if self.q is not None and len(self.q) != self.order + 1:
            raise InvalidValueError(f"`q` must have p + 1 = {self.order + 1} entries, those of a column; got {len(self.q)}.")


@claim("zhou2025.softmax-limit", LongContext, Source(EXTENSION, "mean of a tilted Gaussian", "extended"))
def softmax_in_a_long_context(setting: LongContext) -> list[Check]:
    """In an infinite context a softmax head is linear in its query: sum_i softmax_i(h_i.q) h_i tends to Gam_{p+1} q, so it too
    reaches the best linear predictor.

    Two softmax heads with weights built by hand, without training, are run on long simulated series: one reads the mean out,
    the other predicts. A limit without the covariance, sigma^2 q, or an answer biased against w.h would make it fail.
    """
    sigma, coefficients, width, key = setting.sigma, setting.coefficients, setting.order + 1, setting.key
    query = np.resize([0.3, -0.2, 0.5], width) / sigma**2 if setting.q is None else np.asarray(setting.q)
    task = setting.task(setting.N)
    # Scores against a query token of one: W_KQ e_1 = q.
    readout = LSAWeights(w_pv=np.eye(width), w_kq=np.outer(query, np.eye(width)[0])).with_head_axis()
    # Scores so small that the variance over queries has no heavy tail.
    scale = 4 * math.sqrt(max(float(task.autocovariances(1)[0]) / sigma**2 - 1, 0.25))
    head = constructions.series.softmax_head(coefficients, sigma, scale)
    best = jnp.asarray(setting.best_weights)

    def heads(one):
        prompt = task.sample(one)
        tokens = jnp.concatenate([SOFTMAX.tokens(prompt)[:-1], jnp.eye(1, width)])
        predicted = best @ prompt.query
        return jnp.append(SOFTMAX.query_update(readout, tokens), SOFTMAX(head, prompt)[0] - predicted)

    drawn = np.stack(
        [np.asarray(x) for x in compiled.jit(lambda keys: jax.lax.map(heads, keys))(jax.random.split(key, setting.samples))]
    )
    mean, error = np.mean(drawn, axis=0), np.std(drawn, axis=0, ddof=1) / np.sqrt(setting.samples)
    distance = math.sqrt(float(np.mean(drawn[:, -1] ** 2)))
    limit = theory.softmax_series.readout_limit(coefficients, sigma, query)
    spread = math.sqrt(theory.softmax_series.scaled_gap(coefficients, sigma, scale) / setting.N)
    return [
        check.sampled("readout", mean[:width], limit, error[:width]),
        check.sampled("head_from_the_best_predictor_abs", mean[-1], 0.0, error[-1]),
        check.at_most("root_mean_square_of_it_abs", distance, 2 * spread),
    ]


class HeadSetting(Seeded, SeriesSetting):
    """The softmax head, its scale inside the range in which the gap is finite."""

    rho = (0.3,)
    C: float = number(1.0, positive=True, meaning="scale of the values", detail="; C^2 > 2 V/sigma^2")
    N: int = integer(400, 20, "context length", ", in windows")
    samples: int = integer(40_000, 1_000, "number of draws", "of series")

    def validate(self) -> None:
        super().validate()
        theory.softmax_series.check_scale(self.C, self.explained_variance / self.sigma**2)


@claim("zhou2025.softmax-var", HeadSetting, Source(EXTENSION, "icl_lab", "extended"))
def variance_of_a_softmax_head(setting: HeadSetting) -> list[Check]:
    """The softmax head pi = C r, q = r (w.h)/(sigma^2 C) has a gap of sigma^2 [C^2 (1 - 2v/C^2)^{-1/2} + v (1 - 2v/C^2)^{-3/2}]
    / N in long contexts, v = V/sigma^2, more than the 2 V / N of linear attention.

    The head has these weights, without training, and is run on simulated series; its gap is compared with a mean over simulated
    innovations and a quadrature over the query at the same N, and with the closed form where N is large enough for it. A gap of
    2 V / N, that of linear attention, would make it fail.
    """
    C, N, sigma, samples, seed = setting.C, setting.N, setting.sigma, setting.samples, setting.seed
    coefficients, explained = setting.coefficients, setting.explained_variance
    task, best = setting.task(N), jnp.asarray(setting.best_weights)
    head = constructions.series.softmax_head(coefficients, sigma, C)

    def scaled_gap(one):
        prompt = task.sample(one)
        return N * (SOFTMAX(head, prompt)[0] - best @ prompt.query) ** 2

    mean, error = mean_with_error(simulate(scaled_gap, prng.stream(jax.random.key(seed), "series"), samples))
    at_length, uncertainty = theory.softmax_series.finite_gap(
        coefficients, sigma, C, normal_batches(samples // 4, N, seed=seed)
    )
    allowed = SOFTMAX_CORRECTION / N + check.SIGMAS * math.hypot(error, uncertainty) / at_length
    checks = [check.exact("scaled_gap", mean, at_length, allowed)]
    if theory.softmax_series.saturation(C, explained / sigma**2) < math.log(N):
        limit = theory.softmax_series.scaled_gap(coefficients, sigma, C)
        allowed = SOFTMAX_CORRECTION / N + check.SIGMAS * error / limit
        checks.append(check.exact("limit_of_scaled_gap", mean, limit, allowed))
    # The bound is the leading term; one layer's own correction to it is negative.
    return [*checks, check.at_least("above_linear_attention", mean, 2 * explained, SOFTMAX_CORRECTION / N, error)]
