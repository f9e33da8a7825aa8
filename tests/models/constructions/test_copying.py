"""The copying layer and the step on its copies, entry by entry and against a step written out."""

import numpy as np
import pytest

from icl_lab.models import LinearSelfAttention, SoftmaxSelfAttention
from icl_lab.models.constructions import copying
from icl_lab.tasks.embeddings import interleaved, with_positions
from tests.models.attention_reference import random_prompt

MODEL = LinearSelfAttention(query_in_sum=True, normaliser="none")


def test_tokens_hold_position_content_and_room(rng):
    contents = rng.normal(size=(3, 2))
    tokens = np.asarray(with_positions(contents))
    np.testing.assert_array_equal(tokens, np.hstack([np.eye(3), contents, np.zeros((3, 2))]))


def test_every_token_but_the_last_copies_the_next(rng):
    contents = rng.normal(size=(5, 2))
    after = np.asarray(MODEL.apply(copying.copy_successor(2, 5), with_positions(contents)))
    np.testing.assert_allclose(after[:-1], np.hstack([np.zeros((4, 5)), contents[:-1], contents[1:]]), atol=1e-15)
    np.testing.assert_allclose(after[-1], [0, 0, 0, 0, 1, *contents[-1], 0, 0], atol=1e-15)


@pytest.mark.parametrize(("dim", "label_dim"), [(3, 2), (1, 1), (2, 3)])
def test_copying_then_a_step_is_gradient_descent(rng, dim, label_dim):
    prompt = random_prompt(rng, 4, dim, label_dim)
    contents = np.asarray(interleaved(prompt))
    width, count = contents.shape[1], len(contents)
    layers = (copying.copy_successor(width, count), copying.step_on_copies(width, count, dim, label_dim, 4, 0.7))
    answer = np.asarray(MODEL.apply(layers, with_positions(contents)))[-1, -label_dim:]
    expected = 0.7 / 4 * sum(y * (x @ prompt.query) for x, y in zip(prompt.inputs, prompt.labels, strict=True))
    np.testing.assert_allclose(answer, expected, rtol=1e-12)


def test_softmax_copies_in_the_limit_of_large_scores(rng):
    contents = rng.normal(size=(5, 2))
    model = SoftmaxSelfAttention(query_in_sum=True)
    exact = np.asarray(MODEL.apply(copying.copy_successor(2, 5), with_positions(contents)))[:-1]

    def error(score):
        soft = np.asarray(model.apply(copying.copy_successor(2, 5, score), with_positions(contents)))[:-1]
        return np.max(np.abs(soft - exact))

    assert error(1.0) > 0.1
    assert error(40.0) < 1e-15 * 1e2
