"""Layers that forecast a known series: what they answer, written out in plain numpy."""

import jax
import numpy as np
import pytest

from icl_lab.core.errors import InvalidValueError
from icl_lab.models import LinearSelfAttention, SoftmaxSelfAttention, constructions
from icl_lab.tasks.embeddings import hankel
from icl_lab.tasks.series.autoregressive import Autoregressive

LSA = LinearSelfAttention(embedding="hankel", query_in_sum=False)
RHO, SIGMA, N = np.array([0.5, -0.3]), 0.7, 9


@pytest.fixture
def prompt(key):
    return Autoregressive(RHO, N, SIGMA).sample(key)


def innovations(prompt):
    return np.asarray(prompt.labels)[:, 0] - np.asarray(prompt.inputs) @ RHO[::-1]


def test_one_layer_rescales_the_best_prediction(prompt):
    estimate = np.mean(innovations(prompt) ** 2) / SIGMA**2
    best = RHO[::-1] @ np.asarray(prompt.query)
    unscaled = LSA(constructions.series.one_layer(RHO, SIGMA), prompt)
    scaled = LSA(constructions.series.one_layer(RHO, SIGMA, N), prompt)
    np.testing.assert_allclose(unscaled, [estimate * best], rtol=1e-12)
    np.testing.assert_allclose(scaled, [N / (N + 4) * estimate * best], rtol=1e-12)


def test_two_layers_correct_the_first(prompt):
    first = np.mean(innovations(prompt) ** 2) / SIGMA**2
    predictions = np.asarray(prompt.inputs) @ RHO[::-1]
    second = np.mean((innovations(prompt) - (1 - first) * predictions) ** 2) / SIGMA**2
    best = RHO[::-1] @ np.asarray(prompt.query)
    answer = LSA(constructions.series.two_layers(RHO, SIGMA), prompt)
    np.testing.assert_allclose(answer, [best * (1 - (1 - first) * (1 - second))], rtol=1e-12)


def test_the_softmax_head_weighs_innovations(prompt):
    columns = np.asarray(hankel(prompt))[:-1]
    best = RHO[::-1] @ np.asarray(prompt.query)
    noise = columns @ np.append(-RHO[::-1], 1.0)
    np.testing.assert_allclose(noise, innovations(prompt), rtol=1e-10)
    weights = np.exp(noise * best / (SIGMA**2 * 1.5))
    expected = 1.5 * weights @ noise / np.sum(weights)
    answer = SoftmaxSelfAttention(embedding="hankel", query_in_sum=False)(
        constructions.series.softmax_head(RHO, SIGMA, 1.5), prompt
    )
    np.testing.assert_allclose(answer, [expected], rtol=1e-12)


def test_what_no_series_has_is_refused():
    with pytest.raises(InvalidValueError, match="stationary"):
        constructions.series.two_layers(np.array([1.2]), 1.0)
    with pytest.raises(InvalidValueError, match="context_length"):
        constructions.series.one_layer(RHO, SIGMA, 0)


def test_weights_are_of_the_shape_of_a_layer():
    for layer in constructions.series.two_layers(RHO, SIGMA):
        assert layer.w_pv.shape == layer.w_kq.shape == (3, 3)
        assert not np.any(layer.w_pv[:-1])
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(constructions.series.one_layer(RHO, SIGMA, N)))
