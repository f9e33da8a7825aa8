"""Claims of the lab about the Gram matrix W = X^T X of a context: its mean spectral measure, on which losses of layers rest."""

from __future__ import annotations

from fractions import Fraction

import jax.numpy as jnp
import numpy as np

from icl_lab import theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer
from icl_lab.claims.simulation import simulate
from icl_lab.claims.vonoswald2022.layers import loss_on_rule
from icl_lab.claims.vonoswald2022.settings import LayerSetting, SimulatedLayer, SimulatedSetting
from icl_lab.core.errors import AssumptionError
from icl_lab.tasks.distributions.covariates import Gaussian
from icl_lab.tasks.distributions.independent import Uniform

LAB = "icl_lab, after arXiv 2212.07677"
EXACT_TOLERANCE = 1e-10
RATIONAL_TOLERANCE = 1e-9


class GaussianMoments(SimulatedSetting):
    """Standard normal inputs."""

    order: int = integer(8, 3, "largest power", "of the Gram matrix; walks are counted up to 8, prompts simulated up to 4")
    samples = 200_000


@claim(
    "layers.moments.gauss",
    GaussianMoments,
    Source(LAB, "Stein's identity; icl_lab", "extended"),
    extra_settings=({"d": 4, "N": 3},),
)
def gaussian_gram_moments(setting: GaussianMoments) -> list[Check]:
    """For standard normal inputs E tr W^k, W = X^T X, follows an exact recursion over integer partitions.

    Nothing is trained: the recursion's integers are compared with the known polynomials in d and N, with a count of closed
    walks, which is another algorithm, and with traces of random contexts. A recursion that lacks a term would make it fail.
    """
    d, N, order = setting.d, setting.N, setting.order
    moments = theory.gram_moments.gaussian_moments(d, N, order)
    polynomials = [N * d, N * d * (N + d + 1), N * d * (N**2 + d**2 + 3 * N * d + 3 * N + 3 * d + 4)]
    # The same integers by another algorithm.
    walks = theory.gram_moments.iid_moments(d, N, min(order, 8), "gaussian")
    return [
        check.exact("polynomials_in_d_and_N", np.array(moments[1:4], float), np.array(polynomials, float), 0.0),
        check.exact("closed_walks", np.array(moments[: len(walks)], float), np.array(walks, float), 0.0),
        check.holds("closed_walks_give_the_same_integers_abs", moments[: len(walks)] == walks),
        *_simulated_moments(setting, Gaussian(np.ones(d)), np.array(moments, float)),
    ]


def _simulated_moments(setting: SimulatedSetting, covariates: Gaussian | Uniform, moments: np.ndarray) -> list[Check]:
    d, N, samples = setting.d, setting.N, setting.samples
    # Powers of few numbers have wild tails.
    order = min(len(moments) - 1, 4 if d * N > 5 else 2)

    def traces(one):
        inputs = covariates.sample(one, N)
        gram, power, found = inputs.T @ inputs, jnp.eye(d), []
        for _ in range(order):
            power = power @ gram
            found.append(jnp.trace(power))
        return jnp.stack(found)

    drawn = simulate(traces, setting.key, samples)
    means, errors = np.mean(drawn, axis=0), np.std(drawn, axis=0, ddof=1) / np.sqrt(samples)
    return [check.sampled(f"simulated_m_{k + 1}", means[k], moments[k + 1], errors[k]) for k in range(order)]


class IndependentMoments(SimulatedLayer):
    """Inputs of independent symmetric coordinates."""

    sigma = 1.0
    order: int = integer(6, 2, "largest power", "of the Gram matrix, at most 8; prompts are simulated up to 4")
    samples = 200_000

    def validate(self) -> None:
        super().validate()
        if self.order > 8:
            raise AssumptionError(
                f"moments of coordinates that are not Gaussian are enumerated up to order 8; got {self.order}."
            )


