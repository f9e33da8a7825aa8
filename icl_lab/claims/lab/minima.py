"""Claims about the landscape of the exact loss: the global minimum, and minima that are not global."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from icl_lab import analysis, models, objectives, theory, training
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.lab.layer import EXACT_TOLERANCE
from icl_lab.claims.lab.settings import LayerSetting
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import flag, integer, number, spectrum
from icl_lab.claims.settings.regression import NoisySetting, SpectralSetting, covariance
from icl_lab.core import compiled, prng
from icl_lab.core.typing import Array
from icl_lab.models import LSAWeights, initializers
from icl_lab.objectives.curvature import loss_and_norm
from icl_lab.tasks.regression.linear import LinearRegression

WEIGHT_TOLERANCE = 1e-8
PRECONDITIONER_TOLERANCE = 1e-7
RISK_TOLERANCE = 1e-10
# Slopes of the loss at a stationary point that is known in closed form.
STATIONARY_TOLERANCE = 1e-12
# The loss is quadratic around a minimum, and only the loss is compared.
LOOSE_WEIGHT_TOLERANCE, SPURIOUS_TOLERANCE = 1e-5, 1e-8
NEAR = 0.02


class GlobalMinimum(LayerSetting):
    """Gradient flow from the structured start and from random ones."""

    query_in_sum: bool = flag(True, "whether the query token is among the attended ones")
    sigma: float = number(
        0.03,
        positive=True,
        meaning="initial scale",
        detail="of the random starts; large ones end in local minima more often",
    )
    starts: int = integer(12, 1, "number of starts", ", random, of which the best counts")


@claim(
    "lab.global-min",
    GlobalMinimum,
    Source("icl_lab", "parity in (w, noise) and a convex quadratic in the effective preconditioner", "extended"),
)
def global_minimum(setting: GlobalMinimum) -> list[Check]:
    """Over all weights of the layer the minimum is structured, p1 = k2 = 0, with p2 K1^T =
    Om [(1+1/N) Lam Om + (tau/N) I]^{-1} for any covariances, commuting or not, and also for singular Om.

    Gradient flow of the exact loss in all entries is followed to rest from the structured start and from random Gaussian
    starts of scale sigma (times N^{-1/3} without the division by N), of which the lowest end counts; and once more from the
    structured start where the tasks avoid a direction. An end below the formula's risk, or at other products, would make it
    fail.
    """
    d, N, task = setting.d, setting.N, setting.task()
    model = models.LinearSelfAttention(query_in_sum=setting.query_in_sum, normaliser=setting.normaliser)
    objective = objectives.population(task, model)
    best, minimum = theory.lsa.optimal_preconditioner(setting.problem), theory.lsa.minimum_risk(setting.problem)
    # A model that sums without dividing carries B / N in its weights.
    ratio = N / setting.divisor
    scale = setting.sigma / ratio ** (1 / 3)
    drawn = initializers.gaussian(setting.stream("starts"), d + 1, scale, setting.starts)
    begin = jax.tree.map(lambda first, rest: np.concatenate([first[None], rest]), initializers.zhang(d, scale), drawn)
    ensemble = training.gradient_flows(objective, begin, weight_tolerance=WEIGHT_TOLERANCE)
    risks = 2 * ensemble.losses
    best_start = 1 + int(np.argmin(risks[1:]))
    convergence.rest_on(ensemble, 0, best_start)
    terms = float(task.signal_variance)
    slope_scale = float(task.label_variance) * float(np.linalg.norm(task.covariance)) * ratio
    checks = []
    for name, start in (("best", best_start), ("structured", 0)):
        product = analysis.effective_preconditioner(ensemble.limit(start), model, N)
        checks += [
            check.exact(f"{name}_preconditioner", product, best, PRECONDITIONER_TOLERANCE),
            check.exact(f"{name}_risk", risks[start], minimum, RISK_TOLERANCE, terms=terms),
        ]
    checks += [
        # The structured limit is stationary also in the entries that its flow never moves.
        check.exact("gradient_abs", ensemble.evidence[0].gradient_norm, 0.0, PRECONDITIONER_TOLERANCE * slope_scale),
        check.at_least("no_start_ends_below", risks, np.full(len(risks), minimum), RISK_TOLERANCE, terms=terms),
    ]
    if d > 1:
        lowest = ensemble.limit(best_start)
        size = np.linalg.norm(lowest.w_pv[-1]) + np.linalg.norm(lowest.w_kq[:, :d])
        even = np.concatenate([lowest.w_pv[-1, :d], lowest.w_kq[d, :d]]) / size
        checks += [check.exact("unused_blocks_abs", even, np.zeros(2 * d), PRECONDITIONER_TOLERANCE)]
        checks += _singular_checks(setting, model, scale)
    return checks


def _singular_checks(setting: GlobalMinimum, model, scale: float) -> list[Check]:
    """The structured limit when the tasks avoid one direction."""
    d, N, inputs = setting.d, setting.N, setting.covariance
    values, vectors = np.linalg.eigh(setting.task_covariance)
    values[0] = 0.0
    flat = (vectors * values[None, :]) @ vectors.T
    flat = (flat + flat.T) / 2
    task = LinearRegression(d, N, inputs, flat, np.sqrt(setting.s2))
    objective = objectives.population(task, model)
    flow = convergence.to_limit(objective, initializers.zhang(d, scale), weight_tolerance=WEIGHT_TOLERANCE)
    product, terms = analysis.effective_preconditioner(flow.limit, model, N), float(task.signal_variance)
    problem = theory.Problem(inputs, flat, setting.s2, N)
    expected, minimum = theory.lsa.optimal_preconditioner(problem), theory.lsa.minimum_risk(problem)
    return [
        check.exact("singular_preconditioner", product, expected, PRECONDITIONER_TOLERANCE),
        check.exact("singular_risk", objective.risk(flow.limit), minimum, RISK_TOLERANCE, terms=terms),
    ]


class RankOneBranch(SpectralSetting, NoisySetting):
    """Isotropic tasks in at least two dimensions, and starts beside the branch."""

    d: int = integer(3, 2, "dimension", "of the inputs")
    N = 8
    Lam: list[float] | None = spectrum("eigenvalues of the input covariance", "; null: 3/2 down to 1/2 in equal steps")
    query_in_sum: bool = flag(True, "whether the query token is among the attended ones")
    sigma: float = number(0.03, positive=True, meaning="initial scale", detail="of the random starts")
    starts: int = integer(6, 1, "number of starts", "near the branch, and as many random ones")

    @property
    def spectrum(self) -> Float[np.ndarray, "d"]:
        """Eigenvalues of Lambda."""
        return np.linspace(1.5, 0.5, self.d) if self.Lam is None else np.asarray(self.Lam)

    @property
    def covariance(self) -> Float[Array, "d d"]:
        return covariance(list(self.spectrum), self.d, self.rotate, self.seed, self.inputs_basis)


@claim("lab.spurious-minima", RankOneBranch, Source("icl_lab", "exact Hessian at the branch; reflection symmetry", "extended"))
def minima_that_are_not_global(setting: RankOneBranch) -> list[Check]:
    """For d >= 2 a branch p2 = K1 = 0, k2 p1^T of rank one, is stationary; at short contexts it is a local minimum
    that is not global, and at longer ones flows that start beside it end in others.

    Gradient and Hessian of the exact loss are taken at the closed-form branch itself; gradient flow in all entries starts at
    the branch plus Gaussian noise of scale 0.02, and at random weights of scale sigma. A branch that moves, a Hessian of
    another sign than the criterion's, or flows from beside it that reach the global minimum would make it fail.
    """
    d, N, s2, query_in_sum, starts = setting.d, setting.N, setting.s2, setting.query_in_sum, setting.starts
    model = models.LinearSelfAttention(query_in_sum=query_in_sum)
    objective = objectives.population(setting.task(), model)
    w_pv, w_kq, half_loss = theory.minima.rank_one_branch(setting.problem)
    branch = LSAWeights(w_pv, w_kq)
    loss, slope = loss_and_norm(objective, branch)
    rounding = STATIONARY_TOLERANCE * float(np.trace(setting.covariance)) ** 2
    checks = [
        *_isotropic_checks(NoisySetting(d=d, N=N, s2=s2), model),
        check.exact("half_loss_general", float(loss), half_loss, EXACT_TOLERANCE),
        check.exact("gradient_general_abs", float(slope), 0.0, rounding),
    ]
    key = setting.key
    near = initializers.gaussian(prng.stream(key, "near"), d + 1, NEAR, starts)
    drawn = initializers.gaussian(prng.stream(key, "random"), d + 1, setting.sigma, starts)
    begin = jax.tree.map(lambda at, off, other: np.concatenate([at[None] + off, other]), branch, near, drawn)
    ensemble = training.gradient_flows(objective, begin, weight_tolerance=LOOSE_WEIGHT_TOLERANCE)
    convergence.rest_on(ensemble, int(np.argsort(ensemble.losses[:starts])[starts // 2]))
    expected = theory.minima.half_loss_below_branch(setting.spectrum, s2, N, query_in_sum)
    minimum = theory.lsa.minimum_risk(setting.problem) / 2
    return [
        *checks,
        check.exact("half_loss_reached_from_the_branch", np.median(ensemble.losses[:starts]), expected, SPURIOUS_TOLERANCE),
        check.at_least("no_start_ends_below", ensemble.losses, np.full(2 * starts, minimum), RISK_TOLERANCE),
    ]


def _isotropic_checks(setting: NoisySetting, model: models.LinearSelfAttention) -> list[Check]:
    """Slope and Hessian at the branch of Lam = Om = I, and the criterion by which it is a minimum or a saddle."""
    d, N, s2, query_in_sum = setting.d, setting.N, setting.s2, model.query_in_sum
    objective = objectives.population(setting.task(), model)
    beta = N / (N + d + 1 + s2)
    w_pv, w_kq, half_loss = theory.minima.rank_one_branch(setting.problem)
    slope, hessian = _second_order(objective, LSAWeights(w_pv, w_kq))
    # The criterion is stated at |p1| = 1 and |k2| = beta; the branch comes with |p1| = |k2|, scaled along its orbit.
    e = w_pv[-1, :d] / np.linalg.norm(w_pv[-1, :d])
    keys = np.zeros((2, d + 1, d))
    keys[:, :d] = np.eye(d) - np.outer(e, e), np.outer(e, e)
    directions = np.zeros((3, (d + 1) * (d + 1)))
    directions[:2, d + 1 :] = keys.reshape(2, -1) / np.sqrt(beta)
    directions[2, d] = np.sqrt(beta)
    curvatures = np.linalg.eigvalsh(hessian)
    rounding = 1e-10 * curvatures[-1]
    minimum = theory.minima.branch_is_minimum(d, N, s2, query_in_sum)
    branch_risk = objective.risk(LSAWeights(w_pv, w_kq))
    checks = [
        check.exact("gradient_isotropic_abs", slope, np.zeros_like(slope), STATIONARY_TOLERANCE * d**2),
        check.exact("half_loss_isotropic", branch_risk / 2, half_loss, EXACT_TOLERANCE),
        check.exact("half_loss_is_d_minus_beta", branch_risk / 2, (d - beta) / 2, EXACT_TOLERANCE),
        check.exact(
            "criterion_matrix",
            directions @ hessian @ directions.T,
            theory.minima.branch_curvature(d, N, s2, query_in_sum),
            EXACT_TOLERANCE,
        ),
        check.exact("branch_is_a_minimum_abs", float(curvatures[0] > -rounding), float(minimum), 0.0),
    ]
    if minimum:
        # One scaling and d - 1 rotations.
        flat = int(np.sum(np.abs(curvatures) < rounding))
        checks.append(check.exact("flat_directions_abs", float(flat), float(d), 0.0))
    return checks


def _second_order(objective, weights: LSAWeights) -> tuple[np.ndarray, np.ndarray]:
    """Gradient and Hessian of the half loss in the active entries: label row of W_PV, then the first d columns of W_KQ."""
    flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, weights))
    width = weights.w_pv.shape[-1]
    active = np.zeros((2, width, width), dtype=bool)
    active[0, -1], active[1, :, :-1] = True, True

    def loss(x):
        return objective(unravel(x))

    slope, hessian = compiled.jit(lambda x: (jax.grad(loss)(x), jax.hessian(loss)(x)))(flat)
    chosen = active.ravel()
    return np.asarray(slope), np.asarray(hessian)[np.ix_(chosen, chosen)]
