"""Known learners and what `identify` says of them, on three keys each; degenerate predictors, thresholds, misuse."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_lab import analysis, estimators, tasks
from icl_lab.analysis.identify.identification import CLOSE, COLUMNS, NONE
from icl_lab.core.errors import InvalidValueError, NonFiniteError
from icl_lab.models import LSAWeights
from tests.analysis.identify.learners import (
    DECAYED,
    DIM,
    FADING,
    FADING_RIDGE,
    GD,
    LEARNERS,
    LENGTH,
    MOVING,
    OTHER,
    PLAIN,
    RECURRENT,
    RESIDUAL,
    SMOOTHER,
    STEPS_OF_OWN,
    TASK,
    TWINS,
    WEIGHTED,
)


def check(predictor, family, parameters, task, seed, steps=3):
    found = analysis.identify(predictor, task, jax.random.key(seed), 1024, steps=steps)
    assert found.verdict == family, found
    assert found.identified is not None
    assert parameters.keys() <= found.identified.parameters.keys()
    for parameter, expected in parameters.items():
        # Rounding alone, in units of the largest entry: the fit is exact.
        scale = np.max(np.abs(expected))
        np.testing.assert_allclose(found.identified.parameters[parameter], expected, rtol=0, atol=1e-8 * scale)
    assert found.distance(family).mean < 1e-9


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in TWINS else ()) for name in LEARNERS])
def test_known_learners_are_named_with_their_parameters(name, seed):
    check(*LEARNERS[name], TASK, seed, steps=10 if name in ("five steps", "ten steps") else 3)


PLACES = {
    "two inputs, five examples": tasks.LinearRegression(2, 5, noise_std=0.3),
    "as many examples as inputs": tasks.LinearRegression(10, 10),
    "fewer examples than inputs": tasks.LinearRegression(6, 4, noise_std=0.3),
    "one input": tasks.LinearRegression(1, 4, noise_std=0.3),
    "uniform inputs": tasks.LinearRegression(4, 10, covariates=tasks.Uniform(4, half_width=0.5)),
    "complex dynamics": tasks.LinearDynamics(3, 8, tasks.DiagonalUnitary(), start=tasks.ComplexGaussianStart()),
    "noisy dynamics": tasks.LinearDynamics(4, 12, tasks.HaarOrthogonal(), noise_std=0.2),
    "series": tasks.Autoregressive(np.array([0.5, -0.3]), 20),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_learners_are_known_on_every_kind_of_prompt(place):
    for name in ("ols", "one step", "ridge", "opposite"):
        check(*LEARNERS[name], PLACES[place], 0)
    check(estimators.named("online_sgd", step_size=0.05), "online SGD", {"step_size": 0.05}, PLACES[place], 0)


RECURRENT_PLACES = {
    "two inputs, five examples": tasks.LinearRegression(2, 5, noise_std=0.3),
    "fewer examples than inputs": tasks.LinearRegression(5, 3),
    "spread inputs and noise": tasks.LinearRegression(3, 16, covariance=[3.0, 1.0, 0.2], noise_std=0.5),
    "complex dynamics": PLACES["complex dynamics"],
}


@pytest.mark.slow
@pytest.mark.parametrize("place", RECURRENT_PLACES)
def test_recurrent_learners_are_known_on_every_kind_of_prompt(place):
    task = RECURRENT_PLACES[place]
    for name in ("delta rule, normalised", "discounted", "gated delta rule", "momentum", "mesa", "delta rule", "longhorn"):
        check(*LEARNERS[name], task, 0)
    lags = np.where(np.arange(task.context_length) % 2, 0.2, -0.1)
    check(estimators.named("weighted_gradient_step", example_weights=lags), WEIGHTED, {"example_weights": lags}, task, 0)


@pytest.mark.slow
def test_complex_dynamics_are_told_from_what_they_are_not(key):
    task = PLACES["complex dynamics"]
    found = analysis.identify(estimators.named("gradient_descent", step_size=0.3, steps=3), task, key, 1024)
    assert found.verdict == GD
    assert len(found.identified.parameters["step_size"]) == 3
    assert analysis.identify(estimators.named("last_value"), task, key, 1024).verdict == NONE


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_what_no_family_computes_is_none_of_these(seed):
    key = jax.random.key(seed)
    random = [LSAWeights(*jax.random.normal(k, (2, DIM + 1, DIM + 1)) / 3) for k in jax.random.split(key, 2)]
    for predictor in (estimators.named("last_value"), eqx.Partial(RESIDUAL, tuple(random)), eqx.Partial(PLAIN, random[0])):
        found = analysis.identify(predictor, TASK, key, 1024)
        assert found.verdict == NONE
        assert found.identified is None
        assert found.ranked[0].distance.mean > 0.2
        assert found.ranked[0].candidate.family in found.reason


def test_the_distance_is_that_of_the_functions_with_its_standard_error(key):
    model = estimators.named("ridge", penalty=np.asarray(2.0))
    found = analysis.identify(model, TASK, key)
    for family in (OTHER, SMOOTHER + "gaussian"):
        fitted = next(row.candidate for row in found.ranked if row.candidate.family == family)
        other = analysis.compare_functions(TASK, fitted.predictor, model, jax.random.key(9), 20000)
        gap, scale = other.prediction_distance, other.prediction_scale
        # The errors of numerator and denominator add at most.
        error = gap.standard_error / gap.mean + scale.standard_error / scale.mean
        distance, expected = found.distance(family), gap.mean / scale.mean
        assert abs(distance.mean - expected) < 4 * np.hypot(distance.standard_error, error * expected)
        assert 0.002 * expected < distance.standard_error < 0.05 * expected
    assert found.distance("zero").mean == pytest.approx(1.0, rel=1e-12)
    assert found.distance("zero").standard_error < 1e-12
    distances = [row.distance.mean for row in found.ranked]
    assert distances == sorted(distances)


def test_a_small_penalty_is_ols_within_the_resolution_and_ridge_below_it(key):
    predictor = estimators.named("ridge", penalty=1e-6)
    assert analysis.identify(predictor, TASK, key, 1024).verdict == "OLS"
    sharp = analysis.identify(predictor, TASK, key, 1024, resolution=1e-9)
    assert sharp.verdict == "ridge"
    assert sharp.identified is not None
    np.testing.assert_allclose(sharp.identified.parameters["penalty"], 1e-6, rtol=1e-4)
    assert "penalty 1e-06" in sharp.reason


def test_ridge_fitted_to_ols_says_that_its_penalty_vanished(key):
    found = analysis.identify(estimators.ols, TASK, key, 1024)
    fitted = next(row.candidate for row in found.ranked if row.candidate.family == "ridge")
    assert "lower end" in fitted.note
    assert found.ranked[0].candidate.family == "OLS"


def test_more_steps_than_were_tried_are_not_given_a_number(key):
    predictor = estimators.named("gradient_descent", step_size=0.05, steps=12)
    short = analysis.identify(predictor, TASK, key, 1024, close=0.2, steps=3)
    fitted = next(row.candidate for row in short.ranked if row.candidate.family == GD)
    assert len(fitted.parameters["step_size"]) == 3
    assert "3 steps are the most that were tried" in fitted.note
    full = analysis.identify(predictor, TASK, key, 1024, steps=12)
    assert full.verdict == GD
    np.testing.assert_allclose(full.identified.parameters["step_size"], [0.05] * 12, rtol=1e-8)


def nearly(noise, prompt):
    """A gradient step with a part that no family has."""
    return estimators.gradient_descent(prompt, 0.5) + noise * jnp.sin(prompt.labels[0])


def test_a_model_that_is_close_to_a_step_is_called_a_step_up_to_the_threshold(key):
    found = analysis.identify(eqx.Partial(nearly, 0.01), TASK, key, 1024)
    assert found.verdict == GD
    assert "no richer one beats clearly" in found.reason
    assert "only if it is closer by more than 10% and by more than 4 standard errors" in found.rule
    distance = found.distance(GD).mean
    assert 1e-3 < distance < 0.02
    assert analysis.identify(eqx.Partial(nearly, 0.01), TASK, key, 1024, close=0.9 * distance).verdict == NONE
    assert analysis.identify(eqx.Partial(nearly, 0.5), TASK, key, 1024).verdict == NONE


def test_a_richer_family_is_preferred_only_if_it_is_clearly_closer(key):
    # A preconditioner close to a multiple of the identity, beside a part that no family has.
    def predictor(tilt, noise, prompt):
        matrix = 0.5 * jnp.eye(DIM) + tilt * jnp.diag(jnp.array([1.0, -1.0, 1.0, -1.0]))
        return estimators.preconditioned_gradient_descent(prompt, matrix) + noise * jnp.sin(prompt.labels[0])

    def verdict(tilt, noise):
        return analysis.identify(eqx.Partial(predictor, np.asarray(tilt), np.asarray(noise)), TASK, key, 1024).verdict

    assert verdict(0.015, 0.0005) == OTHER
    assert verdict(0.001, 0.01) == GD


def two_heads(prompt):
    """Two softmax heads, with a part that no family has."""
    return estimators.kernel_smoother(prompt, 2.4, "odd", 2.9) + 0.05 * jnp.sin(prompt.labels[0])


@pytest.mark.slow
def test_two_softmax_heads_are_no_step_where_they_are_close_to_one(key):
    found = analysis.identify(two_heads, tasks.LinearRegression(2, 60), key, 1024)
    assert found.distance(SMOOTHER + "odd").mean < found.distance(GD).mean < 2 * found.distance(SMOOTHER + "odd").mean
    assert found.distance(GD).mean < CLOSE
    assert found.verdict == SMOOTHER + "odd"


@pytest.mark.parametrize(("step_size", "least"), [(0.003, 0.009), (0.1, 0.12)])
def test_explicit_and_implicit_steps_are_told_apart(key, step_size, least):
    families = {"online_sgd": "online SGD", "implicit_online_sgd": "implicit online SGD"}
    for name, family in families.items():
        found = analysis.identify(estimators.named(name, step_size=step_size), TASK, key, 1024)
        (other,) = set(families.values()) - {family}
        assert found.verdict == family
        # The best of the other is off to first order in the step times an input's squared norm, which is 4.5 on average.
        assert found.distance(other).mean > least
        assert found.distance(family).mean < 1e-12


def test_steps_of_kaczmarz_are_normalised_ones_and_the_limit_of_implicit_ones(key):
    found = analysis.identify(estimators.named("online_sgd", step_size=1.0, normalised=True), TASK, key, 1024)
    # Both compute it, and one of them with a step that is a number.
    assert found.verdict == STEPS_OF_OWN
    np.testing.assert_allclose(found.identified.parameters["step_size"], 1.0, rtol=1e-8)
    implicit = next(row for row in found.ranked if row.candidate.family == "implicit online SGD")
    assert implicit.distance.mean < 1e-6
    assert "upper end" in implicit.candidate.note


def nearly_online(name, noise, prompt):
    """A pass of online descent with a part that no family has."""
    return estimators.named(name, step_size=0.03)(prompt) + noise * jnp.sin(prompt.labels[0])


def test_of_explicit_and_implicit_steps_that_are_both_close_the_nearer_is_named(key):
    task = tasks.LinearRegression(5, 20)
    for name, family in (("online_sgd", "online SGD"), ("implicit_online_sgd", "implicit online SGD")):
        found = analysis.identify(eqx.Partial(nearly_online, name, 0.035), task, key, 1024)
        assert found.verdict == family
    # Neither contains the other, so that the second in the list need not halve the distance of the first.
    assert found.distance("online SGD").mean < min(CLOSE, 2 * found.distance("implicit online SGD").mean)


def with_a_part(predictor, size, prompt):
    """A predictor beside a part that no family has, some percent of it."""
    return predictor(prompt) + size * jnp.sin(3 * prompt.query[0] + prompt.labels[0])


FEW_OF_RECURRENT = ("delta rule, normalised", "retention", "gated delta rule", "delta rule with momentum", "mesa", "lags")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "gated delta rule" else pytest.mark.slow) for n in FEW_OF_RECURRENT]
)
def test_recurrent_learners_are_named_beside_a_part_that_no_family_has(name, key):
    predictor, family, parameters = RECURRENT[name]
    found = analysis.identify(eqx.Partial(with_a_part, predictor, np.asarray(0.01)), TASK, key, 1024)
    assert found.verdict == family, found
    assert 1e-3 < found.distance(family).mean < CLOSE
    for parameter, expected in parameters.items():
        scale = np.max(np.abs(expected))
        np.testing.assert_allclose(found.identified.parameters[parameter], expected, rtol=0, atol=0.02 * scale)


def test_families_that_read_the_order_are_fitted_only_where_it_counts(key):
    def families(predictor):
        return {row.candidate.family for row in analysis.identify(predictor, TASK, key, 1024, steps=2, layers=2).ranked}

    ordered = {STEPS_OF_OWN, "online SGD", "implicit online SGD", FADING, DECAYED, MOVING, FADING_RIDGE, WEIGHTED}
    without = families(estimators.named("ridge", penalty=1.0))
    assert not without & ordered
    # Its answers change by 3e-6 of their size when the examples are turned, where 1e-6 counts.
    weights = 0.05 + 1e-7 * np.arange(LENGTH)
    assert families(estimators.named("weighted_gradient_step", example_weights=weights)) == without | ordered


def broken(prompt):
    return jnp.where(prompt.query[:1] > 0, jnp.nan, 1.0)


def too_many(prompt):
    return prompt.query


def test_answers_that_are_no_answers_are_refused(key):
    with pytest.raises(NonFiniteError, match=r"answers \d+ of \d+ prompts with NaN or infinity"):
        analysis.identify(broken, TASK, key)
    with pytest.raises(InvalidValueError, match=r"the shape of a label, \(1,\); got shape \(4,\)"):
        analysis.identify(too_many, TASK, key)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": 1}, "`prompts` must be an integer >= 2; got 1"),
        ({"steps": 0}, "`steps` must be an integer >= 1; got 0"),
        ({"layers": 1}, "`layers` must be an integer >= 2; got 1"),
        ({"close": 1.5}, "0 < resolution <= close < 1; got 1e-06 and 1.5"),
        ({"tolerance": 1.0}, "0 <= tolerance < 1; got 1.0"),
        ({"resolution": 0.0}, "0 < resolution <= close < 1; got 0.0 and 0.05"),
    ],
)
def test_settings_outside_their_range_are_refused(settings, message, key):
    with pytest.raises(InvalidValueError, match=message):
        analysis.identify(estimators.ols, TASK, key, **settings)


def test_it_prints_a_table_and_gives_plain_data(key):
    found = analysis.identify(estimators.named("ridge", penalty=1.0), TASK, key, 1024)
    lines = str(found).splitlines()
    assert all(column in lines[0] for column in COLUMNS)
    assert len(lines) == len(found.ranked) + 3
    assert lines[1].split()[:4] == ["1", "ridge", "penalty", "1"]
    assert lines[-2].startswith("RIDGE: ridge (penalty 1) computes the same function")
    assert lines[-1] == "Rule: of the families within the resolution 1e-06 the simplest is named"
    data = found.plain()
    assert data["verdict"] == "ridge"
    assert [entry["family"] for entry in data["families"]] == [row.candidate.family for row in found.ranked]
    assert data["families"][0]["tell_by_answers"] is None
    assert data["families"][1]["tell_by_risk"]["prompts"] >= 2
    with pytest.raises(InvalidValueError, match=r"No family is called 'lasso'; fitted were ridge, .*zero"):
        found.distance("lasso")
