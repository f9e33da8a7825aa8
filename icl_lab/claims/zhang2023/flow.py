"""Claims of Zhang, Frei, Bartlett 2023 about the flow towards Theorem 4.1: its start, its equations, and its bounds."""

from __future__ import annotations

import jax
import numpy as np

from icl_lab import analysis, models, objectives, theory, training
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, choice, flag, integer, number, spectrum
from icl_lab.claims.registry import claim
from icl_lab.claims.settings.flow_paths import structured, validate_spectra
from icl_lab.claims.settings.regression import covariance
from icl_lab.claims.zhang2023.limit import PAPER, theta_matrix, validate_start
from icl_lab.core import compiled, prng
from icl_lab.core.linalg import psd_root
from icl_lab.core.typing import Array, Key
from icl_lab.models import initializers
from icl_lab.models.weights import LSAWeights
from icl_lab.tasks.regression.linear import LinearRegression

# Sums of a few hundred float64 products.
EXACT_TOLERANCE = 1e-12
GRADIENT_TOLERANCE = 1e-13
# Constants read off gradients need the inverse of Lambda^2.
CONSTANT_TOLERANCE = 1e-10
# The flow is stopped at an estimated weight error of a tenth of this.
LIMIT_TOLERANCE = 1e-8
DRIFT_TOLERANCE = 1e-11
# Below this share of tr(Lambda) a loss gap is rounding noise.
RESOLVED = 1e-9

SIZES = {
    "d": integer(3, 1, "input dimension"),
    "N": integer(10, 1, "training context length"),
}
INPUTS = {
    "Lam": spectrum("eigenvalues of the input covariance; null: 2 down to 1/2"),
    "rotate": flag(False, "random eigenvectors of the covariances"),
}
START = (
    SIZES
    | INPUTS
    | {
        "sigma": number(0.1, positive=True, meaning="initial scale; sigma^2 ||Gamma|| sqrt(d) < 2"),
        "theta": choice("identity", ("identity", "random"), "the matrix Theta of the start"),
        "seed": integer(0, 0, "of the random basis and of Theta"),
    }
)


def objective_of(matrix: Array, N: int) -> objectives.Objective:
    """The exact half loss for noiseless prompts of standard normal tasks."""
    task = LinearRegression(dim=len(matrix), context_length=N, covariance=matrix)
    return objectives.population(task, models.LinearSelfAttention())


def random_structured(key: Key, dim: int, count: int) -> list[tuple[float, Array]]:
    """Pairs of a standard normal u and a matrix U of standard normals."""
    draws = np.asarray(jax.random.normal(prng.stream(key, "weights"), (count, dim**2 + 1)))
    return [(float(row[0]), row[1:].reshape(dim, dim)) for row in draws]


@compiled.jit
def gradient(objective, weights: LSAWeights) -> LSAWeights:
    """Gradient of the half loss, compiled once for all covariances of a size."""
    return jax.grad(objective)(weights)


class _Constants:
    """What the bounds are made of, read off gradients of the loss instead of the covariance.

    Attributes:
      square: (d, d), Lambda^2.  gamma: (d, d), Gamma.  overlap: ||Lambda Theta||_F^2.
      escape: sigma^2 ||Lambda Theta||_F^2 (2 - sqrt(d) sigma^2 ||Gamma||).
    """

    def __init__(self, objective, start: LSAWeights):
        dim = len(start.w_pv) - 1
        sigma = float(start.w_pv[-1, -1])
        # At u = 1 the gradient in U is Gamma Lambda U Lambda - Lambda^2, at u = 0 that in u is -tr(Lambda^2 U).
        self.square = -np.asarray(gradient(objective, structured(1.0, np.zeros((dim, dim)))).w_kq)[:dim, :dim]
        self.gamma = np.asarray(gradient(objective, structured(1.0, np.linalg.inv(self.square))).w_kq)[:dim, :dim] + self.square
        self.overlap = -float(gradient(objective, structured(0.0, start.w_kq[:dim, :dim])).w_pv[-1, -1]) / sigma
        spread = np.sqrt(dim) * sigma**2 * np.linalg.norm(self.gamma, ord=2)
        self.escape = sigma**2 * self.overlap * (2 - spread)


