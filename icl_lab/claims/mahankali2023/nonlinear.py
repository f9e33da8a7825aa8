"""The claim of Mahankali, Hashimoto, Ma 2023 (arXiv 2307.03576) about nonlinear responses: still one gradient step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, choice, integer, number
from icl_lab.claims.mahankali2023.linear import MODEL, PAPER
from icl_lab.claims.registry import claim
from icl_lab.claims.simulation import mean_with_error, simulate
from icl_lab.core import prng
from icl_lab.models import LSAWeights
from icl_lab.tasks.regression.links import Monomial, Sign
from icl_lab.tasks.regression.nonlinear import Linear, NonlinearRegression, RandomCosine, ReLUNetwork, Response, SingleIndex

FAMILIES = ("linear", "relu", "sign", "cubic", "cosine", "square")
LARGEST_LIFTED_DIM = 5
"""There are of order d^3 / 2 features, all of which are kept for every prompt."""


def _response(family: str, width: int) -> Response:
    return {
        "linear": Linear(),
        "relu": ReLUNetwork(width),
        "sign": SingleIndex(Sign()),
        "cubic": SingleIndex(Monomial(3)),
        "cosine": RandomCosine(),
        "square": SingleIndex(Monomial(2), random_sign=True),
    }[family]


@claim(
    "mahankali2023.thm3",
    statement="For responses f whose distribution is invariant under rotations and under f -> -f, the best layer is one GD "
    "step of size "
    "eta = E(u.b) / E(b.b), zero for even f.",
    source=Source(PAPER, "Theorem 3"),
    parameters={
        "d": integer(3, 1, "input dimension"),
        "N": integer(6, 1, "context length, the paper's n"),
        "s2": number(0.25, 0.0, "variance of the label noise"),
        "K": integer(4, 1, "units of the ReLU network"),
        "family": choice("all", ("all", *FAMILIES), "which responses"),
        "samples": integer(80_000, 10_000, "prompts of each family"),
        "seed": integer(0, 0, "of prompts"),
    },
)
def nonlinear_responses(d, N, s2, K, family, samples, seed) -> list[Check]:
    checks = []
    for name in FAMILIES if family == "all" else (family,):
        key = prng.stream(jax.random.key(seed), name)
        task = NonlinearRegression(d, N, _response(name, K), noise_std=np.sqrt(s2))
        checks += _family_checks(name, task, s2, key, samples)
    if family in ("all", "relu"):
        moments = ReLUNetwork(K).moments(d)
        simplified = theory.nonlinear.network_step_size(d, N, s2, K)
        checks.append(check.exact("eta_relu_simplified", simplified, theory.nonlinear.step_size(moments, d, N, s2), 1e-14))
    return checks


def _family_checks(name: str, task: NonlinearRegression, s2: float, key, samples: int) -> list[Check]:
    d = task.dim
    sizes = (task.moments, d, task.context_length, s2)
    eta, risk = theory.nonlinear.step_size(*sizes), theory.nonlinear.minimum_risk(*sizes)
    step = LSAWeights(np.diag(np.append(np.zeros(d), 1.0)), np.diag(np.append(np.full(d, eta), 0.0)))
    rows, columns = np.triu_indices(d + 1 if d <= LARGEST_LIFTED_DIM else 0)

    def statistics(one):
        prompt = task.sample(one)
        b = prompt.inputs.T @ prompt.labels[:, 0]
        target, answer = prompt.target[0], MODEL(step, prompt)[0]
        # Given the prompt, the target times x_q has the mean u.
        first = jnp.stack([target * (b @ prompt.query), b @ b, (answer - target) ** 2, target])
        gram = MODEL.gram(MODEL.tokens(prompt))[rows, columns]
        return jnp.concatenate([first, (gram[:, None] * prompt.query[None, :]).ravel()])

    drawn = simulate(statistics, key, samples)
    numerator, denominator, errors, targets = drawn[:, :4].T
    ratio = np.mean(numerator) / np.mean(denominator)
    ratio_error = np.std(numerator - ratio * denominator, ddof=1) / np.sqrt(samples) / np.mean(denominator)
    mean, error = mean_with_error(errors)
    # The square has a step of zero, and some of random cosines in many dimensions cannot be told from it.
    suffix = "_abs" if check.SIGMAS * ratio_error >= check.LARGEST_SAMPLED_TOLERANCE * eta else ""
    checks = [
        check.sampled(f"eta_{name}{suffix}", ratio, eta, ratio_error),
        check.sampled(f"risk_{name}", mean, risk, error),
    ]
    if d <= LARGEST_LIFTED_DIM:
        fitted, scales, spread = _least_squares(drawn[:, 4:], targets)
        on = (rows[:, None] == np.arange(d)[None, :]) & (columns == d)[:, None]
        expected = np.where(on.ravel(), eta * scales, 0.0)
        checks.append(check.sampled(f"lifted_coefficients_{name}_abs", fitted, expected, spread))
    return checks


def _least_squares(features: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients of least squares on features scaled to unit size, the sizes, and the standard errors of the coefficients.

    On every feature G_ij x_q,k of a prompt it is the best sum of any number of layers: the convex lifting of the problem.
    """
    count = len(targets)
    # Not a matrix product: OpenBLAS's threads take seconds over tall products beside XLA's.
    gram = np.einsum("pf,pg->fg", features, features) / count
    sizes = np.sqrt(np.diagonal(gram))
    scale = np.outer(sizes, sizes)
    inverse = np.linalg.inv(gram / scale)
    fitted = inverse @ (features.T @ targets / sizes) / count
    # Robust to residuals whose variance depends on the prompt, as it does here.
    scores = features * (targets - features @ (fitted / sizes))[:, None]
    covariance = inverse @ (np.einsum("pf,pg->fg", scores, scores) / scale) @ inverse / count**2
    return fitted, sizes, np.sqrt(np.diagonal(covariance))
