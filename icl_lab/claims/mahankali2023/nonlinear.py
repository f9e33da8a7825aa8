"""The claim of Mahankali, Hashimoto, Ma 2023 (arXiv 2307.03576) about nonlinear responses: still one gradient step."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from icl_lab import theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.mahankali2023.settings import MODEL, PAPER, Isotropic
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import choice, integer
from icl_lab.claims.settings.flow_paths import structured
from icl_lab.claims.simulation import mean_with_error, ratio_with_error, simulate
from icl_lab.tasks.regression import nonlinear
from icl_lab.tasks.regression.links import Monomial, Sign

FAMILIES = ("linear", "relu", "sign", "cubic", "cosine", "square")
LARGEST_LIFTED_DIM = 5
"""There are of order d^3 / 2 features, all of which are kept for every prompt."""


class Responses(Isotropic):
    """Prompts of one or of all families of nonlinear responses to isotropic inputs."""

    N = 6
    s2 = 0.25
    K: int = integer(4, 1, "number of hidden units", "of the ReLU network")
    family: str = choice("all", ("all", *FAMILIES), "family of responses")
    samples: int = integer(80_000, 10_000, "number of draws", "of prompts of each family")

    def response_task(self, family: str) -> nonlinear.NonlinearRegression:
        """The distribution of prompts of one family."""
        responses = {
            "linear": nonlinear.Linear(),
            "relu": nonlinear.ReLUNetwork(self.K),
            "sign": nonlinear.SingleIndex(Sign()),
            "cubic": nonlinear.SingleIndex(Monomial(3)),
            "cosine": nonlinear.RandomCosine(),
            "square": nonlinear.SingleIndex(Monomial(2), random_sign=True),
        }
        return nonlinear.NonlinearRegression(self.d, self.N, responses[family], noise_std=np.sqrt(self.s2))


@claim("mahankali2023.thm3", Responses, Source(PAPER, "Theorem 3"))
def nonlinear_responses(setting: Responses) -> list[Check]:
    """For responses f whose distribution is invariant under rotations and under f -> -f, the best layer is one GD
    step of size eta = E(u.b) / E(b.b), zero for even f.

    From simulated prompts: the ratio of the two means, the risk of the layer put at that step, and least squares on all
    features of a layer, which is the best of any number of them and lies at the step; no flow is followed. Another step, or a
    feature beside b x_q that helps, would make it fail.
    """
    checks = []
    for family in FAMILIES if setting.family == "all" else (setting.family,):
        checks += _family_checks(setting, family)
    if setting.family in ("all", "relu"):
        sizes = setting.d, setting.N, setting.s2
        general = theory.nonlinear.step_size(nonlinear.ReLUNetwork(setting.K).moments(setting.d), *sizes)
        checks.append(check.exact("eta_relu_simplified", theory.nonlinear.network_step_size(*sizes, setting.K), general, 1e-14))
    return checks


def _family_checks(setting: Responses, family: str) -> list[Check]:
    d, task = setting.d, setting.response_task(family)
    problem = task.moments, d, setting.N, setting.s2
    eta = theory.nonlinear.step_size(*problem)
    step = structured(1.0, eta * np.eye(d))
    rows, columns = np.triu_indices(d + 1 if d <= LARGEST_LIFTED_DIM else 0)

    def statistics(one):
        prompt = task.sample(one)
        b = prompt.inputs.T @ prompt.labels[:, 0]
        target, answer = prompt.target[0], MODEL(step, prompt)[0]
        # Given the prompt, the target times x_q has the mean u.
        first = jnp.stack([target * (b @ prompt.query), b @ b, (answer - target) ** 2, target])
        gram = MODEL.gram(MODEL.tokens(prompt))[rows, columns]
        return jnp.concatenate([first, (gram[:, None] * prompt.query[None, :]).ravel()])

    drawn = simulate(statistics, setting.stream(family), setting.samples)
    numerator, denominator, errors, targets = drawn[:, :4].T
    ratio, ratio_error = ratio_with_error(numerator, denominator)
    mean, error = mean_with_error(errors)
    # The square has a step of zero, and some of random cosines in many dimensions cannot be told from it.
    suffix = "_abs" if check.SIGMAS * ratio_error >= check.LARGEST_SAMPLED_TOLERANCE * eta else ""
    checks = [
        check.sampled(f"eta_{family}{suffix}", ratio, eta, ratio_error),
        check.sampled(f"risk_{family}", mean, theory.nonlinear.minimum_risk(*problem), error),
    ]
    if d <= LARGEST_LIFTED_DIM:
        fitted, scales, spread = _least_squares(drawn[:, 4:], targets)
        on = (rows[:, None] == np.arange(d)[None, :]) & (columns == d)[:, None]
        expected = np.where(on.ravel(), eta * scales, 0.0)
        checks.append(check.sampled(f"lifted_coefficients_{family}_abs", fitted, expected, spread))
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
