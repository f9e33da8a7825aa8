"""What the papers prove, as closed forms in plain numpy: optima, risks, bounds, time courses. One module a paper.

Nothing here knows a model, an objective or a training loop, so that a formula shares no code with what it is compared with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from icl_lab.core import lazy

if TYPE_CHECKING:
    from icl_lab.theory.descent import ahn2023 as ahn2023
    from icl_lab.theory.descent import copying as copying
    from icl_lab.theory.descent import descent_steps as descent_steps
    from icl_lab.theory.descent import descent_variants as descent_variants
    from icl_lab.theory.descent import gram_moments as gram_moments
    from icl_lab.theory.descent import li2025 as li2025
    from icl_lab.theory.descent import sine_regression as sine_regression
    from icl_lab.theory.descent import softmax_heads as softmax_heads
    from icl_lab.theory.descent import vonoswald2022 as vonoswald2022
    from icl_lab.theory.dynamics import all_ones as all_ones
    from icl_lab.theory.dynamics import diagonal_loss as diagonal_loss
    from icl_lab.theory.dynamics import phases as phases
    from icl_lab.theory.dynamics import recovery as recovery
    from icl_lab.theory.dynamics import rotations as rotations
    from icl_lab.theory.dynamics import vonoswald2023 as vonoswald2023
    from icl_lab.theory.dynamics import zheng2024 as zheng2024
    from icl_lab.theory.mixers import delta_rule as delta_rule
    from icl_lab.theory.mixers import gated_delta as gated_delta
    from icl_lab.theory.mixers import kalman as kalman
    from icl_lab.theory.mixers import linear_attention as linear_attention
    from icl_lab.theory.mixers import momentum as momentum
    from icl_lab.theory.mixers import retention as retention
    from icl_lab.theory.mixers.problem import KeyMoments as KeyMoments
    from icl_lab.theory.mixers.problem import MixerProblem as MixerProblem
    from icl_lab.theory.regression import bayes as bayes
    from icl_lab.theory.regression import covariate_shift as covariate_shift
    from icl_lab.theory.regression import exact_loss as exact_loss
    from icl_lab.theory.regression import lsa as lsa
    from icl_lab.theory.regression import mahankali2023 as mahankali2023
    from icl_lab.theory.regression import minima as minima
    from icl_lab.theory.regression import nonlinear as nonlinear
    from icl_lab.theory.regression import random_covariance as random_covariance
    from icl_lab.theory.regression import stability as stability
    from icl_lab.theory.regression import structured as structured
    from icl_lab.theory.regression import timecourse as timecourse
    from icl_lab.theory.regression import transfer as transfer
    from icl_lab.theory.regression import zhang2023 as zhang2023
    from icl_lab.theory.regression import zhangsaxe2025 as zhangsaxe2025
    from icl_lab.theory.regression.optimum import Optimum as Optimum
    from icl_lab.theory.regression.problem import Problem as Problem
    from icl_lab.theory.series import autoregressive as autoregressive
    from icl_lab.theory.series import bartlett as bartlett
    from icl_lab.theory.series import isserlis as isserlis
    from icl_lab.theory.series import random_autoregressive as random_autoregressive
    from icl_lab.theory.series import rollout as rollout
    from icl_lab.theory.series import softmax_series as softmax_series
    from icl_lab.theory.series import zhou2025 as zhou2025

# A command uses the theory of one paper or two, and each loads its own part of scipy.
__getattr__ = lazy.names(
    __name__,
    {
        "ahn2023": "descent.ahn2023",
        "copying": "descent.copying",
        "descent_steps": "descent.descent_steps",
        "descent_variants": "descent.descent_variants",
        "gram_moments": "descent.gram_moments",
        "li2025": "descent.li2025",
        "sine_regression": "descent.sine_regression",
        "softmax_heads": "descent.softmax_heads",
        "vonoswald2022": "descent.vonoswald2022",
        "all_ones": "dynamics.all_ones",
        "diagonal_loss": "dynamics.diagonal_loss",
        "phases": "dynamics.phases",
        "recovery": "dynamics.recovery",
        "rotations": "dynamics.rotations",
        "vonoswald2023": "dynamics.vonoswald2023",
        "zheng2024": "dynamics.zheng2024",
        "delta_rule": "mixers.delta_rule",
        "gated_delta": "mixers.gated_delta",
        "kalman": "mixers.kalman",
        "linear_attention": "mixers.linear_attention",
        "momentum": "mixers.momentum",
        "retention": "mixers.retention",
        "KeyMoments": "mixers.problem",
        "MixerProblem": "mixers.problem",
        "bayes": "regression.bayes",
        "covariate_shift": "regression.covariate_shift",
        "exact_loss": "regression.exact_loss",
        "lsa": "regression.lsa",
        "mahankali2023": "regression.mahankali2023",
        "minima": "regression.minima",
        "nonlinear": "regression.nonlinear",
        "random_covariance": "regression.random_covariance",
        "stability": "regression.stability",
        "structured": "regression.structured",
        "timecourse": "regression.timecourse",
        "transfer": "regression.transfer",
        "zhang2023": "regression.zhang2023",
        "zhangsaxe2025": "regression.zhangsaxe2025",
        "Optimum": "regression.optimum",
        "Problem": "regression.problem",
        "autoregressive": "series.autoregressive",
        "bartlett": "series.bartlett",
        "isserlis": "series.isserlis",
        "random_autoregressive": "series.random_autoregressive",
        "rollout": "series.rollout",
        "softmax_series": "series.softmax_series",
        "zhou2025": "series.zhou2025",
    },
)
