"""Claims of Zhang, Frei, Bartlett 2023 about training on covariances that are drawn once a prompt."""

from __future__ import annotations

import numpy as np

from icl_lab import theory
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import flag, integer
from icl_lab.claims.settings.flow_paths import structured
from icl_lab.claims.zhang2023.measurements import (
    EXACT_TOLERANCE,
    LIMIT_TOLERANCE,
    WEIGHT_TOLERANCE,
    converged,
    drawn_weights,
    gradient,
    minimiser,
    no_gradient,
    pl_checks,
    same_weights,
    velocity_checks,
)
from icl_lab.claims.zhang2023.settings import MODEL, PAPER, RandomSetting, StartSetting
from icl_lab.models.weights import LSAWeights
from icl_lab.objectives import RegressionLoss

DRIFT_TOLERANCE = 1e-11
# Below this share of the first loss a loss gap is rounding noise.
RESOLVED = 1e-9


class RotatedSupportSetting(RandomSetting):
    """Covariances with eigenvectors of their own."""

    rotate: bool = flag(True, "random eigenvectors", "of each covariance of the support")


@claim("zhang2023.lemC.1", RotatedSupportSetting, Source(PAPER, "Lemma C.1"))
def random_dynamics(setting: RotatedSupportSetting) -> list[Check]:
    """With random covariances the reduced flow is dU/dt = u E[Lam^2] - u^2 E[Gamma Lam U Lam] and its trace counterpart, and
    p1 = k2 = 0 stays.

    The exact loss of the whole layer, averaged over the support of Lam, is differentiated at structured weights with standard
    normal u and U; nothing is trained. Expectations taken before the products, as of one mean covariance, would make it fail.
    """
    covariances, weights = setting.support(setting.rotate)
    objective = RegressionLoss(setting.task(), MODEL, covariances, weights)
    ((u, inner),) = drawn_weights(setting.seed, setting.d, 1)
    expected = theory.random_covariance.velocity(u, inner, covariances, weights, setting.N)
    return velocity_checks(objective, u, inner, expected)


@claim("zhang2023.corC.2", RandomSetting, Source(PAPER, "Corollary C.2"))
def random_diagonal_dynamics(setting: RandomSetting) -> list[Check]:
    """With independent random eigenvalues it is dU_ii/dt = xi_i u - gamma_i u^2 U_ii, dU_ij/dt = -zeta_ij u^2 U_ij.

    The exact loss of the whole layer, averaged over the support of Lam, is differentiated at structured weights with standard
    normal u and U, and at u = 1, where its slopes in U are gamma and zeta; nothing is trained. A gamma_i without the third
    moment of the eigenvalue itself would make it fail.
    """
    d, objective, moments = setting.d, setting.objective, setting.moments
    ((u, inner),) = drawn_weights(setting.seed, d, 1)
    # At u = 1 the gradient is linear in U: its slopes are gamma and zeta, its value at U = 0 is -xi.
    origin = np.asarray(gradient(objective, structured(1.0, 0 * inner)).w_kq)[:d, :d]
    slopes = (np.asarray(gradient(objective, structured(1.0, np.ones((d, d)))).w_kq)[:d, :d]) - origin
    return [
        *velocity_checks(objective, u, inner, theory.random_covariance.diagonal_velocity(u, inner, moments)),
        check.exact("gamma", np.diagonal(slopes), moments.gamma, EXACT_TOLERANCE),
        check.exact("xi", -np.diagonal(origin), moments.xi, EXACT_TOLERANCE),
        check.exact("zeta", slopes, moments.zeta, EXACT_TOLERANCE),
    ]


class RandomFlowSetting(RandomSetting, StartSetting):
    """Training on random covariances from the structured start."""

    @property
    def bounds(self) -> tuple[float, np.ndarray, np.ndarray, int, np.ndarray]:
        """(sigma, values, probabilities, N, Theta Theta^T), the arguments of the theory's bounds."""
        return (self.sigma, *self.rows, self.N, self.product)

    def validate(self) -> None:
        super().validate()
        theory.random_covariance.check_initialisation(*self.bounds)


class RandomLossSetting(RandomFlowSetting):
    """The structured start, and structured weights with standard normal entries."""

    points: int = integer(4, 1, "number of random weights")


