"""Layers with a token-wise map, and weight decay and momentum written as updates of the label slots."""

import numpy as np
import pytest

from icl_lab.core.errors import InvalidValueError
from icl_lab.models import LinearSelfAttention, LSAWeights, MappedWeights
from icl_lab.models.constructions import memory
from tests.models.attention_reference import random_prompt

N, DIM, LABELS, ETA = 6, 3, 2, 0.4
PLAIN = LinearSelfAttention(query_in_sum=False, normaliser="none")


@pytest.fixture
def prompt(rng):
    return random_prompt(rng, N, DIM, LABELS)


def test_the_identity_map_is_the_residual_connection(rng):
    tokens, (w_pv, w_kq) = rng.normal(size=(N + 1, 4)), rng.normal(size=(2, 4, 4))
    weights = LSAWeights(w_pv, w_kq)
    after = memory.MODEL.apply(MappedWeights(weights, np.eye(4)), tokens)
    np.testing.assert_allclose(after, PLAIN.apply(weights, tokens), rtol=1e-13)


def test_a_map_acts_on_the_token_before_the_layer(rng):
    tokens, token_map = rng.normal(size=(N + 1, 4)), rng.normal(size=(4, 4))
    nothing = LSAWeights(np.zeros((4, 4)), np.zeros((4, 4)))
    after = memory.MODEL.apply((MappedWeights(nothing, token_map),) * 2, tokens)
    np.testing.assert_allclose(after, tokens @ token_map.T @ token_map.T, rtol=1e-12)


def _gradient_part(points, residuals):
    return -ETA / N * points @ points[:-1].T @ residuals[:-1]


def test_weight_decay_updates_the_residuals(prompt):
    decay = 0.3
    points = np.vstack([prompt.inputs, prompt.query[None]])
    y = np.vstack([prompt.labels, np.zeros((1, LABELS))])
    r = y.copy()
    for _ in range(3):
        r = (1 - ETA * decay) * r + ETA * decay * y + _gradient_part(points, r)
    layer = memory.ridge(DIM, LABELS, N, ETA, decay)
    after = memory.MODEL.apply([layer] * 3, memory.memory_tokens(prompt, prompt.labels))
    np.testing.assert_allclose(after, np.hstack([points, y, r]), rtol=1e-12, atol=1e-14)


def test_momentum_updates_memory_and_residuals(prompt):
    points = np.vstack([prompt.inputs, prompt.query[None]])
    r, m = np.vstack([prompt.labels, np.zeros((1, LABELS))]), np.zeros((N + 1, LABELS))
    for _ in range(3):
        m = 0.5 * m + _gradient_part(points, r)
        r = r + m
    layer = memory.momentum(DIM, LABELS, N, ETA, 0.5)
    after = memory.MODEL.apply([layer] * 3, memory.memory_tokens(prompt, np.zeros((N, LABELS))))
    np.testing.assert_allclose(after, np.hstack([points, m, r]), rtol=1e-12, atol=1e-14)


def test_the_answer_is_read_from_the_query_alone(rng):
    prompt = random_prompt(rng, N, DIM, 1)
    layers = tuple(
        MappedWeights(LSAWeights(*rng.normal(size=(2, DIM + 1, DIM + 1))), rng.normal(size=(DIM + 1, DIM + 1)))
        for _ in range(2)
    )
    after = np.asarray(memory.MODEL.apply(layers, memory.MODEL.tokens(prompt)))
    np.testing.assert_allclose(memory.MODEL(layers, prompt), -after[-1, DIM:], rtol=1e-12, atol=1e-12 * np.abs(after).max())


def test_a_map_of_another_width_is_named(rng):
    attention = LSAWeights(*rng.normal(size=(2, 4, 4)))
    for weights in (MappedWeights(attention, np.eye(3)), MappedWeights(LSAWeights(np.eye(3), np.eye(3)), np.eye(4))):
        with pytest.raises(InvalidValueError, match=r"of layer 0 must be \(4, 4\).*got shape \(3, 3\)"):
            memory.MODEL.apply(weights, rng.normal(size=(5, 4)))
    with pytest.raises(InvalidValueError, match="the weights of layer 0 must be `MappedWeights`"):
        memory.MODEL.apply(attention, rng.normal(size=(5, 4)))
