"""Mixers as predictors on a prompt, against the algorithms that they are: written without them."""

import jax
import numpy as np
import pytest

from icl_lab import estimators, mixers
from icl_lab.tasks.prompt import Prompt
from tests.mixers.sequences import K, draw_prompt, error

data = pytest.mark.parametrize("complex_data", [False, True], ids=["real", "complex"])


@data
def test_linear_attention_is_one_gradient_step_from_zero(complex_data):
    prompt = draw_prompt(0, complex_data=complex_data)
    step = 0.3 * prompt.inputs.shape[0]  # the estimator's loss is a mean, the mixer's a sum
    assert error(mixers.predictor("linear", scale=0.3)(prompt), estimators.gradient_descent(prompt, step)) <= 1e-12


@data
def test_a_decay_weights_the_errors_of_the_gradient_step(complex_data):
    prompt = draw_prompt(1, complex_data=complex_data)
    count = prompt.inputs.shape[0]
    roots = 0.8 ** ((count - 1 - np.arange(count)) / 2)[:, None]
    weighted = Prompt(roots * prompt.inputs, roots * prompt.labels, prompt.query, prompt.target)
    expected = estimators.gradient_descent(weighted, float(count))
    log_decay = float(np.log(0.8))
    for name in ("retention", "simple_gla", "gla"):
        assert error(mixers.predictor(name, scale=1.0, log_decay=log_decay)(prompt), expected) <= 1e-12


@data
def test_softmax_attention_is_the_estimator_of_nadaraya_and_watson(complex_data):
    prompt = draw_prompt(2, complex_data=complex_data)
    weights = [np.exp(0.7 * np.vdot(x, prompt.query).real) for x in prompt.inputs]
    expected = sum(w * y for w, y in zip(weights, prompt.labels, strict=True)) / sum(weights)
    assert error(mixers.predictor("softmax", scale=0.7)(prompt), expected) <= 1e-12
    assert error(mixers.predictor("softmax")(prompt), estimators.kernel_smoother(prompt, K**0.25, "exponential")) <= 1e-12


@data
@pytest.mark.parametrize("normalised", [False, True])
def test_the_delta_rule_is_online_gradient_descent(complex_data, normalised):
    prompt = draw_prompt(3, count=24, complex_data=complex_data)
    for step in (0.3, np.linspace(0.1, 0.9, 24)):
        delta = mixers.predictor("deltanet", write_strength=step, scale=1.0, normalised_step=normalised)
        assert error(delta(prompt), estimators.online_sgd(prompt, step, normalised)) <= 1e-12
        # The state is W^T, and its path is the estimator's.
        queries = np.broadcast_to(prompt.query, prompt.inputs.shape)
        outputs = delta.mixer.outputs(queries, prompt.inputs, prompt.labels, chunk=5, write_strength=step)
        assert error(outputs, estimators.online_sgd_path(prompt, step, normalised) @ prompt.query) <= 1e-12


@data
def test_longhorn_is_implicit_online_gradient_descent(complex_data):
    prompt = draw_prompt(3, count=24, complex_data=complex_data)
    for step in (0.3, 40.0, np.geomspace(0.01, 100.0, 24)):
        longhorn = mixers.predictor("longhorn", error_weight=step, scale=1.0)
        assert error(longhorn(prompt), estimators.implicit_online_sgd(prompt, step)) <= 1e-12
        queries = np.broadcast_to(prompt.query, prompt.inputs.shape)
        outputs = longhorn.mixer.outputs(queries, prompt.inputs, prompt.labels, chunk=5, error_weight=step)
        assert error(outputs, estimators.implicit_online_sgd_path(prompt, step) @ prompt.query) <= 1e-12


@data
def test_a_large_error_weight_is_the_normalised_delta_rule_and_a_small_one_the_plain_one(complex_data):
    prompt = draw_prompt(8, complex_data=complex_data)
    fitted = mixers.predictor("deltanet", write_strength=1.0, scale=1.0, normalised_step=True)(prompt)
    large = mixers.predictor("longhorn", error_weight=1e9, scale=1.0)(prompt)
    # To first order in 1 / (D |k|^2) and in D |k|^2.
    assert 1e-11 < error(large, fitted) < 1e-7
    plain = mixers.predictor("deltanet", write_strength=1e-8, scale=1.0)(prompt)
    assert 1e-11 < error(mixers.predictor("longhorn", error_weight=1e-8, scale=1.0)(prompt), plain) < 1e-7


def test_a_decay_shrinks_the_weights_before_each_step_of_the_delta_rule():
    prompt = draw_prompt(4)
    decays = np.linspace(0.5, 0.99, K)
    for name, decay in (("gated_deltanet", 0.9), ("kda", decays)):
        weights = np.zeros((prompt.labels.shape[1], K))
        for x, y in zip(prompt.inputs, prompt.labels, strict=True):
            weights = weights * decay
            weights = weights + 0.4 * np.outer(y - weights @ x, x)
        predict = mixers.predictor(name, scale=1.0, write_strength=0.4, log_decay=np.log(decay))
        assert error(predict(prompt), weights @ prompt.query) <= 1e-12


def test_two_values_under_one_key_the_delta_rule_returns_the_newer_and_linear_attention_the_sum():
    keys, values = np.eye(K)[[0, 1, 0]], np.array([[1.0], [5.0], [3.0]])
    prompt = Prompt(keys, values, np.eye(K)[0], np.zeros(1))
    assert mixers.predictor("deltanet", scale=1.0, write_strength=1.0)(prompt) == 3.0
    assert mixers.predictor("linear", scale=1.0)(prompt) == 4.0


def test_a_query_written_with_value_zero_leaves_one_minus_the_write_strength_of_a_delta_rules_answer():
    prompt = draw_prompt(5)
    query = prompt.query / np.linalg.norm(prompt.query)
    tokens = np.vstack([prompt.inputs, query]), np.vstack([prompt.labels, 0 * prompt.labels[:1]])
    written = {}
    for last in (0.7, 0.0):
        strengths = np.append(np.full(7, 0.7), last)
        queries = np.broadcast_to(query, tokens[0].shape)
        written[last] = mixers.named("deltanet", scale=1.0).outputs(queries, *tokens, write_strength=strengths)[-1]
    right = mixers.named("deltanet", scale=1.0).read(query, prompt.inputs, prompt.labels, write_strength=0.7)
    assert error(written[0.0], right) <= 1e-13
    assert error(written[0.7], 0.3 * right) <= 1e-12


def test_a_predictor_is_a_pytree_that_maps_over_prompts_and_differentiates_in_its_parameters():
    prompts = [draw_prompt(seed) for seed in (6, 7)]
    batch = jax.tree.map(lambda *x: np.stack(x), *prompts)
    predict = mixers.predictor("deltanet", write_strength=np.asarray(0.3), scale=1.0)
    answers = jax.jit(jax.vmap(predict))(batch)
    assert error(answers, np.stack([predict(prompt) for prompt in prompts])) <= 1e-12

    def answer(strength):
        return mixers.predictor("deltanet", write_strength=strength, scale=1.0)(prompts[0])

    difference = (answer(0.3 + 1e-6) - answer(0.3 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.jacfwd(answer)(0.3), difference, rtol=1e-7)
