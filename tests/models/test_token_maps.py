"""Token-wise layers, LayerNorm, clipping, and stacks of different layers, against the same thing written out in numpy."""

import numpy as np
import pytest
from scipy.stats import norm

from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.models import (
    MLP,
    Embedding,
    Layered,
    LinearLayer,
    LinearSelfAttention,
    LSAWeights,
    SoftmaxLayer,
    SoftmaxSelfAttention,
    constructions,
)
from icl_lab.models.constructions import copying
from tests.models.attention_reference import random_prompt

N, DIM = 6, 3
ROUNDING = {"rtol": 1e-12, "atol": 1e-12}
GD = LinearSelfAttention(query_in_sum=False, readout_sign=-1.0)


def layer(rng, width):
    return LSAWeights(w_pv=rng.normal(size=(width, width)) / 2, w_kq=rng.normal(size=(width, width)) / 2)


def test_embedding_network_and_attention_in_a_row(rng):
    prompt = random_prompt(rng, N, DIM, 1)
    widen = Embedding(rng.normal(size=(7, DIM + 1)) / np.sqrt(DIM + 1))
    network = MLP(
        w_in=rng.normal(size=(11, 7)) / np.sqrt(7),
        b_in=rng.normal(size=11),
        w_out=rng.normal(size=(7, 11)) / np.sqrt(11),
        b_out=rng.normal(size=7),
    )
    last = layer(rng, 7)
    tokens = np.asarray(GD.tokens(prompt)) @ widen.matrix.T
    hidden = tokens @ network.w_in.T + network.b_in
    # The tanh approximation of the network differs from the exact one by less than 1e-3.
    approximate = hidden / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    np.testing.assert_allclose(approximate, hidden * norm.cdf(hidden), atol=1e-3)
    tokens = tokens + approximate @ network.w_out.T + network.b_out
    keyed = tokens[:-1] @ last.w_kq @ tokens[-1]
    expected = -(tokens[-1] + last.w_pv @ (keyed @ tokens[:-1]) / N)[-1:]
    np.testing.assert_allclose(GD((widen, network, last), prompt), expected, **ROUNDING)
    # A token-wise map may also come last.
    narrow = Embedding(rng.normal(size=(2, 7)))
    after = GD.apply((widen, network, last), GD.tokens(prompt))
    np.testing.assert_allclose(
        GD((widen, network, last, narrow), prompt), -(np.asarray(after) @ narrow.matrix.T)[-1, -1:], **ROUNDING
    )


def test_layer_norm_shows_attention_standardised_tokens_and_clipping_bounds_them(rng):
    prompt, weights = random_prompt(rng, N, DIM, 1), layer(rng, DIM + 1)
    model = LinearSelfAttention(query_in_sum=False, layer_norm=True, clip=0.8)
    tokens = np.asarray(model.tokens(prompt))
    for _ in range(2):
        seen = (tokens - tokens.mean(axis=1, keepdims=True)) / np.sqrt(tokens.var(axis=1, keepdims=True) + 1e-5)
        scores = seen @ weights.w_kq.T @ seen[:-1].T
        tokens = np.clip(tokens + scores @ (seen[:-1] @ weights.w_pv.T) / N, -0.8, 0.8)
    np.testing.assert_allclose(model.apply((weights, weights), model.tokens(prompt)), tokens, **ROUNDING)
    np.testing.assert_allclose(model((weights, weights), prompt), tokens[-1, -1:], **ROUNDING)
    assert np.max(np.abs(tokens)) == 0.8
    assert not model.is_single_pass


def test_a_stack_copies_with_one_kind_of_layer_and_steps_with_another(rng):
    count, dim, eta = 4, 2, 0.7
    prompt = random_prompt(rng, count, dim, 1)
    tokens = 2 * count + 1
    weights = (copying.copy_successor(dim + 1, tokens), copying.step_on_copies(dim + 1, tokens, dim, 1, count, eta))
    expected = eta / count * prompt.labels[:, 0] @ (prompt.inputs @ prompt.query)
    linear = LinearSelfAttention(embedding="positioned", normaliser="none")
    np.testing.assert_allclose(linear(weights, prompt), [expected], **ROUNDING)
    step = LinearLayer(normaliser="none")
    same = Layered((step, step), embedding="positioned")
    np.testing.assert_allclose(same(weights, prompt), [expected], **ROUNDING)
    # Softmax leaves an average in the copy of the query token, which has no successor; the step reads it with the answer.
    softmax = SoftmaxSelfAttention(embedding="positioned", inverse_temperature=20.0)
    copied = softmax.apply(weights[0], softmax.tokens(prompt))
    expected = np.asarray(linear.apply(weights[1], copied))[-1, -1:]
    mixed = Layered((SoftmaxLayer(inverse_temperature=20.0), step), embedding="positioned")
    np.testing.assert_allclose(mixed(weights, prompt), expected, **ROUNDING)
    np.testing.assert_allclose(mixed.apply(weights, mixed.tokens(prompt))[-1, -1:], expected, **ROUNDING)
    with pytest.raises(InvalidValueError, match=r"one entry for each of the 2 layers.*got 1"):
        mixed(weights[:1], prompt)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: LinearSelfAttention(clip=0.0), InvalidValueError, "`clip` must be null or a number > 0"),
        (lambda: Layered(()), InvalidValueError, "at least one layer"),
        (lambda: Layered((LinearLayer(), GD)), InvalidValueError, "no embedding and no loops; got LinearSelfAttention"),
        (lambda: Layered(LinearLayer(), embedding="mergd"), InvalidValueError, "mergd"),
        (
            lambda: constructions.gradient_descent(LinearSelfAttention(layer_norm=True), 2, 5, 0.1),
            UnsupportedProblemError,
            "layer_norm=False",
        ),
    ],
)
def test_misuse_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_widths_that_do_not_fit_are_named(rng):
    prompt = random_prompt(rng, N, DIM, 1)
    widen = Embedding(rng.normal(size=(7, DIM + 2)))
    with pytest.raises(InvalidValueError, match="layer 0 maps tokens of width 5; these are 4 wide"):
        GD((widen, layer(rng, 7)), prompt)
    widen = Embedding(rng.normal(size=(7, DIM + 1)))
    with pytest.raises(InvalidValueError, match="must keep the width of a token; 4 becomes 7"):
        LinearSelfAttention(loops=2)((widen, layer(rng, 7)), prompt)
