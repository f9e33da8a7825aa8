"""What several claims of this paper measure: drawn weights, gradients, trained layers, exact risks, and the checks of them."""

from __future__ import annotations

import jax
import numpy as np

from icl_lab import models, objectives, theory, training
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.settings.flow_paths import exact, structured
from icl_lab.claims.zhang2023.settings import FlowSetting
from icl_lab.core import compiled, prng
from icl_lab.core.typing import Array
from icl_lab.models.weights import LSAWeights
from icl_lab.objectives import RegressionLoss
from icl_lab.tasks.regression.linear import LinearRegression

# Sums of a few hundred float64 products.
EXACT_TOLERANCE = 1e-12
GRADIENT_TOLERANCE = 1e-13
# Limits: the flow is stopped at an estimated weight error of WEIGHT_TOLERANCE, and ten times that is asked of it.
WEIGHT_TOLERANCE = 1e-10
LIMIT_TOLERANCE = 1e-9
# Losses near a minimum and bounds along the way ask less of the weights.
PATH_WEIGHT_TOLERANCE = 1e-8
# Away from the training length the risk is not stationary at the limit: its error is linear in that of the weights.
RISK_WEIGHT_TOLERANCE = 1e-11
RISK_TOLERANCE = 1e-10


def drawn_weights(seed: int, dim: int, count: int) -> list[tuple[float, Array]]:
    """Pairs of a standard normal u and a matrix U (d, d) of standard normals."""
    draws = np.asarray(jax.random.normal(prng.stream(jax.random.key(seed), "weights"), (count, dim**2 + 1)))
    return [(float(row[0]), row[1:].reshape(dim, dim)) for row in draws]


@compiled.jit
def gradient(objective: objectives.Objective, weights: LSAWeights) -> LSAWeights:
    """Gradient of the half loss, compiled once for all covariances of a size."""
    return jax.grad(objective)(weights)


def minimiser(objective: RegressionLoss) -> LSAWeights:
    """The structured weights of least loss with u = 1, where the loss is quadratic in U: one Newton step from U = 0."""
    d = objective.task.dim

    def slope(inner: np.ndarray) -> np.ndarray:
        return np.asarray(gradient(objective, structured(1.0, inner)).w_kq)[:d, :d].ravel()

    origin = slope(np.zeros((d, d)))
    hessian = np.stack([slope(unit.reshape(d, d)) - origin for unit in np.eye(d**2)])
    return structured(1.0, np.linalg.solve(hessian, -origin).reshape(d, d))


def path_from_start(setting: FlowSetting) -> training.TrainingResult:
    """Gradient flow from the structured start until it rests."""
    return convergence.to_limit(setting.objective, setting.start, weight_tolerance=PATH_WEIGHT_TOLERANCE)


def trained(task: LinearRegression) -> training.TrainingResult:
    """Gradient flow from Assumption 3.3 at half the largest scale that it admits, with Theta Theta^T = I / sqrt(d)."""
    scale = 0.5 * theory.zhang2023.largest_init_scale(task.covariance, task.context_length)
    return convergence.to_limit(exact(task), models.initializers.zhang(task.dim, scale), weight_tolerance=RISK_WEIGHT_TOLERANCE)


def prompts(covariance: Array, length: int, tasks: Array | None = None, noise_variance: float = 0.0) -> LinearRegression:
    """Prompts of one length, with inputs N(0, covariance) and tasks N(0, tasks), N(0, I) for None."""
    return LinearRegression(
        dim=len(covariance),
        context_length=length,
        covariance=covariance,
        task_covariance=tasks,
        noise_std=np.sqrt(noise_variance),
    )


def risk_on(weights: LSAWeights, task: LinearRegression) -> float:
    """Exact risk of the layer."""
    return exact(task).risk(weights)


def converged(flow: training.TrainingResult, name: str = "flow_converged_abs") -> Check:
    """The check that a flow has reached a minimum."""
    return check.holds(name, flow.converged)


def same_weights(measured: LSAWeights, expected: LSAWeights, tolerance: float) -> list[Check]:
    """The checks of both matrices."""
    return [
        check.exact("w_pv", measured.w_pv, expected.w_pv, tolerance),
        check.exact("w_kq", measured.w_kq, expected.w_kq, tolerance),
    ]


def no_gradient(slope: LSAWeights, tolerance: float, words: str = "gradient_of") -> list[Check]:
    """The checks that a gradient is zero in every entry of both matrices."""
    return [
        check.exact(f"{words}_w_pv_abs", slope.w_pv, np.zeros_like(slope.w_pv), tolerance),
        check.exact(f"{words}_w_kq_abs", slope.w_kq, np.zeros_like(slope.w_kq), tolerance),
    ]


def velocity_checks(
    objective: objectives.Objective, u: float, inner: Array, expected: tuple[float, Array], suffix: str = ""
) -> list[Check]:
    """The autodiffed gradient at structured weights beside du/dt and dU/dt, and zero where structured weights are zero."""
    d = len(inner)
    slope = jax.tree.map(np.asarray, gradient(objective, structured(u, inner)))
    outside = np.concatenate([slope.w_pv[-1, :d], slope.w_kq[d, :d]])
    size = float(np.linalg.norm(expected[1]))
    return [
        check.exact(f"du{suffix}", -slope.w_pv[-1, -1], expected[0], GRADIENT_TOLERANCE),
        check.exact(f"dU{suffix}", -slope.w_kq[:d, :d], expected[1], GRADIENT_TOLERANCE),
        check.exact(f"dp1_dk2{suffix}_abs", outside, np.zeros(2 * d), GRADIENT_TOLERANCE * size),
    ]


def pl_checks(path: training.Trajectory, minimum: float, mu: float, resolution: float) -> list[Check]:
    """The checks that |grad L|^2 >= mu (L - min L) and L - min L <= exp(-mu t) times its start, along a path.

    Args:
      path: of the flow.
      minimum: least half loss.
      mu: the constant.
      resolution: below this a gap is rounding noise.
    """
    gaps = path.losses - minimum
    resolved = gaps > resolution
    # How far the logarithm of the gap is above that of the exponential.
    excess = np.log(gaps[resolved] / gaps[0]) + mu * path.times[resolved]
    return [
        check.holds("gap_is_resolved_abs", int(np.sum(resolved)) >= 10),
        check.at_least("smallest_gradient_over_gap", np.min((path.gradient_norms**2)[resolved] / gaps[resolved]), mu),
        check.at_most("largest_log_gap_plus_mu_t_abs", np.max(excess), 0.0, EXACT_TOLERANCE),
    ]
