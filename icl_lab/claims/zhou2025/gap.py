"""Claims of Zhou et al. 2025 (arXiv 2510.09776) about one layer on a Gaussian series: its features and the gap they leave."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import objectives, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, vector
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.claims.zhou2025.settings import LSA, PAPER, MixedSetting, SignalSetting, series_prompt
from icl_lab.core import compiled, prng
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array, Key
from icl_lab.models import initializers
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.series.autoregressive import Autoregressive, RandomAutoregressive
from icl_lab.tasks.series.gaussian import toeplitz

# Sums of a few hundred float64 products.
IDENTITY_TOLERANCE, MOMENT_TOLERANCE = 1e-12, 1e-10
# A gap is the small difference of two variances, and the Gram of the features is nearly singular.
GAP_TOLERANCE, RATE_TOLERANCE = 1e-8, 1e-8
# N gap / V differs from its limit by at most this share of 1/N.
RATE_CONSTANT = 16.0

CHUNK = 10_000


class FeaturesSetting(Seeded):
    """Random weights, and random series of random coefficients."""

    p: int = integer(2, 1, "lags in a window", "and order of the series")
    N: int = integer(12, 1, "context length", ", in windows")
    prompts: int = integer(20, 1, "number of prompts", ", each of another series")


@claim(
    "zhou2025.features",
    FeaturesSetting,
    Source(PAPER, "expansion of one layer on the Hankel matrix"),
    extra_settings=({"p": 1}, {"p": 3}),
)
def prediction_is_linear_in_features(setting: FeaturesSetting) -> list[Check]:
    """One layer is linear in the p (p+1) (p+2) / 2 features Ghat_jk h_l, with coefficients pi_j Q_kl + pi_k Q_jl, and no other
    weights matter.

    A layer with Gaussian weights of unit scale is run on random series and compared with the sum over the features and with the
    written definition; the gradient of its answers gives the weights that do not matter. Nothing is trained. An off-diagonal
    pair counted once, or a query that takes part in the sum, would make it fail.
    """
    p, N, key = setting.p, setting.N, setting.key
    drawn = RandomAutoregressive(p, N).sample_batch(prng.stream(key, "series"), setting.prompts)
    weights = initializers.gaussian(prng.stream(key, "weights"), p + 1, 1.0)
    answer = compiled.jit(jax.vmap(lambda w, prompt: LSA(w, prompt)[0], in_axes=(None, 0)))
    answers = np.asarray(answer(weights, drawn))
    known = [np.concatenate([x[0], y[:, 0]]) for x, y in zip(np.asarray(drawn.inputs), np.asarray(drawn.labels), strict=True)]
    theta = theory.zhou2025.coefficients(weights.w_pv[-1], weights.w_kq[:, :p])
    expected = np.array([theta @ theory.zhou2025.features(values, p) for values in known])
    literal = np.array([theory.zhou2025.layer(values, weights.w_pv, weights.w_kq) for values in known])
    slopes = compiled.jit(jax.grad(lambda w: jnp.sum(answer(w, drawn) ** 2)))(weights)
    objective = objectives.series_loss(Autoregressive(np.full(p, 0.5 / p), N), LSA)
    idle = np.concatenate([np.ravel(slopes.w_pv[:-1]), np.ravel(slopes.w_kq[:, p])])
    return [
        check.exact("prediction", answers, expected, IDENTITY_TOLERANCE),
        check.exact("prediction_of_the_definition", answers, literal, IDENTITY_TOLERANCE),
        check.exact("coefficients", np.asarray(objective.coefficients(weights))[0], theta, IDENTITY_TOLERANCE),
        check.exact("number_of_features", float(objective.features.count), float(theory.zhou2025.feature_count(p)), 0.0),
        check.exact("gradient_of_idle_weights_abs", idle, np.zeros(idle.size), 0.0),
    ]


class MomentsSetting(Seeded, SignalSetting):
    """Short contexts, and simulated ones."""

    n: int = integer(8, 2, "values of a context", ", n = N + p")
    samples: int = integer(400_000, 10_000, "number of draws", "of series")

    def validate(self) -> None:
        super().validate()
        if self.n <= self.order:
            raise InvalidValueError(
                f"`n` must exceed the {self.order} coefficients of `rho`, or there is no window; got {self.n}."
            )


@claim("zhou2025.isserlis", MomentsSetting, Source(PAPER, "Isserlis' theorem on the cubic features", "extended"))
def moments_are_exact(setting: MomentsSetting) -> list[Check]:
    """The population loss is v - 2 c.theta + theta^T M theta at finite length, with M and c by Isserlis' theorem.

    The moments of the exact loss, and its value at Gaussian weights of unit scale, are compared with a second implementation of
    Isserlis' theorem, and that with means over simulated series; nothing is trained. A pairing that is left out of M or c, or a
    feature that counts once in place of twice, would make it fail.
    """
    order, key = setting.order, setting.key
    length = setting.n - order
    task, objective, reference = setting.task(length), setting.loss(length), setting.moments(length)
    weights = initializers.gaussian(prng.stream(key, "weights"), order + 1, 1.0)
    theta = theory.zhou2025.coefficients(weights.w_pv[-1], weights.w_kq[:, :order])

    def products(one):
        prompt = task.sample(one)
        phi = _features(objective, prompt)
        upper = np.triu_indices(phi.shape[0])
        return jnp.concatenate([phi[upper[0]] * phi[upper[1]], phi * prompt.target, prompt.target**2])

    mean, error = _mean_and_error(products, prng.stream(key, "series"), setting.samples)
    upper = np.triu_indices(len(theta))
    pairs = len(upper[0])
    # In units of the features' standard deviations, or the largest entries would hide the others.
    sizes = np.sqrt(np.diag(reference.gram))
    unit = sizes[upper[0]] * sizes[upper[1]]
    cross_unit = sizes * np.sqrt(reference.variance)
    return [
        check.exact("M", objective.moments.gram, reference.gram, MOMENT_TOLERANCE),
        check.exact("c", np.asarray(objective.moments.cross)[:, 0], reference.cross, MOMENT_TOLERANCE),
        check.exact("v", objective.moments.variance, reference.variance, MOMENT_TOLERANCE),
        check.exact("loss_of_random_weights", objective.risk(weights), reference.risk(theta), MOMENT_TOLERANCE),
        check.sampled("simulated_M", mean[:pairs] / unit, reference.gram[upper] / unit, error[:pairs] / unit),
        check.sampled("simulated_c", mean[pairs:-1] / cross_unit, reference.cross / cross_unit, error[pairs:-1] / cross_unit),
        check.sampled("simulated_v", mean[-1], reference.variance, error[-1]),
    ]


def _mean_and_error(statistic: Callable[[Key], Array], key: Key, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of a vector over at least `samples` keys, and its standard errors, without keeping the draws."""

    @compiled.jit
    def chunk(part):
        values = jax.vmap(statistic)(jax.random.split(part, CHUNK))
        return jnp.stack([jnp.mean(values, axis=0), jnp.mean(values**2, axis=0)])

    count = -(-samples // CHUNK)
    mean, square = np.mean([np.asarray(chunk(jax.random.fold_in(key, i))) for i in range(count)], axis=0)
    return mean, np.sqrt((square - mean**2) / (count * CHUNK - 1))


def _features(objective: objectives.MomentLoss, prompt: Prompt) -> Array:
    """phi (F,) of a prompt, from the tokens of the model."""
    tokens = objective.model.tokens(prompt)
    values = objective.features.values(tokens[:-1, :, None], tokens[-1, :, None])[:, 0]
    return values / objective.model.normaliser_at(tokens.shape[0])


@compiled.jit
def _mean_gradient(objective: objectives.MomentLoss, points: Array) -> Array:
    """The mean over points (k, n) of the derivative of the features by the series, (F, n)."""
    order = objective.task.dim

    def phi(values):
        return _features(objective, series_prompt(jnp.append(values, 0.0), order))

    return jnp.mean(jax.vmap(jax.jacrev(phi))(points), axis=0)


def unexplained_window(objective: objectives.MomentLoss, gamma: np.ndarray) -> tuple[np.ndarray, float, float]:
    """What the features leave of the window: Delta_n = E[h h^T] - C^T M^{-1} C, M the objective's and C = E[phi h^T].

    By Stein's lemma C = E[grad phi] S[:, h], S the covariance of the series. The derivative is a quadratic form, whose mean
    over N(0, S) is its mean over the columns of a root of n S.

    Args:
      objective: exact loss on a Gaussian series.
      gamma: (n + 1,) its autocovariances.

    Returns:
      Delta_n (p, p), w^T Delta_n w and V = w^T E[h h^T] w, w being the best linear predictor from the window.
    """
    length = len(gamma) - 1
    last = slice(length - objective.task.dim, length)
    covariance = toeplitz(gamma)
    known = covariance[:length, :length]
    points = np.sqrt(length) * np.linalg.cholesky(known).T
    history = np.asarray(_mean_gradient(objective, points)) @ known[:, last]
    delta = known[last, last] - history.T @ np.linalg.solve(np.asarray(objective.moments.gram), history)
    linear = np.linalg.solve(known[last, last], covariance[last, length])
    return np.asarray(delta), float(linear @ delta @ linear), float(linear @ covariance[last, length])


class GapSetting(SignalSetting):
    """One context length."""

    N: int = integer(20, 1, "context length", ", in windows")


@claim("zhou2025.gap", GapSetting, Source(PAPER, "the lifted problem and its Schur complement"))
def gap_of_free_coefficients(setting: GapSetting) -> list[Check]:
    """Even with free coefficients of the features the excess is w^T Delta_n w, where Delta_n, a Schur complement, is positive
    definite at every length.

    The Schur complement is taken from the exact loss's Gram and, by Stein's lemma, the differentiated features; it is compared
    with that of the reference moments, and its quadratic form with the least risk over the features. Nothing is trained. A
    wrong moment, or a Delta_n with an eigenvalue below zero, would make it fail.
    """
    length = setting.N
    objective, reference = setting.loss(length), setting.moments(length)
    delta, gap, _ = unexplained_window(objective, setting.task(length).autocovariances(length + setting.order + 1))
    least = objective.unconstrained_feature_risk()
    smallest = float(np.linalg.eigvalsh(delta)[0])
    return [
        check.exact("delta", delta, reference.unexplained(), GAP_TOLERANCE),
        check.exact("lifted_gap", gap, reference.lifted_gap(), GAP_TOLERANCE),
        check.exact("least_risk_minus_noise", least - setting.sigma**2, reference.lifted_gap(), GAP_TOLERANCE),
        check.exact("smallest_eigenvalue", smallest, np.linalg.eigvalsh(reference.unexplained())[0], GAP_TOLERANCE),
        check.at_least("smallest_eigenvalue_is_positive_abs", smallest, 0.0),
    ]


class RateSetting(MixedSetting):
    """Several context lengths."""

    rho = (0.5,)
    lengths: list[float] | None = vector((50.0, 100.0, 200.0, 400.0), "context lengths", ", in windows")

    def validate(self) -> None:
        super().validate()
        if self.lengths is None or any(length < 1 or length != int(length) for length in self.lengths):
            raise InvalidValueError(f"`lengths` must be a list of integers >= 1; got {self.lengths}.")


@claim(
    "zhou2025.gap-rate",
    RateSetting,
    Source(
        PAPER, "the smallest variance of an estimate of the number 1 that is linear in the sample autocovariances", "extended"
    ),
    extra_settings=(
        {"rho": [0.9]},
        {"rho": [1.2, -0.5]},
        {"rho": [0.4, -0.2, 0.3]},
        {"rho": [0.5], "p": 2},
        {"rho": None, "theta": [0.8]},
        {"rho": None, "theta": [0.8], "p": 2},
        {"rho": [0.6], "theta": [0.7]},
    ),
)
def rate_of_the_gap(setting: RateSetting) -> list[Check]:
    """N w^T Delta_n w / V tends to 1/u for every Gaussian stationary series, u = g^T Sig^{-1} g with Bartlett's Sig, and 1/u is
    2 for AR(p) data and more for others.

    1/u is computed from the spectral density on one side and from sums over autocovariances on the other; the gap of free
    coefficients at each length is taken from the exact loss's Gram. Nothing is trained. A term of Bartlett's formula counted
    once too often, or a gap that falls at another rate than 1/N, would make it fail.
    """
    order, sigma, coefficients, moving = setting.order, setting.sigma, setting.coefficients, setting.moving
    long = theory.bartlett.memory(coefficients) + len(moving) + order + 1
    limit = theory.bartlett.scale_variance(theory.bartlett.autocovariances(coefficients, moving, sigma, long), order)
    target = setting.autocovariances(order + 1)
    spectral = theory.bartlett.spectral_covariance(coefficients, moving, sigma, order)
    checks = [check.exact("one_over_u", 1 / float(target @ np.linalg.solve(spectral, target)), limit, RATE_TOLERANCE)]
    if setting.is_autoregressive:
        checks.append(check.exact("one_over_u_of_an_autoregression", limit, 2.0, RATE_TOLERANCE))
    else:
        checks.append(check.at_least("one_over_u_of_another_series", limit, 2.0, RATE_TOLERANCE))
    for length in map(int, setting.lengths or ()):
        task = setting.task(length)
        objective = objectives.series_loss(task, LSA)
        _, gap, signal = unexplained_window(objective, np.asarray(task.autocovariance))
        reference = setting.moments(length).lifted_gap()
        checks += [
            check.exact(f"lifted_gap_N{length}", gap, reference, GAP_TOLERANCE),
            check.exact(f"N_gap_over_V_N{length}_abs", length * gap / signal, limit, RATE_CONSTANT / length),
        ]
    return checks
