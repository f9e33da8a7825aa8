"""Claims of von Oswald et al. 2022 (arXiv 2212.07677): the landscape of one linear layer, all entries of its weights free."""

from __future__ import annotations

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from icl_lab import objectives, theory, training
from icl_lab.claims import check, convergence, quasi_newton
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.claims.vonoswald2022.settings import MODEL, PAPER, LayerSetting
from icl_lab.models import LSAWeights, initializers
from icl_lab.objectives.exact.moments import MomentLoss

LOSS_TOLERANCE = 1e-10
WEIGHT_TOLERANCE = 1e-6
CURVATURE_TOLERANCE = 1e-8
# Loss, relative to the global minimum, above which an end is another minimum, and curvature that still counts as zero.
ABOVE, FLAT = 1.001, 1e-6

# Sizes (d, N) at which two heads are known to have no false minimum; at (3, 4) they have one, of .99361 above .75.
TWO_HEADS_SUFFICE = ((2, 2), (3, 30))
NORMAL = {"distribution": "gaussian", "sigma": 1.0}


class Landscape(Seeded, LayerSetting):
    """One layer, all of whose weights are free."""

    d = 3
    N = 5

    def objective(self) -> MomentLoss:
        """The exact half loss."""
        return objectives.independent_loss(self.task(), MODEL)

    def gaussian_starts(self, count: int, scale: float, heads: int | None = None) -> LSAWeights:
        """Starts with a leading axis, of entries of size scale/sig; the first of them do not depend on their number."""
        size = scale / np.sqrt(self.variance)
        keys = [jax.random.fold_in(self.key, i) for i in range(count)]
        starts = [initializers.gaussian(key, self.d + 1, size, heads=heads) for key in keys]
        return jax.tree.map(lambda *w: np.stack(w), *starts)


class SeveralStarts(Landscape):
    """One layer from random starts, beside one with b_x = 0, A_y = 0."""

    starts: int = integer(3, 1, "number of starts", ", random ones beside one with b_x = 0, A_y = 0")


@claim(
    "vonoswald2022.lsa1.optimum",
    SeveralStarts,
    Source(PAPER, "Section 3, empirically; icl_lab for the exact loss"),
    extra_settings=(NORMAL, {"N": 4, "sigma": 1.0}),
)
def global_minimum(setting: SeveralStarts) -> list[Check]:
    """The global minimum over all weights of one layer is one step of gradient descent: b_x = 0, A_y = 0,
    b_y A_x = eta* I.

    Gradient flow on the exact loss of all entries from small random starts, and BFGS from more and larger ones; the lowest
    end is compared with the constructed step and the closed form of its loss. A start that ends lower, or another matrix
    than eta* I where the flow rests, would make it fail.
    """
    d, starts, objective = setting.d, setting.starts, setting.objective()
    begin = setting.gaussian_starts(starts + 1, 1e-2)
    begin.w_pv[0, -1, :-1] = begin.w_kq[0, -1, :-1] = 0.0
    flows = training.gradient_flows(objective, begin, solver="tsit5")
    convergence.rest_on(flows, flows.best)
    weights = flows.limit(flows.best)
    least, terms = setting.least_loss, float(objective.moments.variance) / 2
    row, scores = weights.w_pv[-1], weights.w_kq[:, :d]
    searched = quasi_newton.minimise(objective, setting.gaussian_starts(4 * (starts + 1), 0.1))
    return [
        check.holds("flow_converged_abs", flows.verdicts[flows.best] == training.Verdict.CONVERGED),
        check.exact("loss", objective.risk(weights) / 2, least, LOSS_TOLERANCE, terms=terms),
        check.exact("lowest_loss_by_bfgs", np.min(searched.losses), least, LOSS_TOLERANCE, terms=terms),
        check.exact("step_matrix", -row[-1] * scores[:d], setting.best_step * np.eye(d), WEIGHT_TOLERANCE),
        check.exact("b_x_over_b_y_abs", row[:d] / row[-1], np.zeros(d), WEIGHT_TOLERANCE),
        check.exact("A_y_over_A_x_abs", scores[d] / np.linalg.norm(scores[:d]), np.zeros(d), WEIGHT_TOLERANCE),
    ]


