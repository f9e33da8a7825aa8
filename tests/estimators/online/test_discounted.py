"""Weighted and discounted examples: sums written out, limits, and the two ways to forget that differ."""

import jax
import numpy as np
import pytest

from icl_lab import estimators
from icl_lab.core.errors import InvalidValueError
from icl_lab.tasks.prompt import Prompt
from tests.prompts import random_prompt

data = pytest.mark.parametrize("complex_data", [False, True], ids=["real", "complex"])


def left(factors):
    """The products of all later factors, one example after the other."""
    return np.stack([np.prod(factors[i + 1 :], axis=0) for i in range(len(factors))])


@data
def test_a_weighted_step_is_the_sum_of_the_weighted_gradients_at_zero(complex_data):
    prompt = random_prompt(0, complex_data=complex_data)
    weights = np.linspace(-0.3, 0.9, 7)
    expected = sum(c * np.outer(y, x.conj()) for c, x, y in zip(weights, prompt.inputs, prompt.labels, strict=True))
    np.testing.assert_allclose(estimators.weighted_gradient_step_weights(prompt, weights), expected, rtol=1e-12)
    np.testing.assert_allclose(estimators.weighted_gradient_step(prompt, weights), expected @ prompt.query, rtol=1e-12)
    # It is half the gradient of the weighted loss, by central differences in each entry.
    start = np.zeros((2, 3), prompt.inputs.dtype)
    for place in ((0, 0), (1, 2)):
        bump = start.copy()
        bump[place] = 1e-6

        def loss(matrix):
            return 0.5 * np.sum(weights[:, None] * np.abs(prompt.labels - prompt.inputs @ matrix.T) ** 2)

        slope = (loss(-bump) - loss(bump)) / 2e-6
        np.testing.assert_allclose(np.real(expected[place]), slope, rtol=1e-7)


@data
@pytest.mark.parametrize("shape", [(), (3,), (7, 1), (7, 3)], ids=str)
def test_examples_fade_by_all_later_decays(shape, complex_data):
    prompt = random_prompt(1, complex_data=complex_data)
    decay = np.random.default_rng(2).uniform(0.5, 1.0, size=shape)
    decay = float(decay) if shape == () else decay
    steps = np.linspace(0.1, 0.4, 7)
    state = np.zeros((2, 3), prompt.inputs.dtype)
    for t, (x, y) in enumerate(zip(prompt.inputs, prompt.labels, strict=True)):
        state = state * np.broadcast_to(decay, (7, 3))[t] + steps[t] * np.outer(y, x.conj())
    np.testing.assert_allclose(estimators.discounted_gradient_step_weights(prompt, steps, decay), state, rtol=1e-11)
    np.testing.assert_allclose(estimators.discounted_gradient_step(prompt, steps, decay), state @ prompt.query, rtol=1e-11)


def test_without_decay_it_is_a_step_of_gradient_descent_and_with_decay_zero_the_last_example_alone():
    prompt = random_prompt(3)
    plain = estimators.gradient_descent(prompt, 0.2 * 7)
    np.testing.assert_allclose(estimators.discounted_gradient_step(prompt, 0.2, 1.0), plain, rtol=1e-13)
    last = 0.2 * prompt.labels[-1] * (prompt.inputs[-1] @ prompt.query)
    np.testing.assert_allclose(estimators.discounted_gradient_step(prompt, 0.2, 0.0), last, rtol=1e-13)


def test_geometric_weights_are_free_weights():
    prompt = random_prompt(4)
    geometric = 0.3 * 0.8 ** np.arange(6, -1, -1.0)
    np.testing.assert_allclose(
        estimators.discounted_gradient_step(prompt, 0.3, 0.8), estimators.weighted_gradient_step(prompt, geometric), rtol=1e-13
    )


@data
@pytest.mark.parametrize("each", [False, True], ids=["one", "each"])
def test_discounted_ridge_solves_the_weighted_normal_equations(each, complex_data):
    prompt = random_prompt(5, complex_data=complex_data)
    decay = np.linspace(0.6, 0.95, 7)[:, None] if each else 0.8
    strength = np.linspace(0.2, 1.3, 7) if each else 0.7
    penalty = np.diag([0.3, 0.5, 0.9]) if each else 0.4
    weights = np.broadcast_to(strength, 7) * left(np.broadcast_to(np.ravel(decay), 7))
    adjoint = prompt.inputs.conj().T * weights[None, :]
    normal = adjoint @ prompt.inputs + (penalty if each else penalty * np.eye(3))
    expected = np.linalg.solve(normal, adjoint @ prompt.labels).T
    np.testing.assert_allclose(estimators.discounted_ridge_weights(prompt, penalty, decay, strength), expected, rtol=1e-11)
    answer = estimators.discounted_ridge(prompt, penalty, decay, strength)
    np.testing.assert_allclose(answer, expected @ prompt.query, rtol=1e-11)


