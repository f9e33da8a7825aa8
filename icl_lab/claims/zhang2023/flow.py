"""Claims of Zhang, Frei, Bartlett 2023 about the flow towards Theorem 4.1: its start, its equations, and its bounds."""

from __future__ import annotations

import jax
import numpy as np

from icl_lab import analysis, models, objectives, theory, training
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import number, spectrum
from icl_lab.claims.settings.flow_paths import structured
from icl_lab.claims.settings.regression import GeneralSetting, covariance
from icl_lab.claims.zhang2023.measurements import (
    EXACT_TOLERANCE,
    GRADIENT_TOLERANCE,
    converged,
    drawn_weights,
    gradient,
    path_from_start,
    pl_checks,
    prompts,
    same_weights,
    velocity_checks,
)
from icl_lab.claims.zhang2023.settings import PAPER, FlowSetting, TrainedSetting
from icl_lab.core.linalg import psd_root
from icl_lab.core.typing import Array
from icl_lab.models import initializers

# Constants read off gradients need the inverse of Lambda^2.
CONSTANT_TOLERANCE = 1e-10
DRIFT_TOLERANCE = 1e-11
# Below this share of tr(Lambda) a loss gap is rounding noise.
RESOLVED = 1e-9


class _Constants:
    """What the bounds are made of, read off gradients of the loss instead of the covariance.

    Attributes:
      square: (d, d), Lambda^2.  gamma: (d, d), Gamma.  overlap: ||Lambda Theta||_F^2.
      escape: sigma^2 ||Lambda Theta||_F^2 (2 - sqrt(d) sigma^2 ||Gamma||).
    """

    def __init__(self, setting: FlowSetting):
        dim, objective, start = setting.d, setting.objective, setting.start
        sigma = float(start.w_pv[-1, -1])
        # At u = 1 the gradient in U is Gamma Lambda U Lambda - Lambda^2, at u = 0 that in u is -tr(Lambda^2 U).
        self.square = -np.asarray(gradient(objective, structured(1.0, np.zeros((dim, dim)))).w_kq)[:dim, :dim]
        self.gamma = np.asarray(gradient(objective, structured(1.0, np.linalg.inv(self.square))).w_kq)[:dim, :dim] + self.square
        self.overlap = -float(gradient(objective, structured(0.0, start.w_kq[:dim, :dim])).w_pv[-1, -1]) / sigma
        spread = np.sqrt(dim) * sigma**2 * np.linalg.norm(self.gamma, ord=2)
        self.escape = sigma**2 * self.overlap * (2 - spread)


@claim("zhang2023.asm3.3", FlowSetting, Source(PAPER, "Assumption 3.3"))
def start_is_balanced(setting: FlowSetting) -> list[Check]:
    """The start W_PV = sigma e e^T, W_KQ = sigma diag(Theta Theta^T, 0), || Theta Theta^T ||_F = 1, is balanced, and sigma
    stays below sqrt(2 / (||Gamma|| sqrt(d))).

    The start that training uses is made from three times Theta, which it has to scale back; Gamma is read off gradients of the
    exact loss, and nothing is trained. A start that is not scaled to norm one, or a bound with another Gamma, would make it
    fail.
    """
    d, sigma, root = setting.d, setting.sigma, setting.root
    start = initializers.zhang(d, sigma, 3 * root)  # the start scales Theta itself
    constants = _Constants(setting)
    largest = np.sqrt(2 / (np.linalg.norm(constants.gamma, ord=2) * np.sqrt(d)))
    expected = theory.zhang2023.largest_init_scale(setting.covariance, setting.N)
    return [
        *same_weights(start, structured(sigma, sigma * root @ root.T), EXACT_TOLERANCE),
        check.exact("norm_of_w_kq", np.linalg.norm(start.w_kq), sigma, EXACT_TOLERANCE),
        check.exact("imbalance_abs", np.sum(start.w_pv**2) - np.sum(start.w_kq**2), 0.0, EXACT_TOLERANCE * sigma**2),
        check.exact("largest_sigma", largest, expected, CONSTANT_TOLERANCE),
        check.at_most("sigma", sigma, largest),
        check.holds("start_has_signal_abs", constants.overlap > 0),
    ]


class GeneralFlowSetting(TrainedSetting, GeneralSetting):
    """Prompts with covariances of inputs and tasks that do not commute, and noisy labels."""

    rotate = True
    s2 = 0.25
    Om: list[float] | None = spectrum("eigenvalues of the task covariance", "of the general form; null: 3/2 down to 1/2")

    @property
    def task_covariance(self) -> Array:
        return covariance(self.Om, self.d, self.rotate, self.seed, self.tasks_basis, largest=1.5)


