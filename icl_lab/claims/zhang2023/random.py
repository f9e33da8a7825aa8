"""Claims of Zhang, Frei, Bartlett 2023 about training on covariances that are drawn once a prompt."""

from __future__ import annotations

import jax
import numpy as np

from icl_lab import models, theory, training
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, choice, flag, integer, number, table
from icl_lab.claims.registry import claim
from icl_lab.claims.settings.flow_paths import structured
from icl_lab.claims.zhang2023.flow import gradient, random_structured
from icl_lab.claims.zhang2023.limit import PAPER, theta_matrix
from icl_lab.core import prng
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import haar_orthogonal
from icl_lab.models import initializers
from icl_lab.models.weights import LSAWeights
from icl_lab.objectives import RegressionLoss
from icl_lab.tasks import FiniteDiagonal
from icl_lab.tasks.regression.linear import LinearRegression

# Rows of values and of their probabilities.
DEFAULT_DISTRIBUTION = ([[0.5, 2.0], [1.0, 3.0], [0.2, 1.0]], [[0.5, 0.5], [0.7, 0.3], [0.4, 0.6]])
LARGEST_SUPPORT = 2**14
MODEL = models.LinearSelfAttention()
EXACT_TOLERANCE = 1e-12
GRADIENT_TOLERANCE = 1e-13
# The flow is stopped at an estimated weight error of WEIGHT_TOLERANCE, and ten times that is asked of it.
WEIGHT_TOLERANCE = 1e-10
LIMIT_TOLERANCE = 1e-9
DRIFT_TOLERANCE = 1e-11
RESOLVED = 1e-9

DISTRIBUTION = {
    "d": integer(3, 1, "input dimension"),
    "N": integer(8, 1, "training context length"),
    "values": table(None, meaning="values > 0 of each eigenvalue; null: (1/2, 2), (1, 3), (1/5, 1) and so on"),
    "probabilities": table(None, 0.0, meaning="their probabilities; null: the default's own, or equal ones"),
    "seed": integer(0, 0, "of bases and weights"),
}
START = {
    "sigma": number(0.1, positive=True, meaning="initial scale, bounded by the theorem"),
    "theta": choice("identity", ("identity", "random"), "the matrix Theta of the start"),
}


def distribution_of(d, values, probabilities, default=DEFAULT_DISTRIBUTION) -> tuple[np.ndarray, np.ndarray]:
    """Values and probabilities, both (d, m); null values repeat the default's rows, null probabilities of others are equal."""
    if values is None:
        values, given = (np.resize(rows, (d, len(rows[0]))) for rows in default)
    else:
        values = np.asarray(values)
        given = np.full(values.shape, 1 / values.shape[1])
    return values, given if probabilities is None else np.asarray(probabilities)


def validate_distribution(d, values, probabilities, **_) -> None:
    """Raise unless values and probabilities are d distributions of positive eigenvalues."""
    distribution = FiniteDiagonal(*distribution_of(d, values, probabilities))
    if distribution.dim != d:
        raise InvalidValueError(f"`values` must hold d = {d} lists; got {distribution.dim}. Set `d` too.")
    size = np.prod([np.count_nonzero(row) for row in distribution.probabilities], dtype=np.float64)
    if size > LARGEST_SUPPORT:
        raise InvalidValueError(
            f"the distribution has {size:.0f} covariances, over which the loss is averaged; at most {LARGEST_SUPPORT} are "
            f"allowed. "
            "Take a smaller `d` or fewer values of each eigenvalue."
        )


def _validate_start(d, N, values, probabilities, seed, sigma, theta, **_) -> None:
    validate_distribution(d, values, probabilities)
    root = theta_matrix(theta, d, seed)
    theory.random_covariance.check_initialisation(sigma, *distribution_of(d, values, probabilities), N, root @ root.T)


def _objective(distribution: FiniteDiagonal, N: int) -> RegressionLoss:
    return RegressionLoss.build(LinearRegression(dim=distribution.dim, context_length=N, covariates=distribution), MODEL)


