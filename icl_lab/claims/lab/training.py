"""Claims about training that is not the structured flow: random starts, discrete descent, fresh prompts, a factored head."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from icl_lab import models, objectives, theory, training
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.lab.settings import CommutingSetting, FlowSetting
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number, spectrum
from icl_lab.claims.settings.flow_paths import Integrator, exact
from icl_lab.claims.settings.regression import SpectralSetting, covariance
from icl_lab.claims.settings.separate_heads import Heads, heads_loss
from icl_lab.core import compiled, precision, prng
from icl_lab.core.errors import AssumptionError
from icl_lab.core.typing import Array
from icl_lab.models import initializers
from icl_lab.models.weights import LSAWeights
from icl_lab.theory.regression import optimum

EXPONENT_TOLERANCE = 0.01
LARGEST_STEP = 0.75
SAME = 1e-6
"""Values of u closer than this are those of one mode, or of equal ones, which stay balanced under descent too."""
ESCAPED = 0.1
"""Share of the drop of the loss at which the escape is timed."""


class EscapeSetting(FlowSetting):
    """Random starts so small that the power law shows."""

    d = 4
    N = 8
    sigma: float = number(
        1e-20,
        positive=True,
        meaning="initial scale",
        detail=", the larger of two; the other is its square, since the power law is asymptotic",
    )
    starts: int = integer(3, 1, "number of starts", ", random, each at both scales")

    @property
    def exponent(self) -> float:
        """The predicted one."""
        return theory.stability.escape_exponent(self.covariance, self.task_covariance)

    def validate(self) -> None:
        super().validate()
        # The odd blocks are sigma^exponent at the escape, and corrections to it of the order of the change of its square.
        if 2 * self.exponent * self.sigma ** (2 * self.exponent) > EXPONENT_TOLERANCE:
            raise AssumptionError(
                f"at `sigma` = {self.sigma:g} the blocks p1 and k2 are of order {self.sigma**self.exponent:.2g} at the escape, "
                f"too large for the power law of exponent {self.exponent:.3g}; take a smaller one."
            )


@claim("lab.escape-exponent", EscapeSetting, Source("icl_lab", "Hessian at zero weights", "extended"))
def escape_exponent(setting: EscapeSetting) -> list[Check]:
    """From a random start of size sigma the blocks p1 and k2 are of order sigma^(1 - ||D||_op / ||D||_F) when the loss drops,
    by the eigenvalues of the Hessian at zero.

    The Hessian is one of differences of the exact loss's gradient; gradient flow in all entries starts at the same Gaussian
    weights times sigma and times sigma^2, and the power is read from the blocks when the loss has fallen by a tenth. Another
    power, or a growth rate at zero other than ||D||_F and the singular values of D, would make it fail.
    """
    d, sigma = setting.d, setting.sigma
    key = setting.key
    integrate = Integrator(exact(setting.task()), initializers.gaussian(key, d + 1, 1.0))
    hessian = integrate.hessian(np.zeros(2 * (d + 1) ** 2))
    expected = theory.stability.origin_spectrum(setting.covariance, setting.task_covariance)
    # The inactive entries of both matrices add zeros.
    padded = np.sort(np.concatenate([expected, np.zeros(len(hessian) - len(expected))]))
    norm = np.linalg.norm(setting.drive)
    top = integrate.value_and_gradient(np.zeros(len(hessian)))[0]
    level = top - ESCAPED * (top - theory.lsa.minimum_risk(setting.problem) / 2)

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
    for start in jax.random.split(prng.stream(key, "starts"), setting.starts):
        flat = integrate.flat(initializers.gaussian(start, d + 1, 1.0))
        slopes.append(np.log(odd_blocks(flat, sigma) / odd_blocks(flat, sigma**2)) / np.log(1 / sigma))
    worst = max(slopes, key=lambda slope: abs(slope - setting.exponent))
    return [
        check.exact("hessian_spectrum_at_zero", np.linalg.eigvalsh(hessian), padded, 1e-12),
        check.exact("worst_exponent_abs", worst, setting.exponent, EXPONENT_TOLERANCE),
    ]


class DescentSetting(CommutingSetting):
    """Gradient descent with a stable step."""

    sigma: float = number(0.1, positive=True, meaning="initial scale")
    h: float = number(0.05, positive=True, meaning="step size")

    def validate(self) -> None:
        super().validate()
        largest = theory.stability.late_rates(self.problem).largest_step
        if self.h > LARGEST_STEP * largest:
            raise AssumptionError(
                f"`h` must be at most {LARGEST_STEP * largest:.6g}, {LARGEST_STEP:g} of the largest stable step; "
                f"got {self.h:g}."
            )


@claim("lab.gd-invariant", DescentSetting, Source("icl_lab", "homogeneity of the loss in u and U", "extended"))
def descent_invariant(setting: DescentSetting) -> list[Check]:
    """A step h of gradient descent changes kappa = u^2 - ||U||_F^2 by exactly h^2 (g_u^2 - ||G_U||_F^2); u ends where the kappa
    so reached puts it, of order h away from the flow, while u U = B*.

    Gradient descent on the exact loss in all entries starts at u = sigma and U = sigma I / sqrt d; 256 steps are compared one
    by one, and the ends at steps h, h/2 and h/4 with descent on (u, U) by the equations, and with each other. A drift of the
    other sign, an end at the flow's kappa, or a distance that does not halve with the step, would make it fail.
    """
    d, sigma, h = setting.d, setting.sigma, setting.h
    start = initializers.zhang(d, sigma)
    objective = exact(setting.task())
    path = training.descend(objective, start, optax.sgd(h), 256).trajectory.weights
    u, inner = path.w_pv[:, -1, -1], path.w_kq[:, :d, :d]
    changes = np.diff(u**2 - np.sum(inner**2, axis=(1, 2)))
    velocity = partial(theory.structured.general_velocity, setting.problem)
    slopes = [velocity(float(a), b) for a, b in zip(u[:-1], inner[:-1], strict=True)]
    drift = h**2 * np.array([du**2 - np.sum(slope**2) for du, slope in slopes])

    @compiled.jit
    def descended(step, steps):
        def update(_, weights):
            return jax.tree.map(lambda w, g: w - step * g, weights, jax.grad(objective)(weights))

        return jax.lax.fori_loop(0, steps, update, jax.tree.map(jnp.asarray, start))

    product = theory.lsa.optimal_preconditioner(setting.problem)
    growth = np.linalg.norm(setting.drive)
    time = 3 * np.log(1 + 1 / sigma) / growth + 28 / theory.stability.late_rates(setting.problem).slowest
    # Absolute, since a single mode stays balanced at every step.
    checks, ends = [check.exact("kappa_changes_abs", changes, drift, 1e-12)], []
    for share in (1, 2, 4):
        steps = int(np.ceil(time * share / h))
        limit = precision.to_numpy(descended(np.asarray(h / share), np.asarray(steps)))
        u_end, inner_end = float(limit.w_pv[-1, -1]), limit.w_kq[:d, :d]
        expected, _, kappa = theory.stability.descent(setting.problem, sigma, start.w_kq[:d, :d], h / share, steps)
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


class StochasticSetting(SpectralSetting):
    """Stochastic gradient descent that is stable and long enough."""

    sigma: float = number(0.1, positive=True, meaning="initial scale")
    batch: int = integer(256, 2, "number of fresh prompts a step")
    steps: int = integer(6000, 500, "number of steps")
    lr: float = number(0.03, positive=True, meaning="step size", detail="at first; it falls as 1 / (1 + i / 500)")

    def validate(self) -> None:
        super().validate()
        rates = theory.stability.late_rates(self.problem)
        if self.lr > 0.3 * rates.largest_step:
            raise AssumptionError(
                f"`lr` must be at most {0.3 * rates.largest_step:.4g}, 0.3 of the largest stable step; got {self.lr:g}."
            )
        time = 500 * self.lr * np.log(1 + self.steps / 500)
        if time * rates.slowest < 12:
            raise AssumptionError(
                f"{self.steps} steps from {self.lr:g} last {time:.4g}, too short for the slowest mode of rate "
                f"{rates.slowest:.4g}; take more."
            )


@claim(
    "lab.sgd-sanity",
    StochasticSetting,
    Source("icl_lab", "Theorem 4.1 of arXiv 2306.09927 under the training rule of practice", "extended"),
)
def sgd_sanity(setting: StochasticSetting) -> list[Check]:
    """Stochastic gradient descent on fresh prompts, all entries trained, finds u U = Gamma^{-1} within noise, though not the
    factors of the flow.

    All weights are trained on new prompts at every step, from u = sigma and U = sigma I / sqrt d; the last product, and the
    average over the second half of the steps and its risk, are compared with the theorem. Training that ends elsewhere than
    the flow's product, or moves an entry that no gradient reaches, would make it fail.
    """
    d, batch, task = setting.d, setting.batch, setting.task()
    key = setting.key
    streamed = objectives.StreamedLoss.build(task, models.LinearSelfAttention(), prng.stream(key, "fixed"), batch, batch)
    start = initializers.zhang(d, setting.sigma)
    path = _train(streamed, start, setting.lr, setting.steps, prng.stream(key, "prompts"))
    u, inner = path.w_pv[:, -1, -1], path.w_kq[:, :d, :d]
    products = u[:, None, None] * inner
    tail = np.mean(products[len(products) // 2 :], axis=0)
    best = theory.zhang2023.optimum(task)
    limit = jax.tree.map(lambda matrix: matrix[-1], path)
    averaged = theory.lsa.risk(setting.problem, tail.T)
    odd = np.concatenate([limit.w_pv[-1, :d], limit.w_kq[d, :d]])
    inactive = np.concatenate([(limit.w_pv - start.w_pv)[:-1].ravel(), (limit.w_kq - start.w_kq)[:, -1]])
    return [
        check.exact("last_product", products[-1].T, best.preconditioner, 0.03),
        check.exact("averaged_product", tail.T, best.preconditioner, 0.03),
        check.exact("risk_of_averaged_product", averaged, best.risk, 5e-4),
        check.exact("p1_and_k2_abs", odd, np.zeros(2 * d), 0.05),
        check.exact("never_reached_entries_abs", np.max(np.abs(inactive)), 0.0, 0.0),
    ]


class FullRankHead(CommutingSetting):
    """One head whose key and query start equal."""

    N = 31
    Lam: list[float] | None = spectrum("eigenvalues of the input covariance", "; null: powers of 3/5")
    sigma: float = number(0.1, positive=True, meaning="initial scale")

    @property
    def covariance(self) -> Float[Array, "d d"]:
        return covariance(self.Lam or list(0.6 ** np.arange(self.d)), self.d, self.rotate, self.seed, self.inputs_basis)


@claim(
    "lab.one-head-fullrank",
    FullRankHead,
    Source("icl_lab", "reduction of the separate flow to d + 1 equations", "extended"),
)
def one_head_of_full_rank(setting: FullRankHead) -> list[Check]:
    """One head with separate key and query of full rank, started balanced, ends at u = (tr B*)^(1/3) and K^T K = B* / u.

    The exact loss's own gradient, as a function of value, key and query, is followed from u = sigma and K = Q =
    sigma / sqrt d times the common eigenvectors, first beside the d + 1 equations and then to rest. Another power of tr B*,
    such as 1/2, or a K^T K of another direction, would make it fail.
    """
    d, sigma = setting.d, setting.sigma
    basis = theory.stability.common_basis(setting.covariance, setting.task_covariance)
    keys = sigma / np.sqrt(d) * basis.T[None]
    start = Heads(values=np.array([sigma]), keys=keys, queries=keys)
    product = theory.lsa.optimal_preconditioner(setting.problem)
    value, gram = theory.zhangsaxe2025.full_rank_limit(product)
    drive = np.linalg.eigvalsh(setting.drive)
    # A plateau of order 1 / sigma, then the slowest mode's growth from sigma and its relaxation.
    escape = 3 * np.sqrt(d) / (sigma * drive[-1])
    end = 2 * escape + 2 * (np.log(1 + 1 / sigma) + 30) / (value * drive[0])
    integrate = Integrator(heads_loss(exact(setting.task())), start)
    times = np.linspace(0.0, 2 * escape, 6)
    v, k = theory.zhangsaxe2025.full_rank_flow(setting.problem, sigma, times)
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
