"""Softmax self-attention against the sum written out token by token, and its linear limit."""

import itertools

import jax
import numpy as np
import pytest

from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.models import LSAWeights, SeparateWeights, SoftmaxSelfAttention
from tests.models.attention_reference import merged_tokens, random_prompt, softmax_reference

N, DIM, LABELS, WIDTH = 5, 2, 1, 3
# Rounding: sums of at most ~100 products of numbers of order one.
ROUNDING = {"rtol": 1e-12, "atol": 1e-12}


def draw_weights(rng, heads):
    return LSAWeights(w_pv=rng.normal(size=(heads, WIDTH, WIDTH)) / 2, w_kq=rng.normal(size=(heads, WIDTH, WIDTH)) / 2)


def as_heads(weights):
    return list(zip(weights.w_pv, weights.w_kq, strict=True))


@pytest.mark.parametrize(("query_in_sum", "causal"), list(itertools.product([True, False], repeat=2)))
def test_equals_the_token_by_token_softmax(rng, query_in_sum, causal):
    model = SoftmaxSelfAttention(query_in_sum=query_in_sum, causal=causal, inverse_temperature=0.7, readout_sign=-1.0)
    prompt = random_prompt(rng, N, DIM, LABELS)
    layers = (draw_weights(rng, 2), draw_weights(rng, 1))
    for weights in (layers[0], layers):
        stack = weights if isinstance(weights, tuple) else (weights,)
        expected = softmax_reference(model, [as_heads(layer) for layer in stack], merged_tokens(prompt))
        np.testing.assert_allclose(model.apply(weights, model.tokens(prompt)), expected, **ROUNDING)
        np.testing.assert_allclose(model(weights, prompt), -expected[-1, DIM:], **ROUNDING)


def test_loops_repeat_the_layer(rng):
    prompt, weights = random_prompt(rng, N, DIM, LABELS), draw_weights(rng, 1)
    expected = softmax_reference(SoftmaxSelfAttention(), [as_heads(weights)] * 3, merged_tokens(prompt))[-1, DIM:]
    np.testing.assert_allclose(SoftmaxSelfAttention(loops=3)(weights, prompt), expected, **ROUNDING)


def test_separate_weights_give_the_merged_answer(rng):
    separate = SeparateWeights(*(rng.normal(size=(WIDTH, WIDTH)) for _ in range(4)))
    heads = [(separate.w_p @ separate.w_v, separate.w_k.T @ separate.w_q)]
    prompt, model = random_prompt(rng, N, DIM, LABELS), SoftmaxSelfAttention()
    expected = softmax_reference(model, [heads], merged_tokens(prompt))[-1, DIM:]
    np.testing.assert_allclose(model(separate, prompt), expected, **ROUNDING)


def test_a_token_without_predecessors_is_left_alone_with_a_finite_gradient(rng):
    model = SoftmaxSelfAttention(query_in_sum=False, causal=True)
    prompt, layers = random_prompt(rng, N, DIM, LABELS), (draw_weights(rng, 1), draw_weights(rng, 1))
    tokens = model.tokens(prompt)
    np.testing.assert_array_equal(model.apply(layers, tokens)[0], tokens[0])
    gradient = jax.jit(jax.grad(lambda w: model(w, prompt)[0]))(layers)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_large_scores_do_not_overflow(rng):
    model = SoftmaxSelfAttention(inverse_temperature=1e6)
    assert np.all(np.isfinite(model(draw_weights(rng, 2), random_prompt(rng, N, DIM, LABELS))))


def test_two_opposite_cold_heads_take_a_gradient_step_on_centred_inputs(rng):
    """Heads (V, e K) and (-V, -e K): the difference is 2e/N (s_i - mean s) with an error of third order in e."""
    prompt, step_size = random_prompt(rng, N, DIM, LABELS), 0.7
    centred = prompt.inputs - prompt.inputs.mean(axis=0)
    expected = step_size / N * np.sum(prompt.labels[:, 0] * (centred @ prompt.query))
    w_pv, w_kq = np.zeros((WIDTH, WIDTH)), np.diag([1.0, 1.0, 0.0])
    w_pv[-1, -1] = step_size / 2
    errors = []
    for small in (1e-1, 1e-2, 1e-3):
        weights = LSAWeights(w_pv=np.stack([w_pv, -w_pv]) / small, w_kq=np.stack([w_kq, -w_kq]) * small)
        answer = SoftmaxSelfAttention(query_in_sum=False)(weights, prompt)
        errors.append(abs(float(answer[0]) - expected))
    # Third order in e, divided by e: a tenth of e is a hundredth of the error, up to the next order.
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(100, rel=0.05)


def test_bad_settings_and_complex_prompts_are_refused(rng):
    with pytest.raises(InvalidValueError, match="inverse_temperature"):
        SoftmaxSelfAttention(inverse_temperature=0.0)
    with pytest.raises(UnsupportedProblemError, match="complex128"):
        SoftmaxSelfAttention()(draw_weights(rng, 1), random_prompt(rng, N, DIM, LABELS, np.complex128))