@claim(
    "zhang2023.asm3.3",
    statement="The start W_PV = sigma e e^T, W_KQ = sigma diag(Theta Theta^T, 0), || Theta Theta^T ||_F = 1, is balanced, and "
    "sigma stays below sqrt(2 / (||Gamma|| sqrt(d))).",
    source=Source(PAPER, "Assumption 3.3"),
    parameters=START,
    validate=validate_start,
)
def start_is_balanced(d, N, Lam, rotate, sigma, theta, seed) -> list[Check]:
    matrix = covariance(Lam, d, rotate, seed)
    root = theta_matrix(theta, d, seed)
    start = initializers.zhang(d, sigma, 3 * root)  # the start scales Theta itself
    expected = structured(sigma, sigma * root @ root.T)
    constants = _Constants(objective_of(matrix, N), start)
    largest = np.sqrt(2 / (np.linalg.norm(constants.gamma, ord=2) * np.sqrt(d)))
    return [
        check.exact("w_pv", start.w_pv, expected.w_pv, EXACT_TOLERANCE),
        check.exact("w_kq", start.w_kq, expected.w_kq, EXACT_TOLERANCE),
        check.exact("norm_of_w_kq", np.linalg.norm(start.w_kq), sigma, EXACT_TOLERANCE),
        check.exact("imbalance_abs", np.sum(start.w_pv**2) - np.sum(start.w_kq**2), 0.0, EXACT_TOLERANCE * sigma**2),
        check.exact("largest_sigma", largest, theory.zhang2023.largest_init_scale(matrix, N), CONSTANT_TOLERANCE),
        check.at_most("sigma", sigma, largest),
        check.holds("start_has_signal_abs", constants.overlap > 0),
    ]


@claim(
    "zhang2023.lem5.2",
    statement="On p1 = k2 = 0 gradient flow of the whole layer is dU/dt = u Lam^2 - u^2 Gamma Lam U Lam, "
    "du/dt = tr(Lam^2 U^T - u Gamma Lam U Lam U^T), and it stays there.",
    source=Source(PAPER, "Lemma 5.2"),
    parameters=SIZES
    | INPUTS
    | {
        "rotate": flag(True, "random eigenvectors of both covariances, which then do not commute"),
        "Om": spectrum("eigenvalues of the task covariance of the general form; null: 3/2 down to 1/2"),
        "s2": number(0.25, 0.0, "label noise of the general form"),
        "seed": integer(0, 0, "of the bases and the weights"),
    },
    validate=validate_spectra,
)
def reduced_dynamics(d, N, Lam, rotate, Om, s2, seed) -> list[Check]:
    matrix = covariance(Lam, d, rotate, seed)
    tasks = covariance(Om, d, rotate, seed, "tasks", largest=1.5)
    ((u, inner),) = random_structured(jax.random.key(seed), d, 1)
    checks = []
    for words, settings, expected in (
        ("", {}, theory.structured.velocity(u, inner, matrix, N)),
        (
            "_general",
            {"task_covariance": tasks, "noise_std": np.sqrt(s2)},
            theory.structured.general_velocity(u, inner, matrix, tasks, s2, N),
        ),
    ):
        task = LinearRegression(dim=d, context_length=N, covariance=matrix, **settings)
        for query_in_sum, suffix in ((True, ""), (False, "_query_out")):
            objective = objectives.population(task, models.LinearSelfAttention(query_in_sum=query_in_sum))
            slope = jax.tree.map(np.asarray, gradient(objective, structured(u, inner)))
            outside = np.concatenate([slope.w_pv[-1, :d], slope.w_kq[d, :d]])
            size = np.linalg.norm(expected[1])
            checks += [
                check.exact(f"du{words}{suffix}", -slope.w_pv[-1, -1], expected[0], GRADIENT_TOLERANCE),
                check.exact(f"dU{words}{suffix}", -slope.w_kq[:d, :d], expected[1], GRADIENT_TOLERANCE),
                check.exact(f"dp1_dk2{words}{suffix}_abs", outside, np.zeros(2 * d), GRADIENT_TOLERANCE * float(size)),
            ]
    return checks


@claim(
    "zhang2023.lemA.3",
    statement="u^2 - ||U||_F^2 is conserved by gradient flow, and with it the balance of the start; for all entries it is "
    "||W_PV||^2 - ||W_KQ||^2.",
    source=Source(PAPER, "Lemma A.3"),
    parameters=START | {"scale": number(0.3, positive=True, meaning="of a Gaussian start of all entries")},
    validate=lambda scale, **start: validate_start(**start),
)
def balance_is_conserved(d, N, Lam, rotate, sigma, theta, seed, scale) -> list[Check]:
    matrix = covariance(Lam, d, rotate, seed)
    key = jax.random.key(seed)
    objective = objective_of(matrix, N)
    times = np.linspace(0.0, 4.0, 9) * np.log(2 + 1 / sigma) / np.linalg.norm(matrix @ matrix)
    unbalanced = initializers.gaussian(prng.stream(key, "start"), d + 1, scale)
    # A head axis makes the flow integrate every entry of both matrices, although only some of them ever move.
    starts = {
        "structured": initializers.zhang(d, sigma, theta_matrix(theta, d, seed)),
        "gaussian": unbalanced,
    }
    checks = []
    for name, start in starts.items():
        flow = training.gradient_flow(
            objective,
            jax.tree.map(lambda w: w[None], start),
            times=times,
            stop_at_last_time=True,
            solver="tsit5",
            rtol=1e-12,
        )
        path = flow.trajectory.weights
        size = max(1.0, float(np.max(np.sum(path.w_pv**2, axis=(1, 2, 3)))))
        drift = analysis.drift(path)["value_key_query"]
        checks += [
            check.holds(f"{name}_loss_has_fallen_abs", bool(flow.trajectory.losses[-1] < 0.999 * flow.trajectory.losses[0])),
            check.exact(f"{name}_drift_abs", drift, np.zeros(len(times)), DRIFT_TOLERANCE * size),
        ]
        if name == "structured":
            u, inner = path.w_pv[:, 0, -1, -1], path.w_kq[:, 0, :d, :d]
            checks.append(check.exact("u_squared", u**2, np.sum(inner**2, axis=(1, 2)), DRIFT_TOLERANCE))
    return checks


