"""Claims about mixers that solve linear equations: which ridge regression they are, and how far a few steps of it get."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import estimators, mixers, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.mixers.prompts import EXACT, LAB, Gaussian, Pairs, distance, in_every_form, mean_and_error, read_each
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number, restricted
from icl_lab.claims.simulation import simulate

MESA = "von Oswald et al. 2023 (arXiv 2309.05858)"


class Ridge(Pairs):
    """Pairs, and the penalty of their regression."""

    L: float = number(0.5, positive=True, meaning="ridge penalty")
    gamma: float = restricted(
        number(0.8, meaning="forgetting", detail=", what is left of the older pairs at each"),
        "a number in (0, 1]",
        lambda x: 0 < x <= 1,
    )


KINDS = ({"d": 20, "N": 7, "m": 1, "L": 0.05}, {"d": 1, "gamma": 0.3}, {"N": 70, "d": 3, "gamma": 1.0})


@claim("mixers.mesa.ridge", Ridge, Source(MESA, "the mesa layer, with gates"), extra_settings=KINDS)
def mesa_is_weighted_ridge_regression(setting: Ridge) -> list[Check]:
    """The mesa layer is ridge regression on pairs that are weighted by their strength and by what later decays leave of
    them; without gates it is recursive least squares started at the inverse of the penalty.

    Random pairs, gates and penalties for each coordinate, in every form, beside normal equations and the recursion, which
    updates an inverse by one pair at a time. A penalty that fades, or a weight on the wrong pair, would make it fail.
    """
    prompt = setting.prompt()
    penalty = setting.L * (0.5 + setting.uniforms("penalty", setting.d))
    strength, kept = setting.uniforms("strengths", setting.N), setting.gamma ** setting.uniforms("decays", setting.N)
    mesa, matrix = mixers.named("mesa", penalty=penalty, scale=1.0), np.diag(penalty)
    ridge = estimators.discounted_ridge_weights(prompt, matrix, kept[:, None], strength)
    recursive = estimators.recursive_least_squares_path(prompt, matrix)
    return [
        *in_every_form(mesa, prompt, ridge, write_strength=strength, log_decay=np.log(kept)),
        *in_every_form(mesa, prompt, recursive, "recursive: ", write_strength=1.0, log_decay=0.0),
    ]


@claim(
    "mixers.mesa.forget",
    Ridge,
    Source(MESA, f"{LAB}; forgetting with and without the penalty", "extended"),
    extra_settings=KINDS,
)
def mesa_keeps_its_penalty(setting: Ridge) -> list[Check]:
    """With a decay the mesa layer forgets pairs and keeps its penalty, and is not recursive least squares with forgetting,
    which after N pairs has gamma^N of the penalty left.

    Random pairs: mesa beside the textbook's recursion at the faded penalty, and the difference of the two at the same
    one beside that of ridge regression and recursion. Equal answers at the same penalty would make it fail.
    """
    prompt, lam, gamma = setting.prompt(), setting.L, setting.gamma
    textbook = np.asarray(estimators.recursive_least_squares(prompt, lam, gamma))
    ridge = np.asarray(estimators.discounted_ridge(prompt, lam, gamma))

    def mesa(penalty):
        mixer = mixers.named("mesa", penalty=penalty, scale=1.0)
        gates = {"write_strength": 1.0, "log_decay": float(np.log(gamma))}
        return np.asarray(read_each(mixer, prompt.query[None], prompt.inputs, prompt.labels, **gates))[0]

    size = float(np.linalg.norm(ridge))
    return [
        check.exact("faded_penalty", mesa(lam * gamma**setting.N), textbook, EXACT),
        check.exact("difference_abs", (mesa(lam) - textbook) / size, (ridge - textbook) / size, EXACT),
    ]


@claim(
    "mixers.mesa.cg",
    Ridge,
    Source(MESA, f"{LAB}; conjugate gradients from zero", "extended"),
    extra_settings=({"d": 9, "N": 5, "m": 1, "L": 0.1}, {"d": 2, "N": 60}, {"d": 4, "L": 20.0}),
)
def steps_of_conjugate_gradients(setting: Ridge) -> list[Check]:
    """With j steps of conjugate gradients from zero the mesa layer is |q|^2 / q^T H q times linear attention for j = 1, and
    ridge regression for j = d; between them the error of the solution is below Chebyshev's bound.

    Random pairs, each number of steps; the error, in the norm of the keys' Gram matrix, is read off a prompt whose values are
    its keys. A step that does not minimise over its Krylov space, or d steps that are not enough, would make it fail.
    """
    prompt, d, lam = setting.prompt(), setting.d, setting.L
    gates = {"write_strength": 1.0, "log_decay": 0.0}
    keys, query = np.asarray(prompt.inputs), np.asarray(prompt.query)
    H = keys.T @ keys + lam * np.eye(d)
    length = query @ query / (query @ H @ query)

    def answer(steps, values):
        mixer = mixers.named("mesa", penalty=lam, scale=1.0, steps=steps)
        return np.asarray(read_each(mixer, query[None], keys, values, **gates))[0]

    step = estimators.weighted_gradient_step(prompt, np.full(setting.N, length))
    target = np.linalg.solve(H, query)
    # The values K make K^T K x of the solution x, which is q less L x at the exact one.
    errors = []
    for steps in range(1, d + 1):
        missed = answer(steps, keys) - (query - lam * target)
        # K^T K (x - x*), whose norm is below that of the error in the norm of H.
        errors.append(np.sqrt(missed @ np.linalg.pinv(keys.T @ keys, rcond=1e-10, hermitian=True) @ missed))
    spread = np.sqrt(np.linalg.cond(H))
    start = np.sqrt(query @ target)
    bound = [2 * start * ((spread - 1) / (spread + 1)) ** j for j in range(1, d + 1)]
    return [
        check.exact("one_step", answer(1, prompt.labels), step, EXACT),
        check.exact("all_steps", answer(d, prompt.labels), estimators.ridge(prompt, lam), EXACT),
        check.at_most("errors_abs", np.array(errors), np.array(bound), EXACT),
    ]


class Table(Gaussian):
    """Prompts of a length, and of its halves."""

    samples: int = integer(4_000, 1_000, "number of draws", "of prompts of each length")
    N: int = integer(128, 1, "context length", ", the longest")
    s2: float = number(0.25, positive=True, meaning="variance of the label noise")


@claim(
    "mixers.mesa.risk",
    Table,
    Source(MESA, f"{LAB}; risks of mesa, delta rule and linear attention against the context length", "extended"),
    extra_settings=({"d": 3, "N": 40, "s2": 1.0},),
)
def mesa_below_delta_below_linear(setting: Table) -> list[Check]:
    """At every context length mesa with the penalty s2 has the Bayes risk, and the delta rule at its best step lies between
    it and linear attention at its best scale.

    Mean squared distance of the three from the tasks of the same simulated prompts, for several lengths, beside closed
    forms and by paired differences. A risk other than its closed form, or another order at any length, would make it fail.
    """
    checks, keys = [], theory.KeyMoments.gaussian(setting.d)
    for n in sorted({max(1, setting.N >> halvings) for halvings in range(6)}):
        task = Table(d=setting.d, N=n, s2=setting.s2).task()
        step, delta = theory.delta_rule.best_step(keys, n, setting.s2)
        scale = theory.linear_attention.best_scale(keys, n, setting.s2)
        three = {
            "mesa": mixers.predictor("mesa", scale=1.0, penalty=setting.s2, write_strength=1.0, log_decay=0.0),
            "delta": mixers.predictor("deltanet", scale=1.0, write_strength=step),
            "linear": mixers.predictor("linear", scale=scale),
        }
        expected = [
            theory.bayes.isotropic_risk(setting.d, n, setting.s2),
            delta,
            theory.linear_attention.minimum_risk(keys, n, setting.s2),
        ]

        def statistic(one, task=task, three=three):
            prompt = task.sample(one)
            return jnp.stack([distance(mixer, prompt, prompt.latent) for mixer in three.values()])

        draws = simulate(statistic, jax.random.fold_in(setting.stream("prompts"), n), setting.samples)
        mean, error = mean_and_error(draws)
        gaps, spread = mean_and_error(np.diff(draws, axis=1))
        checks += [check.sampled(f"{name}_n={n}", mean[i], expected[i], error[i]) for i, name in enumerate(three)]
        # At n = 1 the delta rule and linear attention are one.
        order = gaps + check.SIGMAS * spread if n == 1 else gaps - check.SIGMAS * spread
        checks.append(check.at_least(f"order_n={n}_abs", order, np.zeros(2)))
    return checks


@claim(
    "mixers.delta.preconditioned",
    Ridge,
    Source(LAB, "the preconditioned delta rule of arXiv 2604.21100 is recursive least squares", "extended"),
    extra_settings=KINDS,
)
def preconditioned_delta_rule_is_ridge_regression(setting: Ridge) -> list[Check]:
    """A delta rule whose steps go along (H_t + L)^{-1} k_t has at each pair the ridge matrix of all pairs so far: it is
    recursive least squares, and the mesa layer without gates.

    Random pairs, in every form, beside the textbook's recursion after each pair, normal equations after the last, and mesa.
    A step along the inverse before the pair would make it fail.
    """
    prompt, lam = setting.prompt(), setting.L
    rule = mixers.named("preconditioned_delta", penalty=lam, scale=1.0)
    pairs = prompt.query[None], prompt.inputs, prompt.labels
    gates = {"write_strength": 1.0, "log_decay": 0.0}
    mesa = read_each(mixers.named("mesa", penalty=lam, scale=1.0), *pairs, **gates)
    return [
        *in_every_form(rule, prompt, estimators.recursive_least_squares_path(prompt, lam)),
        *in_every_form(rule, prompt, estimators.ridge_weights(prompt, lam), "ridge: "),
        check.exact("mesa", read_each(rule, *pairs), mesa, EXACT),
    ]
