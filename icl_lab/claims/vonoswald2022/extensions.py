"""Claims of the lab about layers: weight decay and momentum, with one slot more a token and a token-wise map."""

from __future__ import annotations

import numpy as np

from icl_lab import theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, number
from icl_lab.claims.registry import claim
from icl_lab.claims.vonoswald2022.propositions import ROUNDING, SEED, STEP, instance, layers_parameter
from icl_lab.core.typing import Array
from icl_lab.models import MappedWeights
from icl_lab.models.constructions import memory as memory_layers
from icl_lab.tasks.prompt import Prompt

PAPER = "icl_lab, extending arXiv 2212.07677"


@claim(
    "layers.ext.ridge",
    statement="With one slot more a token and a token-wise linear map, K layers are K steps of descent with weight decay.",
    source=Source(PAPER, "left to future work by von Oswald et al.", "extended"),
    parameters=STEP
    | {"lam": number(0.3, 0.0, "weight decay lambda, of the penalty (lambda/2) |W|^2")}
    | layers_parameter(5)
    | SEED,
)
def layers_with_weight_decay(d, k, N, eta, distribution, sigma, lam, K, seed) -> list[Check]:
    prompt, _ = instance(d, k, N, distribution, sigma, seed)
    weights = theory.descent_variants.ridge_descent(prompt.inputs, prompt.labels, eta, lam, K)
    layer = memory_layers.ridge(d, k, N, eta, lam)
    return _checks(prompt, layer, prompt.labels, K, weights)


@claim(
    "layers.ext.momentum",
    statement="With one slot more a token and a token-wise linear map, K layers are K steps of heavy-ball gradient descent.",
    source=Source(PAPER, "left to future work by von Oswald et al.", "extended"),
    parameters=STEP | {"mu": number(0.5, meaning="momentum factor")} | layers_parameter(5) | SEED,
)
def layers_with_momentum(d, k, N, eta, distribution, sigma, mu, K, seed) -> list[Check]:
    prompt, _ = instance(d, k, N, distribution, sigma, seed)
    weights = theory.descent_variants.heavy_ball(prompt.inputs, prompt.labels, eta, mu, K)
    layer = memory_layers.momentum(d, k, N, eta, mu)
    return _checks(prompt, layer, np.zeros_like(prompt.labels), K, weights)


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