@claim("zhang2023.lem5.2", GeneralFlowSetting, Source(PAPER, "Lemma 5.2"))
def reduced_dynamics(setting: GeneralFlowSetting) -> list[Check]:
    """On p1 = k2 = 0 gradient flow of the whole layer is dU/dt = u Lam^2 - u^2 Gamma Lam U Lam,
    du/dt = tr(Lam^2 U^T - u Gamma Lam U Lam U^T), and it stays there.

    The exact loss of the whole layer is differentiated at structured weights with standard normal u and U, with the query
    inside and outside the sum, for the paper's prompts and for general tasks and noise; nothing is trained. The flow of the
    whole squared error instead of its half, or factors in another order, would make it fail.
    """
    matrix, N = setting.covariance, setting.N
    ((u, inner),) = drawn_weights(setting.seed, setting.d, 1)
    checks = []
    for words, task, expected in (
        ("", prompts(matrix, N), theory.structured.velocity(u, inner, matrix, N)),
        ("_general", setting.task(), theory.structured.general_velocity(setting.problem, u, inner)),
    ):
        for query_in_sum, suffix in ((True, ""), (False, "_query_out")):
            objective = objectives.population(task, models.LinearSelfAttention(query_in_sum=query_in_sum))
            checks += velocity_checks(objective, u, inner, expected, words + suffix)
    return checks


class UnbalancedSetting(FlowSetting):
    """The structured start beside a Gaussian one."""

    scale: float = number(
        0.3, positive=True, meaning="standard deviation of a weight at the start", detail=", all entries Gaussian"
    )


@claim("zhang2023.lemA.3", UnbalancedSetting, Source(PAPER, "Lemma A.3"))
def balance_is_conserved(setting: UnbalancedSetting) -> list[Check]:
    """u^2 - ||U||_F^2 is conserved by gradient flow, and with it the balance of the start; for all entries it is
    ||W_PV||^2 - ||W_KQ||^2.

    Gradient flow on the exact loss integrates every entry of both matrices over four plateau times, from the theorem's start
    and from Gaussian entries. A drift of the difference at any of nine times, or a loss that does not fall, would make it fail.
    """
    d, sigma, matrix = setting.d, setting.sigma, setting.covariance
    times = np.linspace(0.0, 4.0, 9) * np.log(2 + 1 / sigma) / np.linalg.norm(matrix @ matrix)
    unbalanced = initializers.gaussian(setting.stream("start"), d + 1, setting.scale)
    # A head axis makes the flow integrate every entry of both matrices, although only some of them ever move.
    checks = []
    for name, start in {"structured": setting.start, "gaussian": unbalanced}.items():
        flow = training.gradient_flow(
            setting.objective,
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


@claim("zhang2023.lemA.4-A.5", FlowSetting, Source(PAPER, "Lemmas A.4 and A.5"))
def u_stays_positive(setting: FlowSetting) -> list[Check]:
    """From the structured start the loss is below that of zero weights, and u(t) never falls below a positive bound.

    Gradient flow on the exact loss runs from the theorem's start to rest, and the smallest u of its path is held against the
    bound, whose constants are also read off gradients of the loss. A bound ten times as large, or a u that comes near zero,
    would make it fail.
    """
    objective, constants = setting.objective, _Constants(setting)
    flow = path_from_start(setting)
    reduced = (objective.risk(setting.start) - objective.risk(structured(0.0, np.zeros((setting.d, setting.d))))) / 2
    start_bound = theory.zhang2023.start_loss_bound(*setting.bounds)
    lower = theory.zhang2023.scale_lower_bound(*setting.bounds)
    measured_lower = np.sqrt(constants.escape / (2 * np.sqrt(setting.d) * np.linalg.norm(constants.square, ord=2)))
    return [
        converged(flow),
        check.exact("start_loss_bound", -constants.escape / 2, start_bound, CONSTANT_TOLERANCE),
        check.at_most("start_loss_abs", reduced, start_bound, GRADIENT_TOLERANCE * np.trace(setting.covariance)),
        check.holds("start_loss_bound_is_negative_abs", start_bound < 0),
        check.exact("u_lower_bound", measured_lower, lower, CONSTANT_TOLERANCE),
        check.at_least("smallest_u", np.min(flow.trajectory.weights.w_pv[:, -1, -1]), lower),
    ]


@claim("zhang2023.lem5.4", FlowSetting, Source(PAPER, "Lemma 5.4"))
def pl_inequality(setting: FlowSetting) -> list[Check]:
    """Along the flow |grad L|^2 >= mu (L - min L), so that the gap decays at least like exp(-mu t).

    Gradient flow on the exact loss runs from the theorem's start to rest; at every saved point whose gap is above rounding the
    squared gradient is held against mu times the gap, and the gap against the exponential. mu is also read off gradients of
    the loss. A mu of another formula, or one larger than the slowest point of the path allows, would make it fail.
    """
    d, trace = setting.d, np.trace(setting.covariance)
    constants, flow = _Constants(setting), path_from_start(setting)
    mu = theory.zhang2023.pl_constant(*setting.bounds)
    inverse = np.linalg.inv(psd_root(constants.square))
    traces = np.trace(np.linalg.inv(constants.gamma) @ inverse) * np.trace(inverse)
    measured_mu = constants.escape / (np.sqrt(d) * np.linalg.norm(constants.square, ord=2) * traces)
    return [
        converged(flow),
        check.exact("mu", measured_mu, mu, CONSTANT_TOLERANCE),
        *pl_checks(flow.trajectory, setting.objective.risk(flow.limit) / 2, mu, RESOLVED * trace),
    ]
