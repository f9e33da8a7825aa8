"""Claims about the closed population loss of one layer, at any weights."""

from __future__ import annotations

import functools

import jax
import numpy as np

from icl_lab import models, objectives, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.lab.settings import LayerSetting
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number
from icl_lab.claims.simulation import simulated_risk
from icl_lab.core import compiled
from icl_lab.models import LinearSelfAttention, LSAWeights

# Both sides are sums of a few thousand float64 terms with mild cancellation.
EXACT_TOLERANCE = 1e-11
QUERY_IN_SUM = {"query_in": True, "query_out": False}
"""Whether the query token is among the attended ones, by the words of the checks."""


class LossSetting(LayerSetting):
    """One layer at random weights."""

    heads: int = integer(1, 1, "number of heads")
    scale: float = number(0.3, positive=True, meaning="standard deviation of a weight")
    samples: int = integer(200_000, 1_000, "number of draws", "of prompts")

    def weights(self) -> LSAWeights:
        """Gaussian in every entry; a leading axis for several heads."""
        key = self.stream("weights")
        return models.initializers.gaussian(key, self.d + 1, self.scale, self.heads if self.heads > 1 else None)

    def simulate(self, model: LinearSelfAttention, name: str) -> tuple[float, float]:
        """The risk of the weights on prompts of the random stream `name`, and its standard error."""
        key = self.stream(name)
        return simulated_risk(functools.partial(model, self.weights()), self.task(), key, self.samples)


class SeveralHeads(LossSetting):
    """The same with two heads."""

    heads = 2
    samples = 100_000


@claim("lab.exact-loss", LossSetting, Source("icl_lab", "second moments of a cubic form of Gaussian variables", "extended"))
def exact_loss(setting: LossSetting) -> list[Check]:
    """The closed population loss of one linear self-attention layer, and its gradient, are right at any weights.

    Nothing is trained. At one draw of Gaussian weights in all entries, with the query among the attended tokens and without,
    the exact objective and its gradient are compared with a sum over all pairings written out in numpy, and with simulated
    prompts. A pairing left out, or a weight entry that the loss ignores, would make it fail.
    """
    checks = []
    for words in QUERY_IN_SUM:
        model, risk, exact = _risk_and_gradient(setting, words)
        mean, error = setting.simulate(model, f"prompts {words}")
        checks += [*exact, check.sampled(f"simulated_risk_{words}", mean, risk, error)]
    return checks


@claim(
    "lab.exact-loss-multihead",
    SeveralHeads,
    Source("icl_lab", "second moments of a sum of cubic forms of Gaussian variables", "extended"),
)
def loss_of_several_heads(setting: SeveralHeads) -> list[Check]:
    """The closed population loss of several heads, and its gradient, are right at any weights, and heads interact.

    Nothing is trained. At one draw of Gaussian weights of every head the exact objective and its gradient are compared with
    the sum over pairings within and between heads, and once with simulated prompts. A loss that adds up the heads' own, or
    takes a matrix of one head for its transpose, would make it fail.
    """
    _, _, query_in = _risk_and_gradient(setting, "query_in")
    model, risk, query_out = _risk_and_gradient(setting, "query_out")
    mean, error = setting.simulate(model, "prompts")
    return [*query_in, *query_out, check.sampled("simulated_risk", mean, risk, error)]


def _risk_and_gradient(setting: LossSetting, words: str) -> tuple[LinearSelfAttention, float, list[Check]]:
    """A model, its risk in closed form, and the checks of risk and gradient."""
    weights = setting.weights()
    model = LinearSelfAttention(query_in_sum=QUERY_IN_SUM[words], normaliser=setting.normaliser)
    objective = objectives.population(setting.task(), model)
    options = {"query_in_sum": QUERY_IN_SUM[words], "rho": setting.divisor}
    risk = theory.exact_loss.risk(setting.problem, weights.w_pv, weights.w_kq, **options)
    slopes = theory.exact_loss.risk_gradient(setting.problem, weights.w_pv, weights.w_kq, **options)
    gradient = compiled.jit(jax.grad(objective))(weights)
    exact = {
        "risk": (objective.risk(weights), risk),
        # The reference differentiates the risk, the objective is half of it.
        "gradient_w_pv": (2 * np.asarray(gradient.w_pv), slopes[0]),
        "gradient_w_kq": (2 * np.asarray(gradient.w_kq), slopes[1]),
    }
    checks = [check.exact(f"{name}_{words}", *pair, tolerance=EXACT_TOLERANCE) for name, pair in exact.items()]
    return model, risk, checks
