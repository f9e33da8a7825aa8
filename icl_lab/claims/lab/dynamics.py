"""Claims about the flow from structured starts that have closed forms: limits, the isotropic curve, a frozen value."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab import models, objectives, theory, training
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.lab.layer import QUERY_IN_SUM
from icl_lab.claims.lab.settings import FlowSetting
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number
from icl_lab.claims.settings.flow_paths import Integrator, Reparametrised, exact, structured
from icl_lab.claims.settings.regression import NoisySetting
from icl_lab.core import compiled, prng
from icl_lab.core.errors import AssumptionError
from icl_lab.core.typing import Array
from icl_lab.models.weights import LSAWeights
from icl_lab.theory.regression import optimum

# The flow stops at an estimated relative weight error of WEIGHT_TOLERANCE, and ten times that is asked of it.
WEIGHT_TOLERANCE = 1e-10
LIMIT_TOLERANCE = 1e-9
PATH_TOLERANCE = 1e-9
EXACT_TOLERANCE = 1e-12
# An explicit solver conserves the imbalance best, as long as the slowest mode is within its reach.
EXPLICIT_SPREAD, EXPLICIT = 1e4, {"solver": "tsit5", "rtol": 1e-13}


def _unit(seed: int, name: str, dim: int) -> np.ndarray:
    """A random (d, d) matrix of Frobenius norm 1."""
    matrix = np.asarray(jax.random.normal(prng.stream(jax.random.key(seed), name), (dim, dim)))
    return matrix / np.linalg.norm(matrix)


def _followed(objective, start, times, rtol: float):
    """The weights and losses of a gradient flow at given times."""
    flow = training.gradient_flow(objective, start, times=times, stop_at_last_time=True, solver="tsit5", rtol=rtol)
    return flow.trajectory.weights, flow.trajectory.losses


class NoisyFlow(FlowSetting):
    """Noisy labels, and a random direction of U at the start."""

    s2 = 0.25

    @property
    def direction(self) -> Float[Array, "d d"]:
        """A random unit matrix U with <U, D> > 0."""
        matrix = _unit(self.seed, "inner", self.d)
        return matrix * np.sign(np.sum(matrix * self.drive))


class UnbalancedFlow(NoisyFlow):
    """Covariances that do not commute, and a start of any imbalance below the loss of zero weights."""

    rotate = True
    sigma: float = number(0.1, positive=True, meaning="initial scale", detail=": norm of U")
    u0: float = number(
        0.5, positive=True, meaning="value of u", detail="at the start; the two are also exchanged, for the other sign of kappa"
    )

    def validate(self) -> None:
        super().validate()
        product = self.sigma * self.u0 * self.direction
        pull = theory.lsa.response_moment(self.problem) @ product @ self.covariance
        if np.sum(product * pull) >= 2 * np.sum(product * self.drive):
            raise AssumptionError(
                f"the start sigma = {self.sigma:g}, u0 = {self.u0:g} has no lower loss than zero weights, from which the limit "
                "is not known; take a smaller one."
            )


@claim(
    "lab.balanced-limit",
    UnbalancedFlow,
    Source(
        "icl_lab", "extends Theorem 4.1 of arXiv 2306.09927 to unbalanced starts, noise and any task covariance", "extended"
    ),
)
def balanced_limit(setting: UnbalancedFlow) -> list[Check]:
    """From any small structured start with <U, D> > 0 and u > 0 the flow ends at u U^T = B*, with u set by the conserved
    imbalance kappa = u^2 - ||U||_F^2.

    Gradient flow of the exact loss in all entries is followed to rest from u = u0 and U of norm sigma in a random direction,
    and from the two sizes exchanged, so that kappa has both signs. Limits that ignore the imbalance of the start, or that
    depend on its direction, would make it fail.
    """
    d, task = setting.d, setting.task()
    objective = exact(task)
    product, minimum = theory.lsa.optimal_preconditioner(setting.problem), theory.lsa.minimum_risk(setting.problem)
    terms = float(task.signal_variance)
    small, large = sorted((setting.sigma, setting.u0))
    checks = []
    for words, u, size in (("large_u", large, small), ("large_U", small, large)):
        flow = convergence.to_limit(
            objective,
            structured(u, size * setting.direction),
            weight_tolerance=WEIGHT_TOLERANCE,
            **(EXPLICIT if objective.rate_spread <= EXPLICIT_SPREAD else {}),
        )
        end, inner = flow.limit.w_pv[-1, -1], flow.limit.w_kq[:d, :d]
        w_pv, w_kq = optimum.balanced_weights(product, u**2 - size**2)
        checks += [
            check.holds(f"flow_converged_{words}_abs", flow.converged),
            check.exact(f"u_limit_{words}", end, w_pv[-1, -1], LIMIT_TOLERANCE),
            check.exact(f"U_limit_{words}", inner, w_kq[:d, :d], LIMIT_TOLERANCE),
            check.exact(f"product_{words}", end * inner.T, product, LIMIT_TOLERANCE),
            check.exact(f"risk_{words}", objective.risk(flow.limit), minimum, LIMIT_TOLERANCE, terms=terms),
        ]
    return checks


class SmallStart(NoisyFlow):
    """A balanced start in a random direction."""

    sigma: float = number(0.1, positive=True, meaning="initial scale")


@claim("lab.structured-flow", SmallStart, Source("icl_lab", "general form of arXiv 2306.09927, Lemma 5.2", "extended"))
def structured_flow(setting: SmallStart) -> list[Check]:
    """Weights with p1 = k2 = 0 stay so, and move by dU/dt = u D - u^2 C U Lam, du/dt = <U, D> - u <U, C U Lam>.

    The exact loss is differentiated at u = 1.3 and a random U, with the query in the attention sum and without; and gradient
    flow in all entries from a balanced random start is compared with the equations, integrated by another solver, up to twice
    the time of the plateau. A wrong power of u in either equation, or a slope of p1 or k2, would make it fail.
    """
    d, sigma = setting.d, setting.sigma
    u, inner = 1.3, _unit(setting.seed, "point", d)
    weights = structured(u, inner)
    du, slope = theory.structured.general_velocity(setting.problem, u, inner)
    checks = []
    for words, query_in_sum in QUERY_IN_SUM.items():
        objective = objectives.population(setting.task(), models.LinearSelfAttention(query_in_sum=query_in_sum))
        gradient = jax.tree.map(np.asarray, compiled.jit(jax.grad(objective))(weights))
        others = np.concatenate([gradient.w_pv[-1, :d], gradient.w_kq[d, :d]])
        checks += [
            check.exact(f"du_dt_{words}", -gradient.w_pv[-1, -1], du, EXACT_TOLERANCE),
            check.exact(f"dU_dt_{words}", -gradient.w_kq[:d, :d], slope, EXACT_TOLERANCE),
            check.exact(f"p1_and_k2_{words}_abs", others, np.zeros(2 * d), 1e-13),
        ]
    # Up to the time at which a mode that grows at the rate ||D||_F has left the plateau.
    times = np.linspace(0.0, 2.0, 5) * np.log(1 + 1 / sigma) / np.linalg.norm(setting.drive)
    start = sigma * setting.direction
    path, _ = _followed(exact(setting.task()), structured(sigma, start), times, 1e-12)
    path_u, path_inner = theory.timecourse.flow(setting.problem, sigma, start, times)
    return [
        *checks,
        check.exact("u_along_the_flow", path.w_pv[:, -1, -1], path_u, PATH_TOLERANCE),
        check.exact("U_along_the_flow", path.w_kq[:, :d, :d], path_inner, PATH_TOLERANCE),
    ]


class IsotropicFlow(NoisySetting):
    """Isotropic inputs and tasks of any variances."""

    d = 4
    N = 31
    lam: float = number(1.0, positive=True, meaning="variance of an input", detail="coordinate")
    om: float = number(1.0, positive=True, meaning="variance of a task coordinate")
    sigma: float = number(0.01, positive=True, meaning="initial scale")
    times: int = integer(4, 1, "number of times compared", ", up to twice the half time")

    @property
    def covariance(self) -> Float[Array, "d d"]:
        return self.lam * np.eye(self.d)

    @property
    def task_covariance(self) -> Float[Array, "d d"]:
        return self.om * np.eye(self.d)


@claim(
    "lab.logistic",
    IsotropicFlow,
    Source("icl_lab", "arXiv 2501.16265, equation (10), extended to any scales and noise", "extended"),
)
def logistic(setting: IsotropicFlow) -> list[Check]:
    """With isotropic inputs and tasks u^2 follows a logistic curve, and the half loss a quadratic of it.

    Gradient flow of the exact loss in all entries, from u = sigma and U = sigma I / sqrt d, gives products and losses at a
    grid of times, and an event of a second solver the time to half the limit. A curve whose rate lacks the root of d, or whose
    limit lacks the noise, would make it fail.
    """
    d, sigma, problem = setting.d, setting.sigma, setting.problem
    objective, start = exact(setting.task()), models.initializers.zhang(d, sigma)
    rate = 2 * np.sqrt(d) * setting.om * setting.lam**2
    half = theory.timecourse.logistic_half_time(problem, sigma)
    grid = np.linspace(0.0, max(2 * half, 5 / rate), setting.times + 1)[1:]
    path, losses = _followed(objective, start, grid, 1e-12)
    steps = path.w_pv[:, -1:, -1:] * path.w_kq[:, :d, :d]
    z = theory.timecourse.logistic(problem, grid, sigma)
    checks = [
        check.exact("effective_step", steps, np.multiply.outer(z / np.sqrt(d), np.eye(d)), PATH_TOLERANCE),
        check.exact("half_loss", losses, theory.timecourse.logistic_loss(problem, z), PATH_TOLERANCE),
    ]
    if half > 0:
        limit = theory.timecourse.logistic(problem, np.array([np.inf]), sigma)[0]
        crossed = Integrator(objective, start)(start, 2 * half, [lambda weights: weights.w_pv[-1, -1] ** 2 - limit / 2])
        checks.append(check.exact("half_time", crossed.crossings[0][0], half, PATH_TOLERANCE))
    return checks


class FrozenValue(NoisyFlow):
    """A value held fixed, and a random start of U."""

    u0: float = number(0.8, positive=True, meaning="value of u", detail=", held fixed")
    sigma: float = number(1.0, 0.0, "initial scale", ": norm of U")
    times: int = integer(4, 1, "number of times compared", ", from the fastest mode's scale to the slowest's")


@claim("lab.frozen-u", FrozenValue, Source("icl_lab", "closed form of the flow of W_KQ alone", "extended"))
def frozen_value(setting: FrozenValue) -> list[Check]:
    """With u held fixed the flow of W_KQ is linear and solved mode by mode, also where nothing commutes.

    Gradient flow of the exact loss in W_KQ alone, from a random U of norm sigma, is compared at a grid of times with the
    closed form, in which no flow is integrated. A rate without the square of u, or eigenvectors of the two sides exchanged,
    would make it fail.
    """
    d, u0 = setting.d, setting.u0
    w_pv = structured(u0, np.eye(d)).w_pv
    objective = Reparametrised(exact(setting.task()), lambda w_kq: LSAWeights(w_pv=jnp.asarray(w_pv), w_kq=w_kq))
    start = setting.sigma * _unit(setting.seed, "inner", d)
    moments = theory.lsa.response_moment(setting.problem), setting.covariance
    rates = u0**2 * np.outer(*map(np.linalg.eigvalsh, moments))
    grid = np.geomspace(1 / rates.max(), 3 / rates.min(), setting.times)
    path, _ = _followed(objective, structured(u0, start).w_kq, grid, 1e-14)
    expected = theory.timecourse.frozen_value(setting.problem, grid, u0, start)
    return [
        check.exact("U_along_the_flow", path[:, :d, :d], expected, EXACT_TOLERANCE),
        check.exact("k2_abs", path[:, d, :d], np.zeros((setting.times, d)), EXACT_TOLERANCE),
    ]
