"""Claim of von Oswald et al. 2022 (arXiv 2212.07677) on sine waves: the losses between which trained models lie."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from icl_lab import theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import choice, integer, number, vector
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.claims.simulation import simulate
from icl_lab.claims.vonoswald2022.layers import mean_check
from icl_lab.claims.vonoswald2022.settings import MODEL, PAPER
from icl_lab.core.typing import Array
from icl_lab.models import constructions
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.regression.sine import DISTRIBUTIONS, SineRegression, features


class SineWaves(Seeded):
    """Sine waves on uniform inputs."""

    N: int = integer(10, 1, "context length")
    waves: str = choice(
        "text",
        tuple(DISTRIBUTIONS),
        "distribution of the sine waves",
        ": amplitudes up to 5, up to 1/2, or up to 1/2 and tied to the phase",
    )
    sigma: float = number(5.0, positive=True, meaning="scale of an input coordinate", detail=": half-width, as it is uniform")
    a: list[float] | None = vector(None, "ends of the amplitude's interval", "; null: those of the waves")
    rho: list[float] | None = vector(None, "ends of the phase's interval", "; null: those of the waves, 0 and pi")
    samples: int = integer(200_000, 1_000, "number of draws", "of prompts")

    def validate(self) -> None:
        super().validate()
        self.task()

    def task(self) -> SineRegression:
        """The distribution of prompts, which refuses intervals whose ends are not ordered."""
        return SineRegression(self.N, self.sigma, self.waves, self.a, self.rho)


@claim(
    "vonoswald2022.sine.refs",
    SineWaves,
    Source(PAPER, "Section 4 and Figure 4, whose generator is not that of the text; closed forms by icl_lab", "extended"),
    extra_settings=({"waves": "independent"}, {"waves": "published"}),
)
def reference_losses(setting: SineWaves) -> list[Check]:
    """On sine waves, linear in (sin x, cos x), one gradient step from the mean of the coefficients beats one from 0,
    which beats the best fixed function, which beats 0.

    Each predictor answers the same random prompts, a constructed layer on the two features where it is a step; best step
    sizes and the fixed function come from regressions on these answers, nothing trained. Amplitudes independent of phases
    where both are tied, or a curvature without its fourth moment, would make it fail.
    """
    N, sigma, task, waves = setting.N, setting.sigma, setting.task(), DISTRIBUTIONS[setting.waves]
    mean, moment = theory.sine_regression.coefficient_moments(
        waves.amplitude if setting.a is None else setting.a,
        waves.phase if setting.rho is None else setting.rho,
        waves.shared,
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

    rows = simulate(linear_parts, setting.stream("prompts"), setting.samples)
    phi, target, from_zero, changes = rows[:, :2], rows[:, 2], rows[:, 3], rows[:, 4:]
    fixed = np.linalg.lstsq(phi, target)[0]
    # The update is affine in the start: that of 0 plus a sum over the coefficients of the start.
    trials = {
        "from_0": (target, from_zero),
        "from_the_mean": (target - phi @ fixed, from_zero + changes @ fixed),
    }
    checks = [
        mean_check("predict_0", target**2 / 2, expected["predict_0"]),
        mean_check("best_fixed_function", (target - phi @ fixed) ** 2 / 2, expected["best_fixed_function"]),
    ]
    for name, (missed, update) in trials.items():
        eta = missed @ update / (update @ update)
        error = np.sqrt(np.mean((update * (missed - eta * update)) ** 2) / len(update)) / np.mean(update**2)
        checks += [
            check.sampled(f"eta_{name}", eta, steps[name].step_size, error),
            mean_check(f"one_step_{name}", (missed - eta * update) ** 2 / 2, steps[name].loss),
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
