"""Claim of Zhang, Frei, Bartlett 2023 (arXiv 2306.09927): softmax transformers under covariate shift."""

from __future__ import annotations

import numpy as np

from icl_lab import theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number
from icl_lab.claims.settings.regression import RegressionSetting
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.claims.zhang2023.settings import PAPER
from icl_lab.training import covariate_shift
from icl_lab.training.covariate_shift import Training
from icl_lab.training.prefixes import Curriculum

SCALES = (1.0, 4.0, 9.0)
WIDE_MARGIN = 2.0
"""A transformer beats a line by a wide margin if its error is at most half of it."""


class DecoderSetting(Seeded, RegressionSetting):
    """A decoder, and how it is trained on prompts N(0, I) or with random covariances."""

    N: int = integer(16, 4, "context length", "of training")
    extra: int = integer(4, 1, "examples beyond N", "at which the positions are untrained")
    width: int = integer(64, 4, "width of the residual stream", ", a multiple of 4 (the heads)")
    layers: int = integer(3, 1, "number of layers", "of the decoder")
    steps: int = integer(3_000, 1, "number of updates", "of Adam; the curriculum takes its share of them")
    batch: int = integer(64, 1, "prompts of an update")
    rate: float = number(1e-3, positive=True, meaning="learning rate", detail="of Adam")
    samples: int = integer(20_000, 1_000, "number of draws", "of test prompts")

    def training(self) -> Training:
        """Size and schedule: all coordinates and examples are in use for the second half of the training at the latest."""
        every = max(1, self.steps // (2 * max(self.d, self.N // 2)))
        return Training(
            width=self.width,
            layers=self.layers,
            steps=self.steps,
            batch=self.batch,
            learning_rate=self.rate,
            curriculum=Curriculum(every=every),
        )


@claim("zhang2023.fig1", DecoderSetting, Source(PAPER, "Figure 1, in miniature"), slow=True)
def transformers_under_covariate_shift(setting: DecoderSetting) -> list[Check]:
    """Under covariate shift softmax transformers beat the linear layer by far, and least squares beats both; trained on one
    covariance they fail more at large inputs than trained on random ones; beyond the trained length they get worse.

    Two softmax decoders are trained with Adam from random weights, on inputs N(0, I) and on random exponential covariances, and
    tested on fresh prompts beside the linear layer's closed form. A decoder that did not learn, or one trained on the identity
    that did better than the other at c = 9, would make it fail.
    """
    d, N, longest, seed = setting.d, setting.N, setting.N + setting.extra, setting.seed
    tests = [("fixed", 1.0), *(("random", scale) for scale in SCALES)]
    risks, checks = {}, []
    for trained in covariate_shift.DISTRIBUTIONS:
        decoder = covariate_shift.train_under(trained, d, N, longest, setting.training(), seed)
        for tested, scale in tests:
            mean, error = covariate_shift.shifted_risk(decoder, tested, scale, longest, seed, setting.samples)
            # The second half of the context is one plateau; its average has less noise than its last point.
            risks[trained, tested, scale] = (mean[N // 2 : N + 1].mean(), mean[N], error[N], mean[longest], error[longest])
            line = theory.covariate_shift.risk_per_coordinate(trained, tested, scale, d, N, N)
            if tested == "random":
                name = f"{trained}_trained_over_linear_layer_at_c_{scale:g}"
                checks.append(check.at_most(name, (mean[N] + check.SIGMAS * error[N]) / line, 1 / WIDE_MARGIN))
    for scale in SCALES[1:]:
        # Both are tested on the same prompts, so the difference is surer than their errors.
        random_trained, fixed_trained = (risks[trained, "random", scale][0] for trained in ("random", "fixed"))
        checks.append(check.at_most(f"random_trained_against_fixed_trained_at_c_{scale:g}", random_trained, fixed_trained))
    _, mean, error, *_ = risks["random", "random", SCALES[-1]]
    # Least squares is exact from d examples on.
    checks.append(check.at_least("random_trained_misses_least_squares", mean - check.SIGMAS * error, 0.01 * SCALES[-1]))
    for trained in covariate_shift.DISTRIBUTIONS:
        _, mean, error, longer, longer_error = risks[trained, "fixed", 1.0]
        bound = mean + check.SIGMAS * np.hypot(error, longer_error)
        checks.append(check.at_least(f"{trained}_trained_rises_beyond_N", longer, bound))
    return checks