def test_without_decay_discounted_ridge_is_ridge_and_a_small_penalty_leaves_weighted_least_squares():
    prompt = random_prompt(6)
    np.testing.assert_allclose(estimators.discounted_ridge(prompt, 0.5, 1.0), estimators.ridge(prompt, 0.5), rtol=1e-13)
    np.testing.assert_allclose(estimators.discounted_ridge(prompt, 0.5, 1.0, 0.25), estimators.ridge(prompt, 2.0), rtol=1e-13)
    roots = np.sqrt(0.7 ** np.arange(6, -1, -1.0))[:, None]
    faded = Prompt(roots * prompt.inputs, roots * prompt.labels, prompt.query, prompt.target)
    np.testing.assert_allclose(estimators.discounted_ridge(prompt, 1e-12, 0.7), estimators.ols(faded), rtol=1e-9)


@data
def test_recursive_least_squares_forgets_its_penalty_and_discounted_ridge_does_not(complex_data):
    prompt = random_prompt(7, complex_data=complex_data)
    forgetting, penalty = 0.8, 0.9
    recursive = estimators.recursive_least_squares_weights(prompt, penalty, forgetting)
    faded = estimators.discounted_ridge_weights(prompt, penalty * forgetting**7, forgetting)
    np.testing.assert_allclose(recursive, faded, rtol=1e-10)
    kept = np.asarray(estimators.discounted_ridge_weights(prompt, penalty, forgetting))
    assert np.linalg.norm(recursive - kept) > 0.01 * np.linalg.norm(kept)
    path = estimators.recursive_least_squares_path(prompt, penalty, forgetting)
    for t in (1, 4):
        start = Prompt(prompt.inputs[:t], prompt.labels[:t], prompt.query, prompt.target)
        expected = estimators.discounted_ridge_weights(start, penalty * forgetting**t, forgetting)
        np.testing.assert_allclose(path[t - 1], expected, rtol=1e-10)
    answer = estimators.recursive_least_squares(prompt, penalty, forgetting)
    np.testing.assert_allclose(answer, path[-1] @ prompt.query, rtol=1e-12)


def test_a_discount_maps_over_prompts_and_differentiates():
    prompts = [random_prompt(seed) for seed in (8, 9)]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *prompts)
    decays = np.array([0.7, 0.9])
    for fit in (
        lambda prompt, decay: estimators.discounted_gradient_step(prompt, 0.1, decay),
        lambda prompt, decay: estimators.discounted_ridge(prompt, 0.5, decay),
        lambda prompt, decay: estimators.recursive_least_squares(prompt, 0.5, decay),
    ):
        expected = [fit(prompt, decay) for prompt, decay in zip(prompts, decays, strict=True)]
        np.testing.assert_allclose(jax.jit(jax.vmap(fit))(batch, decays), expected, rtol=1e-12)
        slope = jax.jacfwd(lambda decay, fit=fit: fit(prompts[0], decay))(0.7)
        difference = (fit(prompts[0], 0.7 + 1e-6) - fit(prompts[0], 0.7 - 1e-6)) / 2e-6
        np.testing.assert_allclose(slope, difference, rtol=1e-6)


def test_bad_weights_decays_and_strengths_are_refused():
    prompt = random_prompt(10)
    with pytest.raises(InvalidValueError, match=r"`example_weights` must have one entry per example, \(7,\).*got shape \(3,\)"):
        estimators.weighted_gradient_step(prompt, np.ones(3))
    with pytest.raises(InvalidValueError, match="`example_weights` must be finite"):
        estimators.weighted_gradient_step(prompt, np.full(7, np.nan))
    with pytest.raises(InvalidValueError, match=r"`decay` must be in \[0, 1\].*got 1.1"):
        estimators.discounted_gradient_step(prompt, 0.1, 1.1)
    with pytest.raises(InvalidValueError, match=r"one per coordinate \(3,\), per example \(7, 1\).*got shape \(7,\)"):
        estimators.discounted_gradient_step(prompt, 0.1, np.full(7, 0.5))
    with pytest.raises(InvalidValueError, match="`decay`"):
        estimators.discounted_ridge(prompt, 0.1, np.nan)
    with pytest.raises(InvalidValueError, match="`strength` must be >= 0, so that the loss has a minimum"):
        estimators.discounted_ridge(prompt, 0.1, 0.5, -1.0)
    with pytest.raises(InvalidValueError, match=r"`strength` must be a number or one per example, \(7,\); got shape \(3,\)"):
        estimators.discounted_ridge(prompt, 0.1, 0.5, np.ones(3))
    for forgetting in (0.0, 1.5, np.nan):
        with pytest.raises(InvalidValueError, match=r"`forgetting` must be in \(0, 1\]"):
            estimators.recursive_least_squares(prompt, 0.1, forgetting)
