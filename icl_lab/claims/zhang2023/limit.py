"""Claims of Zhang, Frei, Bartlett 2023 (arXiv 2306.09927): trained linear self-attention in context."""

from __future__ import annotations

import jax
import numpy as np

from icl_lab import models, objectives, theory, training
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, choice, flag, integer, number, spectrum
from icl_lab.claims.registry import claim
from icl_lab.claims.settings.regression import check_spectrum, covariance
from icl_lab.core import compiled
from icl_lab.models import initializers
from icl_lab.tasks.regression.linear import LinearRegression

PAPER = "Zhang, Frei, Bartlett 2023, arXiv 2306.09927"

# Limits: the flow is stopped at an estimated weight error of WEIGHT_TOLERANCE, and ten times that is asked of it.
WEIGHT_TOLERANCE = 1e-10
LIMIT_TOLERANCE = 1e-9
# Saved states are interpolated by the solver, whose accuracy along the path is coarser than at rest.
PATH_TOLERANCE = 1e-7
LARGEST_FULL_DIM = 8


def theta_matrix(kind: str, dim: int, seed: int) -> np.ndarray:
    """Theta of Assumption 3.3, scaled to || Theta Theta^T ||_F = 1."""
    if kind == "identity":
        return np.eye(dim) / dim**0.25
    return np.asarray(initializers.random_theta(jax.random.key(seed), dim))


def validate_start(d, N, Lam, rotate, sigma, theta, seed) -> None:
    """Raise on a spectrum of another dimension or a start outside Assumption 3.3."""
    check_spectrum(Lam, d, "Lam")
    root = theta_matrix(theta, d, seed)
    theory.zhang2023.check_initialisation(sigma, covariance(Lam, d, rotate, seed), N, root @ root.T)


@claim(
    "zhang2023.thm4.1",
    statement="From the structured start, gradient flow takes W_PV and W_KQ to limits given by Gamma^{-1}, "
    "Gamma = (1 + 1/N) Lam + tr(Lam)/N I.",
    source=Source(PAPER, "Theorem 4.1 with Assumption 3.3"),
    parameters={
        "d": integer(3, 1, "input dimension"),
        "N": integer(10, 1, "training context length"),
        "Lam": spectrum("eigenvalues of the input covariance; null: 2 down to 1/2"),
        "rotate": flag(False, "random eigenvectors of the covariance"),
        "sigma": number(0.1, positive=True, meaning="initial scale; sigma^2 ||Gamma|| sqrt(d) < 2"),
        "theta": choice("identity", ("identity", "random"), "the matrix Theta of the start"),
        "seed": integer(0, 0, "of the random basis and of Theta"),
    },
    validate=validate_start,
)
def limits_of_gradient_flow(d, N, Lam, rotate, sigma, theta, seed) -> list[Check]:
    matrix = covariance(Lam, d, rotate, seed)
    task = LinearRegression(dim=d, context_length=N, covariance=matrix)
    objective = objectives.population(task, models.LinearSelfAttention())
    root = theta_matrix(theta, d, seed)
    # Up to the time at which the start, growing at the rate ||Lam^2||_F, has left the plateau.
    times = np.linspace(0.0, 3.0, 5) * np.log(1 + 1 / sigma) / np.linalg.norm(matrix @ matrix)
    start = initializers.zhang(d, sigma, root)
    # A head axis makes the flow integrate every entry of both matrices, although only some of them ever move. In many
    # dimensions it runs on the invariant subspace, and the full gradient at the limit speaks for the other entries.
    if d <= LARGEST_FULL_DIM:
        start = jax.tree.map(lambda matrix: matrix[None], start)
    flow = convergence.to_limit(objective, start, times=times, weight_tolerance=WEIGHT_TOLERANCE)
    limit = jax.tree.map(lambda matrix: matrix.reshape(d + 1, d + 1), flow.limit)
    path = jax.tree.map(lambda matrix: matrix.reshape(-1, d + 1, d + 1)[: len(times)], flow.trajectory.weights)
    w_pv, w_kq = theory.zhang2023.limit(matrix, N)
    optimum = theory.zhang2023.optimum(task)
    gradient = compiled.jit(jax.grad(objective))(limit)
    u, inner = theory.zhang2023.reduced_flow(sigma, matrix, N, root @ root.T, times)
    return [
        check.holds("flow_converged_abs", flow.verdict == training.Verdict.CONVERGED),
        check.exact("w_pv", limit.w_pv, w_pv, LIMIT_TOLERANCE),
        check.exact("w_kq", limit.w_kq, w_kq, LIMIT_TOLERANCE),
        check.exact(
            "preconditioner",
            limit.w_pv[-1, -1] * limit.w_kq[:d, :d].T,
            optimum.preconditioner,
            LIMIT_TOLERANCE,
        ),
        check.exact("risk", objective.risk(limit), optimum.risk, LIMIT_TOLERANCE, terms=np.trace(matrix)),
        # Every entry of both matrices, also those that the flow never moves.
        check.exact("gradient_w_pv_abs", gradient.w_pv, np.zeros((d + 1, d + 1)), LIMIT_TOLERANCE * np.trace(matrix) ** 2),
        check.exact("gradient_w_kq_abs", gradient.w_kq, np.zeros((d + 1, d + 1)), LIMIT_TOLERANCE * np.trace(matrix) ** 2),
        check.exact("u_along_the_flow", path.w_pv[:, -1, -1], u, PATH_TOLERANCE),
        check.exact("U_along_the_flow", path.w_kq[:, :d, :d], inner, PATH_TOLERANCE),
    ]
