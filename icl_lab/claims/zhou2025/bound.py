"""Claims of Zhou et al. 2025 (arXiv 2510.09776): whether one trained layer can be better than regression on its window."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from icl_lab import objectives, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer
from icl_lab.claims.simulation import mean_with_error, simulate
from icl_lab.claims.zhou2025.flows import GAP_TOLERANCE, StartsSetting, best_of_starts
from icl_lab.claims.zhou2025.settings import LSA, PAPER, MixedSetting
from icl_lab.core import prng
from icl_lab.models import initializers


class NoGainSetting(StartsSetting, MixedSetting):
    """A series with a moving average, unless told otherwise."""

    N: int = integer(10, 2, "context length", ", in windows")
    samples: int = integer(100_000, 10_000, "number of draws", "of series, of an AR(p)")
    theta = (0.0, 0.9)


@claim(
    "zhou2025.no-gain",
    NoGainSetting,
    Source(PAPER, "the bound by linear regression, and where it ends"),
    extra_settings=({"N": 50}, {"N": 200}, {"rho": [0.5, -0.3], "theta": None, "N": 20}),
)
def no_gain_on_autoregressions(setting: NoGainSetting) -> list[Check]:
    """On AR(p) series no layer has a risk below sigma^2, that of linear regression on p lags; on other series the trained layer
    can be better than any regression on its window.

    Gradient flows of the exact loss run to rest from random starts of scale 0.1 / sqrt(gamma_0), and the best is compared with
    the minimum that theory finds by Isserlis' theorem; on an AR(p) also random layers, one and two, are run on simulated
    series. A risk below that minimum, or answers correlated with the innovation, would make it fail.
    """
    order, N, sigma, reference = setting.order, setting.N, setting.sigma, setting.moments(setting.N)
    best = theory.isserlis.best_layer(
        reference, reference.order, theory.bartlett.reflected_filters(reference.linear_weights[::-1])
    )
    task = setting.task(N)
    objective = objectives.series_loss(task, LSA)
    limits = best_of_starts(objective, setting, sigma, best.risk)
    covariance = np.asarray(task.autocovariance)
    window = covariance[np.abs(np.subtract.outer(np.arange(order), np.arange(order)))]
    linear = covariance[order - np.arange(order)]
    regression = float(covariance[0] - linear @ np.linalg.solve(window, linear))
    checks = [
        check.exact("risk_of_regression", regression, reference.linear_risk, 1e-10),
        check.at_least("no_start_ends_below_the_minimum", limits.risks, np.full(len(limits.risks), best.risk), 1e-10),
    ]
    if setting.are_enough:
        difference = limits.risks[limits.best] - regression
        expected = best.risk - reference.linear_risk
        checks.append(check.exact("trained_risk_minus_regression_abs", difference, expected, GAP_TOLERANCE * sigma**2))
    if setting.is_autoregressive:
        ones = np.full(len(limits.risks), sigma**2)
        checks += [check.at_least("no_start_ends_below_regression", limits.risks, ones)]
        checks += _orthogonality_checks(objective, reference, setting)
    return checks


def _orthogonality_checks(
    objective: objectives.MomentLoss, reference: theory.isserlis.FeatureMoments, setting: NoGainSetting
) -> list[Check]:
    """The innovation is uncorrelated with any answer, so that errors add: one layer at random weights, and two."""
    key, order = setting.key, reference.order
    layers = tuple(initializers.gaussian(prng.stream(key, name), order + 1, 0.3) for name in ("one", "two"))
    linear = jnp.asarray(reference.linear_weights)

    def statistics(one):
        prompt = objective.task.sample(one)
        forecast = linear @ prompt.query
        innovation = prompt.target[0] - forecast
        single, double = LSA(layers[:1], prompt)[0], LSA(layers, prompt)[0]
        return jnp.stack([(single - forecast) ** 2, single * innovation, double * innovation])

    values = simulate(statistics, prng.stream(key, "series"), setting.samples)
    theta = theory.zhou2025.coefficients(layers[0].w_pv[-1], layers[0].w_kq[:, :order])
    excess = reference.risk(theta) - setting.sigma**2
    names = ("excess_of_random_weights", "innovation_times_one_layer_abs", "innovation_times_two_layers_abs")
    pairs = [mean_with_error(column) for column in values.T]
    return [
        check.exact("excess_of_random_weights_exactly", objective.risk(layers[0]) - setting.sigma**2, excess, 1e-10),
        *(
            check.sampled(name, mean, value, error)
            for name, (mean, error), value in zip(names, pairs, (excess, 0.0, 0.0), strict=True)
        ),
    ]