@claim(
    "zhang2023.lemA.4-A.5",
    statement="From the structured start the loss is below that of zero weights, and u(t) never falls below a positive bound.",
    source=Source(PAPER, "Lemmas A.4 and A.5"),
    parameters=START,
    validate=validate_start,
)
def u_stays_positive(d, N, Lam, rotate, sigma, theta, seed) -> list[Check]:
    matrix = covariance(Lam, d, rotate, seed)
    root = theta_matrix(theta, d, seed)
    product = root @ root.T
    objective = objective_of(matrix, N)
    start = initializers.zhang(d, sigma, root)
    constants = _Constants(objective, start)
    flow = convergence.to_limit(objective, start, weight_tolerance=LIMIT_TOLERANCE)
    reduced = (objective.risk(start) - objective.risk(structured(0.0, 0 * matrix))) / 2
    start_bound = theory.zhang2023.start_loss_bound(sigma, matrix, N, product)
    lower = theory.zhang2023.scale_lower_bound(sigma, matrix, N, product)
    measured_lower = np.sqrt(constants.escape / (2 * np.sqrt(d) * np.linalg.norm(constants.square, ord=2)))
    return [
        check.holds("flow_converged_abs", flow.verdict == training.Verdict.CONVERGED),
        check.exact("start_loss_bound", -constants.escape / 2, start_bound, CONSTANT_TOLERANCE),
        check.at_most("start_loss_abs", reduced, start_bound, GRADIENT_TOLERANCE * np.trace(matrix)),
        check.holds("start_loss_bound_is_negative_abs", start_bound < 0),
        check.exact("u_lower_bound", measured_lower, lower, CONSTANT_TOLERANCE),
        check.at_least("smallest_u", np.min(flow.trajectory.weights.w_pv[:, -1, -1]), lower),
    ]


@claim(
    "zhang2023.lem5.4",
    statement="Along the flow |grad L|^2 >= mu (L - min L), so that the gap decays at least like exp(-mu t).",
    source=Source(PAPER, "Lemma 5.4"),
    parameters=START,
    validate=validate_start,
)
def pl_inequality(d, N, Lam, rotate, sigma, theta, seed) -> list[Check]:
    matrix = covariance(Lam, d, rotate, seed)
    root = theta_matrix(theta, d, seed)
    objective = objective_of(matrix, N)
    start = initializers.zhang(d, sigma, root)
    constants = _Constants(objective, start)
    flow = convergence.to_limit(objective, start, weight_tolerance=LIMIT_TOLERANCE)
    path = flow.trajectory
    gaps = path.losses - objective.risk(flow.limit) / 2
    resolved = gaps > RESOLVED * np.trace(matrix)
    mu = theory.zhang2023.pl_constant(sigma, matrix, N, root @ root.T)
    # How far the logarithm of the gap is above that of the exponential.
    excess = np.log(gaps[resolved] / gaps[0]) + mu * path.times[resolved]
    inverse = np.linalg.inv(psd_root(constants.square))
    traces = np.trace(np.linalg.inv(constants.gamma) @ inverse) * np.trace(inverse)
    measured_mu = constants.escape / (np.sqrt(d) * np.linalg.norm(constants.square, ord=2) * traces)
    return [
        check.holds("flow_converged_abs", flow.verdict == training.Verdict.CONVERGED),
        check.exact("mu", measured_mu, mu, CONSTANT_TOLERANCE),
        check.holds("gap_is_resolved_abs", int(np.sum(resolved)) >= 10),
        check.at_least("smallest_gradient_over_gap", np.min((path.gradient_norms**2)[resolved] / gaps[resolved]), mu),
        check.at_most("largest_log_gap_plus_mu_t_abs", np.max(excess), 0.0, EXACT_TOLERANCE),
    ]
