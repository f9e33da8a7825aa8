"""What the papers prove, as closed forms in plain numpy: optima, risks, bounds, time courses. One module a paper.

Nothing here knows a model, an objective or a training loop, so that a formula shares no code with what it is compared with.
"""

from icl_lab.theory import ahn2023 as ahn2023
from icl_lab.theory import all_ones as all_ones
from icl_lab.theory import autoregressive as autoregressive
from icl_lab.theory import bartlett as bartlett
from icl_lab.theory import bayes as bayes
from icl_lab.theory import copying as copying
from icl_lab.theory import covariate_shift as covariate_shift
from icl_lab.theory import descent_steps as descent_steps
from icl_lab.theory import descent_variants as descent_variants
from icl_lab.theory import diagonal_loss as diagonal_loss
from icl_lab.theory import exact_loss as exact_loss
from icl_lab.theory import gram_moments as gram_moments
from icl_lab.theory import isserlis as isserlis
from icl_lab.theory import lsa as lsa
from icl_lab.theory import mahankali2023 as mahankali2023
from icl_lab.theory import minima as minima
from icl_lab.theory import nonlinear as nonlinear
from icl_lab.theory import one_layer as one_layer
from icl_lab.theory import phases as phases
from icl_lab.theory import random_autoregressive as random_autoregressive
from icl_lab.theory import random_covariance as random_covariance
from icl_lab.theory import recovery as recovery
from icl_lab.theory import rollout as rollout
from icl_lab.theory import rotations as rotations
from icl_lab.theory import sine_regression as sine_regression
from icl_lab.theory import softmax_heads as softmax_heads
from icl_lab.theory import softmax_series as softmax_series
from icl_lab.theory import stability as stability
from icl_lab.theory import structured as structured
from icl_lab.theory import timecourse as timecourse
from icl_lab.theory import transfer as transfer
from icl_lab.theory import vonoswald2022 as vonoswald2022
from icl_lab.theory import vonoswald2023 as vonoswald2023
from icl_lab.theory import zhang2023 as zhang2023
from icl_lab.theory import zhangsaxe2025 as zhangsaxe2025
from icl_lab.theory import zheng2024 as zheng2024
from icl_lab.theory import zhou2025 as zhou2025
from icl_lab.theory.optimum import Optimum as Optimum
