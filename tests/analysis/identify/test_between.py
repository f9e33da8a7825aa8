"""Models that are between families: near ridge and not far from OLS; gradient descent fitted where rare prompts matter."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_lab import analysis, estimators
from icl_lab.analysis.identify.discrimination import SIGMAS, TOLERANCE
from icl_lab.tasks import LinearRegression

ANISOTROPIC = LinearRegression(4, 12, covariance=[2.0, 1.0, 1.0, 0.5], noise_std=0.3)


def noise(prompt):
    """A number of standard deviation 1 that nothing in the prompt predicts, but the same for the same prompt."""
    return jnp.sqrt(2.0) * jnp.sin(1e4 * jnp.sum(prompt.inputs * prompt.labels) + 3e3 * prompt.query[:1])


def noisy(penalty, size, prompt):
    return estimators.ridge(prompt, penalty) + size * noise(prompt)


def mixed(penalty, size, prompt):
    return (estimators.ridge(prompt, penalty) + estimators.ols(prompt)) / 2 + size * noise(prompt)


def undecided(low, high, prompt):
    """Ridge of one penalty or another, as the query lies."""
    return estimators.ridge(prompt, jnp.where(prompt.query[0] > 0, low, high))


def case(function, first, second, task, prompts=1024):
    return eqx.Partial(function, np.asarray(first), np.asarray(second)), task, prompts


NEAR_RIDGE = {
    "noise, more examples than inputs": case(noisy, 0.3, 0.04, LinearRegression(5, 20, noise_std=0.3)),
    "noise, fewer examples than inputs": case(noisy, 0.06, 0.05, LinearRegression(10, 5, noise_std=0.3)),
    "few answers": case(noisy, 0.3, 0.04, LinearRegression(5, 20, noise_std=0.3), 200),
    "half ridge and half OLS": case(mixed, 0.3, 0.04, ANISOTROPIC),
    "two penalties": case(undecided, 0.1, 0.8, LinearRegression(2, 20, noise_std=0.5)),
}


@pytest.mark.parametrize("name", NEAR_RIDGE)
def test_ridge_is_not_called_ols_where_the_answers_tell_them_apart(name, key):
    predictor, task, prompts = NEAR_RIDGE[name]
    found = analysis.identify(predictor, task, key, prompts)
    ridge, ols = found.distance("ridge"), found.distance("OLS")
    # Less than a factor of two apart, and both close: nothing but the paired difference tells.
    assert 1 < ols.mean / ridge.mean < 2
    assert ols.mean < 0.05
    assert found.prompts == prompts
    assert found.verdict == "ridge", found
    assert "ridge takes that of OLS" in found.rule
    assert f"more than {100 * TOLERANCE:g}% and by more than {SIGMAS:g} standard errors" in found.rule


def test_a_fit_of_descent_sees_the_prompts_on_which_it_diverges():
    task, model = LinearRegression(10, 5, noise_std=0.3), estimators.named("ridge", penalty=np.asarray(1.0))
    found = analysis.identify(model, task, jax.random.key(1), 1024)
    fitted = next(row.candidate for row in found.ranked if row.candidate.family == "gradient descent")

    def distance(steps):
        other = estimators.named("gradient_descent", step_size=np.asarray(steps))
        result = analysis.compare_functions(task, other, model, jax.random.key(9), 30_000)
        return result.prediction_distance.mean / result.prediction_scale.mean

    sizes = fitted.parameters["step_size"]
    reachable = min(distance(factor * sizes) for factor in (0.8, 0.9, 1.0, 1.1))
    # A fit to 1024 prompts takes steps of 0.2447, which diverge on prompts that it does not have.
    assert distance(np.full(9, 0.2447)) > 3 * reachable
    assert distance(sizes) < 1.15 * reachable
    assert reachable < 0.12
    # The distance on other prompts is within the standard errors of both: the tail is a small part of it.
    judged = found.distance("gradient descent")
    assert abs(judged.mean - distance(sizes)) < 4 * judged.standard_error