@claim("layers.moments.iid", IndependentMoments, Source(LAB, "the moment method; icl_lab", "extended"))
def iid_gram_moments(setting: IndependentMoments) -> list[Check]:
    """For i.i.d. symmetric coordinates E tr W^k is a sum over the shapes of closed walks on rows and columns; the
    first two are N d sig2 and N d sig2^2 (N + d + kap - 2).

    Nothing is trained: sums over walks are compared with the two closed forms, with the Gaussian recursion, with the
    quadrature rule that is made of them, and with traces of random contexts. A kurtosis that counts twice, or a shape of
    walk that is left out, would make it fail.
    """
    d, N, sigma, order = setting.d, setting.N, setting.sigma, setting.order
    exact = theory.gram_moments.iid_moments(d, N, order, setting.distribution)
    moments = np.array([float(m) * sigma ** (2 * k) for k, m in enumerate(exact)])
    *_, variance, kurtosis = setting.step_problem
    closed = np.array([N * d * variance, N * d * variance**2 * (N + d + kurtosis - 2)])
    checks = [check.exact("first_two", moments[1:3], closed, EXACT_TOLERANCE)]
    if setting.distribution == "gaussian":
        integers = np.array(theory.gram_moments.gaussian_moments(d, N, order), dtype=float)
        recursion = integers * sigma ** (2 * np.arange(order + 1))
        checks.append(check.exact("stein_recursion", moments, recursion, EXACT_TOLERANCE))
    # The quadrature rule, whose nodes come from the moments, carries them to the scale of the inputs.
    rule = setting.rule(order)
    powers = np.array([rule.weights @ rule.nodes**k for k in range(order + 1)])
    checks.append(check.exact("moments_of_the_rule", powers, moments, RATIONAL_TOLERANCE))
    return checks + _simulated_moments(setting, setting.covariates, moments)


class GaussRule(LayerSetting):
    """A quadrature rule of the Gram matrix's mean spectral measure."""

    d = 5
    N = 20
    distribution = "gaussian"
    sigma = 1.0
    r: int = integer(14, 1, "number of nodes", ", at most 4 for uniform inputs")


@claim("layers.moments.rule", GaussRule, Source(LAB, "Chebyshev's algorithm; icl_lab", "extended"))
def rule_is_exact(setting: GaussRule) -> list[Check]:
    """From m_0 .. m_(2r-1) in rationals the r-node Gauss rule of the mean spectral measure integrates every loss
    of degree 2r - 1 or less.

    Nothing is trained or drawn: powers are summed over the rule's nodes, and constructed layers are evaluated on them, up to
    the degree that it should integrate; exact moments and rational arithmetic are expected. Nodes that lose their digits,
    or a rule that is exact to a lower degree, would make it fail.
    """
    d, N, sigma = setting.d, setting.N, setting.sigma
    r = setting.r if setting.distribution == "gaussian" else min(setting.r, 4)
    moments = theory.gram_moments.moments_of(setting.distribution, d, N, 2 * r)
    nodes, weights = theory.gram_moments.gauss_rule(moments[: 2 * r])
    powers = np.array([weights @ nodes**k for k in range(2 * r)])
    # Radau's version, with a node at zero, is exact one degree higher.
    radau = setting.rule(2 * r)
    lifted = np.array([radau.weights @ (radau.nodes / sigma**2) ** k for k in range(2 * r + 1)])
    exact = np.array([float(m) for m in moments])
    # The layers themselves on the rule, as many as it integrates, against rational arithmetic.
    depth = max(k for k in range(1, 4) if 3**k - 1 <= 2 * r)
    etas = np.geomspace(0.5, 2.0, depth) / (radau.variance * (1 + d / N))
    gammas = np.full(depth, 0.2) / (N * radau.variance * (1 + d / N))
    measured = float(loss_on_rule(etas, gammas, radau))
    scaled = [Fraction(sigma) ** (2 * k) * m for k, m in enumerate(moments)]
    rational = theory.descent_steps.loss_from_moments(scaled, etas, gammas, N, radau.variance)
    return [
        check.exact("moments", powers / exact[: 2 * r], np.ones(2 * r), RATIONAL_TOLERANCE),
        check.exact("moments_with_a_node_at_zero", lifted / exact, np.ones(2 * r + 1), RATIONAL_TOLERANCE),
        check.exact("loss_of_layers_in_rationals", measured, rational, RATIONAL_TOLERANCE),
    ]