class SeveralHeads(Landscape):
    """A layer of several heads."""

    heads: int = integer(2, 1, "number of heads", "that are trained")
    starts: int = integer(6, 1, "number of starts", "of their weights")


@claim(
    "vonoswald2022.lsa1.heads",
    SeveralHeads,
    Source(PAPER, "icl_lab, on the single head of Section 3", "extended"),
    extra_settings=(NORMAL,),
)
def heads_do_not_help(setting: SeveralHeads) -> list[Check]:
    """More linear heads do not lower the minimum: with any number of them the problem is linear least squares,
    whose minimum is the same.

    Least squares on the exact moments of all products of tokens gives the minimum over any number of heads; a few heads are
    trained by BFGS from small random weights besides. Coefficients other than those of one step, or a least square below
    its loss, would make it fail.
    """
    objective, eta, least = setting.objective(), setting.best_step, setting.least_loss
    moments, features = objective.moments, objective.features
    terms = float(moments.variance) / 2
    check.require_shown(least, terms)
    best = np.linalg.lstsq(moments.gram, moments.cross, rcond=None)[0]
    convex = (moments.variance - np.sum(moments.cross * best)) / 2
    pairs = zip(features.rows, features.columns, strict=True)
    expected = np.array([eta * (a == c and b == setting.d) for a, b in pairs for c in features.queries])
    trained = quasi_newton.minimise(objective, setting.gaussian_starts(setting.starts, 0.1, setting.heads))
    return [
        check.exact("least_squares", convex, least, LOSS_TOLERANCE, terms=terms),
        check.exact("coefficients", best[:, 0], expected, CURVATURE_TOLERANCE),
        check.exact("trained_heads", np.min(trained.losses), least, LOSS_TOLERANCE, terms=terms),
    ]


class _Ends:
    """Where BFGS ends: (S,) losses, which of them are minima above the global one, and the weights of the first of those."""

    def __init__(self, objective: MomentLoss, starts: LSAWeights, least: float):
        runs = [
            quasi_newton.minimise(objective, jax.tree.map(lambda w, i=i: w[i : i + 1], starts)) for i in range(len(starts.w_pv))
        ]
        self.losses = np.array([run.losses[0] for run in runs])
        self.above = self.losses > ABOVE * least
        for i in np.flatnonzero(self.above):
            # A line search that gives up at a saddle has found no minimum.
            second = objectives.curvature(objective, runs[i].lowest)
            self.above[i] = second.smallest > -FLAT * second.largest
        self.false = [run.lowest for run, high in zip(runs, self.above, strict=True) if high]


class FalseMinima(Landscape):
    """One head and two from many starts."""

    d: int = integer(2, 2, "dimension", "of the inputs")
    N = 2
    distribution = "gaussian"
    sigma = 1.0
    starts: int = integer(40, 1, "number of starts", ", all random")


@claim(
    "vonoswald2022.lsa1.spurious",
    FalseMinima,
    Source(PAPER, "the instability of single heads in the appendix (Fig. 15); icl_lab for the mechanism", "extended"),
    extra_settings=({"d": 3, "N": 30},),
)
def false_minima(setting: FalseMinima) -> list[Check]:
    """One head has local minima above the global one, in which quasi-Newton runs from small random weights end;
    two heads have none of them at d = N = 2 and at d = 3, N = 30 (but others elsewhere, as at d = 3, N = 4).

    BFGS on the exact loss from small random weights, for one head and for two; where an end lies above the minimum, its
    loss is compared with the closed form, and its gradient and Hessian are checked to be those of a minimum. No end of one
    head above the minimum, one of two heads, or another height, would make it fail.
    """
    d, N, starts, variance = setting.d, setting.N, setting.starts, setting.variance
    objective, least = setting.objective(), setting.least_loss
    terms = float(objective.moments.variance) / 2
    check.require_shown(least, terms)
    one, two = (_Ends(objective, setting.gaussian_starts(starts, 0.1, heads), least) for heads in (None, 2))
    checks = [
        check.exact("lowest_loss_of_one_head", np.min(one.losses), least, LOSS_TOLERANCE, terms=terms),
        check.exact("lowest_loss_of_two_heads", np.min(two.losses), least, LOSS_TOLERANCE, terms=terms),
    ]
    if setting.distribution != "gaussian":  # no closed form of the false minimum
        return checks
    if (d, N) in TWO_HEADS_SUFFICE:
        checks.append(check.exact("share_above_the_minimum_two_heads_abs", np.mean(two.above), 0.0, 0.0))
    expected = theory.minima.false_minimum(d, N, variance)
    if expected <= ABOVE * least:  # the axial weights lead on down to the global minimum
        return checks
    checks.append(check.at_least("share_above_the_minimum_one_head_abs", np.mean(one.above), 1 / starts))
    if one.false:
        weights = one.false[0]
        slope = np.asarray(ravel_pytree(jax.grad(objective)(jax.tree.map(jax.numpy.asarray, weights)))[0])
        second = objectives.curvature(objective, weights)
        heights = np.array([loss for loss, high in zip(one.losses, one.above, strict=True) if high])
        checks += [
            check.exact("false_minimum", np.min(heights), expected, CURVATURE_TOLERANCE),
            check.exact("slope_at_the_false_minimum_abs", slope / expected, 0 * slope, CURVATURE_TOLERANCE),
            check.at_least("least_curvature_over_greatest_abs", second.smallest / second.largest, 0.0, FLAT),
        ]
    return checks


