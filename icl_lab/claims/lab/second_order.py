"""Claim of the lab about the best layer on AR(2) series of random coefficients, and simpler predictors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab import objectives, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.lab.autoregressive import PAPER
from icl_lab.claims.lab.random_autoregressive import MODEL, RandomSeries, trained
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer
from icl_lab.core import compiled
from icl_lab.core.errors import AssumptionError
from icl_lab.core.typing import Array
from icl_lab.models import LSAWeights
from icl_lab.objectives import MomentLoss

# The best of many starts on twelve features whose Gram is nearly singular.
LAYER_TOLERANCE = 1e-6


class SecondOrder(RandomSeries):
    """Series of order 2, at bounds where quadrature is cheap."""

    nodes: int = integer(14, 2, "number of nodes of an axis", "of the quadrature of the checks that end in _of_rule")
    starts: int = integer(8, 1, "number of starts", ", the best preconditioned step disturbed at random")

    def validate(self) -> None:
        super().validate()
        if self.bound > 0.93:
            raise AssumptionError(
                f"`bound` must be at most 0.93 for p = 2, where the quadrature takes seconds; got {self.bound!r}."
            )


@claim(
    "lab.ar2-random",
    SecondOrder,
    Source(PAPER, "moments averaged over the coefficients by quadrature", "extended"),
    extra_settings=({"N": 50},),
)
def random_ar2(setting: SecondOrder) -> list[Check]:
    """On AR(2) series with coefficients uniform on the shrunk triangle the best layer beats every preconditioned gradient step
    from zero, which beats a plain one, but not unrestricted coefficients of its features.

    Gradient flow on the averaged moments starts beside the best preconditioned step, disturbed by Gaussian noise of 0.3 of its
    size, and the lowest end counts; restricted predictors are found by one Newton step or a linear solve. Expected minima come
    from moments of another derivation. A layer that is a preconditioned step, or any other order, would make it fail.
    """
    N, bound, sigma, starts = setting.N, setting.bound, setting.sigma, setting.starts
    task = setting.task(2)
    checks = []
    # The distribution itself, and its replacement by a coarse rule, which at bounds near 1 is another distribution.
    for suffix, size in (("", None), ("_of_rule", setting.nodes)):
        loss = objectives.series_loss(task, MODEL, nodes=None if size is None else (size, size))
        moments = theory.random_autoregressive.random_feature_moments(2, N, bound, sigma**2, size)
        plain, free = (theory.random_autoregressive.step_basis(2, preconditioned) for preconditioned in (False, True))
        best_step, step_risk = theory.random_autoregressive.span_minimum(moments, plain)
        expected = {
            "zero": float(moments.variance),
            "step": step_risk,
            "preconditioned_step": theory.random_autoregressive.span_minimum(moments, free)[1],
            "layer": theory.isserlis.best_layer(moments, 2, starts=24).risk,
            "lifted": theory.random_autoregressive.span_minimum(moments, np.eye(len(moments.cross)))[1],
        }
        matrix, risk = _restricted_risk(loss, 2, free=False)
        preconditioner, preconditioned_risk = _restricted_risk(loss, 2, free=True)
        # From Gaussian weights most flows end in minima that are not global.
        scale = np.sqrt(np.linalg.norm(preconditioner))
        key = setting.stream("starts")
        draws = 0.3 * scale * np.asarray(jax.random.normal(key, (2, starts, 3, 3)))
        step = _step(preconditioner)
        disturbed = LSAWeights(scale * step.w_pv[None] + draws[0], step.w_kq[None] / scale + draws[1])
        lifted = np.linalg.solve(loss.moments.gram, loss.moments.cross)
        measured = {
            "zero": loss.risk(_step(np.zeros((2, 2)))),
            "step": risk,
            "preconditioned_step": preconditioned_risk,
            "layer": loss.risk(trained(loss, disturbed, weight_tolerance=1e-6)),
            "lifted": float(loss.moments.risk(lifted.T)),
        }
        checks.append(check.exact(f"eta{suffix}", matrix[0, 0], best_step[0], LAYER_TOLERANCE))
        checks += [
            check.exact(f"excess_of_{name}{suffix}", measured[name] - sigma**2, value - sigma**2, LAYER_TOLERANCE)
            for name, value in expected.items()
        ]
        values = [measured[name] for name in ("lifted", "layer", "preconditioned_step", "step")]
        worse = [measured[name] for name in ("layer", "preconditioned_step", "step", "zero")]
        checks.append(check.at_most(f"order{suffix}", values, worse))
    return checks


def _step(matrix: Float[Array, "p p"]) -> LSAWeights:
    """One step h^T A (1/N) sum_i h_i y_i from zero: the label row attends by its label, the query through A; traceable."""
    return LSAWeights(np.diag(np.append(np.zeros(len(matrix)), 1.0)), jnp.pad(jnp.asarray(matrix.T), ((0, 1), (0, 1))))


def _restricted_risk(loss: MomentLoss, order: int, free: bool) -> tuple[np.ndarray, float]:
    """Best matrix A of one step from zero (a multiple of I unless `free`) by one Newton step, and its risk."""
    directions = np.eye(order**2).reshape(-1, order, order) if free else np.eye(order)[None]

    def half(z):
        return loss(_step(jnp.tensordot(z, jnp.asarray(directions), 1)))

    zero = jnp.zeros(len(directions))
    slope, curvature = compiled.jit(lambda z: (jax.grad(half)(z), jax.hessian(half)(z)))(zero)
    best = -np.linalg.solve(np.asarray(curvature), np.asarray(slope))
    matrix = np.tensordot(best, directions, 1)
    return matrix, loss.risk(_step(matrix))
