"""Claims of von Oswald et al. 2022 (arXiv 2212.07677): the plateau of one layer's training, and training on fixed tasks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax.flatten_util import ravel_pytree

from icl_lab import theory, training
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.quasi_newton import value_and_slope
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer
from icl_lab.claims.vonoswald2022.landscape import LOSS_TOLERANCE, Landscape
from icl_lab.claims.vonoswald2022.settings import MODEL, PAPER
from icl_lab.core import precision
from icl_lab.core.typing import Array
from icl_lab.models import LSAWeights, constructions
from icl_lab.objectives.exact.moments import MomentLoss, Moments

HEIGHT_TOLERANCE = 1e-2
COSINE_TOLERANCE = 1e-3
# Share of the right mode in the weights of a start near the wrong one.
RIGHT_SHARE = 1e-8
STEPS = 3000


class FixedTasks(Landscape):
    """One layer of the paper's size."""

    d: int = integer(10, 2, "dimension", "of the inputs")
    N = 10


class Plateau(FixedTasks):
    """One layer from several small starts."""

    starts: int = integer(6, 1, "number of starts", ", small and random")


def wrong_mode(direction: Array, size: float) -> LSAWeights:
    """b_y = 0, A_x = 0, b_x and A_y along a unit vector, so that the answer is size^2 (u.S w)(u.x_q)."""
    d = len(direction)
    weights = LSAWeights(np.zeros((d + 1, d + 1)), np.zeros((d + 1, d + 1)))
    weights.w_pv[-1, :d], weights.w_kq[-1, :d] = -size * direction, size * direction
    return weights


def modes(weights: LSAWeights) -> tuple[float, float, float]:
    """Norms of b_y A_x and of b_x A_y^T, and the cosine of b_x and A_y."""
    row, scores = weights.w_pv[-1], weights.w_kq[:, :-1]
    b, a = row[:-1], scores[-1]
    wrong = float(np.linalg.norm(b) * np.linalg.norm(a))
    return float(np.linalg.norm(row[-1] * scores[:-1])), wrong, float(b @ a) / wrong


@claim("vonoswald2022.plateau", Plateau, Source(PAPER, "Fig. 2 left and Fig. 15; icl_lab for the mechanism", "extended"))
def wrong_mode_is_the_plateau(setting: Plateau) -> list[Check]:
    """The plateau of unlucky seeds is a wrong mode, b_y = 0, A_x = 0, b_x parallel to A_y, whose half loss is
    (sig2/2)(d - N/(N + d + kap - 2)) for every direction.

    Gradient flow on the exact loss starts close to the wrong mode and is read where it is slowest; others start from small
    random weights, and the best of them must end at the global minimum. The height is also that of a parabola along two
    directions. A flow that rests at another loss, or in weights that are not rank one, would make it fail.
    """
    d, N, variance, kurtosis = setting.step_problem
    objective = setting.objective()
    height = theory.minima.rank_one_branch_loss(d, N, variance, kurtosis)
    begin = setting.gaussian_starts(setting.starts, 1e-3)
    direction = begin.w_pv[0, -1, :d] / np.linalg.norm(begin.w_pv[0, -1, :d])
    checks = []
    for name, unit in (("axis", np.eye(d)[0]), ("random_direction", direction)):
        # The loss is a parabola in the product of the two weights.
        start, once, twice = (objective.risk(wrong_mode(unit, np.sqrt(c / variance))) / 2 for c in (0.0, 1.0, 2.0))
        bend, slope = (twice - 2 * once + start) / 2, (4 * once - 3 * start - twice) / 2
        checks.append(check.exact(f"height_{name}", start - slope**2 / (4 * bend), height, LOSS_TOLERANCE))
    # A start in which the wrong mode is ahead of the right one, as by luck; then the flow itself.
    ahead = wrong_mode(direction, 1e-3 / np.sqrt(variance))
    right = jax.tree.map(lambda w: RIGHT_SHARE * w[0], begin)
    unlucky = jax.tree.map(np.add, ahead, right)
    times = np.linspace(0.0, 40.0, 161) / variance**2
    path = training.gradient_flow(objective, unlucky, times=times, stop_at_last_time=True, solver="tsit5", rtol=1e-9).trajectory
    # It rests where it is slowest after it has left zero, and before it finds the right mode.
    left = np.flatnonzero(path.losses < (path.losses[0] + height) / 2)
    rest = left[np.argmin(path.gradient_norms[left][: np.searchsorted(-path.losses[left], -0.97 * height)])]
    by_right, by_wrong, cosine = modes(jax.tree.map(lambda w: w[rest], path.weights))
    ends = training.gradient_flows(objective, begin, solver="tsit5")
    convergence.rest_on(ends, ends.best)
    found = modes(ends.limit(ends.best))
    return [
        *checks,
        check.exact("plateau_of_a_flow", path.losses[rest], height, HEIGHT_TOLERANCE),
        check.exact("cosine_on_the_plateau_abs", abs(cosine), 1.0, COSINE_TOLERANCE),
        check.exact(
            "wrong_mode_on_the_plateau",
            by_wrong,
            theory.minima.rank_one_branch_size(d, N, variance, kurtosis),
            HEIGHT_TOLERANCE,
        ),
        check.exact("right_mode_on_the_plateau_abs", by_right / by_wrong, 0.0, HEIGHT_TOLERANCE),
        check.exact("best_loss_over_seeds", ends.losses[ends.best], setting.least_loss, LOSS_TOLERANCE),
        check.exact("right_mode_of_the_best_seed", found[0], setting.best_step * np.sqrt(d), 1e-6),
        check.exact("wrong_mode_of_the_best_seed_abs", found[1] / found[0], 0.0, 1e-6),
    ]


