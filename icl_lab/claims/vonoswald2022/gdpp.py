"""Claims of von Oswald et al. 2022 (arXiv 2212.07677): GD++, gradient descent that also corrects the curvature."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq

from icl_lab import theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, vector
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.claims.vonoswald2022.settings import MODEL, PAPER, ROUNDING, LayerSetting, OutputsSetting, PromptSetting
from icl_lab.core import compiled
from icl_lab.core.errors import AssumptionError
from icl_lab.core.typing import Array
from icl_lab.models import constructions
from icl_lab.tasks.prompt import Prompt

# A degree is read off the growth of a polynomial, to well below 1 in 121; that of six layers, 364, would overflow.
DEGREE_TOLERANCE = 1e-3
DEEPEST = 5
LARGEST_EXPONENT = 285
# Of a median over the same tasks on both sides.
CONDITION_TOLERANCE = 1e-9
SHOWN = 8
ROOT_TOLERANCE = 1e-10


class CorrectedLayers(PromptSetting):
    """Layers of GD++ with random coefficients."""

    N = 6
    K: int = integer(4, 1, "number of layers", ", one step each")

    def coefficients(self) -> tuple[Array, Array]:
        """K step sizes and curvatures of the size at which layers neither do nothing nor diverge."""
        shares = np.asarray(jax.random.uniform(self.stream("scalars"), (2, self.K), minval=0.2))
        # About the largest eigenvalue of the Gram matrix.
        largest = self.variance * (np.sqrt(self.N) + np.sqrt(self.d)) ** 2
        return self.N * shares[0] / largest, shares[1] / largest


class CorrectedOutputs(CorrectedLayers, OutputsSetting):
    """The same with several outputs."""

    N = 7
    K = 2


@claim("vonoswald2022.gdpp.construct", CorrectedOutputs, Source(PAPER, "GD++"))
def one_head_moves_inputs_and_labels(setting: CorrectedOutputs) -> list[Check]:
    """One head does x_j <- (I - gamma W) x_j and y_j <- y_j - dW x_j at once, both from the tokens before the layer,
    for context and query alike; that is GD++.

    Constructed layers with random coefficients, nothing trained, act on one random prompt from a random W_0; all tokens are
    compared with an explicit loop over the two updates. Labels that are moved after the inputs, or a query that stays,
    would make it fail.
    """
    d, N = setting.d, setting.N
    prompt, initial = setting.instance()
    etas, gammas = setting.coefficients()
    layers = constructions.gd_plus_plus(MODEL, d, N, etas, gammas, initial=initial)
    start = -initial @ prompt.query
    tokens = np.asarray(MODEL.apply(layers, MODEL.tokens(prompt, start)))
    inputs, slots = theory.descent_variants.gdpp_tokens(initial, prompt.inputs, prompt.labels, prompt.query, etas, gammas)
    return [
        check.exact("inputs", tokens[:, :d], inputs, ROUNDING),
        check.exact("labels", tokens[:, d:], slots, ROUNDING),
        check.exact("prediction", MODEL(layers, prompt, start), -slots[-1], ROUNDING),
    ]


@claim("vonoswald2022.gdpp.poly", CorrectedLayers, Source(PAPER, "the GD++ layer, diagonalised", "extended"))
def gdpp_is_a_polynomial(setting: CorrectedLayers) -> list[Check]:
    """From W_0 = 0, K layers of GD++ are polynomials of the Gram matrix: the answer is w^T (I - rho_K(W)) x_q, rho_K
    of degree (3^K - 1)/2, against K for gradient descent; the last gamma has no effect.

    Constructed layers with random coefficients act on one random prompt of a linear map and are compared with the
    polynomials at the eigenvalues of its Gram matrix; the degree is the growth of the error in one dimension. A curvature
    of the mean Gram matrix, or a degree that doubles with each layer, would make it fail.
    """
    d, N, K = setting.d, setting.N, setting.K
    prompt, initial = setting.instance()
    w = initial[0]
    prompt = Prompt(prompt.inputs, (prompt.inputs @ w)[:, None], prompt.query, prompt.target)
    etas, gammas = setting.coefficients()
    layers = constructions.gd_plus_plus(MODEL, d, N, etas, gammas)
    tokens = np.asarray(MODEL.apply(layers, MODEL.tokens(prompt)))

    values, vectors = np.linalg.eigh(prompt.inputs.T @ prompt.inputs)
    p, rho = theory.descent_variants.gdpp_polynomials(values, etas, gammas, N)
    remaining = (vectors * rho[None, :]) @ vectors.T
    moving = (vectors * p[None, :]) @ vectors.T
    shown = min(K, DEEPEST)
    degree = theory.descent_variants.gdpp_degree(shown)
    stale = constructions.gd_plus_plus(MODEL, d, N, etas, np.append(gammas[:-1], 3 * gammas[-1]))
    return [
        check.exact("inputs", tokens[:, :d], np.vstack([prompt.inputs, prompt.query[None]]) @ moving, ROUNDING),
        check.exact("labels", tokens[:N, -1], prompt.inputs @ remaining @ w, ROUNDING),
        check.exact("prediction", MODEL(layers, prompt)[0], w @ (prompt.query - remaining @ prompt.query), ROUNDING),
        check.exact("prediction_with_another_last_gamma", MODEL(stale, prompt)[0], MODEL(layers, prompt)[0], ROUNDING),
        check.exact("degree", _degree(shown, 1.0, degree), degree, DEGREE_TOLERANCE),
        check.exact("degree_of_gradient_descent", _degree(shown, 0.0, shown), shown, DEGREE_TOLERANCE),
    ]


def _degree(K: int, curvature: float, guess: int) -> float:
    """The degree in s = x^2 of the answer of K layers in one dimension, from its growth at large s.

    The slope of log|1 - yhat| against log s is the degree + O(1/s), which is extrapolated. The guess only keeps s as large
    as overflow allows.
    """
    layers = constructions.gd_plus_plus(MODEL, 1, 1, np.ones(K), np.full(K, curvature))

    def logarithm(log_s):
        root = jnp.exp(log_s / 2).reshape(1, 1)
        return jnp.log(jnp.abs(1 - MODEL(layers, Prompt(root, root, jnp.ones(1), jnp.zeros(1)))[0]))

    largest = min(1e6, 10 ** (LARGEST_EXPONENT / guess))
    half, full = np.asarray(compiled.jit(jax.vmap(jax.grad(logarithm)))(np.log([largest / 2, largest])))
    return 2 * full - half


class Spectrum(Seeded, LayerSetting):
    """Contexts whose Gram matrix one layer changes."""

    N = 25
    gamma: list[float] = vector([0.0, 0.05, 0.099, 0.12], "curvatures", ", for the unnormalised Gram matrix")
    samples: int = integer(10_000, 100, "number of draws", "of contexts, over which a median is taken")

    def validate(self) -> None:
        super().validate()
        gamma = self.gamma
        if gamma is None or min(gamma) < 0 or gamma[-1] == 0:
            raise AssumptionError(f"`gamma` must be numbers >= 0, the last of them > 0 (its spectrum has a peak); got {gamma}.")


@claim("vonoswald2022.gdpp.spectrum", Spectrum, Source(PAPER, "GD++, the spectrum of H++"))
def curvature_shrinks_the_spectrum(setting: Spectrum) -> list[Check]:
    """One layer of GD++ changes every eigenvalue s of the Gram matrix to s (1 - gamma s)^2, and with it the condition
    number; the map has a double root at 1/gamma and a peak of 4/(27 gamma) at 1/(3 gamma).

    Constructed layers, nothing trained, move random contexts, whose singular values before and after are compared; peak,
    root and the gamma that balances both ends are read off a layer in one dimension and its derivative. A map without its
    cubic term, or a peak in another place, would make it fail.
    """
    d, N, covariates = setting.d, setting.N, setting.covariates
    keys = jax.random.split(setting.key, setting.samples)
    inputs = np.asarray(compiled.jit(jax.vmap(lambda key: covariates.sample(key, N)))(keys))

    @compiled.jit
    def moved(layer, inputs):
        def one(context):
            prompt = Prompt(context, jnp.zeros((N, 1)), jnp.zeros(d), jnp.zeros(1))
            return MODEL.apply(layer, MODEL.tokens(prompt))[:N, :d]

        return jax.vmap(one)(inputs)

    # Contexts shorter than d have eigenvalues 0, which stay 0.
    before = np.linalg.svd(inputs, compute_uv=False) ** 2
    checks = []
    for value in setting.gamma:
        layer = constructions.gd_plus_plus(MODEL, d, N, np.zeros(1), np.array([value]))
        after = np.linalg.svd(np.asarray(moved(layer, inputs)), compute_uv=False) ** 2
        expected = theory.descent_variants.gdpp_eigenvalue(before, value)
        condition = np.median(np.max(after, axis=1) / np.min(after, axis=1))
        expected_condition = np.median(np.max(expected, axis=1) / np.min(expected, axis=1))
        checks += [
            check.exact(f"eigenvalues_gamma_{value:g}", after[:SHOWN], np.sort(expected[:SHOWN], axis=1)[:, ::-1], ROUNDING),
            check.exact(f"median_condition_number_gamma_{value:g}", condition, expected_condition, CONDITION_TOLERANCE),
        ]
    return checks + _shape_checks(setting.gamma[-1], float(np.min(before)), float(np.max(before)))


def _shape_checks(gamma: float, smallest: float, largest: float) -> list[Check]:
    """How a layer in one dimension maps one eigenvalue: the peak, the double root, and the gamma that balances two ends."""

    def layer(gamma):
        return constructions.gd_plus_plus(MODEL, 1, 1, np.zeros(1), np.array([gamma]))

    @compiled.jit
    @jax.value_and_grad
    def mapped(s, weights):
        one = jnp.sqrt(s).reshape(1, 1)
        prompt = Prompt(one, jnp.zeros((1, 1)), jnp.zeros(1), jnp.zeros(1))
        return MODEL.apply(weights, MODEL.tokens(prompt))[0, 0] ** 2

    def imbalance(gamma):
        weights = layer(gamma)
        return float(mapped(np.asarray(largest), weights)[0] - mapped(np.asarray(smallest), weights)[0])

    place, height = theory.descent_variants.gdpp_peak(gamma)
    values, slopes = np.array([mapped(np.asarray(s), layer(gamma)) for s in (place, 1 / gamma)]).T
    balanced = brentq(imbalance, 0.0, 1 / largest, xtol=1e-14 / largest)
    return [
        check.exact(
            "balanced_gamma", balanced, theory.descent_variants.gdpp_balanced_curvature(smallest, largest), ROOT_TOLERANCE
        ),
        check.exact("height_of_peak", values[0], height, ROUNDING),
        check.exact("slopes_at_peak_and_root_abs", slopes, np.zeros(2), ROUNDING),
        check.exact("value_at_root_abs", gamma * values[1], 0.0, ROUNDING),
    ]
