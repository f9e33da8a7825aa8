"""Claim of Zhang, Frei, Bartlett 2023 (arXiv 2306.09927): where gradient flow takes linear self-attention."""

from __future__ import annotations

import jax
import numpy as np

from icl_lab import theory
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.zhang2023.measurements import (
    LIMIT_TOLERANCE,
    WEIGHT_TOLERANCE,
    converged,
    gradient,
    no_gradient,
    same_weights,
)
from icl_lab.claims.zhang2023.settings import PAPER, FlowSetting
from icl_lab.models.weights import LSAWeights

# Saved states are interpolated by the solver, whose accuracy along the path is coarser than at rest.
PATH_TOLERANCE = 1e-7
LARGEST_FULL_DIM = 8


@claim("zhang2023.thm4.1", FlowSetting, Source(PAPER, "Theorem 4.1 with Assumption 3.3"))
def limits_of_gradient_flow(setting: FlowSetting) -> list[Check]:
    """From the structured start, gradient flow takes W_PV and W_KQ to limits given by Gamma^{-1},
    Gamma = (1 + 1/N) Lam + tr(Lam)/N I.

    Gradient flow on the exact loss starts at Assumption 3.3 with scale sigma and runs to rest, over every entry of both
    matrices up to d = 8. A Gamma without tr(Lam)/N I would miss the limits, the preconditioner and the risk; an entry off
    the structure that wants to move would show in the full gradient at the limit.
    """
    d, matrix, objective = setting.d, setting.covariance, setting.objective
    # Up to the time at which the start, growing at the rate ||Lam^2||_F, has left the plateau.
    times = np.linspace(0.0, 3.0, 5) * np.log(1 + 1 / setting.sigma) / np.linalg.norm(matrix @ matrix)
    start = setting.start
    # A head axis makes the flow integrate every entry of both matrices, although only some of them ever move. In many
    # dimensions it runs on the invariant subspace, and the full gradient at the limit speaks for the other entries.
    if d <= LARGEST_FULL_DIM:
        start = jax.tree.map(lambda matrix: matrix[None], start)
    flow = convergence.to_limit(objective, start, times=times, weight_tolerance=WEIGHT_TOLERANCE)
    limit = jax.tree.map(lambda matrix: matrix.reshape(d + 1, d + 1), flow.limit)
    path = jax.tree.map(lambda matrix: matrix.reshape(-1, d + 1, d + 1)[: len(times)], flow.trajectory.weights)
    optimum = theory.zhang2023.optimum(setting.task())
    preconditioner = limit.w_pv[-1, -1] * limit.w_kq[:d, :d].T
    u, inner = theory.zhang2023.reduced_flow(*setting.bounds, times)
    return [
        converged(flow),
        *same_weights(limit, LSAWeights(*theory.zhang2023.limit(matrix, setting.N)), LIMIT_TOLERANCE),
        check.exact("preconditioner", preconditioner, optimum.preconditioner, LIMIT_TOLERANCE),
        check.exact("risk", objective.risk(limit), optimum.risk, LIMIT_TOLERANCE, terms=np.trace(matrix)),
        # Every entry of both matrices, also those that the flow never moves.
        *no_gradient(gradient(objective, limit), LIMIT_TOLERANCE * np.trace(matrix) ** 2, "gradient"),
        check.exact("u_along_the_flow", path.w_pv[:, -1, -1], u, PATH_TOLERANCE),
        check.exact("U_along_the_flow", path.w_kq[:, :d, :d], inner, PATH_TOLERANCE),
    ]