@claim(
    "vonoswald2022.lsa1.saddle",
    Landscape,
    Source(PAPER, "the plateau of the training curves (Fig. 2); icl_lab", "extended"),
    extra_settings=({**NORMAL, "d": 4},),
)
def saddle_at_zero(setting: Landscape) -> list[Check]:
    """At zero weights the gradient vanishes and the Hessian has the eigenvalues +-sig2^2 sqrt(d) once,
    +-sig2^2 d times, and zeros: flow escapes along gradient descent.

    Gradient and Hessian are derivatives of the exact loss at zero weights; the rate of escape is the growth of the leading
    component on a gradient flow from tiny random weights. An eigenvalue of another size or number, or an escape in another
    direction, would make it fail.
    """
    d, variance, objective = setting.d, setting.variance, setting.objective()
    zero = LSAWeights(np.zeros((d + 1, d + 1)), np.zeros((d + 1, d + 1)))
    flat, unravel = ravel_pytree(jax.tree.map(jax.numpy.asarray, zero))
    slope = np.asarray(jax.grad(lambda x: objective(unravel(x)))(flat))
    hessian = np.asarray(jax.hessian(lambda x: objective(unravel(x)))(flat))
    values, vectors = np.linalg.eigh(hessian)
    expected = theory.minima.saddle_curvatures(d, variance)
    full = np.sort(np.concatenate([expected, np.zeros(len(values) - len(expected))]))
    rate = theory.minima.escape_rate(d, variance)
    # While the weights are tiny, flow amplifies the leading component by exp(rate t).
    begin = jax.tree.map(lambda w: w[0], setting.gaussian_starts(1, 1e-6))
    flow = training.gradient_flow(
        objective, begin, times=[3.0 / rate, 6.0 / rate], stop_at_last_time=True, solver="tsit5", rtol=1e-11
    )
    row, scores = flow.trajectory.weights.w_pv[:, -1], flow.trajectory.weights.w_kq
    # b_y against the trace of A_x: the half that grows.
    grown = row[:, -1] - np.trace(scores[:, :d, :d], axis1=1, axis2=2) / np.sqrt(d)
    checks = [
        check.exact("gradient_abs", slope, 0 * slope, LOSS_TOLERANCE),
        check.exact("eigenvalues", values, full, CURVATURE_TOLERANCE),
        check.exact("escape_rate", np.log(grown[1] / grown[0]) * rate / 3, rate, WEIGHT_TOLERANCE),
    ]
    if d > 1:  # for d = 1 both directions escape alike
        label_and_trace = unravel(jax.numpy.asarray(vectors[:, 0]))
        leading = np.append(np.diagonal(label_and_trace.w_kq)[:d] * np.sqrt(2 * d), np.sqrt(2) * label_and_trace.w_pv[-1, -1])
        checks.append(check.exact("escaping_direction", np.abs(leading), np.ones(d + 1), CURVATURE_TOLERANCE))
    return checks
