"""Claims of von Oswald et al. 2022 (arXiv 2212.07677) about softmax heads and LayerNorm in place of linear attention."""

from __future__ import annotations

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

from icl_lab import analysis, models, objectives, theory, training
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, integer, number
from icl_lab.claims.registry import claim
from icl_lab.claims.simulation import mean_with_error, simulate
from icl_lab.claims.vonoswald2022.propositions import PAPER
from icl_lab.claims.vonoswald2022.settings import DISTRIBUTION, covariates, input_moments
from icl_lab.claims.vonoswald2022.settings import MODEL as LINEAR
from icl_lab.core import compiled, prng
from icl_lab.core.errors import AssumptionError
from icl_lab.core.typing import Array, Key
from icl_lab.models import LSAWeights, constructions, initializers
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.regression.linear import LinearRegression

SOFTMAX = models.SoftmaxSelfAttention(query_in_sum=False)
# Losses that count as the same.
SAME = 0.01
# Scalars are compared where the sample determines them to this.
DETERMINED = 0.25
# Prompts of the reference in theory.
REFERENCE = 40_000
# Temperature, in units of 1 / (sig2 sqrt(d)), at which two heads are their limit up to its square.
COLD = 1e-3
# Training: initial entries in units of those of the step (ten times Adam's first step), prompts per step and to compare on.
BEGIN = 0.1
BATCH = 128
HELD_OUT = 4096

# Of off-diagonal parts, independent at the start: what may be left of their sum, and how closely the heads keep the rest.
CANCELLED, KEPT = 0.35, 0.25

SIZES = {
    "d": integer(10, 1, "input dimension"),
    "N": integer(10, 2, "context length"),
}


def unit_tasks(key: Key, distribution: str, dim: int, context_length: int, sigma: float) -> Prompt:
    """A prompt of all d unit tasks at once, y_i = x_i: its squared error is the mean over tasks w ~ N(0, I)."""
    inputs = covariates(distribution, dim, sigma).sample(key, context_length + 1)
    return Prompt(inputs[:-1], inputs[:-1], inputs[-1], inputs[-1])


def scalar_heads(temperatures: Array, values: Array, dim: int) -> LSAWeights:
    """Heads with scores beta_h x_i.x_q and values c_h y_i, on tokens of d inputs and d labels; (H,) coefficients."""
    inputs, labels = (jnp.asarray(np.diag(np.repeat(row, dim))) for row in np.eye(2))
    return LSAWeights(w_pv=values[:, None, None] * labels[None], w_kq=temperatures[:, None, None] * inputs[None])


def linear_answer(prompt: Prompt) -> Array:
    """One gradient step of size 1."""
    dim = prompt.query.shape[0]
    return LINEAR(constructions.gradient_descent(LINEAR, dim, prompt.inputs.shape[0], 1.0, label_dim=dim), prompt)


@claim(
    "vonoswald2022.softmax.centred",
    statement="The small-temperature limit of two opposite softmax heads, a step with centred context inputs, is best at "
    "eta_c = N/(sig2 D), with half loss L_c = (sig2 d/2)(1 - (N-1)/D), D = N + d + (kap-3)(N-1)/N, above plain descent's.",
    source=Source(PAPER, "section on softmax attention; closed form by icl_lab", "extended"),
    parameters=SIZES
    | DISTRIBUTION
    | {
        "samples": integer(40_000, 1_000, "simulated prompts"),
        "seed": integer(0, 0, "of the prompts"),
    },
)
def centred_descent(d, N, distribution, sigma, samples, seed) -> list[Check]:
    variance, kurtosis = input_moments(distribution, sigma)

    def answers(key):
        """The query, the limit of two heads for eta = 1, and plain descent."""
        prompt = unit_tasks(key, distribution, d, N, sigma)
        signs = jnp.array([1.0, -1.0])
        limit = jax.jacfwd(lambda e: SOFTMAX(scalar_heads(e * signs, signs / 2, d), prompt))(0.0)
        return jnp.stack([prompt.query, limit, linear_answer(prompt)])

    target, centred, plain = np.moveaxis(simulate(answers, prng.stream(jax.random.key(seed), "prompts"), samples), 1, 0)
    eta, eta_error = _slope(centred, target)
    loss, plain_loss = (_half_losses(target - _slope(one, target)[0] * one) for one in (centred, plain))
    ratio = np.mean(loss) / np.mean(plain_loss)
    ratio_error = mean_with_error(loss - ratio * plain_loss)[1] / np.mean(plain_loss)
    best = theory.softmax_heads.centred_optimum(d, N, variance, kurtosis)
    descent = theory.vonoswald2022.one_step_loss(
        theory.vonoswald2022.optimal_step_size(d, N, variance, kurtosis), d, N, variance, kurtosis
    )
    return [
        check.sampled("eta_c", eta, theory.softmax_heads.centred_step_size(d, N, variance, kurtosis), eta_error),
        check.sampled("L_c", np.mean(loss), best, mean_with_error(loss)[1]),
        check.sampled("L_c_over_L", ratio, best / descent, ratio_error),
        check.at_least("centring_costs", ratio, 1.0),
    ]


