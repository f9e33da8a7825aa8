"""How well parameters are known: the spread of fits to other noise, a formula for one parameter, parameters without effect."""

import jax
import numpy as np
import pytest
from scipy.optimize import least_squares

from icl_lab import tasks
from icl_lab.analysis.identify import certainty
from icl_lab.analysis.identify.candidate import Candidate
from icl_lab.analysis.identify.observations import Observed
from icl_lab.core import precision

COUNT, LENGTH = 400, 6
NOISE = 0.2


def prompts(key):
    drawn = tasks.LinearRegression(2, LENGTH, noise_std=0.3).sample_batch(key, COUNT)
    return precision.to_numpy(drawn)


def discounted(drawn, size, decay):
    """A gradient step in which examples fade, (M,)."""
    left = size * decay ** np.arange(LENGTH - 1, -1, -1.0)
    return np.einsum("n,mnd,md,mn->m", left, drawn.inputs, drawn.query, drawn.labels[:, :, 0])


def test_errors_are_the_spread_of_fits_to_answers_with_other_noise(key, rng):
    drawn, weights = prompts(key), np.where(np.arange(COUNT) % 2, 0.5, 1.5)
    truth = np.array([0.1, 0.8])

    def refit():
        answers = discounted(drawn, *truth) + NOISE * rng.normal(size=COUNT)
        return least_squares(lambda point: np.sqrt(weights) * (discounted(drawn, *point) - answers), truth).x, answers

    fits = [refit() for _ in range(200)]
    point, answers = fits[0]
    parameters = {"step_size": np.asarray(point[0]), "decay": np.asarray(point[1])}
    candidate = Candidate("discounted gradient step", "discounted_gradient_step", parameters)
    errors = certainty.standard_errors(candidate, Observed(drawn, answers[:, None], weights))
    spread = np.std([fit for fit, _ in fits], axis=0) / truth
    # Of 200 fits the spread has a standard error of 5%, and of 400 residuals the errors have 4%.
    np.testing.assert_allclose([errors["step_size"], errors["decay"]], spread, rtol=0.25)
    # Errors that forgot the other parameter, or the weights, would be smaller by more than that.
    alone = NOISE / np.linalg.norm(discounted(drawn, *truth))
    assert spread[0] > 1.5 * alone
    assert certainty.said({"step_size": 0.0123, "decay": 0.004}) == "step_size is known to 1%, decay to 0.4%"


def test_a_parameter_without_effect_is_not_known(key):
    drawn = prompts(key)
    parameters = {"step_size": np.asarray(0.0), "decay": np.asarray(0.5)}
    candidate = Candidate("discounted gradient step", "discounted_gradient_step", parameters)
    observed = Observed(drawn, np.ones((COUNT, 1)), np.ones(COUNT))
    assert certainty.standard_errors(candidate, observed) == {"step_size": np.inf, "decay": np.inf}


@pytest.mark.parametrize(
    ("name", "parameters"), [("ols", {}), ("online_sgd", {"step_size": np.asarray(0.1), "normalised": True})]
)
def test_what_is_no_number_has_no_error(name, parameters, key):
    observed = Observed(prompts(key), np.asarray(jax.random.normal(key, (COUNT, 1))), np.ones(COUNT))
    errors = certainty.standard_errors(Candidate(name, name, parameters), observed)
    assert errors.keys() == parameters.keys() - {"normalised"}
    assert all(0 < error < np.inf for error in errors.values())
