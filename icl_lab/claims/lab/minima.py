"""Claims about the landscape of the exact loss: several heads, the global minimum, and minima that are not global."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from icl_lab import analysis, models, objectives, theory, training
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, choice, flag, integer, number, spectrum
from icl_lab.claims.registry import claim
from icl_lab.claims.settings.regression import check_spectrum, covariance
from icl_lab.claims.simulation import simulated_risk
from icl_lab.core import compiled, prng
from icl_lab.models import LSAWeights, initializers
from icl_lab.objectives.curvature import loss_and_norm
from icl_lab.tasks.regression.linear import LinearRegression

# Both sides are sums of a few thousand float64 terms with mild cancellation.
EXACT_TOLERANCE = 1e-11
WEIGHT_TOLERANCE = 1e-8
PRECONDITIONER_TOLERANCE = 1e-7
RISK_TOLERANCE = 1e-10
# Slopes of the loss at a stationary point that is known in closed form.
STATIONARY_TOLERANCE = 1e-12
# The loss is quadratic around a minimum, and only the loss is compared.
LOOSE_WEIGHT_TOLERANCE, SPURIOUS_TOLERANCE = 1e-5, 1e-8
NEAR = 0.02

_SIZES = {
    "d": integer(3, 1, "input dimension"),
    "N": integer(5, 1, "context length"),
    "s2": number(0.25, 0.0, "variance of the label noise"),
}
_COVARIANCES = {
    "Lam": spectrum("eigenvalues of the input covariance; null: 2 down to 1/2"),
    "Om": spectrum("eigenvalues of the task covariance; null: 3/2 down to 1/2"),
    "rotate": flag(True, "random eigenvectors of both covariances, which then do not commute"),
}
_NORMALISER = choice("context_length", ("context_length", "none"), "what the attention sum is divided by")


def _validate(d, Lam=None, Om=None, **_) -> None:
    check_spectrum(Lam, d, "Lam")
    check_spectrum(Om, d, "Om")


def _task(d, N, s2, Lam, Om, rotate, seed) -> LinearRegression:
    return LinearRegression(
        dim=d,
        context_length=N,
        covariance=covariance(Lam, d, rotate, seed, "inputs"),
        task_covariance=covariance(Om, d, rotate, seed, "tasks", largest=1.5),
        noise_std=np.sqrt(s2),
    )


@claim(
    "lab.exact-loss-multihead",
    statement="The closed population loss of several heads, and its gradient, are right at any weights, and heads interact.",
    source=Source("icl_lab", "second moments of a sum of cubic forms of Gaussian variables", "extended"),
    parameters=_SIZES
    | _COVARIANCES
    | {
        "heads": integer(2, 1, "attention heads"),
        "normaliser": _NORMALISER,
        "scale": number(0.3, positive=True, meaning="standard deviation of a weight"),
        "samples": integer(100_000, 1_000, "prompts of the Monte Carlo check"),
        "seed": integer(0, 0, "of weights, bases and prompts"),
    },
    validate=_validate,
)
def loss_of_several_heads(d, N, s2, Lam, Om, rotate, heads, normaliser, scale, samples, seed) -> list[Check]:
    key = jax.random.key(seed)
    task = _task(d, N, s2, Lam, Om, rotate, seed)
    weights = initializers.gaussian(prng.stream(key, "weights"), d + 1, scale, heads)
    checks = []
    for query_in_sum, words in ((True, "query_in"), (False, "query_out")):
        model = models.LinearSelfAttention(query_in_sum=query_in_sum, normaliser=normaliser)
        objective = objectives.population(task, model)
        reference = (weights.w_pv, weights.w_kq, task.covariance, task.task_covariance, s2, N)
        options = {"query_in_sum": query_in_sum, "rho": float(N) if normaliser == "context_length" else 1.0}
        slopes = theory.exact_loss.risk_gradient(*reference, **options)
        loss, gradient = compiled.jit(jax.value_and_grad(objective))(weights)
        checks += [
            check.exact(f"risk_{words}", 2 * float(loss), theory.exact_loss.risk(*reference, **options), EXACT_TOLERANCE),
            # The reference differentiates the risk, the objective is half of it.
            check.exact(f"gradient_w_pv_{words}", 2 * np.asarray(gradient.w_pv), slopes[0], EXACT_TOLERANCE),
            check.exact(f"gradient_w_kq_{words}", 2 * np.asarray(gradient.w_kq), slopes[1], EXACT_TOLERANCE),
        ]
    model = models.LinearSelfAttention(query_in_sum=False, normaliser=normaliser)
    mean, error = simulated_risk(functools.partial(model, weights), task, prng.stream(key, "prompts"), samples)
    # The last reference of the loop is that of this model.
    return [*checks, check.sampled("simulated_risk", mean, theory.exact_loss.risk(*reference, **options), error)]


@claim(
    "lab.global-min",
    statement="Over all weights of the layer the minimum is structured, p1 = k2 = 0, with p2 K1^T = "
    "Om [(1+1/N) Lam Om + (tau/N) I]^{-1} for any covariances, commuting or not, and also for singular Om.",
    source=Source("icl_lab", "parity in (w, noise) and a convex quadratic in the effective preconditioner", "extended"),
    parameters=_SIZES
    | _COVARIANCES
    | {
        "query_in_sum": flag(True, "whether the query token is among the attended ones"),
        "normaliser": _NORMALISER,
        "sigma": number(0.03, positive=True, meaning="scale of the random starts; large ones end in local minima more often"),
        "starts": integer(12, 1, "random starts, of which the best counts"),
        "seed": integer(0, 0, "of starts and bases"),
    },
    validate=_validate,
)
def global_minimum(d, N, s2, Lam, Om, rotate, query_in_sum, normaliser, sigma, starts, seed) -> list[Check]:
    task = _task(d, N, s2, Lam, Om, rotate, seed)
    model = models.LinearSelfAttention(query_in_sum=query_in_sum, normaliser=normaliser)
    objective = objectives.population(task, model)
    best = theory.lsa.optimal_preconditioner(task.covariance, task.task_covariance, s2, N)
    minimum = theory.lsa.minimum_risk(task.covariance, task.task_covariance, s2, N)
    # A model that sums without dividing carries B / N in its weights.
    ratio = 1.0 if normaliser == "context_length" else float(N)
    scale = sigma / ratio ** (1 / 3)
    drawn = initializers.gaussian(prng.stream(jax.random.key(seed), "starts"), d + 1, scale, starts)
    begin = jax.tree.map(lambda first, rest: np.concatenate([first[None], rest]), initializers.zhang(d, scale), drawn)
    ensemble = training.gradient_flows(objective, begin, weight_tolerance=WEIGHT_TOLERANCE)
    risks = 2 * ensemble.losses
    best_start = 1 + int(np.argmin(risks[1:]))
    convergence.rest_on(ensemble, 0, best_start)
    structured, lowest = ensemble.limit(0), ensemble.limit(best_start)
    terms = float(task.signal_variance)
    slope_scale = float(task.label_variance) * float(np.linalg.norm(task.covariance)) * ratio
    checks = [
        check.exact("best_preconditioner", analysis.effective_preconditioner(lowest, model, N), best, PRECONDITIONER_TOLERANCE),
        check.exact("best_risk", risks[best_start], minimum, RISK_TOLERANCE, terms=terms),
        check.exact(
            "structured_preconditioner",
            analysis.effective_preconditioner(structured, model, N),
            best,
            PRECONDITIONER_TOLERANCE,
        ),
        check.exact("structured_risk", risks[0], minimum, RISK_TOLERANCE, terms=terms),
        # The structured limit is stationary also in the entries that its flow never moves.
        check.exact("gradient_abs", ensemble.evidence[0].gradient_norm, 0.0, PRECONDITIONER_TOLERANCE * slope_scale),
        check.at_least("no_start_ends_below", risks, np.full(starts + 1, minimum), RISK_TOLERANCE, terms=terms),
    ]
    if d > 1:
        size = np.linalg.norm(lowest.w_pv[-1]) + np.linalg.norm(lowest.w_kq[:, :d])
        even = np.concatenate([lowest.w_pv[-1, :d], lowest.w_kq[d, :d]]) / size
        checks += [check.exact("unused_blocks_abs", even, np.zeros(2 * d), PRECONDITIONER_TOLERANCE)]
        checks += _singular_checks(task, model, scale)
    return checks


def _singular_checks(task: LinearRegression, model, scale: float) -> list[Check]:
    """The structured limit when the tasks avoid one direction."""
    values, vectors = np.linalg.eigh(task.task_covariance)
    values[0] = 0.0
    flat = (vectors * values[None, :]) @ vectors.T
    flat = (flat + flat.T) / 2
    thin = LinearRegression(
        dim=task.dim,
        context_length=task.context_length,
        covariance=task.covariance,
        task_covariance=flat,
        noise_std=task.noise_std,
    )
    parameters = (task.covariance, flat, float(task.noise_std) ** 2, task.context_length)
    objective = objectives.population(thin, model)
    flow = convergence.to_limit(objective, initializers.zhang(task.dim, scale), weight_tolerance=WEIGHT_TOLERANCE)
    expected = theory.lsa.optimal_preconditioner(*parameters)
    return [
        check.exact(
            "singular_preconditioner",
            analysis.effective_preconditioner(flow.limit, model, task.context_length),
            expected,
            PRECONDITIONER_TOLERANCE,
        ),
        check.exact(
            "singular_risk",
            objective.risk(flow.limit),
            theory.lsa.minimum_risk(*parameters),
            RISK_TOLERANCE,
            terms=float(thin.signal_variance),
        ),
    ]


@claim(
    "lab.spurious-minima",
    statement="For d >= 2 a branch p2 = K1 = 0, k2 p1^T of rank one, is stationary; at short contexts it is a local minimum "
    "that is not global, and at longer ones flows that start beside it end in others.",
    source=Source("icl_lab", "exact Hessian at the branch; reflection symmetry", "extended"),
    parameters={
        "d": integer(3, 2, "input dimension"),
        "N": integer(8, 1, "context length"),
        "s2": number(0.0, 0.0, "variance of the label noise"),
        "Lam": spectrum("eigenvalues of the input covariance; null: 3/2 down to 1/2 in equal steps"),
        "rotate": flag(False, "random eigenvectors of the input covariance"),
        "query_in_sum": flag(True, "whether the query token is among the attended ones"),
        "sigma": number(0.03, positive=True, meaning="scale of the random starts"),
        "starts": integer(6, 1, "starts near the branch, and as many random ones"),
        "seed": integer(0, 0, "of starts and bases"),
    },
    validate=_validate,
)
def minima_that_are_not_global(d, N, s2, Lam, rotate, query_in_sum, sigma, starts, seed) -> list[Check]:
    values = np.linspace(1.5, 0.5, d) if Lam is None else np.asarray(Lam)
    matrix = covariance(list(values), d, rotate, seed, "inputs")
    model = models.LinearSelfAttention(query_in_sum=query_in_sum)
    isotropic = LinearRegression(dim=d, context_length=N, noise_std=np.sqrt(s2))
    task = LinearRegression(dim=d, context_length=N, covariance=matrix, noise_std=np.sqrt(s2))
    objective = objectives.population(task, model)
    w_pv, w_kq, half_loss = theory.minima.rank_one_branch(matrix, np.eye(d), s2, N)
    branch = LSAWeights(w_pv, w_kq)
    loss, slope = loss_and_norm(objective, branch)
    checks = [
        *_isotropic_checks(objectives.population(isotropic, model), N, s2, query_in_sum),
        check.exact("half_loss_general", float(loss), half_loss, EXACT_TOLERANCE),
        check.exact("gradient_general_abs", float(slope), 0.0, STATIONARY_TOLERANCE * float(np.trace(matrix)) ** 2),
    ]
    key = jax.random.key(seed)
    near = initializers.gaussian(prng.stream(key, "near"), d + 1, NEAR, starts)
    drawn = initializers.gaussian(prng.stream(key, "random"), d + 1, sigma, starts)
    begin = jax.tree.map(lambda at, off, other: np.concatenate([at[None] + off, other]), branch, near, drawn)
    ensemble = training.gradient_flows(objective, begin, weight_tolerance=LOOSE_WEIGHT_TOLERANCE)
    convergence.rest_on(ensemble, int(np.argsort(ensemble.losses[:starts])[starts // 2]))
    expected = theory.minima.half_loss_below_branch(values, s2, N, query_in_sum)
    minimum = theory.lsa.minimum_risk(matrix, np.eye(d), s2, N) / 2
    return [
        *checks,
        check.exact("half_loss_reached_from_the_branch", np.median(ensemble.losses[:starts]), expected, SPURIOUS_TOLERANCE),
        check.at_least("no_start_ends_below", ensemble.losses, np.full(2 * starts, minimum), RISK_TOLERANCE),
    ]


def _isotropic_checks(objective, N: int, s2: float, query_in_sum: bool) -> list[Check]:
    """Slope and Hessian at the branch of Lam = Om = I, and the criterion by which it is a minimum or a saddle."""
    d = objective.task.dim
    beta = N / (N + d + 1 + s2)
    w_pv, w_kq, half_loss = theory.minima.rank_one_branch(np.eye(d), np.eye(d), s2, N)
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
