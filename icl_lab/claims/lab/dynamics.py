"""Claims about the flow from structured starts that have closed forms: limits, the isotropic curve, a frozen value."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import models, objectives, theory, training
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, flag, integer, number
from icl_lab.claims.registry import claim
from icl_lab.claims.settings.flow_paths import (
    SIZES,
    Integrator,
    Reparametrised,
    exact,
    problem_of,
    regression,
    structured,
    validate_spectra,
)
from icl_lab.core import compiled, prng
from icl_lab.core.errors import AssumptionError
from icl_lab.core.typing import Array
from icl_lab.models.weights import LSAWeights
from icl_lab.tasks.regression.linear import LinearRegression
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


def _direction(seed: int, drive: Array) -> np.ndarray:
    """A random unit matrix U with <U, D> > 0."""
    matrix = _unit(seed, "inner", len(drive))
    return matrix * np.sign(np.sum(matrix * drive))


def _validate_start(d, N, s2, Lam, Om, rotate, seed, sigma, u0) -> None:
    validate_spectra(d, Lam, Om)
    problem = problem_of(regression(d, N, s2, Lam, Om, rotate, seed, commuting=False))
    drive = theory.timecourse.signal(*problem[:2])
    inner = _direction(seed, drive)
    product = sigma * u0 * inner
    pull = theory.lsa.response_moment(*problem) @ product @ problem[0]
    if np.sum(product * pull) >= 2 * np.sum(product * drive):
        raise AssumptionError(
            f"the start sigma = {sigma:g}, u0 = {u0:g} has no lower loss than zero weights, from which the limit is not known; "
            "take a smaller one."
        )


@claim(
    "lab.balanced-limit",
    statement="From any small structured start with <U, D> > 0 and u > 0 the flow ends at u U^T = B*, with u set by the "
    "conserved imbalance kappa = u^2 - ||U||_F^2.",
    source=Source(
        "icl_lab", "extends Theorem 4.1 of arXiv 2306.09927 to unbalanced starts, noise and any task covariance", "extended"
    ),
    parameters=SIZES
    | {
        "s2": number(0.25, 0.0, "variance of the label noise"),
        "rotate": flag(True, "random eigenvectors of both covariances, which then do not commute"),
        "sigma": number(0.1, positive=True, meaning="norm of U at the start"),
        "u0": number(0.5, positive=True, meaning="u at the start; the two are also exchanged, for the other sign of kappa"),
    },
    validate=_validate_start,
)
def balanced_limit(d, N, s2, Lam, Om, rotate, seed, sigma, u0) -> list[Check]:
    task = regression(d, N, s2, Lam, Om, rotate, seed, commuting=False)
    problem = problem_of(task)
    objective = exact(task)
    direction = _direction(seed, theory.timecourse.signal(*problem[:2]))
    product, minimum = theory.lsa.optimal_preconditioner(*problem), theory.lsa.minimum_risk(*problem)
    terms = float(task.signal_variance)
    checks = []
    for words, u, size in (("large_u", max(u0, sigma), min(u0, sigma)), ("large_U", min(u0, sigma), max(u0, sigma))):
        flow = convergence.to_limit(
            objective,
            structured(u, size * direction),
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


@claim(
    "lab.structured-flow",
    statement="Weights with p1 = k2 = 0 stay so, and move by dU/dt = u D - u^2 C U Lam, du/dt = <U, D> - u <U, C U Lam>.",
    source=Source("icl_lab", "general form of arXiv 2306.09927, Lemma 5.2", "extended"),
    parameters=SIZES | {"s2": number(0.25, 0.0, "variance of the label noise"), "sigma": number(0.1, positive=True)},
    validate=lambda sigma, **sizes: validate_spectra(**sizes),
)
def structured_flow(d, N, s2, Lam, Om, rotate, seed, sigma) -> list[Check]:
    task = regression(d, N, s2, Lam, Om, rotate, seed, commuting=False)
    problem = problem_of(task)
    u, inner = 1.3, _unit(seed, "point", d)
    weights = structured(u, inner)
    du, slope = theory.structured.general_velocity(u, inner, *problem)
    checks = []
    for query_in_sum, words in ((True, "query_in"), (False, "query_out")):
        objective = objectives.population(task, models.LinearSelfAttention(query_in_sum=query_in_sum))
        gradient = jax.tree.map(np.asarray, compiled.jit(jax.grad(objective))(weights))
        others = np.concatenate([gradient.w_pv[-1, :d], gradient.w_kq[d, :d]])
        checks += [
            check.exact(f"du_dt_{words}", -gradient.w_pv[-1, -1], du, EXACT_TOLERANCE),
            check.exact(f"dU_dt_{words}", -gradient.w_kq[:d, :d], slope, EXACT_TOLERANCE),
            check.exact(f"p1_and_k2_{words}_abs", others, np.zeros(2 * d), 1e-13),
        ]
    direction = _direction(seed, theory.timecourse.signal(*problem[:2]))
    # Up to the time at which a mode that grows at the rate ||D||_F has left the plateau.
    times = np.linspace(0.0, 2.0, 5) * np.log(1 + 1 / sigma) / np.linalg.norm(theory.timecourse.signal(*problem[:2]))
    start = structured(sigma, sigma * direction)
    flow = training.gradient_flow(exact(task), start, times=times, stop_at_last_time=True, solver="tsit5", rtol=1e-12)
    path_u, path_inner = theory.timecourse.flow(sigma, sigma * direction, times, *problem)
    return [
        *checks,
        check.exact("u_along_the_flow", flow.trajectory.weights.w_pv[:, -1, -1], path_u, PATH_TOLERANCE),
        check.exact("U_along_the_flow", flow.trajectory.weights.w_kq[:, :d, :d], path_inner, PATH_TOLERANCE),
    ]


@claim(
    "lab.logistic",
    statement="With isotropic inputs and tasks u^2 follows a logistic curve, and the half loss a quadratic of it.",
    source=Source("icl_lab", "arXiv 2501.16265, equation (10), extended to any scales and noise", "extended"),
    parameters={
        "d": integer(4, 1, "input dimension"),
        "N": integer(31, 1, "context length"),
        "s2": number(0.0, 0.0, "variance of the label noise"),
        "lam": number(1.0, positive=True, meaning="variance of an input coordinate"),
        "om": number(1.0, positive=True, meaning="variance of a task coordinate"),
        "sigma": number(0.01, positive=True, meaning="initial scale"),
        "times": integer(4, 1, "how many times are compared, up to twice the half time"),
    },
)
def logistic(d, N, s2, lam, om, sigma, times) -> list[Check]:
    numbers = (d, lam, om, s2, N)
    task = LinearRegression(d, N, lam * np.eye(d), om * np.eye(d), np.sqrt(s2))
    objective = exact(task)
    start = models.initializers.zhang(d, sigma)
    rate = 2 * np.sqrt(d) * om * lam**2
    half = theory.timecourse.logistic_half_time(*numbers, sigma)
    grid = np.linspace(0.0, max(2 * half, 5 / rate), times + 1)[1:]
    flow = training.gradient_flow(objective, start, times=grid, stop_at_last_time=True, solver="tsit5", rtol=1e-12)
    u, inner = flow.trajectory.weights.w_pv[:, -1, -1], flow.trajectory.weights.w_kq[:, :d, :d]
    z = theory.timecourse.logistic(grid, *numbers, sigma)
    steps = u[:, None, None] * inner
    checks = [
        check.exact("effective_step", steps, np.multiply.outer(z / np.sqrt(d), np.eye(d)), PATH_TOLERANCE),
        check.exact("half_loss", flow.trajectory.losses, theory.timecourse.logistic_loss(z, *numbers), PATH_TOLERANCE),
    ]
    if half > 0:
        limit = theory.timecourse.logistic(np.array([np.inf]), *numbers, sigma)[0]
        path = Integrator(objective, start)(start, 2 * half, [lambda weights: weights.w_pv[-1, -1] ** 2 - limit / 2])
        checks.append(check.exact("half_time", path.crossings[0][0], half, PATH_TOLERANCE))
    return checks


@claim(
    "lab.frozen-u",
    statement="With u held fixed the flow of W_KQ is linear and solved mode by mode, also where nothing commutes.",
    source=Source("icl_lab", "closed form of the flow of W_KQ alone", "extended"),
    parameters=SIZES
    | {
        "s2": number(0.25, 0.0, "variance of the label noise"),
        "u0": number(0.8, positive=True, meaning="the fixed value of u"),
        "sigma": number(1.0, 0.0, "norm of the random start of U"),
        "times": integer(4, 1, "how many times are compared, from the fastest mode's scale to the slowest's"),
    },
    validate=lambda u0, sigma, times, **sizes: validate_spectra(**sizes),
)
def frozen_value(d, N, s2, Lam, Om, rotate, seed, u0, sigma, times) -> list[Check]:
    task = regression(d, N, s2, Lam, Om, rotate, seed, commuting=False)
    problem = problem_of(task)
    w_pv = structured(u0, np.eye(d)).w_pv
    objective = Reparametrised(exact(task), lambda w_kq: LSAWeights(w_pv=jnp.asarray(w_pv), w_kq=w_kq))
    start = sigma * _unit(seed, "inner", d)
    values = np.linalg.eigvalsh(theory.lsa.response_moment(*problem)), np.linalg.eigvalsh(problem[0])
    rates = u0**2 * np.outer(*values)
    grid = np.geomspace(1 / rates.max(), 3 / rates.min(), times)
    flow = training.gradient_flow(
        objective, structured(u0, start).w_kq, times=grid, stop_at_last_time=True, solver="tsit5", rtol=1e-14
    )
    inner = flow.trajectory.weights[:, :d, :d]
    return [
        check.exact("U_along_the_flow", inner, theory.timecourse.frozen_value(grid, u0, start, *problem), EXACT_TOLERANCE),
        check.exact("k2_abs", flow.trajectory.weights[:, d, :d], np.zeros((times, d)), EXACT_TOLERANCE),
    ]
