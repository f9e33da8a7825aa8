"""Claims of Zhang, Frei, Bartlett 2023 about the prediction as a function of the weights, and the loss it makes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import theory
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer
from icl_lab.claims.settings.flow_paths import structured
from icl_lab.claims.settings.regression import RegressionSetting
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.claims.zhang2023.measurements import EXACT_TOLERANCE, converged, drawn_weights, path_from_start
from icl_lab.claims.zhang2023.settings import MODEL, PAPER, FlowSetting, TrainedSetting
from icl_lab.core import compiled
from icl_lab.models import initializers
from icl_lab.models.weights import LSAWeights
from icl_lab.tasks.prompt import Prompt

# The flow is stopped at an estimated weight error of a tenth of this.
MINIMISER_TOLERANCE = 1e-8


class PromptSetting(Seeded, RegressionSetting):
    """One prompt."""

    N = 6

    @property
    def prompt(self) -> Prompt:
        return self.task().sample(self.stream("prompt"))


def _data(prompt: Prompt) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs (N, d), labels (N,) and query (d,), the arguments of theory."""
    return np.asarray(prompt.inputs), np.asarray(prompt.labels[:, 0]), np.asarray(prompt.query)


@claim(
    "zhang2023.setup",
    PromptSetting,
    Source(PAPER, "equation (3.5) and the remark on the entries that drop out"),
)
def prediction_is_bilinear(setting: PromptSetting) -> list[Check]:
    """The prediction is (p1, p2).(E E^T / N) [K1; k2^T] x_q, and no other entry of W_PV and W_KQ matters.

    The forward pass of the layer answers one drawn prompt with standard normal weights, and again with all unreached entries
    drawn anew; their derivatives are taken by autodiff, and nothing is trained. A form that lacks the query's own token or
    transposes W_KQ would make it fail.
    """
    d, prompt = setting.d, setting.prompt
    weights, other = (initializers.gaussian(setting.stream(name), d + 1, 1.0) for name in ("weights", "other weights"))
    # The same last row of W_PV and first columns of W_KQ, everything else new.
    twin = LSAWeights(
        w_pv=np.concatenate([other.w_pv[:-1], weights.w_pv[-1:]]),
        w_kq=np.concatenate([weights.w_kq[:, :-1], other.w_kq[:, -1:]], axis=1),
    )

    @compiled.jit
    def answers(one):
        tokens = MODEL.apply(one, MODEL.tokens(prompt))
        return tokens[-1, -1], MODEL(one, prompt)[0], jax.grad(lambda w: MODEL(w, prompt)[0])(one)

    (all_tokens, answer, gradient), (of_twin, _, _) = answers(weights), answers(twin)
    expected = theory.structured.prediction(weights.w_pv, weights.w_kq, *_data(prompt))
    return [
        check.exact("prediction", answer, expected, EXACT_TOLERANCE),
        check.exact("last_entry_of_all_tokens", all_tokens, expected, EXACT_TOLERANCE),
        check.exact("with_other_unreached_entries", of_twin, expected, EXACT_TOLERANCE),
        check.exact("gradient_of_unreached_w_pv_abs", gradient.w_pv[:d], np.zeros((d, d + 1)), 0.0),
        check.exact("gradient_of_unreached_w_kq_abs", gradient.w_kq[:, d], np.zeros(d + 1), 0.0),
    ]


@claim("zhang2023.lem5.1", PromptSetting, Source(PAPER, "Lemma 5.1"))
def prediction_is_a_quadratic_form(setting: PromptSetting) -> list[Check]:
    """The prediction is a quadratic form of the weights whose matrix is indefinite, with min(d, N) + 1 negative eigenvalues.

    The forward pass answers one drawn prompt with standard normal weights; its Hessian is taken by autodiff and decomposed,
    and nothing is trained. A form of twice the size fails against answer and Hessian, a count that forgets the query (min(d, N)
    alone) against the eigenvalues.
    """
    d, prompt = setting.d, setting.prompt
    # vec(U) stacks the columns of U = [[K1, p1], [k2^T, p2]].
    vec = np.asarray(jax.random.normal(setting.stream("weights"), ((d + 1) ** 2,)))

    def predict(vec):
        active = vec.reshape(d + 1, d + 1).T
        empty = jnp.zeros((d + 1, d + 1))
        weights = LSAWeights(w_pv=empty.at[-1].set(active[:, -1]), w_kq=empty.at[:, :d].set(active[:, :d]))
        return MODEL(weights, prompt)[0]

    answer, second = compiled.jit(lambda v: (predict(v), jax.hessian(predict)(v)))(vec)
    form = theory.structured.quadratic_form(*_data(prompt))
    values = np.linalg.eigvalsh(np.asarray(second) / 2)
    negative = int(np.sum(values < -EXACT_TOLERANCE * values[-1]))
    return [
        check.exact("prediction", answer, vec @ form @ vec, EXACT_TOLERANCE),
        check.exact("hessian_distance_abs", np.linalg.norm(second / 2 - form) / np.linalg.norm(form), 0.0, EXACT_TOLERANCE),
        check.exact("eigenvalues", values, theory.structured.quadratic_form_eigenvalues(*_data(prompt)), EXACT_TOLERANCE),
        check.exact("negative_eigenvalues", negative, theory.structured.negative_directions(d, setting.N), 0.0),
    ]


