"""Claim of von Oswald et al. 2022 (arXiv 2212.07677) on sine waves: the losses between which trained models lie."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import models, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, choice, integer, number, vector
from icl_lab.claims.registry import claim
from icl_lab.claims.simulation import simulate
from icl_lab.claims.vonoswald2022.propositions import PAPER
from icl_lab.core import prng
from icl_lab.core.typing import Array
from icl_lab.models import constructions
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.regression.sine import DISTRIBUTIONS, SineRegression, features

# One step of descent on the features, eta / N in the weights.
MODEL = models.LinearSelfAttention(query_in_sum=False, readout_sign=-1.0)


@claim(
    "vonoswald2022.sine.refs",
    statement="On sine waves, linear in (sin x, cos x), one gradient step from the mean of the coefficients beats one from 0, "
    "which beats the best fixed function, which beats 0.",
    source=Source(
        PAPER, "Section 4 and Figure 4, whose generator is not that of the text; closed forms by icl_lab", "extended"
    ),
    parameters={
        "N": integer(10, 1, "context length"),
        "distribution": choice(
            "text", tuple(DISTRIBUTIONS), "amplitudes up to 5, up to 1/2, or up to 1/2 and tied to the phase"
        ),
        "sigma": number(5.0, positive=True, meaning="half-width of the inputs"),
        "a": vector(None, "ends of the amplitude's interval; null: those of the distribution"),
        "rho": vector(None, "ends of the phase's interval; null: those of the distribution, 0 and pi"),
        "samples": integer(200_000, 1_000, "simulated prompts"),
        "seed": integer(0, 0, "of the prompts"),
    },
    validate=lambda N, distribution, sigma, a, rho, **_: SineRegression(N, sigma, distribution, a, rho) and None,
    extra_settings=({"distribution": "independent"}, {"distribution": "published"}),
)
def reference_losses(N, distribution, sigma, a, rho, samples, seed) -> list[Check]:
    task = SineRegression(N, sigma, distribution, a, rho)
    mean, moment = theory.sine_regression.coefficient_moments(
        DISTRIBUTIONS[distribution].amplitude if a is None else a,
        DISTRIBUTIONS[distribution].phase if rho is None else rho,
        DISTRIBUTIONS[distribution].shared,
    )
    steps = {
        "from_0": theory.sine_regression.best_step(N, sigma, moment),
        "from_the_mean": theory.sine_regression.best_step(N, sigma, moment - np.outer(mean, mean)),
    }
    expected = {
        "predict_0": theory.sine_regression.zero_loss(sigma, moment),
        "best_fixed_function": theory.sine_regression.zero_loss(sigma, moment - np.outer(mean, mean)),
    }

    def linear_parts(one):
        """Query features and target, and what one step of size 1 makes of the start 0 and of both unit vectors."""
        prompt = features(task.sample(one))
        return jnp.concatenate([prompt.query, prompt.target, _updates(prompt)])

    rows = simulate(linear_parts, prng.stream(jax.random.key(seed), "prompts"), samples)
    phi, target, from_zero, changes = rows[:, :2], rows[:, 2], rows[:, 3], rows[:, 4:]
    fixed = np.linalg.lstsq(phi, target)[0]
    # The update is affine in the start: that of 0 plus a sum over the coefficients of the start.
    trials = {
        "from_0": (target, from_zero),
        "from_the_mean": (target - phi @ fixed, from_zero + changes @ fixed),
    }
    checks = [
        _loss("predict_0", target, expected["predict_0"]),
        _loss("best_fixed_function", target - phi @ fixed, expected["best_fixed_function"]),
    ]
    for name, (missed, update) in trials.items():
        eta = missed @ update / (update @ update)
        error = np.sqrt(np.mean((update * (missed - eta * update)) ** 2) / len(update)) / np.mean(update**2)
        checks += [
            check.sampled(f"eta_{name}", eta, steps[name].step_size, error),
            _loss(f"one_step_{name}", missed - eta * update, steps[name].loss),
        ]
    return checks


def _updates(prompt: Prompt) -> Array:
    """(3,): what one layer that is a step of size 1 adds to the answer from 0, and how that changes with the start."""
    values = []
    for start in (np.zeros((1, 2)), np.eye(2)[:1], np.eye(2)[1:]):
        weights = constructions.gradient_descent(MODEL, 2, prompt.inputs.shape[0], 1.0, initial=start)
        answer = start @ prompt.query
        values.append(MODEL(weights, prompt, query_label=-answer) - answer)
    return jnp.concatenate([values[0], values[1] - values[0], values[2] - values[0]])


def _loss(name: str, errors: np.ndarray, expected: float) -> Check:
    """The check of half a mean square."""
    values = errors**2 / 2
    return check.sampled(name, np.mean(values), expected, np.std(values, ddof=1) / np.sqrt(len(values)))