@claim(
    "vonoswald2022.softmax.heads",
    statement="The best softmax head with scores beta x_i.x_q does worse than one gradient step; two opposite heads do better, "
    "also than their limit of small temperatures, centred descent; temperatures free of each other gain nothing.",
    source=Source(PAPER, "Figures 11 and 12, with scalar heads by icl_lab", "extended"),
    parameters=SIZES
    | DISTRIBUTION
    | {
        "samples": integer(20_000, 1_000, "prompts that the heads are fitted on"),
        "seed": integer(0, 0, "of the prompts"),
    },
)
def scalar_softmax_heads(d, N, distribution, sigma, samples, seed) -> list[Check]:
    variance, kurtosis = input_moments(distribution, sigma)
    keys = jax.random.split(prng.stream(jax.random.key(seed), "prompts"), samples)
    prompts = compiled.jit(jax.vmap(lambda key: unit_tasks(key, distribution, d, N, sigma)))(keys)
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
    checks, values = [], {}
    for name, point, signs in (("one_head", one, both[:1]), ("two_heads", two, both)):
        best = theory.softmax_heads.best_heads(distribution, d, N, sigma, len(signs) == 2, REFERENCE, seed)
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
    eta = theory.vonoswald2022.optimal_step_size(d, N, variance, kurtosis)
    descent = theory.vonoswald2022.one_step_loss(eta, d, N, variance, kurtosis)
    step = _half_losses(np.asarray(prompts.query - eta * compiled.jit(jax.vmap(linear_answer))(prompts)))
    # Two heads of a small temperature are centred descent.
    slope_at_zero = theory.softmax_heads.centred_step_size(d, N, variance, kurtosis) / (2 * unit)
    centred = np.asarray(losses(jnp.array([[np.log(COLD)], [np.log(slope_at_zero)]]), both))
    limit = theory.softmax_heads.centred_optimum(d, N, variance, kurtosis)
    two_loss = np.mean(values["two_heads"])
    return [
        *checks,
        check.sampled("loss_of_descent", np.mean(step), descent, mean_with_error(step)[1]),
        check.sampled("loss_of_centred_descent", np.mean(centred), limit, mean_with_error(centred)[1]),
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


def _small_temperature(beta, **_) -> None:
    if beta > 0.15:
        raise AssumptionError(
            f"`beta` must be <= 0.15, where two heads are their limit of small temperatures to a few percent; got {beta}."
        )


@claim(
    "vonoswald2022.softmax.cancel",
    statement="In two heads trained from the construction the off-diagonal parts of eta_h W_KQ,h cancel in the sum: at "
    "small temperatures the loss sees only the sum, so that training removes them there before they vanish in "
    "each head.",
    source=Source(PAPER, "Figure 12 and the text on two softmax heads; mechanism and sizes by icl_lab", "corrected"),
    parameters={"d": integer(4, 2, "input dimension"), "N": integer(6, 2, "context length")}
    | {"distribution": DISTRIBUTION["distribution"], "sigma": number(1.0, positive=True, meaning=DISTRIBUTION["sigma"].meaning)}
    | {
        "beta": number(0.1, positive=True, meaning="initial temperature, in units of 1 / (sig2 sqrt(d))"),
        "starts": integer(4, 1, "random off-diagonal parts"),
        "steps": integer(400, 100, "of Adam"),
        "seed": integer(0, 0, "of the parts and of the prompts"),
    },
    validate=_small_temperature,
)
def off_diagonals_cancel(d, N, distribution, sigma, beta, starts, steps, seed) -> list[Check]:
    variance, kurtosis = input_moments(distribution, sigma)
    key, signs, temperature = jax.random.key(seed), np.array([1.0, -1.0]), beta / (variance * np.sqrt(d))
    value = theory.softmax_heads.centred_step_size(d, N, variance, kurtosis) / (2 * temperature)
    # Two heads that are a centred step, with off-diagonal parts of their own of half the size of the diagonal.
    noise = np.asarray(jax.random.normal(prng.stream(key, "parts"), (starts, 2, d, d))) / 2 * (1 - np.eye(d))
    w_pv, w_kq = np.zeros((2, starts, 2, d + 1, d + 1))
    w_pv[..., -1, -1] = value * signs
    w_kq[..., :d, :d] = temperature * (signs[:, None, None] * np.eye(d) + noise)
    begin = LSAWeights(w_pv, w_kq)
    task = LinearRegression(d, N, covariates=covariates(distribution, d, sigma))
    fresh = objectives.StreamedLoss.build(task, SOFTMAX, prng.stream(key, "held out"), BATCH, BATCH)
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


@claim(
    "vonoswald2022.layernorm",
    statement="A layer trained with LayerNorm before its attention has a larger loss and is less aligned with a gradient step "
    "than one trained without, but beats the step on much larger inputs.",
    source=Source(PAPER, "Figure 14 and the text on LayerNorm"),
    parameters={
        "d": integer(4, 1, "input dimension"),
        "N": integer(8, 1, "context length"),
    }
    | {"distribution": DISTRIBUTION["distribution"], "sigma": number(1.0, positive=True, meaning=DISTRIBUTION["sigma"].meaning)}
    | {
        "alpha": number(5.0, 2.0, "how much larger the inputs of the last comparison are"),
        "starts": integer(2, 1, "random initial weights"),
        "steps": integer(800, 100, "of Adam"),
        "seed": integer(0, 0, "of initial weights and prompts"),
    },
)
def layer_norm_costs(d, N, distribution, sigma, alpha, starts, steps, seed) -> list[Check]:
    variance, kurtosis = input_moments(distribution, sigma)
    key = jax.random.key(seed)
    eta = theory.vonoswald2022.optimal_step_size(d, N, variance, kurtosis)
    # Both matrices of the step, divided evenly, have entries of this size.
    size = float(np.sqrt(eta))
    weights = [
        initializers.gaussian(jax.random.fold_in(prng.stream(key, "weights"), i), d + 1, BEGIN * size) for i in range(starts)
    ]
    begin = jax.tree.map(lambda *leaves: np.stack(leaves), *weights)
    optimiser = optax.adam(optax.cosine_decay_schedule(BEGIN * size / 10, steps))
    step = eqx.Partial(LINEAR, constructions.gradient_descent(LINEAR, d, N, eta))
    losses, cosines, wide = {}, {}, {}
    for normed in (False, True):
        model = models.LinearSelfAttention(query_in_sum=False, readout_sign=-1.0, layer_norm=normed)
        tasks = [LinearRegression(d, N, covariates=covariates(distribution, d, scale)) for scale in (sigma, alpha * sigma)]
        objective = objectives.StreamedLoss.build(tasks[0], model, key, BATCH, BATCH)
        ends = training.descents(objective, begin, optimiser, steps, key=prng.stream(key, "prompts"))
        held_out = [objectives.StreamedLoss.build(task, model, prng.stream(key, "test"), HELD_OUT) for task in tasks]
        losses[normed], wide[normed] = (np.array([one.risk(ends.limit(i)) / 2 for i in range(starts)]) for one in held_out)
        cosines[normed] = np.array(
            [
                analysis.compare_functions(
                    tasks[0], eqx.Partial(model, ends.limit(i)), step, prng.stream(key, "test"), 1024
                ).cosine.mean
                for i in range(starts)
            ]
        )
    same = np.ones(starts)
    best = theory.vonoswald2022.one_step_loss(eta, d, N, variance, kurtosis)
    stretched = theory.vonoswald2022.one_step_loss(eta, d, N, alpha**2 * variance, kurtosis)
    return [
        # What training and held-out prompts leave.
        check.at_most("loss_without_over_descent", losses[False] / best, 1.1 * same),
        check.at_least("loss_with_over_without", losses[True] / losses[False], 1.05 * same),
        check.at_least("alignment_without", cosines[False], 0.98 * same),
        check.at_most("alignment_with", cosines[True], 0.95 * cosines[False]),
        check.at_most("loss_with_on_larger_inputs", wide[True], stretched * same),
    ]


def _slope(regressor: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """The coefficient of a regression over all prompts and outputs, and its standard error."""
    square = np.sum(regressor**2, axis=1)
    slope = np.sum(regressor * target) / np.sum(square)
    scores = np.sum(regressor * (target - slope * regressor), axis=1)
    return float(slope), float(np.sqrt(np.mean(scores**2) / len(scores)) / np.mean(square))


def _half_losses(errors: np.ndarray) -> np.ndarray:
    return np.sum(errors**2, axis=1) / 2
