"""Claims of the lab about layers: weight decay and momentum, with one slot more a token and a token-wise map."""

from __future__ import annotations

import numpy as np

from icl_lab import theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import number
from icl_lab.claims.vonoswald2022.settings import ROUNDING, LayersSetting
from icl_lab.core.typing import Array
from icl_lab.models import MappedWeights
from icl_lab.models.constructions import memory as memory_layers
from icl_lab.tasks.prompt import Prompt

SOURCE = Source("icl_lab, extending arXiv 2212.07677", "left to future work by von Oswald et al.", "extended")


class WeightDecay(LayersSetting):
    """Descent that also shrinks the weights."""

    lam: float = number(0.3, 0.0, "weight decay lambda", ", of the penalty (lambda/2) |W|^2")


@claim("layers.ext.ridge", WeightDecay, SOURCE)
def layers_with_weight_decay(setting: WeightDecay) -> list[Check]:
    """With one slot more a token and a token-wise linear map, K layers are K steps of descent with weight decay.

    K constructed layers, nothing trained, act on one random prompt from W_0 = 0; inputs, residuals and answer are compared
    with an explicit descent. Layers that shrink the residuals in place of the weights would make it fail.
    """
    d, k, N, eta, lam, K = setting.d, setting.k, setting.N, setting.eta, setting.lam, setting.K
    prompt, _ = setting.instance()
    weights = theory.descent_variants.ridge_descent(prompt.inputs, prompt.labels, eta, lam, K)
    return _checks(prompt, memory_layers.ridge(d, k, N, eta, lam), prompt.labels, K, weights)


class Momentum(LayersSetting):
    """Descent that repeats a part of its last step."""

    mu: float = number(0.5, meaning="momentum factor")


@claim("layers.ext.momentum", Momentum, SOURCE)
def layers_with_momentum(setting: Momentum) -> list[Check]:
    """With one slot more a token and a token-wise linear map, K layers are K steps of heavy-ball gradient descent.

    K constructed layers, nothing trained, act on one random prompt from W_0 = 0 and zero velocity; inputs, residuals and
    answer are compared with an explicit heavy ball. A velocity that moves the residuals one layer late would make it fail.
    """
    d, k, N, eta, mu, K = setting.d, setting.k, setting.N, setting.eta, setting.mu, setting.K
    prompt, _ = setting.instance()
    weights = theory.descent_variants.heavy_ball(prompt.inputs, prompt.labels, eta, mu, K)
    return _checks(prompt, memory_layers.momentum(d, k, N, eta, mu), np.zeros_like(prompt.labels), K, weights)


def _checks(prompt: Prompt, layer: MappedWeights, memory: Array, K: int, weights: Array) -> list[Check]:
    """Inputs, residuals and answer of K equal layers against the weights W_K of the algorithm."""
    (count, dim), label_dim = prompt.inputs.shape, prompt.labels.shape[1]
    tokens = memory_layers.memory_tokens(prompt, memory)
    after = np.asarray(memory_layers.MODEL.apply((layer,) * K, tokens))
    return [
        check.exact("input_slots", after[:, :dim], np.vstack([prompt.inputs, prompt.query[None]]), ROUNDING),
        check.exact("residuals", after[:count, -label_dim:], prompt.labels - prompt.inputs @ weights.T, ROUNDING),
        check.exact("prediction", -after[-1, -label_dim:], weights @ prompt.query, ROUNDING),
    ]
