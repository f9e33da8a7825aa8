"""Claims about the lab's own machinery."""

from __future__ import annotations

import functools

import jax
import numpy as np

from icl_lab import models, objectives, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, choice, flag, integer, number, spectrum
from icl_lab.claims.registry import claim
from icl_lab.claims.settings.regression import check_spectrum, covariance
from icl_lab.claims.simulation import simulated_risk
from icl_lab.core import compiled, prng
from icl_lab.models import initializers
from icl_lab.tasks.regression.linear import LinearRegression

# Both sides are sums of a few thousand float64 terms with mild cancellation.
EXACT_TOLERANCE = 1e-11


def _validate(d, Lam, Om, **_) -> None:
    check_spectrum(Lam, d, "Lam")
    check_spectrum(Om, d, "Om")


@claim(
    "lab.exact-loss",
    statement="The closed population loss of one linear self-attention layer, and its gradient, are right at any weights.",
    source=Source("icl_lab", "second moments of a cubic form of Gaussian variables", "extended"),
    parameters={
        "d": integer(3, 1, "input dimension"),
        "N": integer(5, 1, "context length"),
        "s2": number(0.25, 0.0, "variance of the label noise"),
        "Lam": spectrum("eigenvalues of the input covariance; null: 2 down to 1/2"),
        "Om": spectrum("eigenvalues of the task covariance; null: 3/2 down to 1/2"),
        "rotate": flag(True, "random eigenvectors of both covariances, which then do not commute"),
        "heads": integer(1, 1, "attention heads"),
        "normaliser": choice("context_length", ("context_length", "none"), "what the attention sum is divided by"),
        "scale": number(0.3, positive=True, meaning="standard deviation of a weight"),
        "samples": integer(200_000, 1_000, "prompts of the Monte Carlo check"),
        "seed": integer(0, 0, "of weights, bases and prompts"),
    },
    validate=_validate,
)
def exact_loss(d, N, s2, Lam, Om, rotate, heads, normaliser, scale, samples, seed) -> list[Check]:
    key = jax.random.key(seed)
    task = LinearRegression(
        dim=d,
        context_length=N,
        covariance=covariance(Lam, d, rotate, seed, "inputs"),
        task_covariance=covariance(Om, d, rotate, seed, "tasks", largest=1.5),
        noise_std=np.sqrt(s2),
    )
    weights = initializers.gaussian(prng.stream(key, "weights"), d + 1, scale, heads if heads > 1 else None)
    checks = []
    for query_in_sum, words in ((True, "query_in"), (False, "query_out")):
        model = models.LinearSelfAttention(query_in_sum=query_in_sum, normaliser=normaliser)
        objective = objectives.population(task, model)
        reference = (weights.w_pv, weights.w_kq, task.covariance, task.task_covariance, s2, N)
        options = {"query_in_sum": query_in_sum, "rho": float(N) if normaliser == "context_length" else 1.0}
        expected = theory.exact_loss.risk(*reference, **options)
        slopes = theory.exact_loss.risk_gradient(*reference, **options)
        gradient = compiled.jit(jax.grad(objective))(weights)
        mean, error = simulated_risk(functools.partial(model, weights), task, prng.stream(key, f"prompts {words}"), samples)
        checks += [
            check.exact(f"risk_{words}", objective.risk(weights), expected, EXACT_TOLERANCE),
            # The reference differentiates the risk, the objective is half of it.
            check.exact(f"gradient_w_pv_{words}", 2 * np.asarray(gradient.w_pv), slopes[0], EXACT_TOLERANCE),
            check.exact(f"gradient_w_kq_{words}", 2 * np.asarray(gradient.w_kq), slopes[1], EXACT_TOLERANCE),
            check.sampled(f"simulated_risk_{words}", mean, expected, error),
        ]
    return checks
