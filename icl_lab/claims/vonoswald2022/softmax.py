"""Claims of von Oswald et al. 2022 (arXiv 2212.07677) about softmax heads in place of linear attention."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

from icl_lab import models, objectives, theory, training
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.claims.simulation import mean_with_error, simulate
from icl_lab.claims.vonoswald2022.layers import mean_check
from icl_lab.claims.vonoswald2022.settings import PAPER, UNNORMALISED, LayerSetting, SimulatedLayer
from icl_lab.core import compiled, prng
from icl_lab.core.errors import AssumptionError
from icl_lab.core.typing import Array, Key
from icl_lab.models import LSAWeights, constructions
from icl_lab.tasks.prompt import Prompt

SOFTMAX = models.SoftmaxSelfAttention(query_in_sum=False)
# Losses that count as the same.
SAME = 0.01
# Scalars are compared where the sample determines them to this.
DETERMINED = 0.25
# Prompts of the reference in theory.
REFERENCE = 40_000
# Temperature, in units of 1 / (sig2 sqrt(d)), at which two heads are their limit up to its square.
COLD = 1e-3
BATCH = 128
"""Prompts of an update of Adam."""

# Of off-diagonal parts, independent at the start: what may be left of their sum, and how closely the heads keep the rest.
CANCELLED, KEPT = 0.35, 0.25


class SoftmaxHeads(SimulatedLayer):
    """Softmax heads and one gradient step on the same prompts."""

    N: int = integer(10, 2, "context length")

    def prompt(self, key: Key) -> Prompt:
        """All d unit tasks at once, y_i = x_i: its squared error is the mean over tasks w ~ N(0, I)."""
        inputs = self.covariates.sample(key, self.N + 1)
        return Prompt(inputs[:-1], inputs[:-1], inputs[-1], inputs[-1])


def scalar_heads(temperatures: Array, values: Array, dim: int) -> LSAWeights:
    """Heads with scores beta_h x_i.x_q and values c_h y_i, on tokens of d inputs and d labels; (H,) coefficients."""
    inputs, labels = (jnp.asarray(np.diag(np.repeat(row, dim))) for row in np.eye(2))
    return LSAWeights(w_pv=values[:, None, None] * labels[None], w_kq=temperatures[:, None, None] * inputs[None])


def linear_answer(prompt: Prompt) -> Array:
    """One gradient step of size 1."""
    dim = prompt.query.shape[0]
    return UNNORMALISED(constructions.gradient_descent(UNNORMALISED, dim, prompt.inputs.shape[0], 1.0, label_dim=dim), prompt)


class CentredDescent(SoftmaxHeads):
    """Softmax heads of vanishing temperature."""

    samples = 40_000


@claim(
    "vonoswald2022.softmax.centred",
    CentredDescent,
    Source(PAPER, "section on softmax attention; closed form by icl_lab", "extended"),
)
def centred_descent(setting: CentredDescent) -> list[Check]:
    """The small-temperature limit of two opposite softmax heads, a step with centred context inputs, is best at
    eta_c = N/(sig2 D), with half loss L_c = (sig2 d/2)(1 - (N-1)/D), D = N + d + (kap-3)(N-1)/N, above plain descent's.

    The limit is the derivative of the heads' answer by their temperature at zero, on random prompts, nothing trained; best
    step and loss come from a regression of the target on it. A D without the centring, as for plain descent, would make it
    fail.
    """
    d, N, variance, kurtosis = setting.step_problem

    def answers(key):
        """The query, the limit of two heads for eta = 1, and plain descent."""
        prompt = setting.prompt(key)
        signs = jnp.array([1.0, -1.0])
        limit = jax.jacfwd(lambda e: SOFTMAX(scalar_heads(e * signs, signs / 2, d), prompt))(0.0)
        return jnp.stack([prompt.query, limit, linear_answer(prompt)])

    rows = simulate(answers, setting.stream("prompts"), setting.samples)
    target, centred, plain = np.moveaxis(rows, 1, 0)
    eta, eta_error = _slope(centred, target)
    loss, plain_loss = (_half_losses(target - _slope(one, target)[0] * one) for one in (centred, plain))
    ratio = np.mean(loss) / np.mean(plain_loss)
    ratio_error = mean_with_error(loss - ratio * plain_loss)[1] / np.mean(plain_loss)
    best = theory.softmax_heads.centred_optimum(d, N, variance, kurtosis)
    return [
        check.sampled("eta_c", eta, theory.softmax_heads.centred_step_size(d, N, variance, kurtosis), eta_error),
        mean_check("L_c", loss, best),
        check.sampled("L_c_over_L", ratio, best / setting.least_loss, ratio_error),
        check.at_least("centring_costs", ratio, 1.0),
    ]


def _slope(regressor: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """The coefficient of a regression over all prompts and outputs, and its standard error."""
    square = np.sum(regressor**2, axis=1)
    slope = np.sum(regressor * target) / np.sum(square)
    scores = np.sum(regressor * (target - slope * regressor), axis=1)
    return float(slope), float(np.sqrt(np.mean(scores**2) / len(scores)) / np.mean(square))


def _half_losses(errors: np.ndarray) -> np.ndarray:
    return np.sum(errors**2, axis=1) / 2


@claim(
    "vonoswald2022.softmax.heads",
    SoftmaxHeads,
    Source(PAPER, "Figures 11 and 12, with scalar heads by icl_lab", "extended"),
)
def scalar_softmax_heads(setting: SoftmaxHeads) -> list[Check]:
    """The best softmax head with scores beta x_i.x_q does worse than one gradient step; two opposite heads do better,
    also than their limit of small temperatures, centred descent; temperatures free of each other gain nothing.

    The heads' scalars are fitted by BFGS to random prompts, from fixed starts of order one (the free pair from near the
    opposite one), and compared with theory's own fit to other prompts, by losses and by scalars that the prompts determine.
    A second head of the same sign, or one head that beats the step, would make it fail.
    """
    d, N, variance, kurtosis = setting.step_problem
    samples = setting.samples
    keys = jax.random.split(setting.stream("prompts"), samples)
    prompts = compiled.jit(jax.vmap(setting.prompt))(keys)
    unit = 1 / (variance * np.sqrt(d))

    def half_losses(point, signs, prompts):
        """Of heads with beta = sign unit e^b and c = sign e^(a - b), (b, a) (2, H), so that a alone is their slope at 0."""
        weights = scalar_heads(signs * unit * jnp.exp(point[0]), signs * jnp.exp(point[1] - point[0]), d)
        return jax.vmap(lambda prompt: jnp.sum((SOFTMAX(weights, prompt) - prompt.target) ** 2) / 2)(prompts)

    def mean(point, signs, prompts):
        return jnp.mean(half_losses(point, signs, prompts))

    # Prompts are arguments: as constants they would be folded while compiling.
    losses, scores, slope, curvature = (
        functools.partial(compiled.jit(function), prompts=prompts)
        for function in (half_losses, jax.jacfwd(half_losses), jax.value_and_grad(mean), jax.hessian(mean))
    )

    def fit(start, signs):
        def function(flat):
            value, gradient = slope(jnp.asarray(flat.reshape(start.shape)), signs)
            return float(value) / (variance * d), np.ravel(gradient) / (variance * d)

        found = scipy.optimize.minimize(function, np.ravel(start), jac=True, method="BFGS", options={"gtol": 1e-5})
        return found.x.reshape(start.shape)

    both = np.array([1.0, -1.0])
    one = fit(np.array([[0.7], [0.7]]), both[:1])
    two = fit(np.array([[0.0], [0.0]]), both)
    # Start the free pair off the symmetric one.
    free = fit(two + np.array([[0.3, -0.3], [0.1, -0.1]]), both)
    inputs = setting.draw_inputs(REFERENCE, N + 1, setting.seed)
    checks, values = [], {}
    for name, point, signs in (("one_head", one, both[:1]), ("two_heads", two, both)):
        best = theory.softmax_heads.best_heads(inputs[:, :-1], inputs[:, -1], variance, kurtosis, len(signs) == 2)
        values[name] = np.asarray(losses(jnp.asarray(point), signs))
        loss, error = mean_with_error(values[name])
        checks.append(check.sampled(f"loss_of_{name}", loss, best.loss, float(np.hypot(error, best.standard_error))))
        # Losses are flat around the best scalars, which are compared by what they cost here.
        reference = np.log([best.temperature / unit, best.value * best.temperature / unit])[:, None]
        regret = float(np.mean(losses(jnp.asarray(reference), signs))) / loss
        checks.append(check.exact(f"cost_of_the_reference_scalars_of_{name}", regret, 1.0, SAME))
        gradients = np.asarray(scores(jnp.asarray(point), signs)).reshape(samples, 2)
        bread = np.linalg.pinv(np.asarray(curvature(jnp.asarray(point), signs)).reshape(2, 2))
        covariance = bread @ (gradients.T @ gradients / samples) @ bread * (1 / samples + 1 / REFERENCE)
        for scalar, direction, expected in (("beta", [1.0, 0.0], best.temperature), ("c", [-1.0, 1.0], best.value)):
            relative = float(np.sqrt(direction @ covariance @ direction))
            if check.SIGMAS * relative < DETERMINED:
                fitted = unit * np.exp(point[0, 0]) if scalar == "beta" else np.exp(point[1, 0] - point[0, 0])
                checks.append(check.sampled(f"{scalar}_of_{name}", fitted, expected, expected * relative))
    step = _half_losses(np.asarray(prompts.query - setting.best_step * compiled.jit(jax.vmap(linear_answer))(prompts)))
    # Two heads of a small temperature are centred descent.
    slope_at_zero = theory.softmax_heads.centred_step_size(d, N, variance, kurtosis) / (2 * unit)
    centred = np.asarray(losses(jnp.array([[np.log(COLD)], [np.log(slope_at_zero)]]), both))
    limit = theory.softmax_heads.centred_optimum(d, N, variance, kurtosis)
    two_loss = np.mean(values["two_heads"])
    return [
        *checks,
        mean_check("loss_of_descent", step, setting.least_loss),
        mean_check("loss_of_centred_descent", centred, limit),
        # On common prompts, beyond their noise.
        _excess("one_head_over_descent", values["one_head"], step),
        _excess("one_head_over_two_heads", values["one_head"], values["two_heads"]),
        check.at_most("two_heads_over_centred_descent", two_loss / np.mean(centred), 1.0, COLD),
        check.exact("free_temperatures_over_opposite", np.mean(losses(jnp.asarray(free), both)) / two_loss, 1.0, SAME),
    ]


def _excess(name: str, first: np.ndarray, second: np.ndarray) -> Check:
    """The check that a mean loss is above another on the same prompts, by what their noise cannot explain."""
    difference, error = (float(value / np.mean(second)) for value in mean_with_error(first - second))
    return check.at_least(name, 1 + difference, 1 + check.SIGMAS * error, standard_error=error)


class Cancellation(Seeded, LayerSetting):
    """Two heads of opposite signs with random off-diagonal parts."""

    d: int = integer(4, 2, "dimension", "of the inputs")
    N: int = integer(6, 2, "context length")
    sigma = 1.0
    beta: float = number(0.1, positive=True, meaning="temperature at the start", detail=", in units of 1 / (sig2 sqrt(d))")
    starts: int = integer(4, 1, "number of starts", ", random off-diagonal parts")
    steps: int = integer(400, 100, "number of updates", "of Adam")

    def validate(self) -> None:
        super().validate()
        if self.beta > 0.15:
            raise AssumptionError(
                "`beta` must be <= 0.15, where two heads are their limit of small temperatures to a few percent; "
                f"got {self.beta}."
            )


@claim(
    "vonoswald2022.softmax.cancel",
    Cancellation,
    Source(PAPER, "Figure 12 and the text on two softmax heads; mechanism and sizes by icl_lab", "corrected"),
)
def off_diagonals_cancel(setting: Cancellation) -> list[Check]:
    """In two heads trained from the construction the off-diagonal parts of eta_h W_KQ,h cancel in the sum: at
    small temperatures the loss sees only the sum, so that training removes them there before they vanish in
    each head.

    Adam on fresh prompts starts from two heads that are a centred step, with random off-diagonal parts half as large as the
    diagonal. A sum that stays more than about a third of its start, or parts that do not stay near half of their difference
    at the start, as when they vanish in each head, would make it fail.
    """
    d, N, variance, kurtosis = setting.step_problem
    starts, steps = setting.starts, setting.steps
    key, signs, temperature = setting.key, np.array([1.0, -1.0]), setting.beta / (variance * np.sqrt(d))
    value = theory.softmax_heads.centred_step_size(d, N, variance, kurtosis) / (2 * temperature)
    # Two heads that are a centred step, with off-diagonal parts of their own of half the size of the diagonal.
    noise = np.asarray(jax.random.normal(prng.stream(key, "parts"), (starts, 2, d, d))) / 2 * (1 - np.eye(d))
    w_pv, w_kq = np.zeros((2, starts, 2, d + 1, d + 1))
    w_pv[..., -1, -1] = value * signs
    w_kq[..., :d, :d] = temperature * (signs[:, None, None] * np.eye(d) + noise)
    begin = LSAWeights(w_pv, w_kq)
    fresh = objectives.StreamedLoss.build(setting.task(), SOFTMAX, prng.stream(key, "held out"), BATCH, BATCH)
    # The rate falls to 0, and is the same share of both matrices only because Adam's steps are: W_PV moves little.
    adam = optax.adam(optax.cosine_decay_schedule(temperature / 20, steps))
    ends = training.descents(fresh, begin, adam, steps, key=prng.stream(key, "prompts"))

    def off_diagonal(weights: LSAWeights) -> np.ndarray:
        """(S, 2, d, d), the parts eta_h W_KQ,h without their diagonals."""
        return np.asarray(weights.w_pv[..., -1, -1, None, None] * weights.w_kq[..., :d, :d] * (1 - np.eye(d)))

    before, after = off_diagonal(begin), off_diagonal(ends.limits)
    in_sum = [np.linalg.norm(one.sum(axis=1), axis=(1, 2)) for one in (before, after)]
    in_parts = np.sqrt(np.sum(after**2, axis=(1, 2, 3)))
    # What is left when both heads have given up half of the sum.
    difference = np.linalg.norm(before[:, 0] - before[:, 1], axis=(1, 2)) / np.sqrt(2)
    return [
        check.at_most("sum_over_its_start", in_sum[1] / in_sum[0], np.full(starts, CANCELLED)),
        check.at_most("sum_over_the_parts", in_sum[1] / in_parts, np.full(starts, CANCELLED)),
        check.exact("parts_over_half_the_difference_at_the_start", in_parts / difference, np.ones(starts), KEPT),
    ]
