"""Claim of the lab about a real layer that is trained on planar rotations."""

from __future__ import annotations

import jax
import numpy as np

from icl_lab import objectives, theory, training
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.lab.rotations import EXACT_TOLERANCE, MODEL, PAPER, one_step_layer
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import Setting, integer, number
from icl_lab.core import compiled
from icl_lab.models import LSAWeights, PairedWeights
from icl_lab.tasks.dynamics.linear import GaussianStart, LinearDynamics, RotationBlocks

# The flow stops at a relative weight error of 1e-8.
TRAINED_TOLERANCE = 1e-6


class PlanarSetting(Setting):
    """Noise-free rotations of the plane, and a start on the two blocks of the complex theorem."""

    T: int = integer(5, 3, "states of a sequence", "; the loss sums positions 2 .. T - 1")
    a0: float = number(0.3, positive=True, meaning="initial K_32 = a0 I")
    b0: float = number(0.6, positive=True, meaning="initial P_12 = b0 I")
    sigma: float = number(
        1.0, positive=True, meaning="scale of the start distribution", detail=": standard deviation of a coordinate of x_1"
    )


@claim(
    "lab.complex-vs-real",
    PlanarSetting,
    Source(
        PAPER + "; the real counterpart of arXiv 2405.16845",
        "exact moments of the real layer; conservation of p^2 - k^2 - q^2",
        "extended",
    ),
)
def complex_and_real_differ(setting: PlanarSetting) -> list[Check]:
    """A real layer trained on planar rotations does not stay on the two blocks of the complex theorem: it also moves the block
    that scores x_i against x_{t-1}, and ends lower by the recurrence x_{t+1} = 2 cos(theta) x_t - x_{t-1}.

    Gradient flow of all real weights, on a loss integrated by cubature, starts with K_32 = a0 I and P_12 = b0 I alone and runs
    to rest; on these two blocks alone the loss is a parabola in their product. A flow that stays on them, as the complex one
    does, or moves any other block, would make it fail.
    """
    T, a0, b0, sigma = setting.T, setting.a0, setting.b0, setting.sigma
    identity = np.eye(2)
    objective = objectives.rotation_cubature(LinearDynamics(2, T - 2, RotationBlocks(), start=GaussianStart(sigma)), MODEL)
    start = PairedWeights(b0 * identity, a0 * identity).merged()
    slope = jax.tree.map(np.asarray, compiled.jit(jax.grad(objective))(start))
    # On the two blocks alone the loss is a parabola in the product.
    low, rest, high = (objective.risk(one_step_layer(2, product).merged()) / 2 for product in (-1.0, 0.0, 1.0))
    curvature = high + low - 2 * rest
    product, diagonal_loss = theory.rotations.planar_diagonal(T, sigma)
    flow = convergence.to_limit(objective, start)
    limit = theory.rotations.planar_limit(T, a0, b0, sigma)
    expected = PairedWeights(limit.value * identity, limit.key_query * identity).merged()
    expected.w_kq[2:4, 4:] = limit.reverse * identity
    reverse = theory.rotations.planar_reverse_gradient(T, a0, b0, sigma)
    end = flow.limit
    size = float(np.linalg.norm(slope.w_kq))
    return [
        check.exact("best_product_of_two_blocks", (low - high) / (2 * curvature), product, EXACT_TOLERANCE),
        check.exact("loss_of_two_blocks", rest - (high - low) ** 2 / (8 * curvature), diagonal_loss, EXACT_TOLERANCE),
        check.exact("initial_gradient_of_KQ_23", slope.w_kq[2:4, 4:], reverse * identity, EXACT_TOLERANCE),
        check.exact("initial_gradient_elsewhere_abs", _others(slope), np.zeros((12, 6)), EXACT_TOLERANCE * size),
        check.holds("flow_converged_abs", flow.verdict == training.Verdict.CONVERGED),
        check.exact("P", end.w_pv[:2, 2:4], expected.w_pv[:2, 2:4], TRAINED_TOLERANCE),
        check.exact("K", end.w_kq[4:, 2:4], expected.w_kq[4:, 2:4], TRAINED_TOLERANCE),
        check.exact("KQ_23", end.w_kq[2:4, 4:], expected.w_kq[2:4, 4:], TRAINED_TOLERANCE),
        check.exact("other_entries_abs", _others(end), np.zeros((12, 6)), TRAINED_TOLERANCE),
        check.exact("half_loss", objective.risk(end) / 2, limit.loss, EXACT_TOLERANCE),
        check.at_most("half_loss_below_two_blocks", objective.risk(end) / 2, diagonal_loss),
    ]


def _others(weights: LSAWeights) -> np.ndarray:
    """W_KQ over W_PV, (12, 6), without the three blocks that move."""
    w_kq, w_pv = np.array(weights.w_kq), np.array(weights.w_pv)
    w_kq[2:4, 4:] = w_kq[4:, 2:4] = w_pv[:2, 2:4] = 0.0
    return np.concatenate([w_kq, w_pv])
