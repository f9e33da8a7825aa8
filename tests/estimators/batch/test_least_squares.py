"""Ordinary, minimum-norm and recursive least squares and ridge, against numpy, limits and Gaussian conditioning."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_lab import estimators
from icl_lab.core.errors import InvalidValueError, NonFiniteError, NotPositiveDefiniteError
from icl_lab.tasks.prompt import Prompt
from tests.prompts import normals

EPS = np.finfo(np.float64).eps
SEEDS = st.integers(0, 2**31 - 1)


def make_prompt(seed=0, *, n=9, d=4, k=1, complex_data=False, noise=0.3):
    """A prompt with inputs of bounded condition number, so that rounding stays small for every seed."""
    draw = normals(np.random.default_rng(seed), complex_data)
    left, _, right = np.linalg.svd(draw(n, d), full_matrices=False)
    inputs = (left * np.linspace(1.0, 5.0, min(n, d))[None, :]) @ right
    latent, query = draw(k, d), draw(d)
    labels = inputs @ latent.T + noise * draw(n, k)
    return Prompt(inputs, labels, query, latent @ query, latent)


def spd(seed, d=4):
    """A symmetric positive definite matrix that commutes with nothing in particular, condition number below 100."""
    root = np.random.default_rng(seed).normal(size=(d, d))
    return root @ root.T / d + 0.5 * np.eye(d)


@given(SEEDS)
def test_least_squares_recovers_the_task_exactly_from_noiseless_labels(seed):
    prompt = make_prompt(seed, noise=0.0)
    # Condition number 5; SVD least squares is backward stable.
    np.testing.assert_allclose(estimators.ols_weights(prompt), prompt.latent, atol=1e3 * EPS * 5)
    np.testing.assert_allclose(estimators.ols(prompt), prompt.target, atol=1e4 * EPS * 5)


@pytest.mark.parametrize("complex_data", [False, True])
@pytest.mark.parametrize("n", [9, 3])
def test_least_squares_agrees_with_numpy_for_long_and_short_contexts(n, complex_data):
    prompt = make_prompt(1, n=n, k=2, complex_data=complex_data)
    expected = np.linalg.lstsq(prompt.inputs, prompt.labels, rcond=None)[0].T
    np.testing.assert_allclose(estimators.ols_weights(prompt), expected, rtol=1e-12)
    np.testing.assert_allclose(estimators.ols(prompt), expected @ prompt.query, rtol=1e-11)


@pytest.mark.parametrize("complex_data", [False, True])
@pytest.mark.parametrize(("n", "d"), [(9, 4), (4, 4), (3, 6)])
@pytest.mark.parametrize("condition", [1e3, 1e6, 1e9, 1e13, np.inf])
def test_least_squares_is_as_accurate_as_a_singular_value_decomposition_at_any_condition(n, d, condition, complex_data):
    rng = np.random.default_rng(5)
    draw = lambda *shape: rng.normal(size=shape) + (1j * rng.normal(size=shape) if complex_data else 0.0)  # noqa: E731
    left, _, right = np.linalg.svd(draw(n, d), full_matrices=False)
    values = np.geomspace(1.0, 1 / condition, min(n, d)) if np.isfinite(condition) else np.r_[np.ones(min(n, d) - 1), 0.0]
    inputs = (left * values[None, :]) @ right
    labels = inputs @ draw(d, 2)
    prompt = Prompt(inputs, labels, draw(d), draw(2), None)
    found = jax.vmap(estimators.ols_weights)(jax.tree.map(lambda x: np.stack([x, x]), prompt))
    expected = np.linalg.lstsq(inputs, labels, rcond=None)[0].T
    bound = 1e2 * EPS * (condition if np.isfinite(condition) else 1.0)
    np.testing.assert_allclose(found[0], expected, atol=bound * np.abs(expected).max())
    # The labels are in the range of the inputs, and are fitted to rounding whatever the condition.
    np.testing.assert_allclose(inputs @ np.asarray(found[1]).T, labels, atol=1e3 * EPS * np.abs(labels).max())


def test_one_prompt_that_needs_the_decomposition_changes_no_other():
    good, bad = make_prompt(3), make_prompt(4)
    bad = Prompt(np.repeat(bad.inputs[:3], 3, axis=0), np.repeat(bad.labels[:3], 3, axis=0), bad.query, bad.target, bad.latent)
    both = jax.vmap(estimators.ols_weights)(jax.tree.map(lambda *x: np.stack(x), good, bad))
    np.testing.assert_array_equal(both[0], jax.vmap(estimators.ols_weights)(jax.tree.map(lambda x: x[None], good))[0])
    np.testing.assert_allclose(both[1], np.linalg.lstsq(bad.inputs, bad.labels, rcond=None)[0].T, rtol=1e-10)


@pytest.mark.parametrize("n", [9, 3])
def test_least_squares_has_derivatives_in_both_modes(n):
    prompt = make_prompt(6, n=n)

    def loss(inputs):
        return jax.numpy.sum(estimators.ols_weights(Prompt(inputs, prompt.labels, prompt.query, prompt.target)) ** 2)

    step = np.random.default_rng(0).normal(size=prompt.inputs.shape)
    slope = (loss(prompt.inputs + 1e-6 * step) - loss(prompt.inputs - 1e-6 * step)) / 2e-6
    np.testing.assert_allclose(np.sum(jax.grad(loss)(prompt.inputs) * step), slope, rtol=1e-6)
    np.testing.assert_allclose(jax.jvp(loss, (prompt.inputs,), (step,))[1], slope, rtol=1e-6)


def test_the_residual_of_complex_least_squares_is_orthogonal_to_the_conjugate_inputs():
    prompt = make_prompt(2, k=2, complex_data=True)
    residual = prompt.labels - prompt.inputs @ np.asarray(estimators.ols_weights(prompt)).T
    assert np.abs(prompt.inputs.conj().T @ residual).max() < 1e3 * EPS
    assert np.abs(prompt.inputs.T @ residual).max() > 0.1  # the conjugate is not decoration


@given(SEEDS)
def test_with_few_examples_least_squares_interpolates_within_the_span_of_the_inputs(seed):
    prompt = make_prompt(seed, n=3)
    weights = np.asarray(estimators.ols_weights(prompt))
    np.testing.assert_allclose(prompt.inputs @ weights.T, prompt.labels, atol=1e3 * EPS * np.abs(prompt.labels).max())
    null = np.linalg.svd(prompt.inputs)[2][3:]
    # No component outside the span is what makes it the interpolant of least norm.
    np.testing.assert_allclose(weights @ null.T, 0, atol=1e3 * EPS * np.linalg.norm(weights))


def test_repeated_inputs_leave_least_squares_finite_and_of_minimum_norm():
    prompt = make_prompt(3)
    inputs = np.repeat(prompt.inputs[:3], 3, axis=0)
    weights = estimators.ols_weights(Prompt(inputs, prompt.labels, prompt.query, prompt.target))
    np.testing.assert_allclose(weights, (np.linalg.pinv(inputs) @ prompt.labels).T, rtol=1e-11)


@pytest.mark.parametrize("complex_data", [False, True])
@pytest.mark.parametrize("n", [9, 3])
@pytest.mark.parametrize("penalty", [0.4, spd(5)], ids=["number", "matrix"])
def test_primal_and_dual_ridge_are_the_normal_equations(penalty, n, complex_data):
    prompt = make_prompt(4, n=n, k=2, complex_data=complex_data)
    gram = prompt.inputs.conj().T @ prompt.inputs + penalty * (np.eye(4) if np.ndim(penalty) == 0 else 1)
    expected = np.linalg.solve(gram, prompt.inputs.conj().T @ prompt.labels).T
    for dual in (False, True, None):
        np.testing.assert_allclose(estimators.ridge_weights(prompt, penalty, dual=dual), expected, rtol=1e-11)
    np.testing.assert_allclose(estimators.ridge(prompt, penalty), expected @ prompt.query, rtol=1e-11)


@pytest.mark.parametrize("n", [9, 3])
def test_ridge_tends_to_least_squares_linearly_as_the_penalty_vanishes(n):
    prompt = make_prompt(5, n=n)
    best = np.asarray(estimators.ols_weights(prompt))
    gaps = [np.linalg.norm(estimators.ridge_weights(prompt, penalty) - best) for penalty in (1e-2, 1e-3, 1e-4)]
    slopes = -np.diff(np.log10(gaps))
    # (s^2 + l)^{-1} - s^{-2} is linear in l up to l / s_min^2 = 1e-2, s_min = 1.
    np.testing.assert_allclose(slopes, 1.0, atol=1e-2)


def test_ridge_shrinks_to_zero_as_the_penalty_grows():
    prompt = make_prompt(6)
    expected = prompt.labels.T @ prompt.inputs / 1e8
    np.testing.assert_allclose(estimators.ridge_weights(prompt, 1e8), expected, rtol=1e-6)


def test_ridge_with_noise_over_prior_as_penalty_is_the_posterior_mean_by_conditioning():
    prompt, prior, noise_variance = make_prompt(7, n=5), spd(8), 0.3
    label_covariance = prompt.inputs @ prior @ prompt.inputs.T + noise_variance * np.eye(5)
    posterior = prior @ prompt.inputs.T @ np.linalg.solve(label_covariance, prompt.labels)
    penalty = noise_variance * np.linalg.inv(prior)
    np.testing.assert_allclose(estimators.ridge_weights(prompt, (penalty + penalty.T) / 2), posterior.T, rtol=1e-11)
    wrong = np.asarray(estimators.ridge_weights(prompt, noise_variance * prior))
    assert np.linalg.norm(wrong - posterior.T) > 0.01 * np.linalg.norm(posterior)


def test_a_number_as_penalty_means_that_multiple_of_the_identity():
    prompt = make_prompt(9)
    one = estimators.ridge_weights(prompt, 0.7)
    np.testing.assert_allclose(estimators.ridge_weights(prompt, 0.7 * np.eye(4)), one, rtol=1e-13)
    np.testing.assert_allclose(estimators.ridge_weights(prompt, np.asarray(0.7)), one, rtol=1e-13)


@pytest.mark.parametrize("complex_data", [False, True])
@pytest.mark.parametrize("penalty", [0.4, spd(10)], ids=["number", "matrix"])
def test_recursive_least_squares_ends_at_ridge(penalty, complex_data):
    prompt = make_prompt(11, k=2, complex_data=complex_data)
    expected = np.asarray(estimators.ridge_weights(prompt, penalty))
    weights = estimators.recursive_least_squares_weights(prompt, penalty)
    # Largest over smallest penalised eigenvalue is below 1e3.
    np.testing.assert_allclose(weights, expected, atol=1e3 * EPS * np.linalg.norm(expected))
    prediction = estimators.recursive_least_squares(prompt, penalty)
    np.testing.assert_allclose(prediction, expected @ prompt.query, rtol=1e-11)


# Compiled once for all examples of hypothesis.
fits = [
    jax.jit(fit)
    for fit in (
        estimators.ols_weights,
        lambda p: estimators.ridge_weights(p, 0.5),
        lambda p: estimators.recursive_least_squares_weights(p, 0.5),
    )
]


@given(SEEDS)
def test_least_squares_and_ridge_do_not_depend_on_the_order_of_the_context(seed):
    prompt = make_prompt(seed)
    order = np.random.default_rng(seed).permutation(9)
    shuffled = Prompt(prompt.inputs[order], prompt.labels[order], prompt.query, prompt.target)
    for fit in fits:
        one = np.asarray(fit(prompt))
        np.testing.assert_allclose(fit(shuffled), one, atol=1e4 * EPS * np.linalg.norm(one))


@given(SEEDS)
def test_least_squares_and_ridge_rotate_with_the_inputs_if_the_penalty_does(seed):
    prompt, penalty = make_prompt(seed), spd(seed)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(4, 4)))[0]
    turned_penalty = rotation @ penalty @ rotation.T
    turned_penalty = (turned_penalty + turned_penalty.T) / 2
    rotated = Prompt(prompt.inputs @ rotation.T, prompt.labels, rotation @ prompt.query, prompt.target)
    for fit, turned_fit in (
        (estimators.ols_weights, estimators.ols_weights),
        (lambda p: estimators.ridge_weights(p, penalty), lambda p: estimators.ridge_weights(p, turned_penalty)),
    ):
        expected = np.asarray(fit(prompt)) @ rotation.T
        np.testing.assert_allclose(turned_fit(rotated), expected, atol=1e4 * EPS * np.linalg.norm(expected))


@given(SEEDS, st.floats(-10, 10).filter(lambda s: abs(s) > 1e-3))
def test_least_squares_scales_with_the_labels(seed, scale):
    prompt = make_prompt(seed)
    scaled = Prompt(prompt.inputs, scale * prompt.labels, prompt.query, prompt.target)
    expected = scale * np.asarray(estimators.ols_weights(prompt))
    np.testing.assert_allclose(estimators.ols_weights(scaled), expected, atol=1e3 * EPS * np.linalg.norm(expected))


def test_ridge_maps_over_prompts_and_penalties_under_jit():
    prompts = [make_prompt(seed) for seed in range(3)]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *prompts)
    penalties = np.array([0.1, 1.0, 10.0])
    mapped = jax.jit(jax.vmap(estimators.ridge))(batch, penalties)
    expected = [estimators.ridge(p, penalty) for p, penalty in zip(prompts, penalties, strict=True)]
    np.testing.assert_allclose(mapped, expected, rtol=1e-12)


@pytest.mark.parametrize("estimator", [estimators.ridge, estimators.recursive_least_squares])
@pytest.mark.parametrize(
    ("penalty", "error", "message"),
    [
        (0.0, InvalidValueError, "`penalty` must be a finite number > 0; got 0.0. Its limit at 0 is `ols`"),
        (-1.0, InvalidValueError, "got -1.0"),
        (float("nan"), InvalidValueError, "got nan"),
        (np.eye(3), InvalidValueError, r"number or have shape \(4, 4\).*got shape \(3, 3\)"),
        (np.diag([1.0, 2.0, 3.0, -1.0]), NotPositiveDefiniteError, "`penalty` must be positive definite"),
        (np.triu(np.ones((4, 4))), NotPositiveDefiniteError, "`penalty` must be symmetric"),
    ],
)
def test_a_bad_penalty_is_named(estimator, penalty, error, message):
    with pytest.raises(error, match=message):
        estimator(make_prompt(), penalty)


def test_a_nan_in_the_inputs_is_named():
    prompt = make_prompt()
    prompt.inputs[0, 0] = np.inf
    for estimator in (estimators.ols, lambda p: estimators.ridge(p, 1.0)):
        with pytest.raises(NonFiniteError, match=r"`prompt.inputs` holds 1 NaN or infinite"):
            estimator(prompt)
