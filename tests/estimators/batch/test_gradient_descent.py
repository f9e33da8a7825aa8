"""Gradient steps, GD++ and preconditioned steps, against closed forms and explicit numpy loops over examples."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_lab import estimators
from icl_lab.core.errors import InvalidValueError, NonFiniteError
from icl_lab.tasks.prompt import Prompt
from tests.prompts import normals

EPS = np.finfo(np.float64).eps
SEEDS = st.integers(0, 2**31 - 1)


def make_prompt(seed=0, *, n=7, d=4, k=1, complex_data=False, noise=0.3):
    """A prompt with anisotropic inputs and labels that no matrix fits exactly."""
    rng = np.random.default_rng(seed)
    draw = normals(rng, complex_data)
    mixing = np.triu(rng.normal(size=(d, d))) + 1.5 * np.eye(d)
    inputs, query, latent = draw(n, d) @ mixing, draw(d), draw(k, d)
    labels = inputs @ latent.T + noise * draw(n, k)
    return Prompt(inputs, labels, query, latent @ query, latent)


def stable_step(prompt):
    """A step size that keeps every eigenvalue of I - eta S within (-1, 1)."""
    gram = prompt.inputs.conj().T @ prompt.inputs / len(prompt.inputs)
    return 0.9 / np.linalg.eigvalsh(gram)[-1]


@pytest.mark.parametrize("complex_data", [False, True])
def test_one_step_from_zero_is_the_mean_of_label_times_conjugate_input(complex_data):
    prompt = make_prompt(k=2, complex_data=complex_data)
    weights = estimators.gradient_descent_weights(prompt, 0.7)
    pairs = zip(prompt.labels, prompt.inputs, strict=True)
    expected = 0.7 * np.mean([np.outer(y, x.conj()) for y, x in pairs], axis=0)
    np.testing.assert_allclose(weights, expected, rtol=100 * EPS)
    np.testing.assert_allclose(estimators.gradient_descent(prompt, 0.7), expected @ prompt.query, rtol=1000 * EPS)


@pytest.mark.parametrize("complex_data", [False, True])
def test_a_step_goes_down_the_gradient_of_the_mean_half_squared_error(complex_data):
    prompt = make_prompt(seed=3, k=2, complex_data=complex_data)
    rng = np.random.default_rng(1)
    start = rng.normal(size=(2, 4)) + (1j * rng.normal(size=(2, 4)) if complex_data else 0.0)

    def loss(real, imaginary):
        residuals = jnp.asarray(prompt.inputs + 0j) @ jax.lax.complex(real, imaginary).T - (prompt.labels + 0j)
        return jnp.sum(jnp.abs(residuals) ** 2) / (2 * len(prompt.inputs))

    real, imaginary = jax.grad(loss, argnums=(0, 1))(jnp.asarray(start.real), jnp.asarray(np.imag(start)))
    step = start - estimators.gradient_descent_weights(prompt, 1.0, initial=start)
    np.testing.assert_allclose(step.real, real, atol=1e-13 * np.abs(real).max())
    if complex_data:
        np.testing.assert_allclose(step.imag, imaginary, atol=1e-13 * np.abs(imaginary).max())


def test_many_steps_are_the_truncated_neumann_series_of_least_squares():
    prompt = make_prompt(seed=5, n=9, k=2)
    gram = prompt.inputs.T @ prompt.inputs / 9
    eta, steps = stable_step(prompt), 12
    power = np.linalg.matrix_power(np.eye(4) - eta * gram, steps)
    filtered = (np.eye(4) - power) @ np.linalg.inv(gram)
    expected = prompt.labels.T @ prompt.inputs / 9 @ filtered.T
    weights = estimators.gradient_descent_weights(prompt, eta, steps)
    np.testing.assert_allclose(weights, expected, rtol=100 * EPS * np.linalg.cond(gram), atol=0)


def test_from_a_start_the_distance_to_least_squares_shrinks_by_the_power_of_the_step_matrix():
    prompt = make_prompt(seed=6, n=9, k=2)
    gram = prompt.inputs.T @ prompt.inputs / 9
    eta, start = stable_step(prompt), np.random.default_rng(2).normal(size=(2, 4))
    best = np.linalg.lstsq(prompt.inputs, prompt.labels, rcond=None)[0].T
    weights = estimators.gradient_descent_weights(prompt, eta, 5, start)
    expected = best + (start - best) @ np.linalg.matrix_power(np.eye(4) - eta * gram, 5)
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e3 * EPS * np.linalg.norm(expected))
    np.testing.assert_array_equal(estimators.gradient_descent_weights(prompt, eta, 0, start), start)


def test_step_sizes_of_each_step_compose_one_step_at_a_time():
    prompt, sizes = make_prompt(seed=8), np.array([0.1, 0.4, 0.2])
    weights = np.zeros((1, 4))
    for size in sizes:
        weights = estimators.gradient_descent_weights(prompt, size, initial=weights)
    np.testing.assert_allclose(estimators.gradient_descent_weights(prompt, sizes), weights, rtol=1e-13)
    reversed_order = estimators.gradient_descent_weights(prompt, sizes[::-1].copy())
    np.testing.assert_allclose(reversed_order, weights, rtol=1e-12)  # from zero the polynomial is symmetric in the sizes
    assert not np.allclose(estimators.gradient_descent_weights(prompt, sizes[:2]), weights, rtol=1e-3)


def test_a_preconditioner_acts_on_the_input_side_and_is_not_transposed():
    prompt = make_prompt(seed=9)
    matrix = np.random.default_rng(4).normal(size=(4, 4))
    mean = np.mean(prompt.labels * prompt.inputs, axis=0)
    prediction = estimators.preconditioned_gradient_descent(prompt, matrix)
    np.testing.assert_allclose(prediction, [prompt.query @ matrix @ mean], rtol=1e3 * EPS)
    assert abs(prompt.query @ matrix.T @ mean - prediction[0]) > 0.1 * abs(prediction[0])


def test_a_multiple_of_the_identity_preconditions_as_a_step_size():
    prompt = make_prompt(seed=10, k=2, complex_data=True)
    start = np.random.default_rng(5).normal(size=(2, 4)) + 0j
    one = estimators.preconditioned_gradient_descent(prompt, 0.1 * np.eye(4), 3, start)
    other = estimators.gradient_descent(prompt, 0.1, 3, start)
    np.testing.assert_allclose(one, other, rtol=1e-13)


def test_preconditioners_of_each_step_follow_the_recursion_in_the_task_vector():
    prompt = make_prompt(seed=11)
    matrices = 0.2 * np.random.default_rng(6).normal(size=(3, 4, 4))
    task = np.zeros(4)
    for matrix in matrices:
        residuals = prompt.inputs @ task - prompt.labels[:, 0]
        task = task - matrix @ (prompt.inputs.T @ residuals) / 7
    weights = estimators.preconditioned_gradient_descent_weights(prompt, matrices)
    np.testing.assert_allclose(weights, task[None, :], rtol=1e-12)


def test_the_inverse_gram_matrix_as_preconditioner_reaches_least_squares_in_one_step():
    prompt = make_prompt(seed=12, n=9)
    inverse = np.linalg.inv(prompt.inputs.T @ prompt.inputs / 9)
    start = np.random.default_rng(7).normal(size=(1, 4))
    best = np.linalg.lstsq(prompt.inputs, prompt.labels, rcond=None)[0].T
    weights = estimators.preconditioned_gradient_descent_weights(prompt, inverse, initial=start)
    condition = np.linalg.cond(inverse)
    np.testing.assert_allclose(weights, best, atol=100 * EPS * condition * np.linalg.norm(start))


def gd_plus_plus_by_tokens(prompt, sizes, gammas, start):
    """GD++ token by token: every update of a layer is computed from the inputs before it."""
    xs, ys = [*prompt.inputs, prompt.query], [*prompt.labels, -start @ prompt.query]
    n = len(prompt.inputs)
    for size, gamma in zip(sizes, gammas, strict=True):
        gram = sum(np.outer(x, x.conj()) for x in xs[:n])
        errors = [start @ x - y for x, y in zip(xs[:n], ys[:n], strict=True)]
        delta = -size / n * sum(np.outer(e, x.conj()) for e, x in zip(errors, xs[:n], strict=True))
        xs, ys = [x - gamma * gram @ x for x in xs], [y - delta @ x for x, y in zip(xs, ys, strict=True)]
    return -ys[-1]


@pytest.mark.parametrize("complex_data", [False, True])
def test_gd_plus_plus_updates_inputs_and_labels_of_every_token_at_once(complex_data):
    prompt = make_prompt(seed=13, k=2, complex_data=complex_data)
    sizes, gammas = np.array([0.3, 0.2, 0.5, 0.1]), np.array([0.01, 0.02, 0.005, 0.03])
    start = np.random.default_rng(8).normal(size=(2, 4)) + (0.5j if complex_data else 0.0)
    expected = gd_plus_plus_by_tokens(prompt, sizes, gammas, start)
    np.testing.assert_allclose(estimators.gd_plus_plus(prompt, sizes, gammas, start), expected, rtol=1e-12)


def test_gd_plus_plus_on_realisable_labels_is_the_composed_polynomial_of_the_gram_matrix():
    prompt = make_prompt(seed=14, n=6, noise=0.0)
    sizes, gammas = np.array([0.3, 0.2, 0.1, 0.4]), np.array([0.02, 0.01, 0.015, 0.3])
    values, vectors = np.linalg.eigh(prompt.inputs.T @ prompt.inputs)
    rho, p = np.ones(4), np.ones(4)
    for size, gamma in zip(sizes, gammas, strict=True):
        rho, p = rho * (1 - size / 6 * values * p**2), p * (1 - gamma * values * p**2)
    expected = prompt.latent @ (np.eye(4) - (vectors * rho[None, :]) @ vectors.T)
    weights = estimators.gd_plus_plus_weights(prompt, sizes, gammas)
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-12 * np.linalg.norm(expected))
    last_ignored = estimators.gd_plus_plus_weights(prompt, sizes, np.array([0.02, 0.01, 0.015, -5.0]))
    np.testing.assert_array_equal(last_ignored, weights)


def test_gd_plus_plus_without_curvature_is_gradient_descent():
    prompt, start = make_prompt(seed=15, k=2), np.random.default_rng(9).normal(size=(2, 4))
    sizes = np.array([0.2, 0.1, 0.3])
    one = estimators.gd_plus_plus_weights(prompt, sizes, np.zeros(3), start)
    np.testing.assert_allclose(one, estimators.gradient_descent_weights(prompt, sizes, None, start), rtol=1e-12)


# Compiled once for all examples of hypothesis.
three_steps = jax.jit(lambda p, step: estimators.gradient_descent_weights(p, step, 3))
three_layers = jax.jit(estimators.gd_plus_plus_weights)


@given(SEEDS)
def test_gradient_steps_do_not_depend_on_the_order_of_the_context(seed):
    prompt = make_prompt(seed)
    order = np.random.default_rng(seed).permutation(7)
    shuffled = Prompt(prompt.inputs[order], prompt.labels[order], prompt.query, prompt.target)
    expected = three_steps(prompt, stable_step(prompt))
    weights = three_steps(shuffled, stable_step(prompt))
    np.testing.assert_allclose(weights, expected, atol=1e3 * EPS * np.linalg.norm(expected))


@given(SEEDS)
def test_gradient_steps_and_gd_plus_plus_rotate_with_the_inputs(seed):
    prompt = make_prompt(seed)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(4, 4)))[0]
    rotated = Prompt(prompt.inputs @ rotation.T, prompt.labels, rotation @ prompt.query, prompt.target)
    step = stable_step(prompt)
    expected = np.asarray(three_steps(prompt, step)) @ rotation.T
    np.testing.assert_allclose(three_steps(rotated, step), expected, atol=1e4 * EPS * np.linalg.norm(expected))
    sizes, gammas = np.full(3, step), np.full(3, 0.1 * step / 7)
    expected = np.asarray(three_layers(prompt, sizes, gammas)) @ rotation.T
    np.testing.assert_allclose(three_layers(rotated, sizes, gammas), expected, atol=1e4 * EPS * np.linalg.norm(expected))


def test_estimators_map_over_a_batch_and_compile_under_jit():
    prompts = [make_prompt(seed) for seed in range(3)]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *prompts)
    mapped = jax.jit(jax.vmap(lambda p: estimators.gradient_descent(p, 0.1, 2)))(batch)
    expected = [estimators.gradient_descent(p, 0.1, 2) for p in prompts]
    np.testing.assert_allclose(mapped, expected, rtol=1e-12)


@pytest.mark.default_precision
def test_outside_the_float64_scope_the_computation_runs_in_float32():
    prediction = estimators.gradient_descent(make_prompt(), 0.1)
    assert prediction.dtype == np.float32


def test_a_nan_in_the_prompt_is_named_before_anything_is_computed():
    prompt = make_prompt()
    prompt.labels[2, 0] = np.nan
    with pytest.raises(NonFiniteError, match=r"`prompt.labels` holds 1 NaN"):
        estimators.gradient_descent(prompt, 0.1)


def test_a_batch_without_vmap_is_refused_with_the_remedy():
    batch = jax.tree.map(lambda leaf: leaf[None], make_prompt())
    with pytest.raises(InvalidValueError, match=r"one prompt.*jax\.vmap"):
        estimators.gradient_descent(batch, 0.1)


def test_an_empty_context_is_refused():
    prompt = make_prompt()
    empty = eqx.tree_at(lambda p: (p.inputs, p.labels), prompt, (prompt.inputs[:0], prompt.labels[:0]))
    with pytest.raises(InvalidValueError, match="N >= 1 examples"):
        estimators.gradient_descent(empty, 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_size": np.nan}, "`step_size` must be finite"),
        ({"step_size": 0.1, "steps": -1}, "`steps` must be an integer >= 0; got -1"),
        ({"step_size": np.array([0.1, 0.2]), "steps": 3}, r"one per step \(3\); got shape \(2,\)"),
        ({"step_size": 0.1, "initial": np.zeros((2, 4))}, r"shape \(k, d\) = \(1, 4\); got shape \(2, 4\)"),
        ({"step_size": 0.1, "initial": np.full((1, 4), np.inf)}, "`initial` must be finite"),
    ],
)
def test_bad_parameters_of_gradient_descent_are_named(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        estimators.gradient_descent(make_prompt(), **arguments)


def test_bad_parameters_of_the_matrix_steps_are_named():
    prompt = make_prompt()
    with pytest.raises(InvalidValueError, match=r"shape \(4, 4\) or \(steps, 4, 4\).*got shape \(3, 3\)"):
        estimators.preconditioned_gradient_descent(prompt, np.eye(3))
    with pytest.raises(InvalidValueError, match="`steps` is 2, but 3 preconditioners"):
        estimators.preconditioned_gradient_descent(prompt, np.ones((3, 4, 4)), steps=2)
    with pytest.raises(InvalidValueError, match="`curvatures` must be finite"):
        estimators.gd_plus_plus(prompt, np.ones(2), np.array([0.1, np.nan]))
