"""Linear self-attention against the sum written out token by token, its symmetries, and what it costs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_lab.core import precision
from icl_lab.core.errors import InvalidValueError
from icl_lab.models import LinearSelfAttention, LSAWeights, SeparateWeights, SoftmaxSelfAttention
from tests.models.attention_reference import linear_reference, merged_tokens, random_prompt, shapes_in

N, DIM, LABELS = 5, 2, 1
WIDTH = DIM + LABELS
# Rounding: sums of at most ~100 products of numbers of order one.
ROUNDING = {"rtol": 1e-12, "atol": 1e-12}
FLAGS = list(itertools.product([True, False], ["context_length", "none"], [False, True]))


def draw_weights(rng, heads=None, dtype=np.float64, width=WIDTH):
    shape = (width, width) if heads is None else (heads, width, width)
    draw = [rng.normal(size=shape) / 2 for _ in range(4)]
    if np.issubdtype(dtype, np.complexfloating):
        return LSAWeights(w_pv=draw[0] + 1j * draw[1], w_kq=draw[2] + 1j * draw[3])
    return LSAWeights(w_pv=draw[0].astype(dtype), w_kq=draw[2].astype(dtype))


def as_heads(weights):
    """The heads of one layer as a list of (w_pv, w_kq)."""
    if weights.w_pv.ndim == 2:
        return [(weights.w_pv, weights.w_kq)]
    return list(zip(weights.w_pv, weights.w_kq, strict=True))


@pytest.mark.parametrize(("query_in_sum", "normaliser", "causal"), FLAGS)
@pytest.mark.parametrize("heads", [None, 2])
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_equals_the_token_by_token_sum(rng, query_in_sum, normaliser, causal, heads, dtype):
    model = LinearSelfAttention(query_in_sum=query_in_sum, normaliser=normaliser, causal=causal)
    prompt = random_prompt(rng, N, DIM, LABELS, dtype)
    weights = draw_weights(rng, heads, dtype)
    expected = linear_reference(model, [as_heads(weights)], merged_tokens(prompt))
    np.testing.assert_allclose(model.apply(weights, model.tokens(prompt)), expected, **ROUNDING)
    np.testing.assert_allclose(model(weights, prompt), expected[-1, DIM:], **ROUNDING)


@pytest.mark.parametrize(("query_in_sum", "normaliser", "causal"), FLAGS)
def test_the_last_of_several_layers_needs_only_the_query(rng, query_in_sum, normaliser, causal):
    model = LinearSelfAttention(query_in_sum=query_in_sum, normaliser=normaliser, causal=causal, readout_sign=-1.0)
    prompt = random_prompt(rng, N, DIM, LABELS)
    layers = tuple(draw_weights(rng, heads) for heads in (None, 2, 1))
    expected = linear_reference(model, [as_heads(layer) for layer in layers], merged_tokens(prompt))
    # Three layers multiply the magnitudes, here up to 1e4, so the tolerance is relative to the largest token entry.
    atol = 1e-12 * np.abs(expected).max()
    np.testing.assert_allclose(model.apply(layers, model.tokens(prompt)), expected, rtol=1e-12, atol=atol)
    np.testing.assert_allclose(model(layers, prompt), -expected[-1, DIM:], rtol=1e-12, atol=atol)


def test_loops_repeat_the_whole_stack(rng):
    prompt = random_prompt(rng, N, DIM, LABELS)
    first, second = draw_weights(rng), draw_weights(rng)
    once, thrice = LinearSelfAttention(query_in_sum=False), LinearSelfAttention(query_in_sum=False, loops=3)
    for weights, unrolled in ((first, (first,) * 3), ((first, second), (first, second) * 3)):
        expected = once.apply(unrolled, once.tokens(prompt))
        np.testing.assert_allclose(thrice.apply(weights, thrice.tokens(prompt)), expected, rtol=1e-11)
        np.testing.assert_allclose(thrice(weights, prompt), once(unrolled, prompt), rtol=1e-11)


def test_looped_gradient_equals_the_sum_over_unrolled_layers(rng):
    prompt, weights = random_prompt(rng, N, DIM, LABELS), draw_weights(rng)
    looped, plain = LinearSelfAttention(loops=2), LinearSelfAttention()
    gradient = jax.jit(jax.grad(lambda w: looped(w, prompt)[0]))(weights)
    first, second = jax.jit(jax.grad(lambda w: plain(w, prompt)[0]))((weights, weights))
    np.testing.assert_allclose(gradient.w_kq, first.w_kq + second.w_kq, rtol=1e-11)


@pytest.mark.parametrize(("query_in_sum", "normaliser", "causal"), FLAGS)
def test_the_gram_identity_holds(rng, query_in_sum, normaliser, causal):
    model = LinearSelfAttention(query_in_sum=query_in_sum, normaliser=normaliser, causal=causal, readout_sign=-1.0)
    prompt, weights = random_prompt(rng, N, DIM, 2, np.complex128), draw_weights(rng, None, np.complex128, DIM + 2)
    tokens = merged_tokens(prompt)
    attended = tokens if query_in_sum else tokens[:-1]
    by_hand = sum(np.outer(e, e.conj()) for e in attended) / (N if normaliser == "context_length" else 1)
    gram = model.gram(model.tokens(prompt))
    np.testing.assert_allclose(gram, by_hand, **ROUNDING)
    update = weights.w_pv @ np.asarray(gram) @ weights.w_kq @ tokens[-1]
    np.testing.assert_allclose(model(weights, prompt), -update[DIM:], **ROUNDING)


def test_rho_is_n_while_the_sum_has_n_plus_one_tokens():
    model = LinearSelfAttention()
    tokens = jnp.ones((N + 1, WIDTH))
    np.testing.assert_allclose(model.gram(tokens), np.full((WIDTH, WIDTH), (N + 1) / N), rtol=1e-15)


def test_the_query_label_moves_only_its_own_slots(rng):
    model = LinearSelfAttention(query_in_sum=False)
    prompt = random_prompt(rng, N, DIM, 2)
    label = np.array([0.3, -0.7])
    np.testing.assert_array_equal(model.tokens(prompt, query_label=label), merged_tokens(prompt, label))
    weights = LSAWeights(w_pv=np.zeros((4, 4)), w_kq=np.zeros((4, 4)))
    np.testing.assert_array_equal(model(weights, prompt, query_label=label), label)


def test_merged_and_separate_weights_are_the_same_function(rng):
    separate = SeparateWeights(
        w_p=rng.normal(size=(2, WIDTH, 2)) + 1j * rng.normal(size=(2, WIDTH, 2)),
        w_v=rng.normal(size=(2, 2, WIDTH)) + 0j,
        w_k=rng.normal(size=(2, 1, WIDTH)) + 1j * rng.normal(size=(2, 1, WIDTH)),
        w_q=rng.normal(size=(2, 1, WIDTH)) + 1j * rng.normal(size=(2, 1, WIDTH)),
    )
    prompt = random_prompt(rng, N, DIM, LABELS, np.complex128)
    model = LinearSelfAttention()
    heads = [(separate.w_p[h] @ separate.w_v[h], np.outer(separate.w_k[h, 0].conj(), separate.w_q[h, 0])) for h in range(2)]
    expected = linear_reference(model, [heads], merged_tokens(prompt))[-1, DIM:]
    np.testing.assert_allclose(model(separate, prompt), expected, **ROUNDING)
    np.testing.assert_allclose(model(separate.merged(), prompt), expected, **ROUNDING)


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.1, 10), negative=st.booleans(), causal=st.booleans())
def test_value_and_key_query_scales_are_a_gauge(seed, scale, negative, causal):
    rng = np.random.default_rng(seed)
    prompt, weights = random_prompt(rng, N, DIM, LABELS), draw_weights(rng, 2)
    scale = -scale if negative else scale
    moved = LSAWeights(w_pv=scale * weights.w_pv, w_kq=weights.w_kq / scale)
    model = LinearSelfAttention(causal=causal)
    with precision.float64():
        tokens = model.tokens(prompt)
        np.testing.assert_allclose(model.apply(moved, tokens), model.apply(weights, tokens), rtol=1e-11, atol=1e-11)


@given(seed=st.integers(0, 2**32 - 1))
def test_heads_may_be_mixed_by_an_invertible_matrix(seed):
    """A permutation is the special case; W_PV takes the inverse transpose."""
    rng = np.random.default_rng(seed)
    prompt, weights = random_prompt(rng, N, DIM, LABELS), draw_weights(rng, 2)
    mix = np.eye(2) + 0.3 * rng.uniform(-1, 1, size=(2, 2))
    for matrix in (mix, np.array([[0.0, 1.0], [1.0, 0.0]])):
        moved = LSAWeights(
            w_pv=np.einsum("gh,hab->gab", np.linalg.inv(matrix).T, weights.w_pv),
            w_kq=np.einsum("gh,hab->gab", matrix, weights.w_kq),
        )
        with precision.float64():
            model = LinearSelfAttention()
            np.testing.assert_allclose(model(moved, prompt), model(weights, prompt), rtol=1e-10, atol=1e-11)


@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_examples_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    prompt, weights = random_prompt(rng, N, DIM, LABELS), (draw_weights(rng), draw_weights(rng, 2))
    order = rng.permutation(N)
    shuffled = type(prompt)(prompt.inputs[order], prompt.labels[order], prompt.query, prompt.target)
    with precision.float64():
        model = LinearSelfAttention()
        expected = model(weights, prompt)
        np.testing.assert_allclose(model(weights, shuffled), expected, rtol=1e-10, atol=1e-10)


def test_no_array_has_two_token_axes(rng):
    prompt = random_prompt(rng, 13, DIM, LABELS)
    token_counts = {13, 14}

    def with_two_token_axes(function, *arguments):
        shapes = shapes_in(jax.make_jaxpr(function)(*arguments))
        return {shape for shape in shapes if sum(size in token_counts for size in shape) > 1}

    layers = (draw_weights(rng), draw_weights(rng, 2))
    for query_in_sum, causal in itertools.product([True, False], repeat=2):
        model = LinearSelfAttention(query_in_sum=query_in_sum, causal=causal, loops=2)
        assert not with_two_token_axes(model, layers, prompt)
        assert not with_two_token_axes(model.apply, layers, model.tokens(prompt))
        assert not with_two_token_axes(jax.grad(lambda w, p, m=model: m(w, p)[0]), layers, prompt)
    # The walk does see such arrays where they exist, also inside a loop.
    softmax = SoftmaxSelfAttention(loops=2)
    assert with_two_token_axes(softmax, layers, prompt) >= {(1, 14, 14), (2, 14, 14)}


@pytest.mark.parametrize("causal", [False, True])
def test_cost_grows_linearly_with_the_context(rng, causal):
    weights = (draw_weights(rng), draw_weights(rng))
    model = LinearSelfAttention(causal=causal)

    def flops(count):
        prompt = random_prompt(rng, count, DIM, LABELS)
        return jax.jit(model).lower(weights, prompt).cost_analysis()["flops"]

    small, middle, large = flops(64), flops(128), flops(256)
    # Exactly linear counts double their increments; a quadratic part would bring the ratio towards 4.
    assert (large - middle) / (middle - small) == pytest.approx(2.0, rel=0.01)


def test_batches_by_vmap_and_jit(rng):
    model, weights = LinearSelfAttention(), draw_weights(rng, 2)
    prompts = [random_prompt(rng, N, DIM, LABELS) for _ in range(3)]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *prompts)
    answers = jax.jit(jax.vmap(model, in_axes=(None, 0)))(weights, batch)
    np.testing.assert_allclose(answers, np.stack([model(weights, prompt) for prompt in prompts]), **ROUNDING)


def test_complex_weights_take_a_real_prompt(rng):
    prompt, weights = random_prompt(rng, N, DIM, LABELS), draw_weights(rng, None, np.complex128)
    expected = linear_reference(LinearSelfAttention(), [as_heads(weights)], merged_tokens(prompt))[-1, DIM:]
    answer = LinearSelfAttention()(weights, prompt)
    assert answer.dtype == np.complex128
    np.testing.assert_allclose(answer, expected, **ROUNDING)


@pytest.mark.default_precision
def test_outside_the_float64_scope_the_answer_is_float32(rng):
    prompt, weights = random_prompt(rng, N, DIM, LABELS), draw_weights(rng)
    answer = LinearSelfAttention()(weights, prompt)
    assert answer.dtype == np.float32
    expected = linear_reference(LinearSelfAttention(), [as_heads(weights)], merged_tokens(prompt))[-1, DIM:]
    np.testing.assert_allclose(answer, expected, rtol=1e-4)


def test_the_model_is_static_and_hashable():
    model = LinearSelfAttention(query_in_sum=False, readout_sign=-1.0)
    assert jax.tree.leaves(model) == []
    assert {model: 1}[LinearSelfAttention(query_in_sum=False, readout_sign=-1.0)] == 1
    assert model != LinearSelfAttention(query_in_sum=True, readout_sign=-1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"normaliser": "tokens"}, "normaliser"),
        ({"loops": 0}, "loops"),
        ({"readout_sign": 2.0}, "readout_sign"),
        ({"embedding": "mergd"}, "mergd"),
    ],
)
def test_an_unknown_setting_is_named(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        LinearSelfAttention(**arguments)


def test_weights_of_another_width_are_an_error_that_says_both(rng):
    prompt = random_prompt(rng, N, DIM, LABELS)
    good, wide = draw_weights(rng), draw_weights(rng, width=4)
    with pytest.raises(InvalidValueError, match=r"layer 1 must be \(3, 3\).*got shape \(4, 4\)"):
        jax.eval_shape(LinearSelfAttention(), (good, wide), prompt)
    with pytest.raises(InvalidValueError, match="at least one layer"):
        LinearSelfAttention()((), prompt)
