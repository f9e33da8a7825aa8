"""Claims about training that is not the structured flow: random starts, discrete descent, fresh prompts, a factored head."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from icl_lab import models, objectives, theory, training
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, integer, number, spectrum
from icl_lab.claims.registry import claim
from icl_lab.claims.settings.flow_paths import SIZES, Integrator, exact, problem_of, regression, validate_spectra
from icl_lab.claims.settings.separate_heads import Heads, heads_loss
from icl_lab.core import compiled, precision, prng
from icl_lab.core.errors import AssumptionError
from icl_lab.models import initializers
from icl_lab.models.weights import LSAWeights
from icl_lab.theory.regression import optimum

_COMMUTING = SIZES | {
    "Om": spectrum("eigenvalues of the task covariance, whose eigenvectors are those of Lam; null: all 1"),
}
EXPONENT_TOLERANCE = 0.01
LARGEST_STEP = 0.75
SAME = 1e-6
"""Values of u closer than this are those of one mode, or of equal ones, which stay balanced under descent too."""
ESCAPED = 0.1
"""Share of the drop of the loss at which the escape is timed."""


def _validate_escape(sigma, starts, **sizes) -> None:
    validate_spectra(**sizes)
    problem = problem_of(regression(**sizes, commuting=False))
    exponent = theory.stability.escape_exponent(*problem[:2])
    # The odd blocks are sigma^exponent at the escape, and corrections to the exponent of the order of the change of its square.
    if 2 * exponent * sigma ** (2 * exponent) > EXPONENT_TOLERANCE:
        raise AssumptionError(
            f"at `sigma` = {sigma:g} the blocks p1 and k2 are of order {sigma**exponent:.2g} at the escape, too large for the "
            f"power law of exponent {exponent:.3g}; take a smaller one."
        )


@claim(
    "lab.escape-exponent",
    statement="From a random start of size sigma the blocks p1 and k2 are of order sigma^(1 - ||D||_op / ||D||_F) when the "
    "loss drops, by the eigenvalues of the Hessian at zero.",
    source=Source("icl_lab", "Hessian at zero weights", "extended"),
    parameters=SIZES
    | {
        "d": integer(4, 1, "input dimension"),
        "N": integer(8, 1, "context length"),
        "Lam": spectrum("eigenvalues of the input covariance; null: 2 down to 1/2"),
        "sigma": number(
            1e-20, positive=True, meaning="larger initial scale, the other is its square; the formula is asymptotic"
        ),
        "starts": integer(3, 1, "random starts, each at both scales"),
    },
    validate=_validate_escape,
)
def escape_exponent(d, N, s2, Lam, Om, rotate, seed, sigma, starts) -> list[Check]:
    task = regression(d, N, s2, Lam, Om, rotate, seed, commuting=False)
    problem = problem_of(task)
    shapes = initializers.gaussian(jax.random.key(seed), d + 1, 1.0)
    integrate = Integrator(exact(task), shapes)
    hessian = integrate.hessian(np.zeros(2 * (d + 1) ** 2))
    expected = theory.stability.origin_spectrum(*problem[:2])
    # The inactive entries of both matrices add zeros.
    padded = np.sort(np.concatenate([expected, np.zeros(len(hessian) - len(expected))]))
    norm = np.linalg.norm(theory.timecourse.signal(*problem[:2]))
    top = integrate.value_and_gradient(np.zeros(len(hessian)))[0]
    level = top - ESCAPED * (top - theory.lsa.minimum_risk(*problem) / 2)

    def odd_blocks(flat: np.ndarray, scale: float) -> float:
        """Size of (p1, k2) when the loss has fallen by the share `ESCAPED`."""
        end = 1.2 * (np.log(1 / scale) + 30) / norm
        path = integrate(
            integrate.weights(scale * flat),
            end,
            [lambda weights: integrate.value_and_gradient(integrate.flat(weights))[0] - level],
            rtol=1e-7,
            stop=True,
        )
        escaped = path.states[0][0]
        return float(np.linalg.norm(np.concatenate([escaped.w_pv[-1, :d], escaped.w_kq[d, :d]])))

    slopes = []
    for key in jax.random.split(prng.stream(jax.random.key(seed), "starts"), starts):
        flat = integrate.flat(initializers.gaussian(key, d + 1, 1.0))
        slopes.append(np.log(odd_blocks(flat, sigma) / odd_blocks(flat, sigma**2)) / np.log(1 / sigma))
    exponent = theory.stability.escape_exponent(*problem[:2])
    return [
        check.exact("hessian_spectrum_at_zero", np.linalg.eigvalsh(hessian), padded, 1e-12),
        check.exact("worst_exponent_abs", max(slopes, key=lambda slope: abs(slope - exponent)), exponent, EXPONENT_TOLERANCE),
    ]


def _validate_descent(h, sigma, **sizes) -> None:
    validate_spectra(**sizes)
    largest = theory.stability.late_rates(*problem_of(regression(**sizes, commuting=True))).largest_step
    if h > LARGEST_STEP * largest:
        raise AssumptionError(
            f"`h` must be at most {LARGEST_STEP * largest:.6g}, {LARGEST_STEP:g} of the largest stable step; got {h:g}."
        )


@claim(
    "lab.gd-invariant",
    statement="A step h of gradient descent changes kappa = u^2 - ||U||_F^2 by exactly h^2 (g_u^2 - ||G_U||_F^2); u ends where "
    "the kappa so reached puts it, of order h away from the flow, while u U = B*.",
    source=Source("icl_lab", "homogeneity of the loss in u and U", "extended"),
    parameters=_COMMUTING
    | {"sigma": number(0.1, positive=True, meaning="initial scale"), "h": number(0.05, positive=True, meaning="step size")},
    validate=_validate_descent,
)
def descent_invariant(d, N, s2, Lam, Om, rotate, seed, sigma, h) -> list[Check]:
    task = regression(d, N, s2, Lam, Om, rotate, seed, commuting=True)
    problem = problem_of(task)
    start = initializers.zhang(d, sigma)
    objective = exact(task)
    path = training.descend(objective, start, optax.sgd(h), 256).trajectory.weights
    u, inner = path.w_pv[:, -1, -1], path.w_kq[:, :d, :d]
    changes = np.diff(u**2 - np.sum(inner**2, axis=(1, 2)))
    slopes = [theory.structured.general_velocity(float(a), b, *problem) for a, b in zip(u[:-1], inner[:-1], strict=True)]
    drift = h**2 * np.array([du**2 - np.sum(slope**2) for du, slope in slopes])

    @compiled.jit
    def descended(step, steps):
        def update(_, weights):
            return jax.tree.map(lambda w, g: w - step * g, weights, jax.grad(objective)(weights))

        return jax.lax.fori_loop(0, steps, update, jax.tree.map(jnp.asarray, start))

    product = theory.lsa.optimal_preconditioner(*problem)
    growth = np.linalg.norm(theory.timecourse.signal(*problem[:2]))
    time = 3 * np.log(1 + 1 / sigma) / growth + 28 / theory.stability.late_rates(*problem).slowest
    # Absolute, since a single mode stays balanced at every step.
    checks, ends = [check.exact("kappa_changes_abs", changes, drift, 1e-12)], []
    for share in (1, 2, 4):
        steps = int(np.ceil(time * share / h))
        limit = precision.to_numpy(descended(np.asarray(h / share), np.asarray(steps)))
        u_end, inner_end = float(limit.w_pv[-1, -1]), limit.w_kq[:d, :d]
        expected, _, kappa = theory.stability.descent(sigma, sigma * np.eye(d) / np.sqrt(d), h / share, steps, *problem)
        w_pv, _ = optimum.balanced_weights(product, kappa)
        words = f"step_h_over_{share}"
        checks += [
            check.exact(f"u_{words}", u_end, expected, 1e-10),
            check.exact(f"kappa_{words}_abs", u_end**2 - np.sum(inner_end**2), kappa, 1e-10),
            check.exact(f"u_from_kappa_{words}", u_end, w_pv[-1, -1], 1e-10),
            check.exact(f"product_{words}", u_end * inner_end.T, product, 1e-10),
        ]
        ends.append(u_end)
    # Linear in h: halving the step halves the distance to the flow's limit.
    balanced = optimum.balanced_weights(product)[0][-1, -1]
    if abs(ends[0] - balanced) > SAME:
        checks.append(check.exact("halving_ratio", (ends[1] - balanced) / (ends[2] - balanced), 2.0, 0.1))
    return checks


def _train(objective: objectives.StreamedLoss, start: LSAWeights, lr: float, steps: int, key) -> LSAWeights:
    """The weights after each step of stochastic gradient descent on fresh prompts, stacked."""

    @compiled.jit
    def run(weights):
        def update(weights, step):
            gradient = jax.grad(objective)(weights, jax.random.fold_in(key, step))
            size = lr / (1.0 + step.astype(float) / 500.0)
            weights = jax.tree.map(lambda w, g: w - size * g, weights, gradient)
            return weights, weights

        return jax.lax.scan(update, weights, jnp.arange(steps))[1]

    return precision.to_numpy(run(jax.tree.map(jnp.asarray, start)))


def _validate_sgd(lr, steps, batch, sigma, **sizes) -> None:
    validate_spectra(**sizes, Om=None)
    rates = theory.stability.late_rates(*problem_of(regression(**sizes, Om=None, commuting=True)))
    if lr > 0.3 * rates.largest_step:
        raise AssumptionError(
            f"`lr` must be at most {0.3 * rates.largest_step:.4g}, 0.3 of the largest stable step; got {lr:g}."
        )
    time = 500 * lr * np.log(1 + steps / 500)
    if time * rates.slowest < 12:
        raise AssumptionError(
            f"{steps} steps from {lr:g} last {time:.4g}, too short for the slowest mode of rate {rates.slowest:.4g}; take more."
        )


@claim(
    "lab.sgd-sanity",
    statement="Stochastic gradient descent on fresh prompts, all entries trained, finds u U = Gamma^{-1} within noise, though "
    "not the factors of the flow.",
    source=Source("icl_lab", "Theorem 4.1 of arXiv 2306.09927 under the training rule of practice", "extended"),
    parameters={name: parameter for name, parameter in SIZES.items() if name not in ("Om", "s2")}
    | {
        "sigma": number(0.1, positive=True, meaning="initial scale"),
        "batch": integer(256, 2, "fresh prompts a step"),
        "steps": integer(6000, 500, "steps"),
        "lr": number(0.03, positive=True, meaning="first step size; it falls as 1 / (1 + i / 500)"),
    },
    validate=lambda **parameters: _validate_sgd(**parameters, s2=0.0),
)
def sgd_sanity(d, N, Lam, rotate, seed, sigma, batch, steps, lr) -> list[Check]:
    task = regression(d, N, 0.0, Lam, None, rotate, seed, commuting=True)
    key = jax.random.key(seed)
    streamed = objectives.StreamedLoss.build(task, models.LinearSelfAttention(), prng.stream(key, "fixed"), batch, batch)
    start = initializers.zhang(d, sigma)
    path = _train(streamed, start, lr, steps, prng.stream(key, "prompts"))
    u, inner = path.w_pv[:, -1, -1], path.w_kq[:, :d, :d]
    products = u[:, None, None] * inner
    tail = np.mean(products[len(products) // 2 :], axis=0)
    best = theory.zhang2023.optimum(task)
    limit = jax.tree.map(lambda matrix: matrix[-1], path)
    averaged = theory.lsa.risk(tail.T, task.covariance, np.eye(d), 0.0, N)
    odd = np.concatenate([limit.w_pv[-1, :d], limit.w_kq[d, :d]])
    inactive = np.concatenate([(limit.w_pv - start.w_pv)[:-1].ravel(), (limit.w_kq - start.w_kq)[:, -1]])
    return [
        check.exact("last_product", products[-1].T, best.preconditioner, 0.03),
        check.exact("averaged_product", tail.T, best.preconditioner, 0.03),
        check.exact("risk_of_averaged_product", averaged, best.risk, 5e-4),
        check.exact("p1_and_k2_abs", odd, np.zeros(2 * d), 0.05),
        check.exact("never_reached_entries_abs", np.max(np.abs(inactive)), 0.0, 0.0),
    ]


@claim(
    "lab.one-head-fullrank",
    statement="One head with separate key and query of full rank, started balanced, ends at u = (tr B*)^(1/3) and "
    "K^T K = B* / u.",
    source=Source("icl_lab", "reduction of the separate flow to d + 1 equations", "extended"),
    parameters=_COMMUTING
    | {
        "N": integer(31, 1, "context length"),
        "Lam": spectrum("eigenvalues of the input covariance; null: powers of 3/5"),
        "sigma": number(0.1, positive=True, meaning="initial scale"),
    },
    validate=lambda sigma, **sizes: validate_spectra(**sizes),
)
def one_head_of_full_rank(d, N, s2, Lam, Om, rotate, seed, sigma) -> list[Check]:
    spectrum = list(0.6 ** np.arange(d)) if Lam is None else Lam
    task = regression(d, N, s2, spectrum, Om, rotate, seed, commuting=True)
    problem = problem_of(task)
    basis = theory.stability.common_basis(*problem[:2])
    keys = sigma / np.sqrt(d) * basis.T[None]
    start = Heads(values=np.array([sigma]), keys=keys, queries=keys)
    product = theory.lsa.optimal_preconditioner(*problem)
    value, gram = theory.zhangsaxe2025.full_rank_limit(product)
    drive = np.linalg.eigvalsh(theory.timecourse.signal(*problem[:2]))
    # A plateau of order 1 / sigma, then the slowest mode's growth from sigma and its relaxation.
    escape = 3 * np.sqrt(d) / (sigma * drive[-1])
    end = 2 * escape + 2 * (np.log(1 + 1 / sigma) + 30) / (value * drive[0])
    integrate = Integrator(heads_loss(exact(task)), start)
    times = np.linspace(0.0, 2 * escape, 6)
    v, k = theory.zhangsaxe2025.full_rank_flow(sigma, times, *problem)
    path = integrate(start, times[-1])
    states = [path.at(time) for time in times]
    # Long after the drop the strong modes have settled and the flow is stiff.
    last = integrate(start, end, method="LSODA").at(end)
    return [
        check.exact("u_along_the_flow", [state.values[0] for state in states], v, 1e-8),
        check.exact("K_along_the_flow", [state.keys[0] for state in states], k[:, :, None] * basis.T, 1e-8),
        check.exact("u_limit", last.values[0], value, 1e-8),
        check.exact("KK_limit", last.keys[0].T @ last.keys[0], gram, 1e-8),
        check.exact("product", last.product(), product, 1e-8),
        check.exact("invariant_abs", states[-1].values[0] ** 2 - np.sum(states[-1].keys ** 2), 0.0, 1e-10),
    ]
