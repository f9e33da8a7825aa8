"""Claims of Zhou et al. 2025 (arXiv 2510.09776): innovations that are not Gaussian."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import choice, integer
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.claims.simulation import mean_with_error, simulate
from icl_lab.claims.zhou2025.settings import LAB, LSA, PAPER, SignalSetting, series_prompt
from icl_lab.core.typing import Array, Key
from icl_lab.models import constructions

# Sums of a hundred products, in units of the standard deviation of the forecast.
EXACT_TOLERANCE = 1e-12

# Innovations of unit variance.
DRAWS: dict[str, Callable[[Key, tuple[int, ...]], Array]] = {
    "uniform": lambda key, shape: jax.random.uniform(key, shape, minval=-np.sqrt(3.0), maxval=np.sqrt(3.0)),
    "laplace": lambda key, shape: jax.random.laplace(key, shape) / np.sqrt(2.0),
    "gaussian": jax.random.normal,
    "rademacher": jax.random.rademacher,
}


class SimulatedSetting(Seeded, SignalSetting):
    """A series with innovations of any distribution, run through the layer of the innovation filter."""

    rho = (0.6,)
    N: int = integer(50, 1, "context length", ", in windows")
    samples: int = integer(2_000, 1, "number of draws", "of series")

    def series(self, distribution: str, length: int, key: Key) -> Array:
        """The last `length` values of a series that has run long enough to forget its start at zero."""
        reversed_ = jnp.asarray(self.best_weights)
        burn_in = theory.bartlett.memory(self.coefficients)
        innovations = self.sigma * DRAWS[distribution](key, (burn_in + length,)).astype(jnp.result_type(float))

        def step(window, innovation):
            following = reversed_ @ window + innovation
            return jnp.append(window[1:], following), following

        return jax.lax.scan(step, jnp.zeros(self.order), innovations)[1][burn_in:]

    def answers_and_forecasts(self, distribution: str) -> np.ndarray:
        """The layer's answer and w.h for simulated series, (samples, 2), at the unscaled weights of the innovation filter."""
        weights = constructions.series.one_layer(self.coefficients, self.sigma)
        linear = jnp.asarray(self.best_weights)

        def pair(one):
            prompt = series_prompt(self.series(distribution, self.N + self.order + 1, one), self.order)
            return jnp.stack([LSA(weights, prompt)[0], linear @ prompt.query])

        return simulate(pair, self.stream("series"), self.samples)


class KurtosisSetting(SimulatedSetting):
    """Innovations with six moments in closed form."""

    N: int = integer(200, 2, "context length", ", in windows")
    distribution: str = choice("uniform", tuple(DRAWS)[:3], "distribution of the innovations")
    samples: int = integer(40_000, 10_000, "number of draws", "of series")


@claim(
    "zhou2025.kurtosis",
    KurtosisSetting,
    Source(PAPER, "cumulant term k4 g g^T of the covariance of sample autocovariances", "extended"),
    extra_settings=({"distribution": "laplace"},),
)
def gap_grows_with_kurtosis(setting: KurtosisSetting) -> list[Check]:
    """With innovations of excess kurtosis k4 the excess of the innovation filter's weights is (2 + k4) V / N to leading order.

    The layer has the weights of the innovation filter, without training, and is run on series simulated from zero until they
    have forgotten it; the fourth moment of the innovations is sampled too. An excess of 2 V / N whatever the kurtosis would
    make it fail.
    """
    rho, sigma, N, distribution = setting.coefficients, setting.sigma, setting.N, setting.distribution
    fourth, sixth = theory.zhou2025.innovation_moments(distribution)
    pairs = setting.answers_and_forecasts(distribution)
    unit = theory.zhou2025.signal_variance(rho, sigma) / N
    mean, error = mean_with_error((pairs[:, 0] - pairs[:, 1]) ** 2 / unit)
    draws = np.asarray(DRAWS[distribution](setting.stream("kurtosis"), (25 * setting.samples,)))
    kurtosis, kurtosis_error = mean_with_error(draws**4)
    exact = theory.zhou2025.innovation_gap(rho, sigma, N, fourth, sixth) / unit
    gamma = theory.bartlett.autocovariances(rho, np.zeros(0), sigma, theory.bartlett.memory(rho) + 1)
    limit = theory.bartlett.scale_variance(gamma, len(rho), fourth - 3)
    return [
        check.sampled("kurtosis_of_the_innovations", kurtosis, fourth, kurtosis_error),
        check.sampled("N_gap_over_V", mean, exact, error),
        # The term of order 1/N is known in closed form, and the sample has an error.
        check.exact("N_gap_over_V_in_the_limit_abs", mean, limit, abs(exact - limit) + check.SIGMAS * error),
        check.exact("limit_is_two_plus_k4", limit, fourth - 1, 1e-8),
    ]


@claim("zhou2025.no-gap-rademacher", SimulatedSetting, Source(LAB, "the mean squared innovation is sigma^2", "extended"))
def no_gap_on_signs(setting: SimulatedSetting) -> list[Check]:
    """On AR(p) series with innovations +-sigma the weights pi = r / sigma^2, Q = r w^T predict w.h exactly at any length: that
    the gap is strict is a property of the noise distribution.

    The layer has these weights, without training, and is run on series simulated from zero until they have forgotten it.
    Weights of another scale, such as N/(N+4) times these, would make it fail.
    """
    rho, sigma = setting.coefficients, setting.sigma
    explicit = theory.zhou2025.innovation_weights(rho, sigma)
    weights = constructions.series.one_layer(rho, sigma)
    fourth, sixth = theory.zhou2025.innovation_moments("rademacher")
    pairs = setting.answers_and_forecasts("rademacher")
    errors = np.abs(pairs[:, 0] - pairs[:, 1]) / np.sqrt(theory.zhou2025.signal_variance(rho, sigma))
    return [
        check.exact("pi", weights.w_pv[-1], explicit.pi, EXACT_TOLERANCE),
        check.exact("Q", weights.w_kq[:, :-1], explicit.query, EXACT_TOLERANCE),
        check.exact("largest_error_abs", np.max(errors), 0.0, EXACT_TOLERANCE),
        check.exact(
            "gap_over_V_abs",
            np.mean(errors**2),
            theory.zhou2025.innovation_gap(rho, 1.0, setting.N, fourth, sixth),
            EXACT_TOLERANCE,
        ),
    ]