class LossSetting(FlowSetting):
    """The structured start, and structured weights with standard normal entries."""

    points: int = integer(4, 1, "number of random weights")


@claim("zhang2023.lemA.1", LossSetting, Source(PAPER, "Lemma A.1"))
def equivalent_objective(setting: LossSetting) -> list[Check]:
    """On structured weights the half loss is tr(u^2/2 Gamma Lam U Lam U^T - u Lam^2 U^T) + tr(Lam)/2.

    The exact loss of the whole layer is evaluated at structured weights with standard normal u and U, at the theorem's start
    and at zero; nothing is trained. The whole squared error in place of its half, or a Gamma without tr(Lam)/N I, would make
    it fail.
    """
    matrix, N, objective = setting.covariance, setting.N, setting.objective
    drawn = drawn_weights(setting.seed, setting.d, setting.points)
    at_zero = np.trace(matrix) / 2
    measured = [objective.risk(structured(u, inner)) / 2 for u, inner in drawn]
    expected = [theory.structured.reduced_loss(u, inner, matrix, N) + at_zero for u, inner in drawn]
    start = theory.structured.reduced_loss(setting.sigma, setting.sigma * setting.product, matrix, N) + at_zero
    return [
        check.exact("half_loss", measured, expected, EXACT_TOLERANCE),
        check.exact("half_loss_at_start", objective.risk(setting.start) / 2, start, EXACT_TOLERANCE),
        check.exact("half_loss_at_zero", objective.risk(structured(0.0, 0 * matrix)) / 2, at_zero, EXACT_TOLERANCE),
    ]


@claim("zhang2023.corA.2", LossSetting, Source(PAPER, "Corollary A.2"))
def loss_gap(setting: LossSetting) -> list[Check]:
    """The reduced loss has the minimum -tr(Lam^2 Gamma^{-1})/2, and lies above it by
    ||Gamma^{1/2} (u Lam^{1/2} U Lam^{1/2} - Lam Gamma^{-1})||^2 / 2.

    Gradient flow on the exact loss runs from the theorem's start to rest, whose loss is the measured minimum; the gap is the
    loss at the start and at structured weights with standard normal u and U, less that. A gap without the roots of Gamma and
    Lam, or a minimum of another size, would make it fail.
    """
    matrix, N, objective = setting.covariance, setting.N, setting.objective
    flow = path_from_start(setting)
    minimum = objective.risk(flow.limit) / 2
    drawn = [(setting.sigma, setting.sigma * setting.product), *drawn_weights(setting.seed, setting.d, setting.points)]
    measured = [objective.risk(structured(u, inner)) / 2 - minimum for u, inner in drawn]
    expected = [theory.structured.loss_gap(u, inner, matrix, N) for u, inner in drawn]
    lowest = theory.structured.minimum_reduced_loss(matrix, N)
    reduced = minimum - objective.risk(structured(0.0, 0 * matrix)) / 2
    return [
        converged(flow),
        check.exact("smallest_half_loss", minimum, lowest + np.trace(matrix) / 2, EXACT_TOLERANCE, terms=np.trace(matrix)),
        check.exact("smallest_reduced_loss", reduced, lowest, EXACT_TOLERANCE),
        check.exact("gap", measured, expected, EXACT_TOLERANCE),
    ]


class StartsSetting(TrainedSetting):
    """Several random structured starts."""

    starts: int = integer(4, 1, "number of starts")


@claim("zhang2023.lem5.3", StartsSetting, Source(PAPER, "Lemma 5.3"))
def minimisers(setting: StartsSetting) -> list[Check]:
    """Every minimiser of the reduced loss has u U = Gamma^{-1}: a curve (c U, u / c).

    Gradient flow on the exact loss runs to rest from structured weights with standard normal u and U, which are not balanced;
    the loss is evaluated at three more points (c U, u / c) of the curve through each end. An end with another product u U, or a
    loss that changes along the curve, would make it fail.
    """
    d, N, matrix, objective = setting.d, setting.N, setting.covariance, setting.objective
    inverse = np.linalg.inv(theory.zhang2023.gamma(matrix, N))
    lowest = theory.structured.minimum_reduced_loss(matrix, N) + np.trace(matrix) / 2
    checks = []
    for i, (u, inner) in enumerate(drawn_weights(setting.seed, d, setting.starts)):
        flow = convergence.to_limit(objective, structured(u, inner), weight_tolerance=0.1 * MINIMISER_TOLERANCE)
        u, inner = float(flow.limit.w_pv[-1, -1]), flow.limit.w_kq[:d, :d]
        curve = [objective.risk(structured(u / c, c * inner)) / 2 for c in (-2.0, 0.5, 3.0)]
        checks += [
            converged(flow, f"flow_converged_{i}_abs"),
            check.exact(f"product_{i}", u * inner, inverse, MINIMISER_TOLERANCE),
            check.exact(f"half_loss_along_the_curve_{i}", curve, np.full(3, lowest), EXACT_TOLERANCE, terms=np.trace(matrix)),
        ]
    return checks