def loss_on_prompts(objective: MomentLoss, seed: int, count: int) -> MomentLoss:
    """The half loss on a fixed set of prompts of the same task, from the moments of these prompts alone."""
    task, model = objective.task, objective.model
    prompts = task.sample_batch(jax.random.key(seed), count)
    tokens = jax.vmap(model.tokens, out_axes=-1)(prompts)
    phi = np.asarray(objective.features.values(tokens[:-1], tokens[-1] / model.normaliser_at(tokens.shape[0])))
    target = np.asarray(prompts.target)
    moments = Moments(phi @ phi.T / count, phi @ target / count, np.asarray(np.mean(target**2)))
    return MomentLoss(task, model, objective.features, moments)


def trained(objective: MomentLoss, start: LSAWeights) -> LSAWeights:
    """The weights at which L-BFGS ends."""
    flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, start))

    def function(x: np.ndarray) -> tuple[float, np.ndarray]:
        loss, slope = value_and_slope(objective, start, x)
        return float(loss), np.asarray(slope)

    options = {"maxiter": STEPS, "maxfun": 2 * STEPS, "gtol": 1e-8, "ftol": 1e-10}
    end = scipy.optimize.minimize(function, np.asarray(flat), jac=True, method="L-BFGS-B", options=options)
    return precision.to_numpy(unravel(jnp.asarray(end.x)))


@claim(
    "vonoswald2022.fixed-tasks",
    FixedTasks,
    Source(PAPER, "appendix on a fixed number of training tasks (Fig. 16); icl_lab for the values"),
)
def few_tasks_are_overfitted(setting: FixedTasks) -> list[Check]:
    """Trained on B fixed tasks, one layer fits them below the population minimum and generalises to it only for large
    B, as a model of about (d + 1)^2 parameters.

    L-BFGS minimises the loss on four fixed sets of random prompts, from one small random start with b_x = 0, A_y = 0; the
    population loss of its ends is exact. A layer that few prompts teach as well as many, or that many prompts leave more
    than 3 % above the minimum, would make it fail.
    """
    d, N, seed, least, objective = setting.d, setting.N, setting.seed, setting.least_loss, setting.objective()
    # 128, 512, 2048, 8192 prompts for the 121 active weights of d = 10; few prompts are few for d, but many are always many.
    size = (d + 1) ** 2 / 121
    counts = np.rint(np.geomspace(128 * size, 8192 * max(1.0, size), 4)).astype(int).tolist()
    step = constructions.gradient_descent(MODEL, d, N, setting.best_step)
    start = jax.tree.map(lambda w: w[0], setting.gaussian_starts(1, 0.05))
    start.w_pv[-1, :-1] = start.w_kq[-1, :-1] = 0.0
    train, test, unfitted = [], [], []
    for count in counts:
        fixed = loss_on_prompts(objective, seed, count)
        weights = trained(fixed, start)
        train.append(fixed.risk(weights) / 2)
        unfitted.append(fixed.risk(step) / 2)
        test.append(objective.risk(weights) / 2)
    below = np.subtract(unfitted, train)
    return [
        # The sampling error of B prompts is common to both.
        check.at_most("training_losses_and_those_of_a_gradient_step", train, unfitted),
        check.at_least("test_losses", test, [least] * 4),
        check.at_least("fit_below_a_gradient_step_falls_with_B", below[:-1], below[1:]),
        check.at_least("test_loss_falls_with_B", test[:-1], test[1:]),
        check.at_most("test_loss_of_many_tasks", test[-1], 1.03 * least),
        check.at_least("test_loss_of_few_tasks", test[0], 5 * least),
    ]