@claim("zhang2023.lemC.4", RandomLossSetting, Source(PAPER, "Lemma C.4"))
def random_minimum(setting: RandomLossSetting) -> list[Check]:
    """The minimum of the loss is that of zero weights less half of sum xi_i^2/gamma_i, and the gap is a weighted square of
    u U - diag(xi/gamma).

    One Newton step on the exact loss from u = 1, U = 0 finds the minimum, where the gradient has to vanish; the gap is the loss
    at the theorem's start and at structured weights with standard normal u and U, less that. A gamma_i without the third moment
    of the eigenvalue itself would make it fail.
    """
    d, objective, moments = setting.d, setting.objective, setting.moments
    best = minimiser(objective)
    minimum = objective.risk(best) / 2
    reduced = minimum - objective.risk(structured(0.0, np.zeros((d, d)))) / 2
    drawn = [(setting.sigma, setting.sigma * setting.product), *drawn_weights(setting.seed, d, setting.points)]
    gaps = [objective.risk(structured(u, inner)) / 2 - minimum for u, inner in drawn]
    lowest = theory.random_covariance.minimum_reduced_loss(moments)
    zero = np.trace(setting.covariance) / 2
    return [
        *no_gradient(gradient(objective, best), LIMIT_TOLERANCE * zero),
        check.exact("smallest_reduced_loss", reduced, lowest, EXACT_TOLERANCE),
        check.exact("smallest_half_loss", minimum, lowest + zero, EXACT_TOLERANCE, terms=zero),
        check.exact("gap", gaps, [theory.random_covariance.loss_gap(u, U, moments) for u, U in drawn], EXACT_TOLERANCE),
    ]


@claim("zhang2023.thm4.5", RandomFlowSetting, Source(PAPER, "Theorem 4.5"))
def random_limits(setting: RandomFlowSetting) -> list[Check]:
    """With random diagonal covariances gradient flow takes the layer to the preconditioner R = E[Gamma Lam^2]^{-1} E[Lam^2],
    balanced between W_PV and W_KQ.

    Gradient flow on the exact loss, averaged over the support of Lam, runs from the theorem's start to rest; the forward pass
    of the limit also answers one drawn prompt. A preconditioner without the third moment of the eigenvalues, or a norm that
    W_PV and W_KQ share unequally, would make it fail.
    """
    d, objective, moments = setting.d, setting.objective, setting.moments
    flow = convergence.to_limit(objective, setting.start, weight_tolerance=WEIGHT_TOLERANCE)
    step = theory.random_covariance.preconditioner(moments)
    prompt = objective.task.sample(setting.stream("prompt"))
    mean_response = np.asarray(prompt.labels[:, 0] @ prompt.inputs) / setting.N
    lowest = theory.random_covariance.minimum_reduced_loss(moments) + np.trace(setting.covariance) / 2
    expected = np.asarray(prompt.query) @ step @ mean_response
    size = float(np.linalg.norm(prompt.query) * np.linalg.norm(mean_response) * np.linalg.norm(step))
    return [
        converged(flow),
        *same_weights(flow.limit, LSAWeights(*theory.random_covariance.limit(moments)), LIMIT_TOLERANCE),
        check.exact("preconditioner", flow.limit.w_pv[-1, -1] * flow.limit.w_kq[:d, :d].T, step, LIMIT_TOLERANCE),
        check.exact("risk", objective.risk(flow.limit), 2 * lowest, LIMIT_TOLERANCE),
        check.exact("prediction_abs", MODEL(flow.limit, prompt)[0], expected, LIMIT_TOLERANCE * size),
    ]


@claim("zhang2023.lemC.5-C.8", RandomFlowSetting, Source(PAPER, "Lemmas C.5 to C.8"))
def random_bounds(setting: RandomFlowSetting) -> list[Check]:
    """With random covariances the flow stays balanced, u stays above a positive bound, and the loss obeys a PL inequality.

    Gradient flow on the exact loss, averaged over the support of Lam, runs from the theorem's start to rest with a tight
    solver; balance, u, gradients and gaps are taken at its saved points. A bound on u or a constant mu that is larger than the
    path allows, or a difference u^2 - ||U||^2 that drifts, would make it fail.
    """
    d, objective = setting.d, setting.objective
    lower = theory.random_covariance.scale_lower_bound(*setting.bounds)
    mu = theory.random_covariance.pl_constant(setting.moments, lower)
    flow = convergence.to_limit(objective, setting.start, weight_tolerance=WEIGHT_TOLERANCE, solver="tsit5", rtol=1e-12)
    path = flow.trajectory
    u, inner = path.weights.w_pv[:, -1, -1], path.weights.w_kq[:, :d, :d]
    imbalance = np.max(np.abs(u**2 - np.sum(inner**2, axis=(1, 2))))
    return [
        converged(flow),
        check.exact("imbalance_abs", imbalance, 0.0, DRIFT_TOLERANCE * np.max(u**2)),
        check.at_least("smallest_u", np.min(u), lower),
        *pl_checks(path, objective.risk(flow.limit) / 2, mu, RESOLVED * float(path.losses[0])),
    ]