def covariances_of(distribution: FiniteDiagonal, rotate: bool, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The support as matrices (S, d, d) with its probabilities; with `rotate`, each has a random basis of its own."""
    spectra, weights = distribution.support()
    if not rotate:
        return spectra[:, :, None] * np.eye(distribution.dim), weights
    keys = jax.random.split(prng.stream(jax.random.key(seed), "bases"), len(spectra))
    bases = np.asarray(jax.vmap(lambda key: haar_orthogonal(key, distribution.dim))(keys))
    matrices = (bases * spectra[:, None, :]) @ bases.transpose(0, 2, 1)
    return (matrices + matrices.transpose(0, 2, 1)) / 2, weights


def minimiser(objective: RegressionLoss) -> LSAWeights:
    """The structured weights of least loss with u = 1, where the loss is quadratic in U: one Newton step from U = 0."""
    d = objective.task.dim

    def slope(inner: np.ndarray) -> np.ndarray:
        return np.asarray(gradient(objective, structured(1.0, inner)).w_kq)[:d, :d].ravel()

    origin = slope(np.zeros((d, d)))
    hessian = np.stack([slope(unit.reshape(d, d)) - origin for unit in np.eye(d**2)])
    return structured(1.0, np.linalg.solve(hessian, -origin).reshape(d, d))


def _gradient_checks(objective, u, inner, expected) -> list[Check]:
    """The autodiffed gradient at structured weights beside a right-hand side."""
    d = len(inner)
    slope = jax.tree.map(np.asarray, gradient(objective, structured(u, inner)))
    outside = np.concatenate([slope.w_pv[-1, :d], slope.w_kq[d, :d]])
    return [
        check.exact("du", -slope.w_pv[-1, -1], expected[0], GRADIENT_TOLERANCE),
        check.exact("dU", -slope.w_kq[:d, :d], expected[1], GRADIENT_TOLERANCE),
        check.exact("dp1_dk2_abs", outside, np.zeros(2 * d), GRADIENT_TOLERANCE * float(np.linalg.norm(expected[1]))),
    ]


@claim(
    "zhang2023.lemC.1",
    statement="With random covariances the reduced flow is dU/dt = u E[Lam^2] - u^2 E[Gamma Lam U Lam] and its trace "
    "counterpart, and p1 = k2 = 0 stays.",
    source=Source(PAPER, "Lemma C.1"),
    parameters=DISTRIBUTION | {"rotate": flag(True, "a random basis for each covariance of the support")},
    validate=validate_distribution,
)
def random_dynamics(d, N, values, probabilities, seed, rotate) -> list[Check]:
    distribution = FiniteDiagonal(*distribution_of(d, values, probabilities))
    covariances, weights = covariances_of(distribution, rotate, seed)
    objective = RegressionLoss(_objective(distribution, N).task, MODEL, covariances, weights)
    ((u, inner),) = random_structured(jax.random.key(seed), d, 1)
    return _gradient_checks(objective, u, inner, theory.random_covariance.velocity(u, inner, covariances, weights, N))


@claim(
    "zhang2023.corC.2",
    statement="With independent random eigenvalues it is dU_ii/dt = xi_i u - gamma_i u^2 U_ii, dU_ij/dt = -zeta_ij u^2 U_ij.",
    source=Source(PAPER, "Corollary C.2"),
    parameters=DISTRIBUTION,
    validate=validate_distribution,
)
def random_diagonal_dynamics(d, N, values, probabilities, seed) -> list[Check]:
    distribution = distribution_of(d, values, probabilities)
    moments = theory.random_covariance.diagonal_moments(*distribution, N)
    objective = _objective(FiniteDiagonal(*distribution), N)
    ((u, inner),) = random_structured(jax.random.key(seed), d, 1)
    # At u = 1 the gradient is linear in U: its slopes are gamma and zeta, its value at U = 0 is -xi.
    origin = np.asarray(gradient(objective, structured(1.0, 0 * inner)).w_kq)[:d, :d]
    slopes = (np.asarray(gradient(objective, structured(1.0, np.ones((d, d)))).w_kq)[:d, :d]) - origin
    return [
        *_gradient_checks(objective, u, inner, theory.random_covariance.diagonal_velocity(u, inner, moments)),
        check.exact("gamma", np.diagonal(slopes), moments.gamma, EXACT_TOLERANCE),
        check.exact("xi", -np.diagonal(origin), moments.xi, EXACT_TOLERANCE),
        check.exact("zeta", slopes, moments.zeta, EXACT_TOLERANCE),
    ]


@claim(
    "zhang2023.lemC.4",
    statement="The minimum of the loss is that of zero weights less half of sum xi_i^2/gamma_i, and the gap is a weighted "
    "square of u U - diag(xi/gamma).",
    source=Source(PAPER, "Lemma C.4"),
    parameters=DISTRIBUTION | START | {"points": integer(4, 1, "random weights")},
    validate=_validate_start,
)
def random_minimum(d, N, values, probabilities, seed, sigma, theta, points) -> list[Check]:
    distribution = distribution_of(d, values, probabilities)
    moments = theory.random_covariance.diagonal_moments(*distribution, N)
    objective = _objective(FiniteDiagonal(*distribution), N)
    root = theta_matrix(theta, d, seed)
    best = minimiser(objective)
    slope = gradient(objective, best)
    minimum = objective.risk(best) / 2
    reduced = minimum - objective.risk(structured(0.0, np.zeros((d, d)))) / 2
    drawn = [(sigma, sigma * root @ root.T), *random_structured(jax.random.key(seed), d, points)]
    gaps = [objective.risk(structured(u, inner)) / 2 - minimum for u, inner in drawn]
    lowest = theory.random_covariance.minimum_reduced_loss(moments)
    zero = np.sum(distribution[0] * distribution[1]) / 2
    return [
        check.exact("gradient_of_w_pv_abs", slope.w_pv, np.zeros((d + 1, d + 1)), LIMIT_TOLERANCE * zero),
        check.exact("gradient_of_w_kq_abs", slope.w_kq, np.zeros((d + 1, d + 1)), LIMIT_TOLERANCE * zero),
        check.exact("smallest_reduced_loss", reduced, lowest, EXACT_TOLERANCE),
        check.exact("smallest_half_loss", minimum, lowest + zero, EXACT_TOLERANCE, terms=zero),
        check.exact("gap", gaps, [theory.random_covariance.loss_gap(u, U, moments) for u, U in drawn], EXACT_TOLERANCE),
    ]


@claim(
    "zhang2023.thm4.5",
    statement="With random diagonal covariances gradient flow takes the layer to the preconditioner "
    "R = E[Gamma Lam^2]^{-1} E[Lam^2], balanced between W_PV and W_KQ.",
    source=Source(PAPER, "Theorem 4.5"),
    parameters=DISTRIBUTION | START,
    validate=_validate_start,
)
def random_limits(d, N, values, probabilities, seed, sigma, theta) -> list[Check]:
    distribution = distribution_of(d, values, probabilities)
    moments = theory.random_covariance.diagonal_moments(*distribution, N)
    objective = _objective(FiniteDiagonal(*distribution), N)
    start = initializers.zhang(d, sigma, theta_matrix(theta, d, seed))
    flow = convergence.to_limit(objective, start, weight_tolerance=WEIGHT_TOLERANCE)
    w_pv, w_kq = theory.random_covariance.limit(moments)
    step = theory.random_covariance.preconditioner(moments)
    prompt = objective.task.sample(prng.stream(jax.random.key(seed), "prompt"))
    mean_response = np.asarray(prompt.labels[:, 0] @ prompt.inputs) / N
    lowest = theory.random_covariance.minimum_reduced_loss(moments) + np.sum(distribution[0] * distribution[1]) / 2
    answer = np.asarray(prompt.query) @ step @ mean_response
    size = float(np.linalg.norm(prompt.query) * np.linalg.norm(mean_response))
    return [
        check.holds("flow_converged_abs", flow.verdict == training.Verdict.CONVERGED),
        check.exact("w_pv", flow.limit.w_pv, w_pv, LIMIT_TOLERANCE),
        check.exact("w_kq", flow.limit.w_kq, w_kq, LIMIT_TOLERANCE),
        check.exact("preconditioner", flow.limit.w_pv[-1, -1] * flow.limit.w_kq[:d, :d].T, step, LIMIT_TOLERANCE),
        check.exact("risk", objective.risk(flow.limit), 2 * lowest, LIMIT_TOLERANCE),
        check.exact(
            "prediction_abs", MODEL(flow.limit, prompt)[0], answer, LIMIT_TOLERANCE * size * float(np.linalg.norm(step))
        ),
    ]


@claim(
    "zhang2023.lemC.5-C.8",
    statement="With random covariances the flow stays balanced, u stays above a positive bound, and the loss obeys a PL "
    "inequality.",
    source=Source(PAPER, "Lemmas C.5 to C.8"),
    parameters=DISTRIBUTION | START,
    validate=_validate_start,
)
def random_bounds(d, N, values, probabilities, seed, sigma, theta) -> list[Check]:
    distribution = distribution_of(d, values, probabilities)
    root = theta_matrix(theta, d, seed)
    bounds = (sigma, *distribution, N, root @ root.T)
    lower, mu = theory.random_covariance.scale_lower_bound(*bounds), theory.random_covariance.pl_constant(*bounds)
    objective = _objective(FiniteDiagonal(*distribution), N)
    flow = convergence.to_limit(
        objective, initializers.zhang(d, sigma, root), weight_tolerance=WEIGHT_TOLERANCE, solver="tsit5", rtol=1e-12
    )
    path = flow.trajectory
    u, inner = path.weights.w_pv[:, -1, -1], path.weights.w_kq[:, :d, :d]
    gaps = path.losses - objective.risk(flow.limit) / 2
    resolved = gaps > RESOLVED * path.losses[0]
    # How far the logarithm of the gap is above that of the exponential.
    excess = np.log(gaps[resolved] / gaps[0]) + mu * path.times[resolved]
    return [
        check.holds("flow_converged_abs", flow.verdict == training.Verdict.CONVERGED),
        check.exact("imbalance_abs", np.max(np.abs(u**2 - np.sum(inner**2, axis=(1, 2)))), 0.0, DRIFT_TOLERANCE * np.max(u**2)),
        check.at_least("smallest_u", np.min(u), lower),
        check.holds("gap_is_resolved_abs", int(np.sum(resolved)) >= 10),
        check.at_least("smallest_gradient_over_gap", np.min((path.gradient_norms**2)[resolved] / gaps[resolved]), mu),
        check.at_most("largest_log_gap_plus_mu_t_abs", np.max(excess), 0.0, EXACT_TOLERANCE),
    ]
